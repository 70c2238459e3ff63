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


def twenty(bench: Bench) -> None:
    """A mean of twenty models against reading their files."""
    bench.make("--many", "20")
    files = bench.weights(recipes.models("linear20"))
    command = ["sh", "-c", 'cat "$@" > /dev/null', "sh", *map(str, files)]

    def cat() -> Taken:
        bench.fresh("mol")  # its pages
        return run(command, log=bench.directory / "log-cat")

    taken = {"linear20: cat": ("linear20", cat), "linear20: mol": ("linear20", lambda: bench.mol("linear20"))}
    read, merged = bench.in_turns(taken)
    bench.add(bench.compare("linear20: against cat of 20 files", merged, read, "x cat", 1.3, 1.05))


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
    "linear20": twenty,
}
ROWS: dict[str, Callable[[Bench], None]] = {
    "cold_linear": lambda bench: cold(bench, "linear", 1.3, 1.1),
    "cold_ties": lambda bench: cold(bench, "ties", 1.5, 1.2),
    "plan": many_tensors,
}
