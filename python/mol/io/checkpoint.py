"""Checkpoint: a local model directory and the table of its tensors, read from headers only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from mol.dtypes import EXACT_DTYPES, FLOAT_DTYPES
from mol.errors import CheckpointError
from mol.io.json_file import found_instead, read_object
from mol.io.layout import CONFIG, INDEX
from mol.io.weight_files import WeightFiles, find_weights, no_config, refuse_unfinished
from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mol.io.expressions import Expr
    from mol.io.step_files import StepFiles

_HEAD: Final = 1024
_FAILURES_SHOWN: Final = 4
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


# What adapters that were not merged into their layers leave among the names of a checkpoint. It is searched in names
# with a dot before them: a pattern that begins with one character takes a third of the time.
_ADAPTER: Final = regex(
    r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|oft_[rR]|oft_blocks"
    r"|boft_[RPs]|vera_lambda_[bd]|ia3_l|modules_to_save)(?:\.|$)"
)
_BASE_LAYER: Final = regex(r"\.(base_layer|original_module)\.")


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


Known: TypeAlias = dict[tuple[str, int], dict[str, TensorInfo]]
"""The tensors of files, by the BLAKE3 digest of their header and their size."""


class CheckpointFile(NamedTuple):
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


class Made(NamedTuple):
    """A tensor that is no tensor of a file.

    Attributes:
        of: the expression; where there are several, which are no floats, all must be equal.
        bytes: what a sweep over it reads, as the engine counts.
    """

    of: tuple[Expr, ...]
    bytes: int


class Part(NamedTuple):
    """A directory that a model is put together from.

    Attributes:
        name: what the user called it.
        directory: where it lies.
        revision: commit hash when it came from the Hub.
        files: its weight files.
        digests: SHA-256 of files by name, where they were read as a whole.
        role: what it is, e.g. "adapter"; empty for a model.
    """

    name: str
    directory: Path
    revision: str | None
    files: tuple[CheckpointFile, ...]
    digests: Mapping[str, str] = {}
    role: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A model: what a directory holds, or what is made of several.

    Attributes:
        name: what the user called the model.
        directory: where it lies; of a model that is made, where the files next to its weights do.
        revision: commit hash when it came from the Hub.
        files: its weight files.
        tensors: every tensor by name, in the order of the files; what is made of several comes last.
        config: its config.json.
        warnings: what may well surprise about its files, one line each.
        notes: what else there is to say of how it is made, one line each.
        made: how tensors are made that are not what a file holds under that name.
        tables: the row tables that they are gathered by.
        parts: the directories that it is made of; empty where it is one.
        own_files: of a step whose vocabulary is chosen in it, the files in `directory`, which go with this object.
    """

    name: str
    directory: Path
    revision: str | None
    files: tuple[CheckpointFile, ...]
    tensors: dict[str, TensorInfo]
    config: dict[str, Any]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    made: Mapping[str, Made] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    own_files: StepFiles | None = None

    @classmethod
    def open(
        cls,
        directory: Path | str,
        *,
        name: str | None = None,
        revision: str | None = None,
        known: Known | None = None,
    ) -> Checkpoint:
        """Read config.json and the headers of all weight files; no weight is read.

        Args:
            directory: holds `model.safetensors`, or `model.safetensors.index.json` and the shards it names, or shards
                whose names count them.
            name: what to call the model; the path as given if None.
            revision: commit hash, when the directory is a snapshot from the Hub.
            known: tensors of files read before, to which those of this model are added: a base and its fine-tunes often
                have the same, which are then made once.

        Raises:
            FileNotFoundError: no such directory, no config.json or no weights in it.
            NotADirectoryError: the path is a file.
            CheckpointError: a file is damaged, contradicts another, or is of a format that is not supported.
            OSError: a file cannot be read.
        """
        directory = Path(directory)
        label = str(directory) if name is None else name
        _check_directory(directory)
        refuse_unfinished(directory)
        config = _read_config(directory)
        weights = find_weights(directory)
        files, tensors = _read_shards(directory, weights, known)
        if not tensors:
            raise CheckpointError(f"{directory}: the weight files hold no tensor")
        _refuse_quantized(directory, config, tensors)
        _refuse_adapter(directory, config, tensors)
        warnings = tuple(f"{label} {line}" for line in weights.warnings)
        return cls(label, directory, revision, files, tensors, config, warnings)

    def directories(self) -> tuple[Part, ...]:
        """Return the directories that it is made of: its own, where it is one."""
        return self.parts or (Part(self.name, self.directory, self.revision, self.files),)


def _check_directory(directory: Path) -> None:
    if directory.is_dir():
        os.scandir(directory).close()  # a directory that may not be read differs from one without files
        (directory / CONFIG).is_symlink()
        return
    if directory.suffix == ".gguf" and directory.is_file():
        raise CheckpointError(f"{directory} is a GGUF file, which is not supported; use the SafeTensors release")
    if directory.exists():
        raise NotADirectoryError(f"{directory} is a file; name the model directory that holds config.json")
    directory.stat()  # a loop of links and a forbidden parent differ from a path that is not there
    raise FileNotFoundError(f"{directory}: no such directory")


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if os.path.lexists(path):
        return read_object(path)
    raise no_config(directory)


def _read_shards(
    directory: Path, weights: WeightFiles, known: Known | None
) -> tuple[tuple[CheckpointFile, ...], dict[str, TensorInfo]]:
    """Read the headers of all weight files and check them against the index.

    Raises:
        CheckpointError: files are damaged or contradict the index or each other.
        OSError: one cannot be read.
    """
    files: list[CheckpointFile] = []
    tensors: dict[str, TensorInfo] = {}
    failures: list[CheckpointError] = []
    homes = {tensor: file for file, listed in (weights.listed or {}).items() for tensor in listed}
    for name in weights.names:
        try:
            checked, found = read_shard(directory / name, len(files), known)
            if weights.listed is not None:
                _check_shard(directory, name, found, weights.listed[name], homes)
            elif twice := tensors.keys() & found.keys():
                file = files[tensors[min(twice)].file].path.name
                raise CheckpointError(f"{directory}: tensor `{min(twice)}` is both in {file} and in {name}")
        except CheckpointError as error:
            failures.append(error)
            continue
        files.append(checked)
        tensors.update(found)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        lines = [str(error) for error in failures[:_FAILURES_SHOWN]]
        lines += [f"and {len(failures) - len(lines)} more"] if len(failures) > len(lines) else []
        raise CheckpointError.listing(f"{len(failures)} weight files of {directory} cannot be used", lines)
    return tuple(files), tensors


def read_shard(path: Path, index: int, known: Known | None = None) -> tuple[CheckpointFile, dict[str, TensorInfo]]:
    """Read the header of a weight file.

    Args:
        path: the file.
        index: its number among the files of its model.
        known: tensors of files read before, to which its own are added.

    Raises:
        CheckpointError: it is damaged or something else.
        OSError: it cannot be read.
    """
    from mol import _rust  # not above, so that the types of this module do not need the built extension

    known = {} if known is None else known
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve would follow the links of the Hub's cache
    try:
        size, mtime_ns, header, entries = _rust.read_header(str(absolute), set(known))
    except CheckpointError as error:
        if absolute.is_file():
            with absolute.open("rb") as file:
                instead = found_instead(file.read(_HEAD))
            if instead is not None:
                raise CheckpointError(f"{absolute} is {instead}") from error
        raise
    if entries is not None:
        known[header, size] = {
            tensor: TensorInfo(dtype, shape, count, index) for tensor, dtype, shape, count in entries
        }
    tensors = known[header, size]
    if next((info.file for info in tensors.values()), index) != index:
        tensors = {name: info._replace(file=index) for name, info in tensors.items()}
    return CheckpointFile(absolute, size, mtime_ns, header), tensors


def _check_shard(
    directory: Path, file: str, found: Mapping[str, TensorInfo], listed: Sequence[str], homes: Mapping[str, str]
) -> None:
    problems = [f"tensor `{tensor}` is listed for {file}, which lacks it" for tensor in listed if tensor not in found]
    for tensor in found:
        home = homes.get(tensor)
        if home != file:
            where = "nowhere" if home is None else f"for {home}"
            problems.append(f"tensor `{tensor}` is in {file}, but listed {where}")
    if problems:
        raise CheckpointError.listing(
            f"{directory / INDEX} and {file} contradict each other; fetch the model again", problems
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
        elif info.dtype == "C64":
            raise CheckpointError(
                f"{directory} holds complex numbers (C64), e.g. `{name}`, which are neither merged nor copied yet; "
                "save the model with their real and imaginary parts as tensors of their own"
            )
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
        only = "" if problems else "; if its weights were dequantized, take this key out of config.json"
        problems.append(f"config.json has a quantization_config (quant_method {method!r}): not supported yet{only}")
    if problems:
        raise CheckpointError.listing(
            f"{directory} is quantized; use the unquantized (bf16, f16 or f32) release of the model", problems
        )


def _refuse_adapter(directory: Path, config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Refuse a model that was saved with its adapter apart: its layers have other names, and not all their weights."""
    if any(key.endswith("_lora") for key in config):  # a model whose own layers are built so, as Phi-4-multimodal's
        return
    kinds: dict[str, str] = {}
    for name in tensors:
        match = _ADAPTER.search(f".{name}")
        if match is not None:
            kinds.setdefault(match[1], name)
    if kinds:
        kinds |= {match[1]: name for name in tensors if (match := _BASE_LAYER.search(name))}
        found = f"{', '.join(kinds)}; e.g. `{next(iter(kinds.values()))}`"
        raise CheckpointError(
            f"{directory} holds an adapter that was not merged ({found}): load it with peft, call merge_and_unload(), "
            "keep the model that it returns, and save that"
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
