"""Plain tables."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mol.cli.console import DEFAULT_WIDTH, width_of
from mol.cli.streams import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_GAP = "  "


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int]) -> Iterator[str]:
    """Lay out rows under their heads, within the width of stdout as long as the names in the first column allow.

    Args:
        heads: One word per column.
        rows: Cells, as many per row as there are heads.
        right: The columns that are set to the right, such as numbers.
    """
    # A line feed in a name would break the table, or make a row of its own.
    rows = [[printable(cell).replace("\n", "\\n").replace("\t", "\\t") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    room = (width_of(sys.stdout) or DEFAULT_WIDTH) - sum(widths[1:]) - len(_GAP) * (len(heads) - 1)
    widths[0] = min(widths[0], max(room, len(heads[0])))
    for row in (heads, *rows):
        cells = zip(row, widths, strict=True)
        laid = (cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(cells))
        yield _GAP.join(laid).rstrip()
