"""Time whole merges of 1.1B models against `cp` in the same rounds, and mergekit after them; print tables of ratios.

Each row can be run alone: `python benches/bench_merge.py --dir DIR linear start`. Its table is printed, and kept in
DIR/results.json, as soon as it is measured. mergekit 0.1.5 is used through its command only, in a virtual environment
of its own. Every timed run starts with a fresh output, its inputs in the page
cache unless the row says cold, free memory touched before, and nothing left to write back.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import recipes
import scaling
from measure import Taken, memory_limit, run, warm
from rows import chosen_rows
from table import MB, MOL, PEER_THREADS, Bench, Line, kept, report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MERGEKIT = "mergekit==0.1.5"
CGROUP_LIMIT = 512 << 20


def against_peers(
    bench: Bench,
    name: str,
    cp_limits: tuple[float, float | None],
    peer_limits: tuple[float, float | None] | None,
    anonymous_limits: tuple[float, ...] = (60, 30),
    made_by: tuple[str, ...] = (),
) -> None:
    """Rounds of `cp` and mol on one recipe, then mergekit on it."""
    bench.make(*made_by)
    files = bench.weights(recipes.models(name))
    first = recipes.models(name)[0]
    taken: dict[str, list[Taken]] = {"cp": [], "mol": [], "cp and sync": [], "mol, on the disk": []}
    bench.settle()
    warm(files)
    # Not counted: the first run of a program reads it from the disk and writes Python's compiled modules.
    bench.cp(first)
    bench.mol(name)
    for _ in range(bench.rounds):
        warm(files)
        taken["cp"].append(bench.cp(first))
        taken["mol"].append(bench.mol(name))
        taken["cp and sync"].append(bench.cp_and_sync(first))
        taken["mol, on the disk"].append(bench.mol(name, sync=True))
    bench.discard("cp", "mol")
    for who, runs in taken.items():
        bench.keep(f"{name}: {who}", runs)
    bench.add(
        bench.compare(f"{name}: mol against cp of one output", taken["mol"], taken["cp"], "x cp", *cp_limits),
        bench.compare(
            f"{name}, on the disk: mol against cp and sync", taken["mol, on the disk"], taken["cp and sync"], "x cp"
        ),
    )
    bench.anonymous(name, taken["mol"], *anonymous_limits)
    bench.against_peer(name, name, taken["mol"], *(peer_limits or ()))


def against_both(bench: Bench, name: str) -> None:
    """A method that no row above has, or a union of vocabularies."""
    peer_limits = (60, None) if name in ("dare_ties", "della") else None
    made_by = ("--vocabularies",) if name == "union" else ()
    against_peers(bench, name, (5, None), peer_limits, (100,), made_by)


def one_tensor(bench: Bench) -> None:
    """One tensor of 3e8 elements: memory does not follow its size."""
    bench.make("--one-tensor")
    for name in ("one_linear", "one_ties"):
        warm(bench.weights(recipes.models(name)))
        taken = [bench.mol(name) for _ in range(min(bench.rounds, 2))]
        bench.keep(f"{name}: mol", taken)
        bench.anonymous(f"{name}, 3e8 elements", taken, 60, 30)
    bench.discard("mol")


def in_cgroup(bench: Bench) -> None:
    """All of it in a memory cgroup of 512 MB, with warm files and with cold ones: the same bytes, and at what cost."""
    bench.make()
    bench.make("--one-tensor")
    try:
        with memory_limit(CGROUP_LIMIT) as prefix:
            for name in (*recipes.TIMED, "one_linear", "one_ties"):
                limited(bench, name, prefix)
    except PermissionError as error:
        bench.add(Line(f"cgroup of 512 MB: not measured, {error}", float("nan"), ""))


def limited(bench: Bench, name: str, prefix: Sequence[str]) -> None:
    files = bench.weights(recipes.models(name))
    size = sum(file.stat().st_size for file in files)
    bench.mol(name, out="free")
    wanted = bench.directory / "out-free" / "model.safetensors"
    taken: dict[str, list[Taken]] = {"warm": [], "cold": [], "cp": []}
    way, same = "", True
    for _ in range(min(bench.rounds, 3)):
        warm(files)
        taken["warm"].append(bench.mol(name, prefix=prefix))
        same &= filecmp.cmp(wanted, bench.directory / "out-mol" / "model.safetensors", shallow=False)
        way = bench.cool(files)
        taken["cp"].append(bench.cp(recipes.models(name)[0], prefix=prefix))
        way = bench.cool(files)
        taken["cold"].append(bench.mol(name, prefix=prefix))
        same &= filecmp.cmp(wanted, bench.directory / "out-mol" / "model.safetensors", shallow=False)
    walls = {
        how: bench.keep(f"{name}, 512 MB: {'cp, cold' if how == 'cp' else 'mol, ' + how}", runs)
        for how, runs in taken.items()
    }
    twice = walls["cp"] / files[0].stat().st_size * 2 * size
    anonymous, tables = (
        max(getattr(one, key) for how in ("warm", "cold") for one in taken[how]) / MB for key in ("anonymous", "tables")
    )
    bench.add(
        Line(f"{name}, 512 MB: RssAnon", anonymous, "MB", 60, 30),
        Line(f"{name}, 512 MB: VmPTE, page tables", tables, "MB"),
        Line(f"{name}, 512 MB: same bytes, warm and cold", float(same), "yes" if same else "NO", 1, more=True),
        Line(f"{name}, 512 MB, warm", walls["warm"], "s"),
        Line(f"{name}, 512 MB, cold: against cp of all bytes twice", walls["cold"] / twice, "x cp", None, 2, note=way),
    )
    bench.discard("free", "mol", "cp")


def mixed(bench: Bench) -> None:
    """Three inputs of unequal weights: f32, bf16 and f16 against bf16 alone, by seconds per byte read."""
    bench.make("--mixed")
    cases = ("bf16_3", "mixed_to_bf16", "mixed_to_f32")
    alone, *others = bench.in_turns({f"{case}: mol": (case, partial(bench.mol, case)) for case in cases})
    sizes = [sum(file.stat().st_size for file in bench.weights(recipes.models(case))) for case in cases]
    for case, taken, size in zip(cases[1:], others, sizes[1:], strict=True):
        what = f"{case}: seconds per byte read against bf16"
        bench.add(bench.compare(what, taken, alone, "x", 2, 1.2, per=size / sizes[0]))


def wide(bench: Bench) -> None:
    """Two f32 models to f32, computed in f64, against `cp` of the output."""
    bench.make("--mixed")
    copied, merged = bench.in_turns(
        {
            "f32_2: cp": ("f32_2", lambda: bench.cp("base_f32")),
            "f32_2: mol": ("f32_2", lambda: bench.mol("f32_2")),
        }
    )
    bench.add(bench.compare("f32_2: mol against cp of one output", merged, copied, "x cp", 1.4, 1.0))


def start(bench: Bench) -> None:
    """How long the command takes to say anything."""
    recipe = bench.recipe("missing")
    for what, command in (("--help", ["--help"]), ("validate", ["validate", str(recipe)])):
        taken = [run([MOL, *command], log=bench.directory / "log-start", every=0.001) for _ in range(bench.rounds * 3)]
        bench.add(Line(f"mol-merge {what}", bench.keep(f"{what}: mol", taken), "s", 0.1, 0.05))
        bench.add(Line(f"mol-merge {what}: peak RSS", max(one.resident for one in taken) / MB, "MB", 60))


ROWS: dict[str, Callable[[Bench], None]] = {
    **scaling.OF_MANY,
    "linear": lambda bench: against_peers(bench, "linear", (1.1, 0.9), None),
    "slerp": lambda bench: against_peers(bench, "slerp", (1.3, 1.0), (25, 45)),
    "task_arithmetic": lambda bench: against_peers(bench, "task_arithmetic", (1.6, 1.2), (20, 40)),
    "ties": lambda bench: against_peers(bench, "ties", (2.2, 1.8), (150, 200)),
    **{name: partial(against_both, name=name) for name in recipes.BESIDE},
    **scaling.ROWS,
    "one_tensor": one_tensor,
    "cgroup": in_cgroup,
    "mixed": mixed,
    "f32": wide,
    "start": start,
}


# Rows in which mergekit runs too.
PEERED = {*recipes.TIMED, *recipes.BESIDE, *scaling.PEERED}


def make_mergekit(venv: Path) -> Path:
    """A virtual environment with mergekit in it, unless it is there."""
    if not (venv / "bin" / "mergekit-yaml").exists():
        uv = shutil.which("uv")
        if uv is None:
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            install = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        else:
            subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
            install = [uv, "pip", "install", "--quiet", "--python", str(venv / "bin" / "python")]
        subprocess.run([*install, MERGEKIT], check=True)
    return venv


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("build/bench"), help="scratch directory, about 20 GB")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of cp and mol, of which medians are taken")
    parser.add_argument("--peer-rounds", type=int, default=1, help="rounds of mergekit, which takes minutes for each")
    parser.add_argument(
        "--peer",
        choices=list(PEER_THREADS),
        action="append",
        help="how mergekit runs; both ways, and the faster counts",
    )
    parser.add_argument(
        "--mergekit-venv", type=Path, help="where mergekit is, or is put; DIR/mergekit-venv unless given"
    )
    parser.add_argument("--no-mergekit", action="store_true", help="leave mergekit out")
    parser.add_argument("--trial", action="store_true", help="small models, to see that the rows run; nothing counts")
    parser.add_argument("--keep", action="store_true", help="leave the models in DIR for the next time")
    arguments, wanted = chosen_rows(parser, ROWS)

    directory = (arguments.dir / "trial" if arguments.trial else arguments.dir).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with_peer = not arguments.no_mergekit and not PEERED.isdisjoint(wanted)
    peer = make_mergekit((arguments.mergekit_venv or directory / "mergekit-venv").resolve()) if with_peer else None
    peers = tuple(arguments.peer or PEER_THREADS)
    bench = Bench(directory, arguments.rounds, arguments.peer_rounds, peer, arguments.trial, peers)
    failed = []
    try:
        for number, name in enumerate(wanted):
            print(f"measuring {name}", file=sys.stderr, flush=True)
            before = len(bench.runs), len(bench.lines)
            try:
                ROWS[name](bench)
            except RuntimeError as error:  # a command of this row; the others can still be measured
                print(f"{name} was not measured: {error}", file=sys.stderr, flush=True)
                failed.append(name)
            kept(bench, name, *before)
            if (
                name in scaling.OF_MANY
                and scaling.OF_MANY.keys().isdisjoint(wanted[number + 1 :])
                and not arguments.keep
            ):
                bench.remove(recipes.MANY)  # before others take the disk
    finally:
        if len(wanted) > 1:
            print(f"## all rows\n\n{report(bench)}", flush=True)
        if not arguments.keep:
            bench.clean()
    missed = any(line.verdict() == "MISSED" for line in bench.lines) and not bench.trial
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
