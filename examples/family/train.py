"""Train the family: a tokenizer, a base on general documentation, and an expert of each domain that starts from it.

    python examples/family/texts.py   # the text of the base, once
    python examples/family/train.py   # about half an hour on two cores

Models of 2.6 million parameters are written below examples/family/models as bf16, each with its config, tokenizer, card
and log. Every run counts its steps and continues from its last checkpoint (build/family/runs) if it was stopped; what
it has finished it does not repeat. `--seed` and `--models` train experts with another seed, elsewhere, and names train
these alone: `python-constant` is the expert of Python at a constant rate, which is not shipped.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))
from cards import write_card
from texts import BUILD, EXPERTS, HERE, read

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS, RUNS = HERE / "models", BUILD / "runs"
END, VOCABULARY = "<|endoftext|>", 4096
WINDOW, BATCH, WARM_UP = 256, 8, 50
# Kept, of the runs below, for averages: the state at every 20 steps of the last 120.
KEPT, APART = 6, 20


class Run(NamedTuple):
    """What a model is trained on, from which it starts, and how."""

    name: str
    domain: str
    start: str | None
    steps: int
    rate: float
    decay: bool = True


RUNS_OF_FAMILY = (
    Run("base", "general", None, 1500, 3e-3),
    *(Run(domain, domain, "base", 300, 5e-4) for domain in EXPERTS),
)
# The same expert at a constant learning rate: averages of its last states are measured, the model is not shipped.
CONSTANT = Run("python-constant", "python", "base", 300, 5e-4, decay=False)


def tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the byte-level BPE of the train texts of all domains, trained if it is not there yet."""
    if not (path / "tokenizer.json").exists():
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        texts = [text[:20_000] for domain in ("general", *EXPERTS) for text in read(domain, "train")[:150]]
        made.train_from_iterator(
            texts,
            trainers.BpeTrainer(
                vocab_size=VOCABULARY,
                special_tokens=[END],
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=made, bos_token=END, eos_token=END, pad_token=END, model_max_length=WINDOW
        )
        wrapped.save_pretrained(path)
    return PreTrainedTokenizerFast.from_pretrained(path)


def new_model() -> LlamaForCausalLM:
    """Return a model of 2.6 million parameters, drawn at random."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
        )
    )


def windows(tokens: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Return the tokens of texts, each after an end of text, in windows (N, 256)."""
    ids = [token for text in texts for token in [tokens.eos_token_id, *tokens(text, verbose=False)["input_ids"]]]
    return torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)


def batches(data: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """Return batches (8, 256) without end, in an order of each epoch that depends on the seed."""
    epoch = 0
    while True:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        yield from (data[some] for some in order.split(BATCH) if len(some) == BATCH)
        epoch += 1


def rate_at(step: int, run: Run) -> float:
    """Return the learning rate: a warm-up, then constant, or a cosine to a tenth."""
    if step < WARM_UP:
        return run.rate * (step + 1) / WARM_UP
    if not run.decay:
        return run.rate
    done = (step - WARM_UP) / (run.steps - WARM_UP)
    return run.rate * (0.55 + 0.45 * math.cos(math.pi * done))


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of a batch, computed in bf16 with float32 weights and logits."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def held_out(model: LlamaForCausalLM, data: torch.Tensor) -> float:
    """Return the mean loss per token of validation windows."""
    with torch.no_grad():
        return sum(loss_of(model, some).item() * len(some) for some in data.split(BATCH)) / len(data)


def train(run: Run, models_at: Path, runs_at: Path, seed: int) -> None:
    """Train one model, from its last checkpoint if there is one, and write it."""
    out = models_at / run.name if run is not CONSTANT else runs_at / run.name / "last"
    if (out / "model.safetensors").exists():
        return
    tokens = tokenizer(MODELS / "base")
    torch.manual_seed(seed)
    model = new_model() if run.start is None else LlamaForCausalLM.from_pretrained(MODELS / run.start, dtype="float32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.rate, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    state_at = runs_at / run.name / "state.pt"
    state_at.parent.mkdir(parents=True, exist_ok=True)
    begin, log = 0, []
    if state_at.exists():
        state = torch.load(state_at, weights_only=True)
        begin, log = state["step"], state["log"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    data, validation = windows(tokens, read(run.domain, "train")), windows(tokens, read(run.domain, "validation"))[:64]
    feed = batches(data, seed)
    for _ in range(begin):
        next(feed)
    clock, losses = time.monotonic(), []
    for step in range(begin, run.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, run)
        loss = loss_of(model, next(feed))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        done = step + 1
        if done % 100 == 0 or done == run.steps:
            line = {"step": done, "tokens": done * BATCH * WINDOW, "train_loss": round(sum(losses) / len(losses), 4)}
            line |= {"validation_loss": round(held_out(model, validation), 4), "rate": round(rate_at(step, run), 7)}
            line |= {"seconds": round(time.monotonic() - clock, 1)}
            log.append(line)
            clock, losses = time.monotonic(), []
            print(run.name, json.dumps(line), flush=True)
            state = {"step": done, "log": log, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, state_at.with_suffix(".part"))
            state_at.with_suffix(".part").replace(state_at)
        if run.start is not None and done > run.steps - KEPT * APART and (run.steps - done) % APART == 0:
            write(model, tokens, runs_at / run.name / f"step-{done}")
    write(model, tokens, out)
    head = {"run": run._asdict(), "seed": seed, "torch": torch.__version__, "threads": torch.get_num_threads()}
    head |= {"windows": len(data), "window": WINDOW, "batch": BATCH}
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [head, *log]))
    write_card(out, head, log)


def write(model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a model as bf16 with its tokenizer."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokens.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def main() -> int:
    parser = argparse.ArgumentParser(description="train the base and the experts")
    named = {run.name: run for run in (*RUNS_OF_FAMILY, CONSTANT)}
    parser.add_argument("runs", nargs="*", default=[run.name for run in RUNS_OF_FAMILY], help=f"of {', '.join(named)}")
    parser.add_argument("--seed", type=int, default=0, help="of the order of texts, and of the base's weights")
    parser.add_argument("--models", type=Path, default=MODELS, help="where models are written")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.runs if name not in named]:
        parser.error(f"there is no run {', '.join(unknown)}")
    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    runs_at = RUNS / str(arguments.seed)
    for run in map(named.__getitem__, arguments.runs):
        if run.start is not None or arguments.models == MODELS:
            train(run, arguments.models, runs_at, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
