"""Reads the recipe that a command names, and suggests what was probably meant where there is none."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mol.text import closest

if TYPE_CHECKING:
    from mol.config.merge_config import MergeConfig

STDIN = Path("-")
_ENDINGS = (".yml", ".yaml")


def read_recipe(path: Path) -> MergeConfig:
    """Read and check a recipe; `-` is standard input.

    Raises:
        ConfigError: lists everything that is wrong with the recipe.
        OSError: the file is missing or cannot be read, with the name that was probably meant.
    """
    from mol.config.merge_config import MergeConfig
    from mol.config.yaml_source import MAX_BYTES

    if path == STDIN:
        return MergeConfig.from_yaml(sys.stdin.buffer.read(MAX_BYTES + 1), "standard input")
    try:
        return MergeConfig.from_yaml(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, f"no such recipe{_meant(path)}", str(path)) from error
    except IsADirectoryError as error:
        raise IsADirectoryError(
            errno.EISDIR, f"a directory; CONFIG is a recipe, a YAML file{_inside(path)}", str(path)
        ) from error


def refuse_swapped(config: Path, out: Path) -> None:
    """Refuse a command that has OUT before CONFIG.

    Raises:
        click.UsageError: with the command that was meant.
    """
    named_like_out = config.suffix not in _ENDINGS and not config.is_file() and config != STDIN
    if named_like_out and (out == STDIN or (out.suffix in _ENDINGS and out.is_file())):
        raise click.UsageError(f"CONFIG comes first, then OUT: `mol-merge {out} {config}`")


def _meant(path: Path) -> str:
    """Name the recipe next to a missing one that has its name but another ending, or almost its name."""
    for ending in _ENDINGS:
        other = path.with_name(f"{path.stem if path.suffix in _ENDINGS else path.name}{ending}")
        if other.is_file():
            return f"; did you mean {other}?"
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.suffix in _ENDINGS]
    except OSError:
        return ""
    near = closest(path.name, siblings)
    return f"; did you mean {path.with_name(near)}?" if near else ""


def _inside(path: Path) -> str:
    try:
        inside = [entry for entry in sorted(path.iterdir()) if entry.suffix in _ENDINGS]
    except OSError:
        return ""
    return f", such as {inside[0]}" if inside else ""
