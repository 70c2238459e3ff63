"""Compares mol with mergekit 0.1.5 over every method that both have and writes docs/parity.md: `make parity` runs it.

mergekit is installed into a virtual environment of its own and used by its command alone. What it made is kept under
build/parity and not made again while recipe and inputs stay the same; mol's results are made anew each time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for the references and toolkits of tests/

import compare  # noqa: E402
import compared  # noqa: E402
import peer  # noqa: E402
import stepwise  # noqa: E402
import verdict_page  # noqa: E402
import worlds  # noqa: E402

from mol.errors import MolError  # noqa: E402
from mol.merge import plan_recipe, run_merge  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence


def make_worlds(directory: Path) -> str:
    """Write every model, and return a digest of all of them."""
    digest = hashlib.sha256()
    for world in dict.fromkeys(one.world for one in compared.all_compared()):
        for dtype in worlds.DTYPES:
            worlds.make(directory / f"{world}-{dtype}", world, dtype)
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(path.relative_to(directory).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def judge(one: compared.Compared, models: Path, made: Path, scratch: Path) -> compare.Verdict:
    """Run mol on a recipe and hold the result against mergekit's in `made`."""
    recipe = one.recipe(models)
    try:
        planned = plan_recipe(recipe)
        run_merge(recipe, scratch / "mol")
    except MolError as error:
        return compare.Verdict("unexplained", [f"mol refuses it: {error}"])
    plans = compare.made_by(planned, scratch)
    if (made / "failed.txt").exists():
        return compare.Verdict("fails", [verdict_page.last_words((made / "failed.txt").read_text(encoding="utf-8"))])
    theirs, ours = compare.read_all(made), compare.read_all(scratch / "mol")
    if not one.drawn:
        order: list[int] = []
        if one.form == "union":
            theirs, order = compare.by_token(theirs, made / "tokenizer.json", scratch / "mol" / "tokenizer.json")
        found = compare.compare(theirs, ours, plans)
        found.note("equal", *([compare.ORDER] if order else []))
        return found
    return verdict_page.of_draws(compare.draws(theirs, plans), compare.draws(ours, plans))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="parts of names of what is compared; all, and the page, if none is named"
    )
    parser.add_argument(
        "--dir", type=Path, default=ROOT / "build" / "parity", help="models, results, virtual environment"
    )
    parser.add_argument("--mergekit-venv", type=Path, help="where mergekit is, or is put; DIR/venv unless given")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "parity.md", help="what is written")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    chosen.dir.mkdir(parents=True, exist_ok=True)
    models = chosen.dir.resolve() / "models"
    digest = make_worlds(models)
    wanted = [
        one for one in compared.all_compared() if not chosen.names or any(part in one.name for part in chosen.names)
    ]
    started = time.monotonic()
    mergekit = peer.Peer(
        peer.install((chosen.mergekit_venv or chosen.dir / "venv").resolve()), models.parent / "mergekit", digest
    )
    mergekit.run({one.name: one.recipe(models) for one in wanted})
    verdicts, bits = {}, {}
    for one in wanted:
        made = mergekit.directory_of(one.name, one.recipe(models))
        with tempfile.TemporaryDirectory(dir=chosen.dir) as scratch:
            verdicts[one] = judge(one, models, made, Path(scratch))
            if stepwise.has(one) and verdicts[one].word != "fails":
                bits[one] = stepwise.judge(one, models, made, Path(scratch))
        if chosen.names or verdicts[one].word in ("unexplained", "fails"):
            print(f"{one.name}: {verdict_page.line(verdicts[one])}", flush=True)
        if one in bits and (chosen.names or bits[one].word == "unexplained"):
            print(f"{one.name}, with precision: mergekit: {stepwise.line(bits[one])}", flush=True)
    print(f"{len(verdicts)} compared in {time.monotonic() - started:.0f} s; {stepwise.summary(bits)}", flush=True)
    if not chosen.names:
        chosen.page.write_text(verdict_page.write(verdicts) + stepwise.section(bits), encoding="utf-8")
        shutil.rmtree(models)
    words = [found.word for found in (*verdicts.values(), *bits.values())]
    return 1 if "unexplained" in words else 0


if __name__ == "__main__":
    sys.exit(main())
