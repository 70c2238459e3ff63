"""Checkpoint: a local model directory and the table of its tensors, read from headers only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from mol.errors import CheckpointError
from mol.io.json_file import read_object

FLOAT_DTYPES: Final = frozenset({"F64", "F32", "F16", "BF16"})
"""Dtypes that are merged."""

EXACT_DTYPES: Final = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
"""Dtypes that are only ever copied."""

_SINGLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"

# What the weights of a format that is not read look like, and the way out of each.
_FOREIGN_FILES: Final = (
    ("*.gguf", "GGUF files", "use the SafeTensors release of the model"),
    ("adapter_model.*", "an adapter (LoRA)", "merge it into its base model first; adapters come later"),
    ("*.bin", "pickled PyTorch weights", "convert them once with safetensors, or use the SafeTensors release"),
    ("*.pt", "pickled PyTorch weights", "convert them once with safetensors, or use the SafeTensors release"),
    ("*.pth", "pickled PyTorch weights", "convert them once with safetensors, or use the SafeTensors release"),
    ("*.h5", "TensorFlow weights", "use the SafeTensors release of the model"),
    ("*.msgpack", "Flax weights", "use the SafeTensors release of the model"),
    ("*.safetensors", "SafeTensors files of another name", f"name the weights {_SINGLE}, or write {_INDEX}"),
)
_PACKED_ENDINGS: Final = (
    ".qweight",
    ".qzeros",
    ".absmax",
    ".quant_map",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    "_blocks",
)


class TensorInfo(NamedTuple):
    """What the header says about one tensor.

    Attributes:
        dtype: safetensors name, e.g. "BF16".
        shape: sizes of the axes, outermost first.
        bytes: size of the data.
        file: index into `Checkpoint.files`.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: int


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One weight file.

    Attributes:
        path: absolute path.
        size: bytes.
        mtime_ns: time of the last change, nanoseconds.
        header: BLAKE3 of the header, hex.
    """

    path: Path
    size: int
    mtime_ns: int
    header: str


@dataclass(frozen=True)
class Checkpoint:
    """A model directory.

    Attributes:
        name: what the user called the model.
        directory: where it lies.
        revision: commit hash when it came from the Hub.
        files: its weight files.
        tensors: every tensor by name, in the order of the files.
        config: its config.json.
    """

    name: str
    directory: Path
    revision: str | None
    files: tuple[CheckpointFile, ...]
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]

    @classmethod
    def open(cls, directory: Path | str, *, name: str | None = None, revision: str | None = None) -> Checkpoint:
        """Read config.json and the headers of all weight files; no weight is read.

        Args:
            directory: holds `model.safetensors`, or `model.safetensors.index.json` and the shards it names.
            name: what to call the model; the path as given if None.
            revision: commit hash, when the directory is a snapshot from the Hub.

        Raises:
            FileNotFoundError: no such directory, no config.json or no weights in it.
            NotADirectoryError: the path is a file.
            CheckpointError: a file is damaged, contradicts another, or is of a format that is not supported.
            OSError: a file cannot be read.
        """
        directory = Path(directory)
        label = str(directory) if name is None else name
        _check_directory(directory)
        config = _read_config(directory)
        weight_map = _read_weight_map(directory)
        names = _files_of(weight_map)
        files: list[CheckpointFile] = []
        tensors: dict[str, TensorInfo] = {}
        for index, file in enumerate(names):
            checked, found = _read_shard(directory / file, index)
            files.append(checked)
            if weight_map is not None:
                _check_shard(directory, file, found, weight_map)
            tensors.update(found)
        if not tensors:
            raise CheckpointError(f"{directory}: the weight files hold no tensor")
        _refuse_quantized(directory, config, tensors)
        return cls(label, directory, revision, tuple(files), tensors, config)


def weight_files(directory: Path) -> list[str]:
    """Return the names of the weight files of a model directory, in the order of its index.

    Raises:
        FileNotFoundError: there are none.
        CheckpointError: the index is damaged, or they are of a format that is not supported.
    """
    return _files_of(_read_weight_map(directory))


def _files_of(weight_map: dict[str, str] | None) -> list[str]:
    return [_SINGLE] if weight_map is None else list(dict.fromkeys(weight_map.values()))


def _check_directory(directory: Path) -> None:
    if directory.is_dir():
        os.scandir(directory).close()  # tells a directory without right of reading from one without files
        (directory / "config.json").is_symlink()
        return
    if directory.suffix == ".gguf" and directory.is_file():
        raise CheckpointError(f"{directory} is a GGUF file, which is not supported; use the SafeTensors release")
    if directory.exists():
        raise NotADirectoryError(f"{directory} is a file; name the model directory that holds config.json")
    directory.stat()  # tells a loop of links and a forbidden parent apart from a path that is not there
    raise FileNotFoundError(f"{directory}: no such directory")


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if os.path.lexists(path):
        return read_object(path)
    for pattern, what, way_out in _FOREIGN_FILES[:2]:
        found = next(iter(sorted(directory.glob(pattern))), None)
        if found is not None:
            raise CheckpointError(f"{directory} holds {what} ({found.name}), which is not supported; {way_out}")
    raise FileNotFoundError(f"{directory}: no config.json; a model directory has one beside its weights")


def _read_weight_map(directory: Path) -> dict[str, str] | None:
    """Read tensor -> shard from the index, or None where one file holds all."""
    # As transformers does: a single file wins over an index that an earlier, sharded save left behind.
    if os.path.lexists(directory / _SINGLE):
        return None
    path = directory / _INDEX
    if not os.path.lexists(path):
        for pattern, what, way_out in _FOREIGN_FILES:
            found = next(iter(sorted(directory.glob(pattern))), None)
            if found is not None:
                raise CheckpointError(f"{directory} holds {what} ({found.name}), which is not supported; {way_out}")
        raise FileNotFoundError(f"{directory}: neither {_SINGLE} nor {_INDEX}; a model directory holds one of them")
    weight_map = read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no `weight_map` from tensors to files")
    problems = []
    for file in dict.fromkeys(file if isinstance(file, str) else repr(file) for file in weight_map.values()):
        pure = PurePosixPath(file)
        if pure.is_absolute() or ".." in pure.parts or "\\" in file or "\0" in file or pure.suffix != ".safetensors":
            problems.append(f"{file!r} is not the name of a .safetensors file inside the directory")
        elif not os.path.lexists(directory / file):
            tensors = [tensor for tensor, shard in weight_map.items() if shard == file]
            problems.append(f"{file} is not there; it should hold {len(tensors)} tensors, e.g. `{tensors[0]}`")
    if problems:
        raise CheckpointError.listing(f"{path} names files that cannot be used; fetch the model again", problems)
    return weight_map


def _read_shard(path: Path, index: int) -> tuple[CheckpointFile, dict[str, TensorInfo]]:
    from mol import _rust  # not above, so that the types of this module do not need the built extension

    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow the links of the Hub's cache
    size, mtime_ns, header, entries = _rust.read_header(str(absolute))
    file = CheckpointFile(absolute, size, mtime_ns, header)
    return file, {tensor: TensorInfo(dtype, tuple(shape), count, index) for tensor, dtype, shape, count in entries}


def _check_shard(directory: Path, file: str, found: dict[str, TensorInfo], weight_map: dict[str, str]) -> None:
    problems = [
        f"tensor `{tensor}` is listed for {file}, which lacks it"
        for tensor, shard in weight_map.items()
        if shard == file and tensor not in found
    ]
    for tensor in found:
        listed = weight_map.get(tensor)
        if listed != file:
            where = "nowhere" if listed is None else f"for {listed}"
            problems.append(f"tensor `{tensor}` is in {file}, but listed {where}")
    if problems:
        raise CheckpointError.listing(
            f"{directory / _INDEX} and {file} contradict each other; fetch the model again", problems
        )


def _refuse_quantized(directory: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> None:
    """Refuse weights that are codes rather than numbers: averaging codes gives a broken model."""
    problems = []
    unread: dict[str, list[str]] = {}
    packed = []
    for name, info in tensors.items():
        if info.dtype in FLOAT_DTYPES:
            if name.endswith(".weight_scale_inv"):
                packed.append(name)
        elif info.dtype not in EXACT_DTYPES:
            unread.setdefault(info.dtype, []).append(name)
        elif name.endswith(_PACKED_ENDINGS):
            packed.append(name)
    for dtype, names in unread.items():
        kind = "FP8" if dtype.startswith("F8") else dtype
        problems.append(f"{len(names)} tensors are {dtype}, e.g. `{names[0]}`: {kind} weights are not supported yet")
    if packed:
        problems.append(f"{len(packed)} tensors belong to packed weights, e.g. `{packed[0]}`: not supported yet")
    quantization = _find_quantization(config)
    if quantization is not None:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
        problems.append(f"config.json has a quantization_config (quant_method {method!r}): not supported yet")
    if problems:
        raise CheckpointError.listing(
            f"{directory} is quantized; use the unquantized (bf16, f16 or f32) release of the model", problems
        )


def _find_quantization(config: dict[str, Any]) -> object:
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            return config[key]
    for value in config.values():
        if isinstance(value, dict):
            found = _find_quantization(value)
            if found is not None:
                return found
    return None
