"""Where a merge may be put."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mol.config.model_reference import expanded
from mol.errors import CheckpointError, MergeError
from mol.io.json_file import may, read_object
from mol.io.layout import CARD, CONFIG, MANIFEST, PARTIAL, RECIPE, SWEEP, is_saved_index, is_saved_weights
from mol.io.side_files import sort_side_files
from mol.merge.manifest import listed_files
from mol.merge.sweep import listed_results

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WRITTEN: Final = frozenset({CONFIG, CARD, RECIPE, MANIFEST, ".gitattributes"})
_NAMED: Final = 10  # files that an error names


def partial_of(out: Path) -> Path:
    """Return the directory in which the work for `out` is done: its sibling, so that one rename ends it."""
    return out.with_name(f"{out.name}{PARTIAL}")


def check_output(out: Path, *, overwrite: bool, overwrite_all: bool = False, inputs: Iterable[Path] = ()) -> Path:
    """Check that a model can be put at `out`, and return the path with its links followed.

    Args:
        out: the output directory.
        overwrite: whether a model that is there may be replaced.
        overwrite_all: whether other files that are there with it may go too.
        inputs: directories that are known to be inputs; none of them is offered for overwriting.

    Raises:
        OSError: `out` or a folder above it is a file, a loop of links, or not writable.
        MergeError: something is there already, or an input is.
    """
    path = resolve_output(out, inputs=inputs)
    check_replaceable(expanded(str(out)), overwrite=overwrite, overwrite_all=overwrite_all)
    return path


def resolve_output(out: Path, *, inputs: Iterable[Path] = ()) -> Path:
    """Return `out` with its links followed, after checking that a directory can be made there, whatever is there now.

    Args:
        out: the output directory.
        inputs: directories that are known to be inputs.

    Raises:
        OSError: `out` or a folder above it is a file, a loop of links, or not writable.
        MergeError: an input is there.
    """
    path = Path(os.path.realpath(expanded(str(out))))
    try:
        path.stat()
        there = True
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError as error:
        raise OSError(error.errno, f"{out} cannot be an output directory: {error.strerror}") from error
    if there and not path.is_dir():
        raise NotADirectoryError(f"{out} is a file; name a directory for the merged model")
    if not path.name:
        raise MergeError(f"{out} is the root of a file system; name a directory below it")
    above = next(folder for folder in path.parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{out} cannot be made: {above} is a file")
    if not may(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"{out} cannot be made: no right to write there", str(above))
    if there and os.path.ismount(path):
        raise MergeError(
            f"{out} is a mount point, and a merge appears by a rename, which cannot replace one; name a directory "
            f"below it, such as {out / 'merged'}"
        )
    check_apart(path, inputs)
    return path


def check_replaceable(out: Path, *, overwrite: bool, overwrite_all: bool = False) -> None:
    """Refuse a directory that is not empty, unless it is a model that may be replaced.

    Raises:
        MergeError: with the files that no program that saves models wrote.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not (overwrite or overwrite_all):
        raise MergeError(f"{out} is not empty; name another directory, or replace it with overwrite (--overwrite)")
    results = [name for name in listed_results(out) if (out / name).is_dir() and not (out / name).is_symlink()]
    if results:
        _check_sweep(out, results, overwrite=overwrite, overwrite_all=overwrite_all)
        return
    names = sorted(_everything(out))
    listed, others = listed_files(out)
    weights = {name for name in names if is_saved_weights(name)} | (listed & set(names))
    if not (listed or (weights and _is_of_model(out / CONFIG))):
        raise MergeError(
            f"{out} holds something that is no model (neither weights with a model's {CONFIG} nor {MANIFEST}), so it "
            "is not overwritten; name another directory"
        )
    side = sort_side_files(names)
    known = {*_WRITTEN, *weights, *others, *side.tokenizer, *side.other}
    _refuse_foreign(
        out, [name for name in names if name not in known and not is_saved_index(name)], overwrite_all=overwrite_all
    )


def _check_sweep(out: Path, results: Sequence[str], *, overwrite: bool, overwrite_all: bool) -> None:
    """Check the results of a sweep, each of which is a model, and what else lies in OUT."""
    for name in results:
        check_replaceable(out / name, overwrite=overwrite, overwrite_all=overwrite_all)
    foreign = sorted(path.name for path in out.iterdir() if path.name not in {SWEEP, *results})
    _refuse_foreign(out, foreign, overwrite_all=overwrite_all)


def _refuse_foreign(out: Path, foreign: Sequence[str], *, overwrite_all: bool) -> None:
    if foreign and not overwrite_all:
        more = [f"and {len(foreign) - _NAMED:,} more"] if len(foreign) > _NAMED else []
        raise MergeError.listing(
            f"{out} holds other files than a model's, which overwriting would delete; move them away, name another "
            "directory, or delete them with it by overwrite_all (--overwrite-all)",
            [*foreign[:_NAMED], *more],
        )


def _everything(directory: Path) -> list[str]:
    """List all that is below a directory as relative paths, hidden or not; empty folders with a slash at the end."""
    found = []
    for folder, folders, files in os.walk(directory, onerror=_raise):
        here = Path(folder)
        links = [name for name in folders if (here / name).is_symlink()]
        found += [(here / name).relative_to(directory).as_posix() for name in (*files, *links)]
        if not files and not folders:
            found.append(f"{here.relative_to(directory).as_posix()}/")
    return found


def _raise(error: OSError) -> None:
    raise error


def _is_of_model(path: Path) -> bool:
    """Return whether a config.json is that of a model; one that cannot be read says nothing."""
    try:
        config = read_object(path) if path.is_file() else {}
    except CheckpointError:
        return False
    return "model_type" in config or "architectures" in config


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
        for path in (out, partial):
            if path == directory:
                problems.append(f"{path} is an input")
            elif directory in path.parents:
                problems.append(f"{path} lies inside the input {directory}")
            elif path in directory.parents:
                problems.append(f"{path} holds the input {directory}")
    if problems:
        raise MergeError.listing("the output would touch an input; name another directory", problems)
