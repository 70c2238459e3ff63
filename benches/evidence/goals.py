"""Holds the results against the goals that were set before they were measured, and says which are met."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from names import CONTROLS, EXPERTS, FUSED, MERGES, SOUPS
from seeds import Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from seeds import Row


class Judged(NamedTuple):
    """A goal, how far beyond it the results are, and the figures."""

    goal: str
    beyond: Measured
    figures: str

    @property
    def verdict(self) -> str:
        """Return whether it is met by more than two standard errors, or missed by as much."""
        if self.beyond.error is None:
            return "met, with one seed" if self.beyond.mean > 0 else "**not met**, with one seed"
        if self.beyond.mean > 2 * self.beyond.error:
            return "met"
        return "**not met**" if self.beyond.mean < -2 * self.beyond.error else "**open**: within two standard errors"


def over(of: Callable[[int], float], *rows: Row) -> Measured | None:
    """Return the mean of a function of seeds, over those that all of these rows have; None if there are none."""
    shared = set.intersection(*(set(row.seeds) for row in rows if row.name != "base"))
    return Measured.of([of(seed) for seed in sorted(shared)]) if shared else None


def below(goal: str, one: Row, other: Row, column: str = "mean") -> Judged | None:
    """Judge whether a row is below another; differences are taken seed by seed."""
    apart = over(lambda seed: other.of(seed, column) - one.of(seed, column), one, other)
    if apart is None:
        return None
    of = "" if column == "mean" else f" on {column}"
    figures = f"{one.over_seeds(column)} against {other.over_seeds(column)} ({other.shown}){of}, {apart} apart"
    return Judged(goal, apart, figures)


def closes(goal: str, one: Row, high: Row, low: Row, share: float = 60.0) -> Judged | None:
    """Judge whether a row closes a share of the gap between two others, in percent."""
    closed = over(lambda seed: 100 * (high.of(seed) - one.of(seed)) / (high.of(seed) - low.of(seed)), one, high, low)
    if closed is None:
        return None
    error = "" if closed.error is None else f" ± {closed.error:.1f}"
    return Judged(goal, Measured(closed.mean - share, closed.error), f"{closed.mean:.1f}{error}%")


def checked(rows: dict[str, Row], oracle: Row) -> Iterator[Judged | None]:
    """Yield each goal with what the results say; None where the rows have no seed in common."""
    base, single = rows["base"], min((rows[name] for name in EXPERTS), key=lambda row: row.mean)
    merge = min((rows[name] for name in MERGES if name in rows), key=lambda row: row.mean)
    for domain in EXPERTS:
        yield below(f"the best merge ({merge.shown}) is below the base on {domain}", merge, base, domain)
    yield below("it is below the best single expert", merge, single)
    yield closes("it closes 60% of the gap from the base to the oracle, at one model's cost", merge, base, oracle)
    for last, soup in zip(SOUPS[::2], SOUPS[1::2], strict=True):
        rate = "constant" if last.startswith("constant") else "falling"
        goal = f"a soup of the last checkpoints of a run at a {rate} rate is below the last one"
        yield below(goal, rows[soup], rows[last], "python")
    fusions = [rows[name] for name in FUSED if name in rows]
    best = min(fusions, key=lambda row: row.mean)
    yield below(f"the best fusion ({best.shown}) is below the best single expert", best, single)
    yield below("it is below the uniform mixture", best, rows["mixture_uniform"])
    yield closes("it closes 60% of the gap from best single to oracle", best, single, oracle)
    if of_one_model := [row for row in fusions if row.flops < 1.25 * base.flops]:
        cheap = min(of_one_model, key=lambda row: row.mean)
        goal = f"a fusion at about one model's operations ({cheap.shown}: {cheap.flops:.1f} MFLOP/token, the merge has "
        yield below(f"{goal}{merge.flops:.1f}) is below the best merge", cheap, merge)
    for control, controlled in CONTROLS.items():
        for name in controlled:
            if control in rows and name in rows:
                yield below(f"the fusion `{rows[name].shown}` is below its control", rows[name], rows[control])
    if "lora_merge" in rows:
        yield below("the best fusion is below LoRA of as many parameters in the merge", best, rows["lora_merge"])


def section(rows: dict[str, Row], oracle: Row) -> str:
    """Return the table of goals."""
    lines = ["| goal | | figures |", "|---|---|---|"]
    lines += [f"| {one.goal} | {one.verdict} | {one.figures} |" for one in checked(rows, oracle) if one]
    return "\n".join(lines)
