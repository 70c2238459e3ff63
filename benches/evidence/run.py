"""Measures merges and fusions of the family in examples/family and writes docs/evidence.md: `make evidence` runs it.

Each row and seed is a process of its own and a file in benches/evidence/results, with seed and commit. A row that has
its file is not measured again, so a run that was stopped continues; `--fresh` measures again. `ROWS=quick` measures two
rows anew, writes them below build/evidence, and compares them with what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from names import BLOCKS, MERGES, MIXTURES, RANDOM_MERGES, SINGLES, SOUPS, UNTRAINED

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
RESULTS: Final = HERE / "results"
SCRATCH: Final = ROOT / "build" / "evidence"
QUICK: Final = ("task_arithmetic", "mixture_posterior")

MEASURING: Final = tuple(f"benches/evidence/{name}.py" for name in ("run", "names", "measure", "merges", "fusions"))
TRAINED: Final = (
    "mixture_router", "control", "fused_identity", "fused_lstsq", "chain", "chain_control", "lora_base", "lora_merge",
    "fused_prefix_top1", "fused_token_top2", "chain_prefix_top1", "fused_token_router", "chain_no_domains",
    "chain_lstsq",
)  # fmt: skip
ROWS: Final = (*SINGLES, *BLOCKS, *MERGES, *SOUPS, *MIXTURES, *UNTRAINED, *TRAINED)


def measured(row: str, seed: int, scratch: Path) -> dict[str, Any]:
    """Make the model of a row and measure it."""
    import fusions
    import merges
    import torch
    from transformers import AutoModelForCausalLM

    import measure

    torch.set_num_threads(1)
    models, runs = measure.MODELS, ROOT / "build" / "family" / "runs" / "0"
    settings: dict[str, Any] = {}
    trained, given, path = 0, None, None
    if row in SINGLES:
        path = models / row
    elif row in MERGES:
        path, settings = merges.merge(row, models, scratch, seed)
    elif row in BLOCKS:
        given = AutoModelForCausalLM.from_pretrained(models / "base", dtype="float32")
        other = AutoModelForCausalLM.from_pretrained(models / row.removeprefix("blocks_"), dtype="float32")
        given.model.layers = other.model.layers
    elif row in SOUPS:
        run = runs / ("python-constant" if row.startswith("constant") else "python")
        last = max(run.glob("step-*"), key=lambda one: int(one.name.removeprefix("step-")))
        path, settings = merges.soup(run, scratch) if row.endswith("soup") else (last, {})
    elif row.startswith("mixture"):
        given, trained, settings = fusions.mix(row.removeprefix("mixture_"), models, seed)
    elif row.startswith("lora"):
        start = str(models / "base")
        if row == "lora_merge":
            start = str(merges.merge("task_arithmetic", models, scratch, seed)[0])
        wanted = json.loads(file_of("chain", 0).read_text())["trained_parameters"]
        given, trained, settings = fusions.lora(start, wanted, seed)
    else:
        given, trained, settings = fusions.fuse(row, models, scratch, seed)
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


def file_of(row: str, seed: int, results: Path = RESULTS) -> Path:
    return results / f"{row}.{seed}.json"


def commit() -> str:
    """Return the commit that is checked out, with a mark if files of the evidence or of mol differ from it."""
    at = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", "python", "rust/src", "examples/family", *MEASURING],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return at.stdout.strip() + ("+" if changed.stdout else "")


def measure_here(row: str, seed: int, out: Path) -> None:
    """Measure a row and write its file."""
    import torch
    import transformers

    scratch = SCRATCH / f"{row}.{seed}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    started = time.process_time()
    head: dict[str, Any] = {"row": row, "seed": seed, "commit": commit(), "torch": torch.__version__}
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
        near = abs(new["mean"] - old["mean"]) <= 0.005
        same &= near
        print(f"{row:20} {new['mean']:.4f} now, {old['mean']:.4f} committed{'' if near else ': they differ'}")
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description="measure merges and fusions of a small family, write docs/evidence.md")
    parser.add_argument("rows", nargs="*", help=f"quick, all, page (write the page alone), or of {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=1, help="of rows that depend on a seed (default: 1)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that have their file")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page is written")
    parser.add_argument("--one", nargs=3, metavar=("ROW", "SEED", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure_here(arguments.one[0], int(arguments.one[1]), Path(arguments.one[2]))
        return 0
    rows = arguments.rows or ["all"]
    quick = rows == ["quick"]
    if quick:
        rows = list(QUICK)
        shutil.rmtree(SCRATCH / "quick", ignore_errors=True)
    rows = [] if rows == ["page"] else list(ROWS) if rows == ["all"] else rows
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"there is no row {', '.join(unknown)}")
    for row in rows:
        for seed in range(arguments.seeds if row in (*TRAINED, *RANDOM_MERGES) else 1):
            out = file_of(row, seed, SCRATCH / "quick" if quick else RESULTS)
            if out.exists() and not arguments.fresh:
                continue
            print(f"{row}, seed {seed}", flush=True)
            command = [sys.executable, str(HERE / "run.py"), "--one", row, str(seed), str(out)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            print(f"  {json.loads(out.read_text())['mean']:.4f}", flush=True)
    if quick:
        return 0 if compare(QUICK) else 1
    import page

    page.write(RESULTS, arguments.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
