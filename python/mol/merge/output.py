"""Where a merge may be put."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mol.errors import MergeError
from mol.merge.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable

_MODEL_MARKS: Final = ("config.json", MANIFEST_NAME)


def partial_of(out: Path) -> Path:
    """Return the directory in which the work for `out` is done: its sibling, so that one rename ends it."""
    return out.with_name(f"{out.name}.partial")


def check_output(out: Path, *, overwrite: bool, inputs: Iterable[Path] = ()) -> Path:
    """Check that a model can be put at `out`, and return the path with its links followed.

    Args:
        out: the output directory.
        overwrite: whether a model that is there may be replaced.
        inputs: directories that are known to be inputs; none of them is offered for overwriting.

    Raises:
        OSError: `out` or a folder above it is a file, a loop of links, or not writable.
        MergeError: something is there already, or an input is.
    """
    place = Path(os.path.realpath(out.expanduser() if out.parts[:1] == ("~",) else out))
    try:
        place.stat()
        there = True
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError as error:
        raise OSError(error.errno, f"{out} cannot be an output directory: {error.strerror}") from error
    if there and not place.is_dir():
        raise NotADirectoryError(f"{out} is a file; name a directory for the merged model")
    if not place.name:
        raise MergeError(f"{out} is the root of a file system; name a directory below it")
    above = next(folder for folder in place.parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{out} cannot be made: {above} is a file")
    if not may(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{out} cannot be made: no right to write there", str(above))
    check_apart(place, inputs)
    if there and any(place.iterdir()):
        if not overwrite:
            raise MergeError(f"{out} is not empty; name another directory, or replace it with overwrite (--overwrite)")
        if not any((place / name).is_file() for name in _MODEL_MARKS):
            raise MergeError(f"{out} holds something that is no model (no config.json), so it is not overwritten")
    return place


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Refuse an output directory (or its partial one) that is, holds or lies in an input.

    Raises:
        MergeError: naming them.
    """
    problems = []
    partial = partial_of(out)
    if partial.is_symlink():
        problems.append(f"{partial} is a link, wanted a directory of this merge's own or nothing")
    for directory in dict.fromkeys(Path(os.path.realpath(path)) for path in inputs):
        for place in (out, partial):
            if place == directory:
                problems.append(f"{place} is an input")
            elif directory in place.parents:
                problems.append(f"{place} lies inside the input {directory}")
            elif place in directory.parents:
                problems.append(f"{place} holds the input {directory}")
    if problems:
        raise MergeError.listing("the output would touch an input; name another directory", problems)


def may(path: Path, mode: int) -> bool:
    """Whether this process has the right; asked as the system will, with the effective user."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)
