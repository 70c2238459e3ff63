"""Draws the plots of the evidence as SVG, by hand: bars of every row, and bits per byte against cost."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

FONT: Final = 'font-family="Helvetica, Arial, sans-serif" font-size="12"'
BLUE: Final = "#3465a4"
GREY: Final = "#888888"
RED: Final = "#cc3333"


def _frame(width: float, height: float, inside: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" {FONT}>\n<rect width="100%" height="100%" fill="white"/>\n{inside}</svg>\n'
    )


def _text(x: float, y: float, words: str, anchor: str = "start", color: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(words)}</text>\n'


def _line(x: float, y: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>\n'


def bars(rows: Sequence[tuple[str, float]], oracle: float) -> str:
    """Return bars of rows, the lowest first, and a line for the oracle."""
    left, wide, high = 390.0, 420.0, 18.0
    top, most = 30.0, max(value for _, value in rows)
    scale = wide / most
    inside = _text(left, 18, "mean bits per byte of three domains; red: the oracle")
    for number, (name, value) in enumerate(sorted(rows, key=lambda row: row[1])):
        y = top + number * high
        inside += _text(left - 8, y + 12, name, "end")
        inside += f'<rect x="{left}" y="{y + 2:.1f}" width="{value * scale:.1f}" height="13" fill="{BLUE}"/>\n'
        inside += _text(left + value * scale + 5, y + 12, f"{value:.3f}")
    bottom = top + len(rows) * high
    inside += _line(left + oracle * scale, top, left + oracle * scale, bottom, RED)
    return _frame(left + wide + 60, bottom + 10, inside)


def scatter(rows: Sequence[tuple[str, float, float]], oracle: float) -> str:
    """Return rows as numbered points, operations against bits per byte, and the list of their names."""
    left, top, wide, high = 60.0, 30.0, 520.0, 420.0
    most = max(x for _, x, _ in rows) * 1.1
    values = [oracle, *(y for _, _, y in rows)]
    low, top_value = min(values) - 0.05, max(values) + 0.05

    def across(x: float) -> float:
        return left + x / most * wide

    def down(y: float) -> float:
        return top + (top_value - y) / (top_value - low) * high

    inside = _text(left, 18, "mean bits per byte against MFLOP per token; red: the oracle")
    for step in range(int(most // 5) + 1):
        inside += _text(across(step * 5), top + high + 16, str(step * 5), "middle", GREY)
    tenth = int(low * 5) + 1
    while tenth / 5 < top_value:
        inside += _line(left, down(tenth / 5), left + wide, down(tenth / 5), "#e5e5e5")
        inside += _text(left - 8, down(tenth / 5) + 4, f"{tenth / 5:.1f}", "end", GREY)
        tenth += 1
    inside += _line(left, down(oracle), left + wide, down(oracle), RED)
    ordered = sorted(rows, key=lambda row: row[2])
    for number, (name, x, y) in enumerate(ordered, 1):
        inside += f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="4" fill="{BLUE}" fill-opacity="0.6"/>\n'
        inside += _text(across(x) + 6 + 18 * (number % 3), down(y) + 4, str(number), color=GREY)
        inside += _text(left + wide + 30, top + number * 15, f"{number}  {name}")
    return _frame(left + wide + 400, max(top + high + 30, top + len(rows) * 15 + 20), inside)
