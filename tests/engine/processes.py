"""Merges in processes of their own, slow enough to be met at work."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tests.engine.toolkit import Case, Plan, encode, execute, plan_of, shard_bytes, ties

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# The slowest that the engine can be made: enough time to be killed in.
SLOW = {"tile": 65536, "simd": "off", "digest": "sha256"}
CHILD = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background starts without
from mol import _rust
plan, partial, options = open(sys.argv[1]).read(), sys.argv[2], json.loads(sys.argv[3])
print("begins", flush=True)
if "--announce" in sys.argv:
    options["on_progress"] = lambda *counts: print(*counts, flush=True)
print(json.loads(_rust.execute(plan, partial, **options))["resumed"], flush=True)
"""


class Work(NamedTuple):
    """A plan, its file, what it gives when nothing disturbs it, and the time that it takes here."""

    plan: Plan
    file: Path
    bytes: dict[str, bytes]
    seconds: float


def make_work(directory: Path) -> Work:
    """A plan of many tensors in three shards."""
    drawn = np.random.default_rng(51)
    base = drawn.normal(0, 0.02, 300_007)
    sources = tuple(encode(base + drawn.normal(0, 0.003, base.size), "F32") for _ in range(4))
    method = ties([1.0, 0.5, 0.25], [0.5, 0.3, 0.7], rescale=True)
    plan = plan_of(directory, {f"layers.{i}.w": Case(method, sources, "F32") for i in range(40)}, shards=3)
    (directory / "plan.json").write_text(json.dumps(plan))
    begun = time.monotonic()
    execute(plan, directory / "undisturbed", threads=1, **SLOW)
    seconds = time.monotonic() - begun
    return Work(plan, directory / "plan.json", shard_bytes(directory / "undisturbed"), seconds)


def start(
    work: Work, partial: Path, *flags: str, threads: int = 1, outputs: Sequence[int] | None = None
) -> subprocess.Popen[str]:
    """A process that runs the work, or some outputs of it."""
    options = json.dumps({**SLOW, "threads": threads, "outputs": outputs})
    command = [sys.executable, "-c", CHILD, str(work.file), str(partial), options, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def at_work(work: Work, partial: Path, outputs: Sequence[int] | None = None) -> Iterator[subprocess.Popen[str]]:
    """The process while it is at work, for as long as the block takes; then it continues."""
    import signal

    before = claimed(partial)
    with start(work, partial, outputs=outputs) as child:
        while claimed(partial) == before and child.poll() is None:  # until its first tensor
            time.sleep(0.001)
        child.send_signal(signal.SIGSTOP)
        try:
            yield child
        finally:
            child.send_signal(signal.SIGCONT)
            child.communicate(timeout=120)


def claimed(partial: Path) -> int:
    """How many tensors are claimed to be finished."""
    return sum(path.read_bytes().count(b'{"task"') for path in partial.glob("*.journal"))
