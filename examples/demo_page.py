"""One self-contained HTML page: tables and plots as inline SVG, no script, no network."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --fg: #1c2733; --bg: #ffffff; --soft: #d5dbe1; --c0: #2f6fab; --c1: #c8641e;
  --c2: #2e8059; --c3: #8c4fa0; --c4: #a03a4a; --c5: #6b6f1d; }
@media (prefers-color-scheme: dark) { :root { --fg: #e3e8ed; --bg: #14191f; --soft: #3a444e; --c0: #74aee0;
  --c1: #e89a5c; --c2: #6cc198; --c3: #c596d6; --c4: #e08a97; --c5: #bcc062; } }
body { color: var(--fg); background: var(--bg); font: 15px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .87rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--soft); }
td { white-space: pre-wrap; min-width: 4rem; } p { margin: .4rem 0; }
pre { overflow-x: auto; font-size: .8rem; } svg { width: 100%; max-width: 46rem; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: var(--fg); } .axis { stroke: var(--soft); fill: none; }
"""
_WIDTH, _LEFT, _ROW = 720, 250, 26


class Curve(NamedTuple):
    """A line of a plot: its name and its points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


class Page:
    """A page that is filled section by section; each is printed as it comes."""

    def __init__(self, title: str) -> None:
        """Start an empty page."""
        self.title = title
        self._sections: list[str] = []

    @staticmethod
    def escape(text: object) -> str:
        """Return a text as HTML."""
        return html.escape(str(text))

    def add(self, heading: str, body: str) -> None:
        """Add a section."""
        print(f"- {heading}", flush=True)
        self._sections.append(f"<section><h2>{self.escape(heading)}</h2>\n{body}\n</section>")

    def write(self, path: Path) -> Path:
        """Write the page, and return its path."""
        title = self.escape(self.title)
        path.write_text(
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>{title}</title><style>{_STYLE}</style></head>\n'
            f"<body><h1>{title}</h1>\n{chr(10).join(self._sections)}\n</body></html>\n",
            encoding="utf-8",
        )
        return path


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table."""
    first = "".join(f"<th>{Page.escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{Page.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{first}</tr>{body}</table></div>'


def bars(label: str, rows: Sequence[tuple[str, float]]) -> str:
    """Return horizontal bars from 0 below their label, each with its value."""
    most = max((value for _, value in rows if math.isfinite(value)), default=1.0) or 1.0
    parts = []
    for number, (name, value) in enumerate(rows):
        y = number * _ROW
        length = (_WIDTH - _LEFT - 70) * min(value / most, 1.0) if math.isfinite(value) else 0.0
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 17}" text-anchor="end">{Page.escape(_short(name))}</text>'
            f'<rect x="{_LEFT}" y="{y + 4}" width="{length:.1f}" height="18" fill="var(--c0)"/>'
            f'<text x="{_LEFT + length + 6:.1f}" y="{y + 17}">{value:.3f}</text>'
        )
    return f"<p>{Page.escape(label)}</p>" + _svg(label, _ROW * len(rows), "".join(parts))


def stacked(names: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Return a bar of shares for each row; `names` are its parts."""
    parts = []
    for number, (label, shares) in enumerate(rows):
        y, x = number * _ROW, float(_LEFT)
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 17}" text-anchor="end">{Page.escape(label)}</text>')
        for key, share in enumerate(shares):
            width = (_WIDTH - _LEFT) * share
            parts.append(f'<rect x="{x:.1f}" y="{y + 4}" width="{width:.1f}" height="18" fill="var(--c{key % 6})"/>')
            if width > 40:
                parts.append(f'<text x="{x + 5:.1f}" y="{y + 17}" style="fill:var(--bg)">{share:.1%}</text>')
            x += width
    return _legend(names) + _svg("shares of the experts", _ROW * len(rows), "".join(parts))


def curves(label: str, below: str, lines: Sequence[Curve]) -> str:
    """Return a plot of lines over one axis."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    margin = (high - low) * 0.05 or 0.1
    low, high = low - margin, high + margin
    left, top, width, height = 60, 10, _WIDTH - 80, 190

    def position(x: float, y: float) -> str:
        across = (x - min(xs)) / (max(xs) - min(xs) or 1)
        return f"{left + width * across:.1f},{top + height * (high - y) / (high - low):.1f}"

    drawn = []
    for part in range(5):
        value = low + (high - low) * part / 4
        y = top + height * (high - value) / (high - low)
        drawn.append(f'<path class="axis" d="M{left} {y:.1f}H{left + width}"/>')
        drawn.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for key, line in enumerate(lines):
        path = " ".join(position(x, y) for x, y in line.points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="var(--c{key % 6})" stroke-width="2"/>')
        for x, y in line.points if len(line.points) < 9 else ():
            at, down = position(x, y).split(",")
            drawn.append(f'<circle cx="{at}" cy="{down}" r="3.5" fill="var(--c{key % 6})"/>')
    drawn.append(f'<text x="{left}" y="{top + height + 20}">{min(xs):g}</text>')
    drawn.append(f'<text x="{left + width}" y="{top + height + 20}" text-anchor="end">{below} {max(xs):g}</text>')
    return f"<p>{Page.escape(label)}</p>" + _legend([line.name for line in lines]) + _svg(label, 225, "".join(drawn))


def _legend(names: Sequence[str]) -> str:
    keys = "".join(f'<span style="color:var(--c{key % 6})">&#9632;</span> {Page.escape(name)} &ensp;'
                   for key, name in enumerate(names))  # fmt: skip
    return f"<p>{keys}</p>"


def _short(name: str) -> str:
    return name if len(name) < 36 else f"...{name[-32:]}"


def _svg(label: str, height: float, inside: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{Page.escape(label)}">{inside}</svg>'
