"""Saves a runtime as one SafeTensors file with its description in the metadata, and loads it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from safetensors.torch import load_file
from transformers import GenerationConfig

from mol import _rust
from mol.core.host import HostHead
from mol.core.pretrained.described import read_description
from mol.core.pretrained.digests import record_model
from mol.core.pretrained.model_config import described
from mol.core.pretrained.options import OF_MODELS, checked_options
from mol.core.pretrained.rebuilding import load_weights, rebuild, used_models
from mol.core.safetensors_io import later_format, read_verified, save_model_safe, weights_file
from mol.core.state_dicts import differences
from mol.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.core.runtime import Runtime

_KEY: Final = "mol_runtime"
"""Where the metadata of the file holds the description, as JSON."""
_FORMAT: Final = 1
_R = TypeVar("_R", bound="Runtime")


def write_checkpoint(runtime: Runtime, path: str | os.PathLike[str]) -> Path:
    """Write adapters and routers, with the description of the fusion and the record of its models, into one file.

    Args:
        runtime: the fusion.
        path: the file, named as for `save_model_safe`.

    Returns:
        The file.

    Raises:
        ConfigError: the path names no file of this kind.
        OSError: the file cannot be written; what was there before is as it was.
    """
    file = weights_file(path)
    content = {
        "format": _FORMAT,
        "version": _rust.__version__,
        **described(runtime),
        "lm_head": runtime.lm_head is not None,
        "models": {name: record_model(use, file.parent) for name, use in used_models(runtime).items()},
    }
    host: Any = runtime.host.model
    if host.can_generate():
        content["generation_config"] = json.loads(host.generation_config.to_json_string())
    return save_model_safe(runtime, file, {_KEY: json.dumps(content, sort_keys=True)})


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return what a path names: the file of `write_checkpoint`, or the directory of `save_pretrained`.

    Raises:
        ConfigError: both are there, or the path names neither.
    """
    text = os.fspath(path)
    if text.endswith(os.sep) or Path(text).name in ("", ".."):
        return Path(text)
    file = weights_file(path)
    directory = file.with_suffix("")
    if not (directory / "config.json").is_file():
        return file
    if not file.is_file():
        return directory
    if text.endswith(file.suffix):
        return file
    raise ConfigError(f"{text!r} names a file and a directory, and both are saves: write {file} or {directory}{os.sep}")


def read_checkpoint(kind: type[_R], path: str | os.PathLike[str], options: Mapping[str, Any]) -> _R:
    """Load what `write_checkpoint` wrote, and the models that it names.

    Args:
        kind: the class of the runtime.
        path: the file, named as for `save_model_safe`.
        options: as `FusionLoadOptions` has them.

    Raises:
        CheckpointError: the file is damaged or altered, something else wrote it, or a model changed.
        ConfigError: a later version of mol wrote it, or the path names no file of this kind.
        FusionError: an option is not supported.
        OSError: the file or a model is missing.
    """
    others = dict(options)
    changed, offline = (bool(others.pop(name, False)) for name in ("allow_changed_models", "local_files_only"))
    given = checked_options("load_checkpoint", (*OF_MODELS, "max_expert_memory"), None, (), others)
    file = weights_file(path)
    before = _identity(file)
    content = _read_content(file, path)
    description = read_description(
        content.get("fusion"),
        content.get("host"),
        content.get("fused_layers"),
        given=given,
        written_by=content.get("version"),
        where=str(file),
    )
    models = content.get("models")
    runtime = rebuild(
        kind,
        description,
        models if isinstance(models, dict) else {},
        file.parent,
        given,
        allow_changed=changed,
        offline=offline,
    )
    weights = load_file(file)
    if _identity(file) != before:
        raise CheckpointError(f"{file} was replaced by another save while it was loaded; load it again")
    names, _, shapes = differences(runtime.state_dict(), weights)
    if names or shapes:
        raise CheckpointError.listing(
            f"{file}: its weights are not those that its description describes", [*names, *shapes]
        )
    load_weights(runtime, weights, runtime.host.dtype if "dtype" in given else None)
    host: Any = runtime.host.model
    if host.can_generate() and "generation_config" in content:
        host.generation_config = _generation_config(content["generation_config"], file)
    if content.get("lm_head"):
        runtime.lm_head = HostHead(runtime.host)
    return runtime


def _generation_config(settings: Any, file: Path) -> GenerationConfig:  # noqa: ANN401 - as JSON holds it
    try:
        return GenerationConfig.from_dict(settings)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} holds settings of generate that no model can have: {error}") from error


def _identity(file: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file from another one that replaced it."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read_content(file: Path, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the description in a file, once its checksum is verified."""
    text = read_verified(file, path, "save_checkpoint").get(_KEY)
    if text is None:
        raise CheckpointError(
            f"{file} holds the state of a module that save_model_safe wrote, and no fusion: load_model_safe loads it"
        )
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: its {_KEY} describes no fusion, so save_checkpoint did not write it")
    if content.get("format") != _FORMAT:
        raise later_format(file, content, _FORMAT)
    return content
