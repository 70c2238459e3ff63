"""Draws the plots of the evidence as SVG, by hand: bars of every row, and bits per byte against cost."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

FONT: Final = 'font-family="Helvetica, Arial, sans-serif" font-size="12"'
GREY: Final = "#888888"
RED: Final = "#cc3333"
COLORS: Final = {"single": "#888a85", "merges": "#3465a4", "mixtures": "#c17d11", "fusions": "#4e9a06"}


class Point(NamedTuple):
    """A row: its name, mean, the standard error if it is known, operations per token, and its kind, of `COLORS`."""

    name: str
    mean: float
    error: float | None
    mflops: float
    kind: str


def _frame(width: float, height: float, inside: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" {FONT}>\n<rect width="100%" height="100%" fill="white"/>\n{inside}</svg>\n'
    )


def _text(x: float, y: float, words: str, anchor: str = "start", color: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(words)}</text>\n'


def _line(x: float, y: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>\n'


def _legend(x: float, y: float) -> str:
    """Return the names of kinds in their colours, and that of the line of the oracle."""
    found = ""
    for name, color in {**COLORS, "the oracle": RED}.items():
        found += f'<rect x="{x:.1f}" y="{y - 9:.1f}" width="10" height="10" fill="{color}"/>\n' + _text(x + 14, y, name)
        x += 85
    return found


def bars(rows: Sequence[Point], oracle: float) -> str:
    """Return bars of rows with twice their standard errors, the lowest first, and a line for the oracle."""
    left, wide, high = 390.0, 420.0, 18.0
    top, most = 50.0, max(row.mean for row in rows)
    scale = wide / most
    inside = _text(8, 18, "mean bits per byte of three domains, and two standard errors to each side")
    inside += _legend(8, 38)
    bottom = top + len(rows) * high
    for number, row in enumerate(sorted(rows, key=lambda row: row.mean)):
        y, end = top + number * high, left + row.mean * scale
        inside += _text(left - 8, y + 12, row.name, "end")
        inside += f'<rect x="{left}" y="{y + 2:.1f}" width="{row.mean * scale:.1f}" height="13" '
        inside += f'fill="{COLORS[row.kind]}"/>\n'
        reach = 2 * (row.error or 0.0) * scale
        if row.error is not None:
            inside += _line(end - reach, y + 8.5, end + reach, y + 8.5, "black")
        inside += _text(end + reach + 5, y + 12, f"{row.mean:.3f}")
    inside += _line(left + oracle * scale, top, left + oracle * scale, bottom, RED)
    return _frame(left + wide + 80, bottom + 10, inside)


def scatter(rows: Sequence[Point], oracle: float) -> str:
    """Return rows as numbered points, operations against bits per byte, and the list of their names."""
    left, top, wide, high = 60.0, 50.0, 520.0, 520.0
    most = max(row.mflops for row in rows) * 1.1
    values = [oracle, *(row.mean for row in rows)]
    low, top_value = min(values) - 0.05, max(values) + 0.05

    def across(x: float) -> float:
        return left + x / most * wide

    def down(y: float) -> float:
        return top + (top_value - y) / (top_value - low) * high

    inside = _text(8, 18, "mean bits per byte of three domains against MFLOP per token") + _legend(8, 38)
    for step in range(int(most // 5) + 1):
        inside += _text(across(step * 5), top + high + 16, str(step * 5), "middle", GREY)
    tenth = int(low * 5) + 1
    while tenth / 5 < top_value:
        inside += _line(left, down(tenth / 5), left + wide, down(tenth / 5), "#e5e5e5")
        inside += _text(left - 8, down(tenth / 5) + 4, f"{tenth / 5:.1f}", "end", GREY)
        tenth += 1
    inside += _line(left, down(oracle), left + wide, down(oracle), RED)
    for number, row in enumerate(sorted(rows, key=lambda row: row.mean), 1):
        x, y, color = across(row.mflops), down(row.mean), COLORS[row.kind]
        inside += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}" fill-opacity="0.7"/>\n'
        inside += _text(x + 6 + 18 * (number % 4), y + 4, str(number), color=color)
        inside += _text(left + wide + 30, top + number * 15, f"{number}  {row.name}", color=color)
    return _frame(left + wide + 420, max(top + high + 30, top + len(rows) * 15 + 20), inside)
