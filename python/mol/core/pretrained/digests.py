"""Finds the models of a saved fusion, and checks by digests that the parts used are those it was saved with."""

from __future__ import annotations

import json
import logging
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol import _rust
from mol.errors import CheckpointError
from mol.io.json_file import digest_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mol.core.blocks.source import Source
    from mol.io.checkpoint import Checkpoint

_SPELLING: Final = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""Entries of a model's config.json that do not change its blocks."""
_log = logging.getLogger("mol")


class ModelUse(NamedTuple):
    """What is used of a model.

    Attributes:
        checkpoint: its files.
        source: the model, None if all of it is used.
        blocks: those that are used, None for all of it.
    """

    checkpoint: Checkpoint
    source: Source | None = None
    blocks: Collection[int] | None = None

    @property
    def changed(self) -> bool:
        """Whether the files are not those that were opened."""
        return _changed(self.checkpoint)

    @property
    def runs_own_code(self) -> bool:
        """Whether the model's class came with it."""
        return self.source is not None and type(self.source.model).__module__.startswith("transformers_modules")

    def parts(self) -> dict[str, list[str]]:
        """Return the parts that are used, with the names of the tensors of each in the files."""
        return _parts(self)


def record_model(use: ModelUse, save: Path) -> dict[str, Any]:
    """Return what is recorded of a model, to find and check it when the fusion is loaded again.

    Args:
        use: the model.
        save: the directory of the save.
    """
    record: dict[str, Any] = {}
    checkpoint = use.checkpoint
    if checkpoint.revision is None:  # its directory in the Hub's cache means nothing elsewhere
        directory = os.path.relpath(checkpoint.directory.resolve(), save.resolve())
        record["path"] = Path(directory).as_posix()
    if use.changed:
        _log.warning(
            "%s: its files have changed since it was loaded, so loading this save cannot check that it is the same",
            checkpoint.name,
        )
        return record
    return {**record, "config": _config_digest(checkpoint), "tensors": _tensor_digests(use)}


def check_model(recorded: object, use: ModelUse) -> None:
    """Compare a model with its record.

    Raises:
        CheckpointError: it is another one; the message lists the differences.
    """
    if not isinstance(recorded, dict):
        return
    checkpoint, copied = use.checkpoint, recorded.get("file")
    if copied is not None and [file_sum(file.path) for file in checkpoint.files] == [copied]:
        recorded = {**recorded, "tensors": None}  # the copy in a bundle, as it was written
    differs = []
    if recorded.get("config") not in (None, _config_digest(checkpoint)):
        differs.append("its config.json")
    tensors = recorded.get("tensors")
    if isinstance(tensors, dict):
        now = _tensor_digests(use)
        # A later transformers may split a model into other parts, which is no change of it; a copy lacks parts if it is
        # damaged.
        differs += [
            f"the weights of {part}"
            for part, digest in tensors.items()
            if now.get(part, digest if copied is None else None) != digest
        ]
    if differs:
        raise CheckpointError(
            f"{checkpoint.name} ({checkpoint.directory}) is not the model that the fusion was saved with: "
            f"{', '.join(differs)} changed; pass when loading where that one is, "
            f"paths={{{checkpoint.name!r}: ...}}, or allow_changed_models=True to take what is there"
        )


def find_models(models: Mapping[str, Any], save: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return the directories of models that are not from the Hub, by name.

    A directory is looked for at its old path relative to the save, and then under its name.

    Args:
        models: what was recorded of each.
        save: the directory of the save.
        given: directories by name, which take precedence.

    Raises:
        FileNotFoundError: there is none.
    """
    found = dict(given)
    for name, recorded in models.items():
        path = recorded.get("path") if isinstance(recorded, dict) else None
        if name in given or not isinstance(path, str):
            continue
        seen = Path(os.path.normpath(save.resolve() / path))
        existing = [path for path in (seen, Path(name).expanduser()) if (path / "config.json").is_file()]
        if not existing:
            raise FileNotFoundError(
                f"{name}: was in {seen} when the fusion was saved, and is not there; give its directory: "
                f"from_pretrained or load_checkpoint(..., paths={{{name!r}: ...}})"
            )
        found[name] = str(existing[0])
    return found


def _changed(checkpoint: Checkpoint) -> bool:
    """Return whether the files of a model are not those that were opened."""
    for file in checkpoint.files:
        if not file.path.is_file():
            return True
        status = file.path.stat()
        if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            return True
    return False


def _config_digest(checkpoint: Checkpoint) -> str:
    return digest_of({name: value for name, value in checkpoint.config.items() if name not in _SPELLING})


def _tensor_digests(use: ModelUse) -> dict[str, str]:
    """Return a digest of the tensors of each part of a model that is used."""
    checkpoint, parts = use.checkpoint, use.parts()
    names = sorted({name for part in parts.values() for name in part})
    sums: dict[str, str] = {}
    for number, file in enumerate(checkpoint.files):
        here = tuple(name for name in names if checkpoint.tensors[name].file == number)
        status = file.path.stat()
        sums |= dict(zip(here, _sums(str(file.path), status.st_size, status.st_mtime_ns, here), strict=True))
    return {
        part: digest_of([[name, *checkpoint.tensors[name][:2], sums[name]] for name in sorted(names)])
        for part, names in parts.items()
    }


def _parts(use: ModelUse) -> dict[str, list[str]]:
    """Return the parts of a model that are used, with the tensors of each."""
    checkpoint, source, blocks = use
    if source is not None:
        of_blocks = [_tensors_of(source.block_path(number), checkpoint) for number in range(len(source))]
        used = range(len(source)) if blocks is None else sorted({*blocks, *source.calls.producers})
        if all(of_blocks[number] for number in used):  # else its files name tensors in another way
            parts = {f"block {number}": of_blocks[number] for number in used}
            if blocks is None or source.uses_more_than_blocks:
                inside = {name for names in of_blocks for name in names}
                parts["what is around its blocks"] = [name for name in checkpoint.tensors if name not in inside]
            return parts
    return {"the model": list(checkpoint.tensors)}


def _tensors_of(path: str, checkpoint: Checkpoint) -> list[str]:
    """Return the tensors of a module by its path, whose beginning may be missing in files."""
    steps = path.split(".")
    for first in range(len(steps) - 1):
        pattern = re.compile(rf"(?:^|\.){re.escape('.'.join(steps[first:]))}\.")
        names = [name for name in checkpoint.tensors if pattern.search(name)]
        if names:
            return names
    return []


def file_sum(path: Path) -> dict[str, Any]:
    """Return size and checksum of a weight file."""
    said = json.loads(_rust.checksum(path))
    return {"size": said["size"], "crc64nvme": said["crc64nvme"]}


@lru_cache(maxsize=256)
def _sums(path: str, size: int, mtime_ns: int, names: Sequence[str]) -> list[str]:
    """Return the checksums of tensors; a file that did not change is not read again for the next save."""
    return _rust.checksum_tensors(path, list(names)) if names else []
