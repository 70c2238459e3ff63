"""Writes docs/evidence.md and its plots from the results of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import goals
import plots
import words
from names import BLOCKS, CONTROLS, FUSED, LORA, MERGES, MIXTURES, SHOWN, SINGLES, SOUPS, UNTRAINED
from seeds import COLUMNS, load, oracle

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from seeds import Row

GROUPS: Final = (
    ("Single models", (*SINGLES, *BLOCKS), words.SINGLES),
    ("Merges: one model, one model's cost", MERGES, words.MERGES),
    ("Mixtures of the outputs of the three experts", MIXTURES, words.MIXTURES),
    (
        "Fusions of the experts' blocks, and what they are held against",
        (*UNTRAINED, *FUSED, *CONTROLS, *LORA),
        words.FUSIONS,
    ),
    ("The last checkpoints of one run", SOUPS, words.SOUPS),
)


def table(rows: Sequence[Row]) -> str:
    """Return a table of rows."""
    lines = [
        "| | mean of the three | " + " | ".join(COLUMNS) + " | trained | MFLOP/token | tokens/s | MB | seeds |",
        "|---|" + "---:|" * (len(COLUMNS) + 6),
    ]
    for row in rows:
        cells = [str(row.over_seeds()), *(f"{row.over_seeds(key).mean:.3f}" for key in COLUMNS)]
        if row.name == "oracle":
            cells += [""] * 4
        else:
            first = row.first
            speed = max(one["tokens_per_cpu_second"] for one in row.seeds.values())
            cells += [f"{first['trained_parameters']:,}", f"{first['mflops_per_token']:.1f}", f"{speed:,}"]
            cells += [f"{first['megabytes_of_weights']:.1f}"]
        lines.append(f"| {row.shown} | " + " | ".join([*cells, str(len(row.seeds))]) + " |")
    return "\n".join(lines)


def scales(rows: dict[str, Row]) -> str:
    """Return what was chosen on validation text."""
    lines = ["| method | settings tried | chosen |", "|---|---:|---|"]
    for name in GROUPS[1][1]:
        settings = dict(rows[name].first["settings"]) if name in rows else {}
        tried = settings.pop("tried", [])
        if tried:
            chosen = ", ".join(f"`{key}` {value:g}" for key, value in settings.items())
            lines.append(f"| {name} | {len(tried)} | {chosen} |")
    return "\n".join(lines)


def write(results: Path, docs: Path) -> None:
    """Write the page and its plots."""
    rows = load(results)
    best = oracle(rows)
    parts = [words.HEAD]
    shown: list[tuple[Row, str]] = []
    for title, names, said in GROUPS:
        some = [rows[name] for name in names if name in rows]
        if title.startswith("Merges"):
            some.sort(key=lambda row: row.mean)
        shown += [(row, title.split()[0].rstrip(":").lower()) for row in some if names != SOUPS]
        parts.append(f"## {title}\n\n{said}\n\n{table([*some, best] if names[0] == 'base' else some)}")
        if missing := [SHOWN.get(name, name) for name in names if name not in rows]:
            parts.append("Not measured yet: " + "; ".join(missing) + ".")
        if title.startswith("Merges"):
            parts.append(scales(rows))
    parts.append(f"## Goals\n\n{words.GOALS}\n\n{goals.section(rows, best)}\n\n{words.WHY}")
    folder = docs / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    points = [plots.Point(row.shown, *row.over_seeds(), row.flops, kind) for row, kind in shown]
    folder.joinpath("rows.svg").write_text(plots.bars(points, best.mean))
    folder.joinpath("cost.svg").write_text(plots.scatter(points, best.mean))
    commits = sorted({one["commit"][:10] for row in rows.values() for one in row.seeds.values()})
    parts.append(
        f"Measured at {', '.join(commits)}; a `+` means with changes that were not committed. Of the first "
        "rows the commits were rebased afterwards, which put changes of others before them."
    )
    docs.joinpath("evidence.md").write_text("\n\n".join(parts) + "\n")
