"""Combine three experts in every way that mol has, and print what each is worth on text of their domains.

The experts start from one base and have each seen one domain that it has not. They are merged by task arithmetic, their
outputs are mixed, and their blocks are fused: next to each other in the merge, behind one router, which is trained with
the adapters. Bits per byte are of test text, lower is better; docs/evidence.md has all rows, on more of it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

import mol
from mol import MoLConfig, MoLMixture, MoLRuntime, MoLTrainer, TrainingConfig

sys.path.insert(0, str(Path(__file__).parent))
from texts import EXPERTS, HERE, read

BUILD = Path("build/family/demo")
BASE, LAYERS, LENGTH = str(HERE / "models/base"), range(4), 256
MODELS = [str(HERE / "models" / name) for name in EXPERTS]


def merge() -> str:
    """Add 0.4 of each expert's difference from the base to the base."""
    models = [{"model": model, "parameters": {"weight": 0.4}} for model in MODELS]
    out = BUILD / "merged"
    shutil.rmtree(out, ignore_errors=True)
    mol.run_merge({"merge_method": "task_arithmetic", "base_model": BASE, "models": models}, out)
    return str(out)


def fuse(host: str) -> MoLRuntime:
    """Put the four blocks of each expert, in a row, behind one router of a host; adapters start as the identity."""
    torch.manual_seed(0)
    runtime = MoLRuntime(MoLConfig(models=[host, *MODELS], keep_host_layers=False, dtype="float32"))
    runtime.add_layer([(model, LAYERS) for model in MODELS], layer_idx=0)
    return runtime


def rows(tokenizer: PreTrainedTokenizerFast, count: int) -> list[dict[str, torch.Tensor]]:
    """Return windows of the experts' train text, of one domain after the other, with the number of its expert."""
    found = []
    for domain in EXPERTS:
        ids = tokenizer("\n\n".join(read(domain, "train")[:40]), verbose=False)["input_ids"]
        found.append(torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).reshape(-1, LENGTH))
    mask = torch.ones(LENGTH, dtype=torch.long)
    return [
        {"input_ids": found[at % 3][at // 3], "attention_mask": mask, "domains": torch.tensor(at % 3)}
        for at in range(count)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="merge, mix and fuse three small experts, and measure each result")
    parser.add_argument("--steps", type=int, default=60, help="training steps of the fusion, of 2,048 tokens each")
    steps = parser.parse_args().steps
    start = time.monotonic()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    texts = {domain: [text[:2000] for text in read(domain, "test")[:10]] for domain in EXPERTS}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(BASE)

    print(f"{'bits per byte of test text':44} {'mean':>7} {' '.join(f'{name:>8}' for name in EXPERTS)}")

    def show(label: str, model: object) -> None:
        named = {"dtype": "float32"} if isinstance(model, str) else {"tokenizer": tokenizer}
        found = mol.evaluate(model, texts, stride=LENGTH, progress=False, **named)
        print(f"{label:44} {found.bits_per_byte:7.3f} ", end="")
        print(" ".join(f"{score.bits_per_byte:8.3f}" for score in found.domains.values()), flush=True)

    show("the base", BASE)
    for name, model in zip(EXPERTS, MODELS, strict=True):
        show(f"the expert {name}", model)
    merged = merge()
    show("merged by task arithmetic", merged)
    show("outputs mixed, equal weights", MoLMixture.from_models(MODELS))
    show("outputs mixed by posterior", MoLMixture.from_models(MODELS, "posterior"))
    runtime = fuse(merged)
    show("fused in the merge, not trained", runtime)
    config = TrainingConfig(
        learning_rate=1e-2, router_learning_rate=1e-2, domain_loss_coeff=0.1, max_steps=steps, warmup_steps=10,
        mixed_precision="bf16", eval_steps=None, save_steps=None, output_dir=str(BUILD / "training"),
    )  # fmt: skip
    MoLTrainer(runtime, config).train(rows(tokenizer, steps * config.batch_size))
    show(f"fused in the merge, trained for {steps} steps", runtime)
    print(f"{time.monotonic() - start:.0f} s with {torch.get_num_threads()} threads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
