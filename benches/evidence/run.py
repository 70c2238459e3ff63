"""Measures merges and fusions of the family in examples/family and writes docs/evidence.md: `make evidence` runs it.

Each row and seed is a process of its own and a file in benches/evidence/results, with seed and commit. A row that has
its file is not measured again, so a run that was stopped continues; `--fresh` measures again. `ROWS=quick` measures two
rows anew, writes them below build/evidence, and compares them with what is there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import page
from names import BLOCKS, EXPERTS, MERGES, ONCE, RESULTS, ROOT, ROWS, SINGLES, SOUPS, file_of
from seeds import load

if TYPE_CHECKING:
    from collections.abc import Sequence

SCRATCH: Final = ROOT / "build" / "evidence"
FAMILY: Final = ROOT / "build" / "family"
QUICK: Final = ("task_arithmetic", "mixture_posterior")

MEASURING: Final = tuple(f"benches/evidence/{name}.py" for name in ("run", "names", "measure", "merges", "fusions"))


def train(seed: int, *runs: str) -> Path:
    """Train experts of a seed that are not there yet, and return the directory of its models."""
    out, also = FAMILY / "models" / str(seed), FAMILY / "runs" / str(seed)
    missing = [run for run in runs if not any(path.exists() for path in (out / run, also / run / "last"))]
    if missing:
        command = [sys.executable, "examples/family/train.py", *missing, "--seed", str(seed), "--models", str(out)]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return out


def measured(row: str, seed: int, scratch: Path) -> dict[str, Any]:
    """Make the model of a row and measure it."""
    import fusions
    import merges
    import torch
    from transformers import AutoModelForCausalLM

    import measure

    torch.set_num_threads(1)
    models = train(seed, *EXPERTS) if seed and row != "base" else measure.MODELS
    settings: dict[str, Any] = {}
    trained, given, path = 0, None, None
    if row in SINGLES:
        path = models / row
    elif row in MERGES:
        path, settings = merges.merge(row, models, scratch, seed)
    elif row in BLOCKS:
        given = AutoModelForCausalLM.from_pretrained(measure.MODELS / "base", dtype="float32")
        other = AutoModelForCausalLM.from_pretrained(models / row.removeprefix("blocks_"), dtype="float32")
        given.model.layers = other.model.layers
    elif row in SOUPS:
        name = "python-constant" if row.startswith("constant") else "python"
        train(seed, name)
        run = FAMILY / "runs" / str(seed) / name
        last = max(run.glob("step-*"), key=lambda one: int(one.name.removeprefix("step-")))
        path, settings = merges.soup(run, scratch) if row.endswith("soup") else (last, {})
    elif row.startswith("mixture"):
        given, trained, settings = fusions.mix(row.removeprefix("mixture_"), models, seed)
    elif row.startswith("lora"):
        wanted = json.loads(file_of("chain", 0).read_text())["trained_parameters"]
        if row == "lora_merge":
            start = merges.chosen("task_arithmetic", models, scratch / "start", seed)
            given, trained, settings = fusions.lora(str(start), wanted, seed, fusions.LONGER, fusions.FAST)
        else:
            given, trained, settings = fusions.lora(fusions.BASE, wanted, seed, fusions.STEPS, fusions.RATE)
    else:
        given, trained, settings = fusions.fuse(fusions.FUSIONS[row], models, scratch, seed)
    start_time = time.process_time()
    scores = measure.losses(given or path, measure.test_texts(), fusions.tokenizer())
    model = given or AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    return {
        "mean": round(measure.mean(scores), 4),
        "bits_per_byte": {domain: round(measure.bits(some), 4) for domain, some in scores.items()},
        "trained_parameters": trained,
        **measure.cost(model),
        "settings": settings,
        "evaluation_cpu_seconds": round(time.process_time() - start_time, 1),
        "documents": scores,
    }


def commit() -> str:
    """Return the commit that is checked out, with a mark if files of the evidence or of mol differ from it."""
    at = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "python", "rust/src", "examples/family", *MEASURING],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return at.stdout.strip() + ("+" if changed.stdout else "")


def measure_here(row: str, seed: int, out: Path, at: str) -> None:
    """Measure a row with the code of a commit, and write its file."""
    import torch
    import transformers

    scratch = SCRATCH / f"{row}.{seed}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    started = time.process_time()
    head: dict[str, Any] = {"row": row, "seed": seed, "commit": at, "torch": torch.__version__}
    found = measured(row, seed, scratch)
    head |= {"transformers": transformers.__version__, "cpu_seconds": round(time.process_time() - started)}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    documents = found.pop("documents")
    text = json.dumps(head | found, indent=1)
    part.write_text(text[:-2] + ',\n "documents": ' + json.dumps(documents) + "\n}\n")
    part.replace(out)
    shutil.rmtree(scratch)


def compare(rows: Sequence[str]) -> bool:
    """Print rows that were measured anew next to their committed files, and return whether they agree."""
    same = True
    for row in rows:
        new, old = (json.loads(file_of(row, 0, where).read_text()) for where in (SCRATCH / "quick", RESULTS))
        error = load(RESULTS)[row].over_seeds().error
        near = error is not None and abs(new["mean"] - old["mean"]) <= error
        same &= near
        print(
            f"{row:20} {new['mean']:.4f} now, {old['mean']:.4f} committed, standard error over seeds {error}"
            + ("" if near else ": they differ")
        )
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description="measure merges and fusions of a small family, write docs/evidence.md")
    parser.add_argument("rows", nargs="*", help=f"quick, all, page (write the page alone), or of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+", help="(0; of rows whose errors count, 0 1 2)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that have their file")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    arguments = parser.parse_args()
    rows = arguments.rows or ["all"]
    quick = rows == ["quick"]
    if quick:
        rows = list(QUICK)
        shutil.rmtree(SCRATCH / "quick", ignore_errors=True)
    rows = [] if rows == ["page"] else list(ROWS) if rows == ["all"] else rows
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"there is no row {', '.join(unknown)}")
    at = commit()
    # A process of its own for each row, which starts with what is imported here where that is safe.
    start = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    for row in rows:
        seeds = (0,) if row in ONCE or quick else (0, 1, 2)
        for seed in arguments.seeds or seeds:
            out = file_of(row, seed, SCRATCH / "quick" if quick else RESULTS)
            if out.exists() and not arguments.fresh:
                continue
            print(f"{row}, seed {seed}", flush=True)
            import fusions  # noqa: F401

            one = start.Process(target=measure_here, args=(row, seed, out, at))
            one.start()
            one.join()
            if one.exitcode:
                return one.exitcode
            print(f"  {json.loads(out.read_text())['mean']:.4f}", flush=True)
    if quick:
        return 0 if compare(QUICK) else 1
    page.write(RESULTS, arguments.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
