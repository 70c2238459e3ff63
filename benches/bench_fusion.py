"""Time fusions against the models that they are made of, in the same rounds, and print one table of ratios.

Each row can be run alone: `python benches/bench_fusion.py prefill load`. The two sides take turns, two turns each in a
round; the first round, and one turn before it, do not count. Times are medians of all turns, ratios are medians of the
rounds' ratios, so that they need not be the quotient of the two times against them.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import statistics
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers

from fusion_load import WAYS, watch
from fusion_models import EXPERTS, SEED, TINY, Models, Sizes
from fusion_training import peak_of, step_of_loop, step_of_trainer
from measure import cool, populate, warm
from rows import chosen_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from mol.core.mol_runtime import MoLRuntime

    Work = Callable[[], Any]

MB = 1e6
TURNS = 2


class Limits(NamedTuple):
    """What the ratio of a line must reach, what it should, and whether more is better."""

    must: float | None = None
    goal: float | None = None
    more: bool = False

    def verdict(self, ratio: float) -> str:
        for limit, word in ((self.goal, "goal"), (self.must, "met")):
            if limit is not None and (ratio >= limit if self.more else ratio <= limit):
                return word
        return "-" if self.must is None else "MISSED"


NO_LIMITS = Limits()


class Line(NamedTuple):
    """One line of the table."""

    what: str
    ours: str
    peer: str
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    limits: Limits = NO_LIMITS

    @property
    def verdict(self) -> str:
        return "-" if self.ratio is None else self.limits.verdict(self.ratio)

    def row(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.3f}"
        spread = "" if self.spread is None else f"{self.spread[0]:.3f} to {self.spread[1]:.3f}"
        sign = ">=" if self.limits.more else "<="
        limits = [f"{sign} {limit:g}" if limit is not None else "" for limit in self.limits[:2]]
        return f"| {' | '.join([self.what, self.ours, self.peer, ratio, spread, *limits, self.verdict])} |"


PREFILL = Limits(1.05, 1.01)
DECODE = Limits(0.90, 0.97, more=True)
TWO_EXPERTS = Limits(1.20, 1.10)
SEQUENCE = Limits(1.15, 1.05)
TRAINING = Limits(1.05, 1.03)
LOAD_TIME, LOAD_MEMORY = Limits(1.5), Limits(1.1)


@dataclass
class Bench:
    """The models, how often they are run, and what was found."""

    models: Models
    rounds: int
    device: str = "cpu"
    lines: list[Line] = field(default_factory=list)

    @property
    def sizes(self) -> Sizes:
        return self.models.sizes

    def tokens(self, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw tokens (B, T) and their mask."""
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(3, self.sizes.vocabulary, (rows, length), generator=generator).to(self.device)
        return ids, torch.ones_like(ids)

    def compare(self, what: str, ours: Work, peer: Work, limits: Limits = NO_LIMITS, tokens: int | None = None) -> None:
        """Let two sides take turns, and add a line: of seconds, or of tokens per second if a number of them is given.

        Args:
            what: is done.
            ours: does it.
            peer: does it too.
            limits: of the ratio of ours to the peer's.
            tokens: that each makes.
        """
        self.turn(ours, peer)
        rounds = [[self.turn(ours, peer) for _ in range(TURNS)] for _ in range(self.rounds + 1)][1:]
        ratios = [
            statistics.median(mine) / statistics.median(theirs)
            for mine, theirs in (zip(*turns, strict=True) for turns in rounds)
        ]
        if tokens is not None:
            ratios = [1 / ratio for ratio in ratios]
        mine, theirs = (statistics.median(turn[side] for turns in rounds for turn in turns) for side in (0, 1))

        def shown(taken: float) -> str:
            return f"{taken * 1e3:.1f} ms" if tokens is None else f"{tokens / taken:.1f} tokens/s"

        spread = min(ratios), max(ratios)
        self.lines.append(Line(what, shown(mine), shown(theirs), statistics.median(ratios), spread, limits))

    def turn(self, *sides: Work) -> tuple[float, ...]:
        """Run each side once, and give its seconds."""
        taken = []
        for side in sides:
            self.wait()
            started = time.perf_counter()
            with torch.no_grad():
                side()
            self.wait()
            taken.append(time.perf_counter() - started)
        return tuple(taken)

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


def pair(bench: Bench, name: str, **settings: Any) -> tuple[Any, Any]:  # noqa: ANN401 - of both
    """An identity fusion and its parent, both with head, both as transformers knows models."""
    ours = bench.models.identity(name, **settings).as_causal_lm().to(bench.device)
    peer = bench.models.parent(name, **settings).to(bench.device)
    return ours, peer


def reader(bench: Bench, model: PreTrainedModel, rows: int) -> Work:
    """What reads a prompt, into a cache."""
    ids, mask = bench.tokens(rows, bench.sizes.tokens)
    return partial(model, input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)


def writer(bench: Bench, model: PreTrainedModel, rows: int) -> Work:
    """What generates from a prompt, greedily, with a cache."""
    ids, mask = bench.tokens(rows, bench.sizes.prompt)
    new = bench.sizes.new
    how = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    return partial(model.generate, ids, attention_mask=mask, **how)


def prefill(bench: Bench) -> None:
    for name in ("gpt2", "llama"):
        ours, peer = pair(bench, name)
        for rows in bench.sizes.batches:
            mine, theirs = (reader(bench, model, rows) for model in (ours, peer))
            with torch.no_grad():
                same(mine().logits, theirs().logits, f"logits of {name}")
            what = f"prefill, {bench.sizes.width} wide {name}, {rows} x {bench.sizes.tokens} tokens"
            bench.compare(what, mine, theirs, PREFILL)


def decode(bench: Bench) -> None:
    for name in ("gpt2", "llama"):
        ours, peer = pair(bench, name)
        for rows in (bench.sizes.batches[0], bench.sizes.batches[-1]):
            mine, theirs = (writer(bench, model, rows) for model in (ours, peer))
            same(mine(), theirs(), f"tokens of {name}")
            what = f"decode, {bench.sizes.width} wide {name}, {rows} rows"
            bench.compare(what, mine, theirs, DECODE, tokens=rows * bench.sizes.new)


def same(ours: torch.Tensor, peer: torch.Tensor, what: str) -> None:
    """Refuse to time two sides that do different things."""
    if not torch.equal(ours, peer):
        raise RuntimeError(f"{what} differ between the fusion and its parent, so their times say nothing")


def two_experts(bench: Bench) -> None:
    """Two foreign experts in every layer against a forward of each of their models, from hidden states on."""
    runtime = bench.models.two_experts()
    parents = [bench.models.parent(name, head=False) for name in ("llama", "other")]
    for rows in bench.sizes.batches:
        ids, mask = bench.tokens(rows, bench.sizes.tokens)
        states = [torch.randn(*ids.shape, parent.config.hidden_size) for parent in parents]

        def peer(states: list[torch.Tensor] = states, mask: torch.Tensor = mask) -> None:
            for parent, hidden in zip(parents, states, strict=True):
                parent(inputs_embeds=hidden, attention_mask=mask, use_cache=False)

        wide = f"{bench.sizes.width} and {bench.sizes.other_width} wide"
        what = f"two dense experts, {wide}, linear maps, {rows} x {bench.sizes.tokens} tokens"
        bench.compare(what, partial(runtime, ids, mask), peer, TWO_EXPERTS)


def sequence(bench: Bench) -> None:
    """Rows that choose one of four experts against a forward of the model whose blocks they are."""
    parent = bench.models.parent("routed", head=False)
    rows = bench.sizes.routed_rows
    ids, mask = bench.tokens(rows, bench.sizes.tokens)
    for exact in (True, False):
        runtime = bench.models.routed(exact=exact)
        ways = f"{'no' if exact else 'linear'} adapters, {experts_used(runtime, ids):.1f} experts chosen"
        what = f"sequence top-1 of {EXPERTS}, {bench.sizes.routed_width} wide, {ways}, {rows} x {ids.shape[1]} tokens"
        peer = partial(parent, input_ids=ids, attention_mask=mask, use_cache=False)
        bench.compare(what, partial(runtime, ids, mask), peer, SEQUENCE if exact else NO_LIMITS)


def experts_used(runtime: MoLRuntime, ids: torch.Tensor) -> float:
    """Count the experts that some row chose, on average over the layers."""
    with torch.no_grad():
        _, said = runtime(ids, return_router_stats=True)
    chosen = [layer["expert_weights"].flatten(0, 1).any(0).sum().item() for layer in said.values()]
    return statistics.mean(map(float, chosen))


def load(bench: Bench) -> None:
    """Open a fusion that uses a quarter of another model's blocks, against reading the bytes of all blocks it uses.

    Once from storage and once from the page cache; see fusion_load.py.
    """
    host, donor = bench.models.path("large"), bench.models.path("llama")
    files = [file for name in (host, donor) for file in Path(name).glob("*.safetensors")]
    layers = range(1, bench.sizes.layers, 3) if bench.sizes.layers > 3 else range(1)
    # Two runs for time and one for memory: to ask a process for its memory holds up its mapping.
    cold, alone, watched = ({way: list[Any]() for way in WAYS} for _ in range(3))
    for _ in range(bench.rounds + 1):
        for found, prepare, every in ((cold, cool, math.inf), (alone, warm, math.inf), (watched, warm, 0.002)):
            for way, taken in found.items():
                populate()
                prepare(files)
                taken.append(watch(way, host, donor, layers, every=every))
    width, deep = bench.sizes.large
    what = f"load {deep - len(layers)} blocks of {width} in bf16 and {len(layers)} of {bench.sizes.width} in float32"
    for name, key, found, peer, limits in (
        ("time, against reading from storage", "seconds", cold, "read", LOAD_TIME),
        ("time, against reading from the page cache", "seconds", alone, "read", LOAD_TIME),
        ("time, against passing the page cache through 1 MB", "seconds", alone, "pass", NO_LIMITS),
        ("peak RSS above imports, against reading", "resident", watched, "read", LOAD_MEMORY),
        ("RssAnon above imports, against reading", "anonymous", watched, "read", NO_LIMITS),
    ):
        mine, theirs = ([getattr(one, key) for one in found[way][1:]] for way in ("open", peer))
        ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
        spread = min(ratios), max(ratios)
        shown = f"{what}: {name}", measured(key, mine), measured(key, theirs)
        bench.lines.append(Line(*shown, statistics.median(ratios), spread, limits))


def measured(key: str, taken: list[float]) -> str:
    median = statistics.median(taken)
    return f"{median * 1e3:.1f} ms" if key == "seconds" else f"{median / MB:.1f} MB"


def training(bench: Bench) -> None:
    """A step of MoLTrainer against a plain loop over the same modules, and against itself without checkpointing."""
    ids, mask = bench.tokens(bench.sizes.batches[-1], bench.sizes.tokens)
    batch = {"input_ids": ids, "attention_mask": mask}
    ours, peer = step_of_trainer(bench.models, batch), step_of_loop(bench.models, batch)
    again = step_of_trainer(bench.models, batch, checkpointing=True)
    what = (
        f"training, {bench.sizes.routed_width} and {bench.sizes.other_width} wide, {len(ids)} x {ids.shape[1]} tokens"
    )
    bench.compare(f"{what}: a step, against a plain loop", ours, peer, TRAINING)
    for name, mine, theirs in (("against a plain loop", ours, peer), ("checkpointing, against none", again, ours)):
        taken = peak_of(mine), peak_of(theirs)
        shown = [f"{size / MB:.0f} MB" for size in taken]
        bench.lines.append(Line(f"{what}: peak memory of a step, {name}", *shown, taken[0] / max(taken[1], 1.0)))
    bench.compare(f"{what}: checkpointing, against none", again, ours, tokens=ids.numel())


def gpu(bench: Bench) -> None:
    """Prefill and decode in bf16 on a GPU: as they are, compiled, and compiled into CUDA graphs."""
    if not torch.cuda.is_available():
        bench.lines.append(Line("GPU, bf16: not measured, no CUDA device here", "", ""))
        return
    on_device(Bench(bench.models, bench.rounds, "cuda", bench.lines))


COMPILED: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "torch.compile": {"dynamic": True},
    "CUDA graphs": {"mode": "reduce-overhead"},
}


def on_device(bench: Bench) -> None:
    for name in ("gpt2", "llama"):
        for way, options in COMPILED.items():
            models = pair(bench, name, dtype="bfloat16")
            torch.compiler.reset()
            if options is not None:
                for model in models:
                    model.forward = torch.compile(model.forward, **options)
            for kind, make, limits in (("prefill", reader, PREFILL), ("decode", writer, DECODE)):
                rows = bench.sizes.batches[-1]
                what = f"{bench.device}, bf16, {way}: {kind}, {bench.sizes.width} wide {name}, {rows} rows"
                tokens = None if kind == "prefill" else rows * bench.sizes.new
                mine, theirs = (make(bench, model, rows) for model in models)
                try:
                    bench.compare(what, mine, theirs, limits if options is None else NO_LIMITS, tokens)
                except (
                    RuntimeError,
                    AttributeError,
                    TypeError,
                ) as error:  # a compiler has its reasons
                    said = " ".join(str(error).split())[:160]
                    bench.lines.append(Line(f"{what}: {type(error).__name__}: {said}", "", ""))


def keep_memory() -> None:
    """Let glibc keep what is freed: by default it gives memory back when by chance nothing lies above it on its heap.

    Either side then takes up to a fifth longer in one process than in another, with half a million page faults.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**30)


ROWS: dict[str, Callable[[Bench], None]] = {
    "prefill": prefill,
    "decode": decode,
    "two_experts": two_experts,
    "sequence": sequence,
    "load": load,
    "training": training,
    "gpu": gpu,
}


def report(bench: Bench) -> str:
    """The table, in Markdown."""
    columns = ("what", "mol", "peer", "ratio", "least and most", "must", "goal", "verdict")
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(line.row() for line in bench.lines)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path(".benchmarks/fusion"), help="where models are kept, 4 GB")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--default-malloc", action="store_true", help="let glibc give memory back, see keep_memory")
    parser.add_argument("--tiny", action="store_true", help="tiny models, whose times say nothing: do the rows work?")
    arguments, wanted = chosen_rows(parser, ROWS)

    if not arguments.default_malloc:
        keep_memory()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    bench = Bench(Models(arguments.dir.resolve(), TINY if arguments.tiny else Sizes()), arguments.rounds)
    try:
        for name in wanted:
            print(f"measuring {name}", file=sys.stderr, flush=True)
            ROWS[name](bench)
    finally:
        print(report(bench), flush=True)
    return 1 if any(line.verdict == "MISSED" for line in bench.lines) else 0


if __name__ == "__main__":
    sys.exit(main())
