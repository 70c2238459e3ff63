"""Rows of bench_merge.py: what more models, more tensors, options and cold caches cost, against the same without."""

from __future__ import annotations

import statistics
from functools import partial
from typing import TYPE_CHECKING

import recipes
from measure import Taken, run
from table import MB, MOL, Bench, Line

if TYPE_CHECKING:
    from collections.abc import Callable


def relative_to_ties(bench: Bench, name: str, *limits: float, per_input: bool = False) -> None:
    """A recipe in the same rounds as TIES of a base and three."""
    inputs = len(recipes.models(name))
    bench.make("--many", str(inputs))
    few, many = bench.in_turns({f"{case}: mol": (case, partial(bench.mol, case)) for case in ("ties3", name)})
    per = inputs / len(recipes.models("ties3")) if per_input else 1
    what = f"{name}: against ties of base + 3{', per input' if per_input else ''}"
    bench.add(bench.compare(what, many, few, "x", *limits, per=per))
    bench.anonymous(name, many, 100)


def of_twenty(bench: Bench, name: str, *limits: float) -> None:
    """A mean of twenty models, or an average of as many checkpoints, against reading their files."""
    bench.make("--many", "20")
    files = bench.weights(recipes.models(name))
    command = ["sh", "-c", 'cat "$@" > /dev/null', "sh", *map(str, files)]

    def cat() -> Taken:
        bench.fresh("mol")  # its pages
        return run(command, log=bench.directory / "log-cat")

    read, merged = bench.in_turns({f"{name}: cat": (name, cat), f"{name}: mol": (name, lambda: bench.mol(name))})
    bench.add(bench.compare(f"{name}: against cat of 20 files", merged, read, "x cat", *limits))
    bench.anonymous(name, merged, 100)
    # mergekit has no averages of checkpoints: there it is a linear merge of as many models.
    bench.against_peer(name, "linear20", merged)


def windows(bench: Bench) -> None:
    """Averages of the last 5, 10 and 20 checkpoints at once, against that of 20."""
    bench.make("--many", "20")
    one, three = bench.in_turns({f"{name}: mol": (name, partial(bench.mol, name)) for name in ("average20", "windows")})
    bench.add(bench.compare("windows of 5, 10 and 20: against the average of 20", three, one, "x"))
    bench.anonymous("windows", three, 100)


def sweep(bench: Bench, name: str, *limits: float) -> None:
    """Five values at once, against reading the inputs and writing five outputs, and against one value."""
    bench.make()
    files = bench.weights(recipes.models(name))
    copies = 'mkdir "$0"; cat "$@" > /dev/null; for i in 1 2 3 4 5; do cp "$1" "$0/$i"; done'

    def cp() -> Taken:
        return run(["sh", "-ec", copies, str(bench.fresh("cp")), *map(str, files)], log=bench.directory / "log-cp")

    alone = name.removesuffix("_sweep")
    read, five, one = bench.in_turns({
        f"{name}: cat and 5 cp": (name, cp),
        f"{name}: mol": (name, lambda: bench.mol(name)),
        f"{alone}: mol": (alone, lambda: bench.mol(alone)),
    })  # fmt: skip
    bench.add(
        bench.compare(f"{name} of 5: against cat of the inputs and 5 cp of one", five, read, "x", *limits),
        bench.compare(f"{name} of 5: against 5 merges", five, one, "x", per=5),
    )
    bench.anonymous(name, five, 100)
    bench.against_peer(f"{name} of 5, and 5 merges", alone, five, times=5)


def cold(bench: Bench, name: str, *limits: float) -> None:
    """Cold inputs, against reading each once past the page cache and writing one of them out."""
    bench.make()
    files = bench.weights(recipes.models(name))
    read = 'dd if="$1" of="$0" bs=16M iflag=direct; shift; '
    read += 'for file; do dd if="$file" of=/dev/null bs=16M iflag=direct; done'
    taken: dict[str, list[Taken]] = {"dd": [], "mol": []}
    bench.mol(name)  # not counted, as above
    way = ""
    for _ in range(bench.rounds):
        out = bench.fresh("dd")
        way = bench.cool(files)
        taken["dd"].append(run(["sh", "-ec", read, str(out), *map(str, files)], log=bench.directory / "log-dd"))
        bench.discard("dd", "mol")
        way = bench.cool(files)
        taken["mol"].append(bench.mol(name))
    bench.discard("mol")
    for who, runs in taken.items():
        bench.keep(f"{name}, cold: {who}", runs)
    what = f"{name}, cold: against reading all inputs once (direct) and writing the output"
    bench.add(bench.compare(what, taken["mol"], taken["dd"], "x dd", *limits, note=way))


def many_tensors(bench: Bench) -> None:
    """100,000 tiny tensors of two models: the plan, and the whole merge."""
    bench.make("--many-tensors")
    plan = [MOL, "plan", str(bench.recipe("many"))]
    planned = [run(plan, log=bench.directory / "log-plan") for _ in range(bench.rounds)]
    merged = [bench.mol("many") for _ in range(bench.rounds)]
    bench.discard("mol")
    for what, taken, must, goal in (("plan", planned, 1.3, 1.0), ("whole merge", merged, 5, 3)):
        wall, cpu = bench.keep(f"many tensors, {what}: mol", taken), statistics.median(one.cpu for one in taken)
        bench.add(
            Line(f"{what} of 100,000 tensors of 2 models", wall, "s", must, goal, cpu=cpu),
            Line(f"{what} of 100,000 tensors: peak RSS", max(one.resident for one in taken) / MB, "MB"),
        )


OF_MANY: dict[str, Callable[[Bench], None]] = {
    "ties7": lambda bench: relative_to_ties(bench, "ties7", 1.2, 1.0, per_input=True),
    "ties_count": lambda bench: relative_to_ties(bench, "ties_count", 1.1, 1.0),
    "ties_rescale": lambda bench: relative_to_ties(bench, "ties_rescale", 1.7, 1.4),
    "linear20": lambda bench: of_twenty(bench, "linear20", 1.3, 1.05),
    "average20": lambda bench: of_twenty(bench, "average20", 1.3, 1.05),
    "windows": windows,
}
ROWS: dict[str, Callable[[Bench], None]] = {
    "cold_linear": lambda bench: cold(bench, "linear", 1.3, 1.1),
    "cold_ties": lambda bench: cold(bench, "ties", 1.5, 1.2),
    "sweep_linear": lambda bench: sweep(bench, "linear_sweep", 1.2),
    "sweep_slerp": lambda bench: sweep(bench, "slerp_sweep", 1.2),
    "plan": many_tensors,
}
# Rows in which mergekit runs too.
PEERED = ("linear20", "average20", "sweep_linear", "sweep_slerp")
