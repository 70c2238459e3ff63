"""Records the models of a save; in a bundle it also copies what is used of them, so that it loads without them."""

from __future__ import annotations

import json
import os
import shutil
from math import prod
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from mol.core.pretrained.digests import file_sum, record_model
from mol.core.pretrained.saving import MODELS
from mol.core.pretrained.tokenizers import copy_files, is_input
from mol.core.safetensors_io import read_header
from mol.errors import CheckpointError, ConfigError
from mol.io.layout import CARD, CONFIG, SINGLE
from mol.io.side_files import is_license

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mol.core.pretrained.digests import ModelUse
    from mol.io.checkpoint import Checkpoint

Kind = Literal["runtime", "bundle"]
"""What a save holds of its models: names and digests, or copies of all that is used of them."""
_STEP: Final = 1 << 24


def check_kind_of_save(kind: object) -> None:
    """Check the kind of a save.

    Raises:
        ConfigError: there is none of this name.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"kind is {kind!r}, wanted one of {', '.join(get_args(Kind))}")


def save_models(
    kind: Kind, uses: Mapping[str, ModelUse], names: Sequence[str], directory: Path, staged: Path
) -> dict[str, Any]:
    """Return the record of each model, after writing copies of them if the save is a bundle.

    Args:
        kind: of the save.
        uses: what is used of each model, by name.
        names: of all models, which number their copies.
        directory: of the save.
        staged: where its files are written.

    Raises:
        CheckpointError: the files of a model changed since it was opened.
        ConfigError: copies would not do, or the models themselves are copies in the save that is replaced.
        OSError: something cannot be read or written.
    """
    inside = [name for name, use in uses.items() if _is_inside(use.checkpoint, directory)]
    if kind == "runtime":
        if inside:
            raise ConfigError(
                f"{', '.join(inside)}: loaded from the copies in {directory / MODELS}, which this save would remove; "
                'pass kind="bundle", or save to another directory'
            )
        return {name: record_model(use, directory) for name, use in uses.items()}
    problems = [
        f"{name} brings code of its own, which is not copied" for name, use in uses.items() if use.runs_own_code
    ]
    if problems:
        raise ConfigError.listing("these models cannot be put into a bundle; save it as a runtime", problems)
    records = {}
    for name, use in uses.items():
        if use.changed:
            raise CheckpointError(f"{name}: its files have changed since it was opened, so they are not copied")
        folder = f"{MODELS}/{names.index(name)}"
        (staged / folder).mkdir(parents=True)
        _copy_model(use, staged / folder, whole=name in inside)
        records[name] = {**record_model(use, directory), "path": folder, "file": file_sum(staged / folder / SINGLE)}
    return records


def _is_inside(checkpoint: Checkpoint, directory: Path) -> bool:
    return checkpoint.directory.resolve().parent == (directory / MODELS).resolve()


def _copy_model(use: ModelUse, folder: Path, *, whole: bool) -> None:
    model = use.checkpoint
    if whole:  # a copy of an earlier save of this bundle, which may be open: it stays the same file
        for path in sorted(model.directory.iterdir()):
            try:
                os.link(path, folder / path.name)
            except OSError:  # a file system without links
                shutil.copy2(path, folder / path.name)
        return
    (folder / CONFIG).write_text(json.dumps(model.config, indent=2) + "\n", encoding="utf-8")
    copy_files(
        model, folder, lambda name: is_input(name) or is_license(name) or name in (CARD, "generation_config.json")
    )
    names = {name for part in use.parts().values() for name in part}
    copy_tensors(model, names, folder / SINGLE)


def copy_tensors(model: Checkpoint, names: Collection[str], file: Path) -> None:
    """Write tensors of a model into one SafeTensors file, byte for byte, without holding one in memory.

    Args:
        model: the model.
        names: of the tensors in its files.
        file: to write.

    Raises:
        OSError: something cannot be read or written.
    """
    found: list[tuple[int, str, dict[str, Any], Path, int]] = []
    for each in model.files:
        header = read_header(each.path)
        with each.path.open("rb") as opened:
            start = 8 + int.from_bytes(opened.read(8), "little")
        for name in header.keys() & names:
            first, last = header[name]["data_offsets"]
            width = (last - first) // max(prod(header[name]["shape"]), 1)
            found.append((-width, name, header[name], each.path, start))  # widest first, so that all are aligned
    found.sort(key=lambda one: one[:2])
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for _, name, entry, _, _ in found:
        size = entry["data_offsets"][1] - entry["data_offsets"][0]
        table[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as written:
        written.write(len(text).to_bytes(8, "little") + text)
        for _, _, entry, path, start in found:
            with path.open("rb") as opened:
                opened.seek(start + entry["data_offsets"][0])
                left = entry["data_offsets"][1] - entry["data_offsets"][0]
                while left:
                    part = opened.read(min(left, _STEP))
                    if not part:
                        raise CheckpointError(f"{path} is shorter than its header says")
                    written.write(part)
                    left -= len(part)
