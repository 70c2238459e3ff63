"""The command line that benchmarks share: which rows of a table to measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection


def chosen_rows(parser: argparse.ArgumentParser, names: Collection[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read a benchmark's command line: its options, and which of its rows to measure; `--list` prints those and ends.

    Args:
        parser: of the benchmark's own options.
        names: of its rows.
    """
    parser.add_argument("rows", nargs="*", default=["all"], help=f"all, or some of: {', '.join(names)}")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(names))
        parser.exit()
    wanted = list(names) if "all" in arguments.rows else arguments.rows
    unknown = [name for name in wanted if name not in names]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(names)}")
    return arguments, wanted
