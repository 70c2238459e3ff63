"""Holds the results against the goals that were set before they were measured, and says which are met."""

from __future__ import annotations

from typing import TYPE_CHECKING

from names import EXPERTS, FUSED, MERGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from page import Row


def closed(high: float, low: float, at: float) -> float:
    """Return the share of a gap that is closed, in percent."""
    return 100 * (high - at) / (high - low)


def checked(rows: dict[str, Row], oracle: dict[str, float]) -> Iterator[tuple[str, bool, str]]:
    """Yield each goal, whether it is met, and by which figures."""
    base, single = rows["base"], min((rows[name] for name in EXPERTS), key=lambda row: row.mean)
    merges = [rows[name] for name in MERGES if name in rows]
    if merges:
        merge = min(merges, key=lambda row: row.mean)
        below = [name for name in EXPERTS if merge.columns[name] < base.columns[name]]
        yield (
            f"a merge ({merge.shown}) is below the base in all three domains",
            len(below) == len(EXPERTS),
            f"in {', '.join(below) or 'none'}",
        )
        yield "it is below the best single expert on the mean", merge.mean < single.mean, _two(merge, single)
        share = closed(base.mean, oracle["mean"], merge.mean)
        yield "it closes 60% of the gap from the base to the oracle, at one model's cost", share >= 60, f"{share:.0f}%"
    for kind in ("constant", "decayed"):
        if {f"{kind}_soup", f"{kind}_last"} <= rows.keys():
            soup, last = rows[f"{kind}_soup"], rows[f"{kind}_last"]
            figures = f"{soup.columns['python']:.3f} against {last.columns['python']:.3f} on python"
            rate = "a constant rate" if kind == "constant" else "a falling rate"
            met = soup.columns["python"] < last.columns["python"]
            yield f"a soup of the last checkpoints of a run at {rate} is below the last one", met, figures
    fusions = [rows[name] for name in FUSED if name in rows]
    if not fusions:
        return
    best = min(fusions, key=lambda row: row.mean)
    yield f"a fusion ({best.shown}) is below the best single expert", best.mean < single.mean, _two(best, single)
    if "mixture_uniform" in rows:
        uniform = rows["mixture_uniform"]
        yield "it is below the uniform mixture", best.mean < uniform.mean, _two(best, uniform)
    control = rows.get("chain_control" if best.name.startswith("chain") else "control")
    if control is not None:
        errors = [row.error for row in (best, control) if row.error is not None]
        apart = control.mean - best.mean
        enough = len(errors) == 2 and apart > 2 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
        words = _two(best, control) + ("" if len(errors) == 2 else "; one seed, so no error is known")
        yield "it is below its control by more than two standard errors", enough, words
    if merges:
        cheap = [row for row in fusions if row.first["mflops_per_token"] < 1.5 * base.first["mflops_per_token"]]
        if cheap:
            one = min(cheap, key=lambda row: row.mean)
            words = f"{one.shown}: {_two(one, merge)}, {one.first['mflops_per_token']:.1f} MFLOP/token"
            words += f" against {merge.first['mflops_per_token']:.1f}"
            yield "a fusion of about one model's operations is below the best merge", one.mean < merge.mean, words
    share = closed(single.mean, oracle["mean"], best.mean)
    yield "the best fusion closes 60% of the gap from best single to oracle", share >= 60, f"{share:.0f}%"


def _two(one: Row, other: Row) -> str:
    return f"{one.of_mean()} against {other.of_mean()} ({other.shown})"


def section(rows: dict[str, Row], oracle: dict[str, float]) -> str:
    """Return the section of the page about goals."""
    lines = ["## Goals", "", "| goal | | figures |", "|---|---|---|"]
    lines += [f"| {goal} | {'met' if met else '**not met**'} | {words} |" for goal, met, words in checked(rows, oracle)]
    lines += [
        "",
        "A mixture that merges attention and embeddings statically and routes only the experts' MLPs (BAR) is not "
        "here: experts of `MoLRuntime` are whole blocks.",
    ]
    return "\n".join(lines)
