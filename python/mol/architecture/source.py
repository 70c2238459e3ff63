"""A model name becomes its config.json, and the names of its tensors where weights lie next to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mol.config.model_reference import is_local, whole_model
from mol.io.hub import resolve
from mol.io.json_file import read_object
from mol.io.layout import CONFIG, INDEX, SINGLE, read_weight_map
from mol.io.weight_files import counted_shards, no_config


def find_directory(name: str, *, hub_cache_dir: Path | str | None = None, token: str | None = None) -> Path:
    """Return the directory that holds a model's config.json; of a Hub repository nothing else is downloaded.

    Args:
        name: a local directory, or the id of a repository on the Hub, `@revision` after it if wanted.
        hub_cache_dir: the Hub cache, huggingface_hub's own if None.
        token: the Hub token, huggingface_hub's own if None.

    Raises:
        FileNotFoundError: no such directory, and no such repository.
        NotADirectoryError: the name is a file.
        PermissionError: the repository is gated or the token may not read it.
        CheckpointError: no such revision, or neither connection nor cached file.
    """
    reference = whole_model(name)
    if is_local(reference.name):
        return resolve(reference)[0]
    from huggingface_hub import errors, hf_hub_download

    try:
        path = hf_hub_download(
            reference.name, CONFIG, revision=reference.revision, cache_dir=hub_cache_dir, token=token
        )
    except (errors.HFValidationError, errors.HTTPError, OSError):  # type: ignore[attr-defined]
        # What went wrong, and the way out, is reported by `resolve`; an old snapshot may do.
        return resolve(reference, cache_dir=hub_cache_dir, token=token, weights=False)[0]
    return Path(path).parent


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is no JSON object, or the directory is of another kind.
    """
    path = directory / CONFIG
    if not path.exists():
        raise no_config(directory)
    return read_object(path)


def tensor_names(directory: Path) -> list[str] | None:
    """Return the names of a model's tensors, from the index or the header; None where no weights are at hand.

    Raises:
        CheckpointError: the index or the header is damaged.
    """
    single = directory / SINGLE
    if single.exists():
        return _names_in([single])
    index = directory / INDEX
    if not index.exists():
        return _names_in([directory / name for name in counted_shards(path.name for path in directory.iterdir())])
    return list(read_weight_map(index))


def _names_in(files: list[Path]) -> list[str] | None:
    from mol import _rust  # not above, so that the types of this module do not need the built extension

    return [name for file in files for name, *_ in _rust.read_header(str(file.absolute()))[3]] or None
