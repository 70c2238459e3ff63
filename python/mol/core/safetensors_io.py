"""Saves the state of any torch module as one checked SafeTensors file, and loads it. Imports torch only when called."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mol import _rust
from mol.core.state_dicts import checked_state, differences
from mol.errors import CheckpointError, ConfigError, InternalError
from mol.io.atomic import locked, sync
from mol.io.json_file import digest_of

if TYPE_CHECKING:
    import torch

_KEY: Final = "mol_safe"
"""Where the metadata of a file holds what is needed to check it."""
_FORMAT: Final = 1
_SUFFIX: Final = ".safetensors"
_PICKLES: Final = frozenset({".bin", ".ckpt", ".pkl", ".pth"})
_STAGED: Final = ".mol-file-"
_WAY_OUT: Final = "copy the file again from where it is whole, or save the module again"
_log = logging.getLogger("mol")


def is_safetensors_available() -> bool:
    """Return whether torch and safetensors are installed, which saving and loading a module needs."""
    return all(find_spec(name) is not None for name in ("torch", "safetensors"))


def save_model_safe(
    model: torch.nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> Path:
    """Save the state dict of a module as one SafeTensors file, with a checksum of all that it holds.

    Weights that the module shares are stored once, as by `safetensors.torch.save_model`. A file of the same name is
    replaced in one step: whatever ends the process leaves the old file or the new one.

    Args:
        model: the module.
        path: the file. `model`, `model.pt` and `model.safetensors` all name `model.safetensors`.
        metadata: texts to store with it, which `load_model_safe` returns as they are.

    Returns:
        The file.

    Raises:
        ConfigError: the path, the metadata or the module's state cannot be stored; all problems are listed.
        OSError: the file cannot be written; what was there before is as it was.
    """
    _require("save_model_safe")
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    file = weights_file(path)
    checked_state(model)
    given = _checked_metadata(metadata)
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a directory, wanted a file")
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {"digest": "", "format": _FORMAT, "metadata": sorted(given), "version": _rust.__version__}
    with locked(file.parent):
        for left in file.parent.glob(f"{_STAGED}*"):  # of saves that were killed
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_STAGED, dir=file.parent) as directory:
            staged = Path(directory) / "weights"
            staged.touch()
            mode = staged.stat().st_mode  # as the umask has it; safetensors makes files for their owner alone
            blank = json.dumps({**record, "digest": digest_of(None)})
            try:
                save_model(model, str(staged), metadata={**given, _KEY: blank})
            except SafetensorError as error:
                raise OSError(f"{file} cannot be written: {error}") from error
            except KeyError as error:
                raise ConfigError(f"{file} is not written: SafeTensors has no dtype for {error}") from error
            except RuntimeError as error:  # the library lists tensors that share memory none of them fills
                raise ConfigError(
                    f"{file} is not written: {error} (mol: .clone() gives such a tensor memory of its own)"
                ) from error
            _seal(staged, record)
            staged.chmod(mode)
            sync(staged)
            staged.replace(file)
            sync(file.parent)
    return file


def load_model_safe(
    model: torch.nn.Module,
    path: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    strict: bool = True,
) -> dict[str, str]:
    """Load into a module what `save_model_safe` wrote, once its checksum is verified.

    When something is refused, the module is as it was.

    Args:
        model: the module. It stays on its devices, and what it shares stays shared.
        path: the file, named as for `save_model_safe`.
        device: where the file is read to, before its values are copied into the module.
        strict: Require the names and dtypes of the module. Otherwise what has another name is left out with a
            warning, and values are converted to the module's dtypes. Shapes must be equal in any case.

    Returns:
        The metadata that was given to `save_model_safe`.

    Raises:
        CheckpointError: the file is damaged, was altered or was not written by `save_model_safe`, or does not fit the
            module; all differences are listed.
        ConfigError: a later version of mol wrote it, or the path or the module cannot be used.
        FileNotFoundError: there is no such file.
    """
    _require("load_model_safe")
    from safetensors.torch import load_file

    file = weights_file(path)
    state = checked_state(model)
    metadata = read_verified(file, path)
    tensors = load_file(file, device=device if isinstance(device, int) else str(device))
    names, dtypes, shapes = differences(state, tensors)
    problems = [*names, *shapes, *dtypes] if strict else shapes
    if problems:
        way_out = "; convert the module after loading, not before" if dtypes and strict else ""
        raise CheckpointError.listing(f"{file} does not fit the {type(model).__name__}{way_out}", problems)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        _log.warning("%s was loaded in part, as strict=False allows: %s%s", file, "; ".join(names[:5]), more)
    model.load_state_dict(tensors, strict=False)
    return metadata


def weights_file(path: str | os.PathLike[str]) -> Path:
    """Return the SafeTensors file that a path names: `p`, `p.pt` and `p.safetensors` are the same one.

    Raises:
        ConfigError: the path names a directory or a pickle.
    """
    text, file = os.fspath(path), Path(path)
    if text.endswith(os.sep) or file.name in ("", ".."):
        raise ConfigError(f"{text!r} names no file; write it as ./model or ./model{_SUFFIX}")
    if file.suffix in _PICKLES:
        raise ConfigError(f"{text!r} names a pickle, which is neither written nor read; write {file.stem}{_SUFFIX}")
    if file.suffix in (".pt", _SUFFIX):
        return file.with_suffix(_SUFFIX)
    return file.with_name(file.name + _SUFFIX)


def read_verified(file: Path, path: str | os.PathLike[str], saved_by: str = "save_model_safe") -> dict[str, str]:
    """Compare a file with its checksum, and return the metadata that it was saved with.

    Args:
        file: the file.
        path: by which the caller named it.
        saved_by: what wrote the files that the caller reads, as messages have it.

    Raises:
        CheckpointError: it is damaged, was altered, or is from elsewhere.
        ConfigError: a later version of mol wrote it.
        FileNotFoundError: it is missing.
    """
    if not file.exists():
        there = f"; {path} is there, and is not read: only SafeTensors files are, never pickles. torch.load(..., "
        there += f"weights_only=True) reads one that you trust, and {saved_by} writes it anew"
        raise FileNotFoundError(f"{file} is missing{there if Path(path).is_file() else ''}")
    metadata: dict[str, str] = read_header(file).get("__metadata__", {})
    if _KEY not in metadata:
        raise CheckpointError(
            f"{file} has no checksum to verify, so {saved_by} did not write it; if it is the right file, "
            "safetensors.torch.load_model loads it unverified"
        )
    try:
        record = json.loads(metadata[_KEY])
    except (ValueError, RecursionError):
        record = None
    if isinstance(record, dict) and record.get("format", _FORMAT) != _FORMAT:
        raise later_format(file, record, _FORMAT)
    given = record.get("metadata") if isinstance(record, dict) else None
    if not isinstance(given, list) or record.get("digest") != _digest(file, metadata, record):
        raise CheckpointError(
            f"{file} is not as it was saved (its checksum differs): it is damaged or edited; {_WAY_OUT}"
        )
    return {name: text for name, text in metadata.items() if name in given}


def later_format(path: Path, record: Mapping[str, Any], reads: int) -> ConfigError:
    """Return the error for a file or a directory in a format of a later version of mol."""
    return ConfigError(
        f"{path} is in format {record.get('format')!r}, written by mol {record.get('version')}; this is mol "
        f"{_rust.__version__}, which reads format {reads}: upgrade mol-merge"
    )


def _require(name: str) -> None:
    if not is_safetensors_available():
        raise ImportError(f"{name} needs torch and safetensors: pip install 'mol-merge[fusion]'")


def _checked_metadata(metadata: object) -> dict[str, str]:
    """Return a copy of the metadata.

    Raises:
        ConfigError: a file cannot hold it.
    """
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping):
        raise ConfigError(f"metadata is a {type(metadata).__name__}, wanted a dict of texts")
    problems = []
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str):
            problems.append(f"{name!r}: {value!r} is not a text by a text; write numbers with str, others as JSON")
        elif name == _KEY:
            problems.append(f"{name!r} is where mol has its checksum; choose another name")
        elif any("\ud800" <= character <= "\udfff" for character in name + value):
            problems.append(f"{name!r}: {value!r} has half of a surrogate pair, which no file can hold")
    if problems:
        raise ConfigError.listing("the metadata cannot be stored", problems)
    return dict(metadata)


def read_header(file: Path) -> dict[str, Any]:
    """Return the header of a SafeTensors file.

    Raises:
        CheckpointError: the file is damaged, or something else.
        OSError: it cannot be read.
    """
    _rust.read_header(file)
    with file.open("rb") as opened:
        header: dict[str, Any] = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return header


def _seal(file: Path, record: Mapping[str, Any]) -> None:
    """Write the checksum into the header of a file, over the blank, with sorted metadata: equal states, equal bytes."""
    header = read_header(file)
    metadata = header["__metadata__"]
    metadata[_KEY] = json.dumps({**record, "digest": _digest(file, metadata, record)})
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if len(text) > size:
            raise InternalError(f"the header of {file} takes {len(text)} bytes where safetensors took {size}")
        opened.write(text.ljust(size))


def _digest(file: Path, metadata: Mapping[str, str], record: Mapping[str, Any]) -> str:
    """Return the digest of all that a file holds but the digest itself."""
    sums = {tensor["name"]: tensor["crc64nvme"] for tensor in json.loads(_rust.checksum(file))["tensors"]}
    tensors = [(name, dtype, list(shape), sums[name]) for name, dtype, shape, _ in _rust.read_header(file)[3]]
    return digest_of([sorted(tensors), dict(metadata) | {_KEY: ""}, dict(record) | {"digest": ""}])
