"""mol-merge examples: recipes to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mol.cli import units
from mol.cli.group import Verb
from mol.cli.options import option, speaking

if TYPE_CHECKING:
    from mol.cli.console import Console


@click.command(
    "examples",
    cls=Verb,
    help="Write one example recipe of each kind into DIR (./examples if none is named).",
)
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=Path("examples"))
@option("--overwrite", is_flag=True, help="Replace files of these names that have other contents.")
@speaking
def command(console: Console, directory: Path, overwrite: bool) -> None:
    """Write the recipes."""
    from mol.config.examples import EXAMPLES
    from mol.errors import ConfigError

    other = [
        str(path)
        for name, text in EXAMPLES.items()
        if (path := directory / name).exists() and path.read_text(encoding="utf-8") != text
    ]
    if other and not overwrite:
        raise ConfigError.listing("files of these names have other contents; name another DIR, or --overwrite", other)
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in EXAMPLES.items():
        (directory / name).write_text(text, encoding="utf-8")
    console.document({"directory": str(directory), "recipes": list(EXAMPLES)})
    for name in EXAMPLES:
        console.status(str(directory / name))
    first = directory / next(iter(EXAMPLES))
    console.note(f"{units.amount(len(EXAMPLES), 'recipe')} written; `mol-merge plan {first}` shows what one would do")
