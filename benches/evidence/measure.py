"""Measures a model of the evidence: bits per byte by domain and document, and what a token costs."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from names import EXPERTS  # finds texts, too
from texts import read
from torch.utils.flop_counter import FlopCounterMode

import mol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
MODELS: Final = ROOT / "examples" / "family" / "models"
SWITCHING: Final = "switching"
WINDOW: Final = 256
# Of each document the first characters, and of each domain so many bytes.
CUT: Final = {"test": (4000, 60_000), "validation": (2000, 20_000)}
SWITCHING_DOCUMENTS: Final = 60
PASSAGE: Final = 250


def documents(domain: str, split: str) -> list[str]:
    """Return the documents of a domain that are measured, each cut to its first characters."""
    longest, room = CUT[split]
    found = []
    for text in read(domain, split):
        cut = text[:longest]
        if (room := room - len(cut.encode())) < 0:
            break
        found.append(cut)
    return found


def switching() -> list[str]:
    """Return documents of three passages of test text, one of each domain in an order drawn at random."""
    draw = random.Random(0)
    texts = {domain: read(domain, "test") for domain in EXPERTS}
    made = []
    for _ in range(SWITCHING_DOCUMENTS):
        passages = []
        for domain in draw.sample(EXPERTS, len(EXPERTS)):
            text = draw.choice(texts[domain])
            start = draw.randrange(max(len(text) - PASSAGE, 1))
            passages.append(text[start : start + PASSAGE])
        made.append("\n\n".join(passages))
    return made


def test_texts() -> dict[str, list[str]]:
    """Return what rows are measured on."""
    return {name: documents(name, "test") for name in (*EXPERTS, "general")} | {SWITCHING: switching()}


def validation_texts() -> dict[str, list[str]]:
    """Return what scales are chosen on."""
    return {name: documents(name, "validation") for name in EXPERTS}


def losses(model: Any, texts: Mapping[str, Sequence[str]], tokenizer: Any = None) -> dict[str, list[list[float]]]:  # noqa: ANN401
    """Return by domain, for each document, its negative log likelihood in nats and its bytes."""
    named = {f"{domain}/{at}": text for domain, some in texts.items() for at, text in enumerate(some)}
    options: dict[str, Any] = {"dtype": "float32"} if isinstance(model, str | Path) else {"tokenizer": tokenizer}
    scores = mol.evaluate(
        model, named, stride=WINDOW, max_length=WINDOW, batch_size=16, progress=False, **options
    ).domains
    return {
        domain: [[round(scores[f"{domain}/{at}"].nll, 3), scores[f"{domain}/{at}"].bytes] for at in range(len(some))]
        for domain, some in texts.items()
    }


def bits(scores: Sequence[Sequence[float]]) -> float:
    """Return bits per byte of documents."""
    return math.fsum(nll for nll, _ in scores) / sum(size for _, size in scores) / math.log(2)


def mean(found: Mapping[str, Sequence[Sequence[float]]]) -> float:
    """Return the mean of the experts' domains."""
    return sum(bits(found[domain]) for domain in EXPERTS) / len(EXPERTS)


def weights_of(model: Any) -> int:  # noqa: ANN401
    """Return the bytes of all weights in memory, each once."""
    if isinstance(model, mol.MoLForCausalLM):
        return sum(model.runtime.summary().memory.values())
    modules = [model, *model.models] if isinstance(model, mol.MoLMixture) else [model]
    held = {id(one): one for module in modules for one in module.parameters()}
    return sum(one.numel() * one.element_size() for one in held.values())


def cost(model: Any) -> dict[str, float]:  # noqa: ANN401
    """Return floating point operations and CPU seconds of a forward per token, in one thread, and bytes of weights."""
    ids = torch.randint(1, 4096, (8, WINDOW), generator=torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(ids)
        times = []
        for _ in range(3):
            start = time.process_time()
            model(ids)
            times.append(time.process_time() - start)
    return {
        "mflops_per_token": round(counter.get_total_flops() / ids.numel() / 1e6, 3),
        "tokens_per_cpu_second": round(ids.numel() / min(times)),
        "megabytes_of_weights": round(weights_of(model) / 1e6, 2),
    }
