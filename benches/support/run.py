"""Checks every model type that transformers can configure and writes docs/support.md: `make support-table` runs it.

Each type has a process of its own, forked from this one after the slow imports, with a limit of time and of memory. Its
row is a JSON file in the state directory; types that have one are not run again unless --fresh says so.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import page
import transformers
import worker
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from multiprocessing.process import BaseProcess

ROOT: Final = Path(__file__).resolve().parents[2]
_POLL: Final = 0.05


def all_types() -> list[str]:
    """Return the model types with a bare model or a causal language model."""
    return sorted({*MODEL_MAPPING_NAMES, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES})


def judge_all(types: Sequence[str], state: Path, processes: int, limit: float) -> None:
    """Check types in parallel.

    Args:
        types: which.
        state: directory of the rows.
        processes: how many at a time.
        limit: seconds that one may take.
    """
    context = multiprocessing.get_context("fork")
    waiting = list(reversed(types))
    running: dict[str, tuple[BaseProcess, float]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            name = waiting.pop()
            process = context.Process(target=_judge_quietly, args=(name, state / f"{name}.json"))
            process.start()
            running[name] = process, time.monotonic()
        for name, (process, started) in list(running.items()):
            late = time.monotonic() - started > limit
            if process.is_alive() and not late:
                continue
            if process.is_alive():
                process.kill()
            process.join()
            del running[name]
            if late or process.exitcode:
                _close(state / f"{name}.json", f"over {limit:.0f} s" if late else f"exit code {process.exitcode}")
            print(f"{len(types) - len(waiting) - len(running):4} of {len(types)} {name}", flush=True)
        time.sleep(_POLL)


def _judge_quietly(name: str, path: Path) -> None:
    # What models print is theirs; a traceback that ends the process is kept next to the row.
    log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    worker.judge(name, path)


def _close(path: Path, why: str) -> None:
    """Note in the row of a process that was ended, or ended itself, where it was."""
    row = json.loads(path.read_text())
    row["ended"] = f"{why} in stage {row['stage']!r}"
    path.write_text(json.dumps(row, indent=1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("types", nargs="*", help="model types; all that transformers can configure if none is named")
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "support", help="directory of the rows")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "support.md", help="what is written")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many at a time")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds that one type may take")
    parser.add_argument("--fresh", action="store_true", help="run again what has been run")
    chosen = parser.parse_args(arguments)
    chosen.state.mkdir(parents=True, exist_ok=True)
    types = chosen.types or all_types()
    unknown = set(types) - set(all_types())
    if unknown:
        print(
            f"transformers {transformers.__version__} has no model type {', '.join(sorted(unknown))}", file=sys.stderr
        )
        return 2
    todo = [name for name in types if chosen.fresh or not (chosen.state / f"{name}.json").exists()]
    judge_all(todo, chosen.state, chosen.processes, chosen.limit)
    if not chosen.types:
        rows = [json.loads((chosen.state / f"{name}.json").read_text()) for name in types]
        chosen.page.parent.mkdir(parents=True, exist_ok=True)
        chosen.page.write_text(page.write(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
