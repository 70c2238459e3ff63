"""Merge the three rxnfp models by four methods, reload each result with transformers, and print its loss on reactions.

What is measured is masked-token loss (nats a token, lower is better) on the reactions that the package's README
writes out. The fine-tunes were published without a head that predicts tokens, so their encoders are read through the
base's head, which they were not trained with; the merges carry the base's head. One reaction ranks nothing: the
figures show that the merged weights are alive and where they lie, not which method is best.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer
from transformers.utils import logging

from prepare import NAMES, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HERE = Path(__file__).parent
RECIPES = ("linear", "slerp", "task_arithmetic", "ties")
DRAWS = 64
MASKED = 0.15


def masked_batches(directory: Path, reactions: list[str]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each reaction, `DRAWS` masked copies (B, T) and the tokens wanted, -100 where not masked (B, T)."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for reaction in reactions:
        ids = tokenizer(reaction, return_tensors="pt")["input_ids"].repeat(DRAWS, 1)
        masked = torch.rand(ids.shape, generator=generator) < MASKED
        masked[:, 0] = masked[:, -1] = False  # [CLS] and [SEP]
        batches.append((ids.masked_fill(masked, tokenizer.mask_token_id), ids.masked_fill(~masked, -100)))
    return batches


def loss(model: PreTrainedModel, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Mean cross-entropy over all masked tokens, in nats."""
    model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids, wanted in batches:
            logits = model(input_ids=ids).prediction_logits
            total += torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="sum").item()
            count += int((wanted != -100).sum())
    return total / count


def load_whole(directory: Path) -> PreTrainedModel:
    """Load a checkpoint with its heads, and refuse one that has a weight too many or too few."""
    model, report = AutoModelForPreTraining.from_pretrained(directory, output_loading_info=True)
    wrong = {kind: sorted(names) for kind, names in report.items() if names}
    if wrong:
        raise ValueError(f"{directory}: transformers reports {wrong}")
    return model


def load_encoder(directory: Path, heads: Path) -> PreTrainedModel:
    """Load a checkpoint that has an encoder only, under the heads of another."""
    model = load_whole(heads)
    model.bert.load_state_dict(AutoModel.from_pretrained(directory).state_dict())
    return model


def merge(recipe: Path, out: Path) -> None:
    """Run the command as a user would."""
    command = [str(Path(sys.executable).with_name("mol-merge")), str(recipe), str(out), "--overwrite"]
    print("$ mol-merge", *command[1:], flush=True)
    subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="merge three published models four ways and print their masked-token loss"
    )
    parser.add_argument("--package", type=Path, help="folder of the downloaded wheel, unless build/rxnfp")
    package = parser.parse_args().package
    directory = Path("build/rxnfp")  # as the recipes name it, from the current directory
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    reactions = prepare(directory, package)
    base = directory / NAMES[0]
    batches = masked_batches(base, reactions)
    rows = [("the base, bert_pretrained", loss(load_whole(base), batches))]
    rows += [
        (f"fine-tune {name}, base's head", loss(load_encoder(directory / name, base), batches)) for name in NAMES[1:]
    ]
    for name in RECIPES:
        out = directory / "merged" / name
        merge(HERE / f"{name}.yml", out)
        rows.append((f"merged by {name}", loss(load_whole(out), batches)))

    tokens = sum(int((wanted != -100).sum()) for _, wanted in batches)
    print(f"\nmasked-token loss, nats ({len(reactions)} reaction, {DRAWS} maskings of {MASKED:.0%}, {tokens} tokens)")
    for label, value in rows:
        print(f"  {label:38} {value:8.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
