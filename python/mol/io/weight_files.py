"""Finds the files that hold the weights of a model directory, or reports what is there instead."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

from mol.errors import CheckpointError
from mol.io.layout import CONFIG, INDEX, JOURNAL, PARTIAL, SINGLE, read_shard_names, read_weight_map
from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# What the weights of a format that is not read look like, and the way out of each.
_FOREIGN_FILES: Final = (
    ("*.gguf", "GGUF files", "; use the SafeTensors release of the model"),
    ("adapter_model.*", "an adapter (LoRA)", " as a model of its own; write it as MODEL+ADAPTER"),
    ("*.bin", "pickled PyTorch weights", "; convert them once with safetensors, or use the SafeTensors release"),
    ("*.pt", "pickled PyTorch weights", "; convert them once with safetensors, or use the SafeTensors release"),
    ("*.pth", "pickled PyTorch weights", "; convert them once with safetensors, or use the SafeTensors release"),
    ("*.h5", "TensorFlow weights", "; use the SafeTensors release of the model"),
    ("*.msgpack", "Flax weights", "; use the SafeTensors release of the model"),
    ("*.safetensors", "SafeTensors files of another name", f"; name the weights {SINGLE}, or write {INDEX}"),
)
_COUNTED: Final = regex(r"(?P<stem>[^/]+)-(?P<number>\d{1,9})-of-(?P<count>\d{1,9})\.safetensors")
# Files of tensors that no loader takes for the model: the publisher's own format, adapters, optimizers.
_NO_MODEL: Final = regex(r"consolidated|adapter_|optimizer|training_")
_CACHE_FOLDER: Final = regex(r"models--(?P<id>[^/]+)")
_LISTED: Final = 4


class WeightFiles(NamedTuple):
    """The weights of a model directory.

    Attributes:
        names: the files, in the order of the index or of their numbers.
        listed: the tensors that the index lists for each of them; None where there is no index.
        warnings: what may well surprise, one line each, that begins with a verb whose subject is the model.
    """

    names: tuple[str, ...]
    listed: Mapping[str, tuple[str, ...]] | None
    warnings: tuple[str, ...]


def find_weights(directory: Path) -> WeightFiles:
    """Find the weight files of a model directory; a single file wins over an index, as it does for transformers.

    Raises:
        FileNotFoundError: there are none.
        CheckpointError: the index is damaged, shards are missing, or the weights are of a format that is not supported.
    """
    present = sorted(entry.name for entry in os.scandir(directory) if entry.name.endswith(".safetensors"))
    index = directory / INDEX
    listed = None
    if SINGLE in present:
        names: tuple[str, ...] = (SINGLE,)
    elif os.path.lexists(index):
        listed = _read_index(directory, index)
        names = tuple(listed)
    else:
        names = _by_their_names(directory, present)
    warnings = []
    if listed is None and names != (SINGLE,):
        warnings.append(f"has no {INDEX}: its shards were read, since their names count them ({_several(names)})")
    others = [name for name in present if name not in set(names) and not _NO_MODEL.match(name)]
    if others:
        read = f"{_several(names)} {'was' if len(names) == 1 else 'were'} read"
        warnings.append(f"holds more than one set of weights: {read}, and {_several(others)} not")
    return WeightFiles(names, listed, tuple(warnings))


def counted_shards(names: Iterable[str]) -> tuple[str, ...]:
    """Return the shards of a model whose names count them, in order; empty where one is missing or several sets are.

    Args:
        names: files of one directory.
    """
    complete = {key: shards for key, shards in _counted_sets(names).items() if not _missing(shards, key[1])}
    if len(complete) > 1:  # of several, those under the name that loaders know
        complete = {key: shards for key, shards in complete.items() if key[0] == "model"}
    if len(complete) != 1:
        return ()
    (shards,) = complete.values()
    return tuple(shards[number] for number in sorted(shards))


def missing_files(directory: Path, *, weights: bool = True) -> list[str]:
    """List what a snapshot lacks of the files that a merge needs; caches often hold a few files of a model only.

    Args:
        directory: the snapshot.
        weights: whether weights are needed, not just config.json.

    Raises:
        CheckpointError: the index is damaged.
        OSError: the directory or the index cannot be read.
    """
    missing = [] if (directory / CONFIG).exists() else [CONFIG]
    if weights and not (directory / SINGLE).exists():
        if (directory / INDEX).exists():
            missing += [name for name in read_shard_names(directory / INDEX) if not (directory / name).exists()]
        elif not counted_shards(path.name for path in directory.iterdir()):
            missing.append(SINGLE)
    return missing


def no_config(directory: Path) -> CheckpointError | FileNotFoundError:
    """Return the error for a directory without config.json, with what it is instead where that is known."""
    inside = _no_model(directory)
    if inside is not None:
        return CheckpointError(f"{directory} {inside}")
    foreign = _foreign(directory, _FOREIGN_FILES[:2])
    if foreign is not None:
        return foreign
    below = sorted(path.parent.name for path in directory.glob("*/config.json"))
    hint = f"; there is one in {directory / below[-1]}" if below else ""
    return FileNotFoundError(f"{directory}: no config.json; a model directory has one next to its weights{hint}")


def _foreign(directory: Path, known: Iterable[tuple[str, str, str]]) -> CheckpointError | None:
    for pattern, what, way_out in known:
        found = next(iter(sorted(directory.glob(pattern))), None)
        if found is not None:
            return CheckpointError(f"{directory} holds {what} ({found.name}), which is not supported{way_out}")
    return None


def refuse_unfinished(directory: Path) -> None:
    """Refuse the directory of a merge that has not come to its end: it may look like a model before it is one.

    Raises:
        CheckpointError: with the way out.
    """
    name = directory.absolute().name
    if name.endswith(PARTIAL) and (directory / JOURNAL).is_file():
        done = name.removesuffix(PARTIAL)
        raise CheckpointError(
            f"{directory} is the unfinished merge of {done}; run that merge again to finish it, and name {done}"
        )


def _no_model(directory: Path) -> str | None:
    """Describe a folder of the Hub's cache; None for anything else."""
    absolute = Path(os.path.abspath(directory))  # noqa: PTH100 - Path.resolve would follow the links of the cache
    for folder in (absolute, *absolute.parents[:3]):
        cached = _CACHE_FOLDER.fullmatch(folder.name)
        if cached is not None:
            name = cached["id"].replace("--", "/")
            if absolute.parent == folder / "snapshots":
                return f"is a snapshot of {name} whose download did not finish; name {name}, which fetches the rest"
            where = "is" if absolute == folder else "lies in"
            snapshot = _snapshot_in(folder)
            if snapshot is None:
                return f"{where} the cache of {name}, with no finished snapshot; name {name}, which fetches it"
            path = snapshot if directory.is_absolute() else os.path.relpath(snapshot)
            return f"{where} the cache of {name}: name {name}, or {path}"
    within = sorted(path.name for path in directory.glob("models--*--*"))
    if within:
        name = within[0].removeprefix("models--").replace("--", "/")
        return f"is a cache of the Hub, not a model in it; name the model, e.g. {name}"
    return None


def _snapshot_in(repository: Path) -> Path | None:
    """Return the snapshot that `main` names, else the newest."""
    found = [path.parent for path in repository.glob("snapshots/*/config.json") if path.exists()]
    main = repository / "refs" / "main"
    commit = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else ""
    named = next((path for path in found if path.name == commit), None)
    return named or max(found, key=lambda path: path.stat().st_mtime, default=None)


def _read_index(directory: Path, index: Path) -> dict[str, tuple[str, ...]]:
    """Read file -> tensors from the index."""
    listed: dict[str, list[str]] = defaultdict(list)
    for tensor, file in read_weight_map(index).items():
        listed[file if isinstance(file, str) else repr(file)].append(tensor)
    problems, missing = [], []
    for file in listed:
        pure = PurePosixPath(file)
        if pure.is_absolute() or ".." in pure.parts or "\\" in file or "\0" in file or pure.suffix != ".safetensors":
            problems.append(f"{file!r} is not the name of a .safetensors file inside the directory")
        elif not os.path.lexists(directory / file):
            missing.append(file)
    for file in missing[:_LISTED]:
        problems.append(f"{file} is not there; it should hold {len(listed[file])} tensors, e.g. `{listed[file][0]}`")
    if len(missing) > _LISTED:
        problems.append(f"{len(missing) - _LISTED} more files are not there, up to {missing[-1]}")
    for (_, count), shards in _counted_sets(listed).items():
        unnamed = _missing(shards, count)
        if unnamed:
            problems.append(
                f"their names count {count} shards, and it names {len(shards)} of them; there is no entry for "
                f"{_several(unnamed)}"
            )
    if problems:
        raise CheckpointError.listing(f"{index} names files that cannot be used; fetch the model again", problems)
    return {file: tuple(tensors) for file, tensors in listed.items()}


def _by_their_names(directory: Path, present: list[str]) -> tuple[str, ...]:
    """Return shards that need no index, since their names say how many they are."""
    counted = counted_shards(present)
    if counted:
        return counted
    sets = _counted_sets(present)
    if len(sets) > 1:
        listed = "; ".join(_several(list(shards.values())) for shards in sets.values())
        raise CheckpointError(
            f"{directory} holds several sets of shards ({listed}) and no {INDEX} that says which is the model; leave "
            "one of them there, or fetch the index again"
        )
    for (_, count), shards in sets.items():
        missing = _missing(shards, count)
        raise CheckpointError(
            f"{directory} holds {len(shards)} of {count} shards and no {INDEX}; fetch the rest of the model: "
            f"{_several(missing)}"
        )
    inside = _no_model(directory)
    if inside is not None:
        raise CheckpointError(f"{directory} {inside}")
    foreign = _foreign(directory, _FOREIGN_FILES)
    if foreign is not None:
        raise foreign
    raise FileNotFoundError(f"{directory}: neither {SINGLE} nor {INDEX}; a model directory holds one of them")


def _counted_sets(names: Iterable[str]) -> dict[tuple[str, int], dict[int, str]]:
    """Sort files whose names count them: (stem, count) -> number -> file."""
    sets: dict[tuple[str, int], dict[int, str]] = defaultdict(dict)
    for name in names:
        match = _COUNTED.fullmatch(name)
        if match is not None and not _NO_MODEL.match(name):
            sets[match["stem"], int(match["count"])][int(match["number"])] = name
    return sets


def _missing(shards: Mapping[int, str], count: int) -> list[str]:
    """Return the names of the shards that are not there; some publishers begin to count with 0."""
    absent = [number for number in range(1, min(count, 100_000) + 1) if number not in shards]
    if not absent or sorted(shards) == list(range(count)):
        return []
    start, number, _, end = next(iter(shards.values())).rsplit("-", 3)
    return [f"{start}-{missing:0{len(number)}d}-of-{end}" for missing in absent]


def _several(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown) if len(shown) < _LISTED else f"{shown[0]} to {shown[-1]} ({len(shown)} files)"
