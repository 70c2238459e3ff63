"""Saves a model so that a killed process leaves the old save or the new one, and loads it with checksums checked.

config.json decides. A save writes all of its files into a staging directory next to it and renames config.json from
there first: from that moment on the new save is the valid one. Then the other files are moved. Readers look for each
file in the staging directory first, while it exists.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from safetensors.torch import load_file

from mol import _rust
from mol.config.model_reference import ModelReference
from mol.core.pretrained.digests import file_sum
from mol.core.pretrained.refused import NO_PUSH
from mol.core.safetensors_io import later_format
from mol.errors import CheckpointError, ConfigError, FusionError
from mol.io.atomic import locked, sync
from mol.io.hub import can_be_id, resolve
from mol.io.json_file import digest_of, read_object
from mol.io.layout import CARD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

KEY: Final = "mol_save"
"""The key of the record in config.json to check a save by."""
_FORMAT: Final = 1
_LOADED_BY: Final = {
    "mol": "a fusion, which MoLRuntime.from_pretrained loads",
    "mol_mixture": "a mixture, which MoLMixture.from_pretrained loads",
}
_STAGED: Final = ".mol-save-"
MODELS: Final = "models"
"""The folder of a save with its copies of models, in one folder each."""
_CONFIG: Final = "config.json"
_WAY_OUT: Final = "copy the directory again from where it is whole, or save the model again"


class Saved(NamedTuple):
    """A save, of which only config.json was read.

    Attributes:
        directory: of the save.
        content: all of config.json.
        record: the part of config.json to check the save by.
    """

    directory: Path
    content: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def version(self) -> str | None:
        """The version of mol that wrote it."""
        version = self.record.get("version")
        return version if isinstance(version, str) else None

    @property
    def models(self) -> Mapping[str, Any]:
        """The record of each model, by its name."""
        found, home = _models(self.record), self.holds(MODELS)
        if home != self.directory:
            found = {
                name: {**record, "path": f"{home.name}/{record.get('path')}"} if is_copy(record) else record
                for name, record in found.items()
            }
        return found

    def path(self, name: str) -> Path:
        """Return the path of a file of the save.

        Raises:
            FileNotFoundError: it is missing.
        """
        path = self.holds(name) / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, and config.json names it; {_WAY_OUT}")
        return path

    def holds(self, name: str) -> Path:
        """Return the directory of a file or folder of the save, whether or not it exists."""
        staged = self.directory / f"{_STAGED}{self.record.get('id')}"
        return staged if (staged / name).exists() else self.directory

    def check_description(self, description: object) -> None:
        """Check that the description of the model in config.json is the one that was saved.

        Raises:
            CheckpointError: it is not.
        """
        if "described" in self.record and self.record["described"] != digest_of(description):
            raise CheckpointError(
                f"{self.directory / _CONFIG} describes another model than the one that was saved: it is damaged, or "
                f"was edited; if the edit is yours, remove `described` from its `{KEY}`"
            )

    def weights(self) -> list[str]:
        """Return the names of the weight files.

        Raises:
            CheckpointError: config.json does not name them properly.
        """
        files = self.record.get("weights")
        if not isinstance(files, dict) or any(
            Path(name).name != name or not name.endswith(".safetensors") or not isinstance(entry, dict)
            for name, entry in files.items()
        ):
            raise CheckpointError(f"{self.directory / _CONFIG} does not name the weight files of the save; {_WAY_OUT}")
        return sorted(files)

    def check_names(self, wanted: Mapping[str, torch.Tensor]) -> None:
        """Compare names and shapes of the weights with those of a model.

        Raises:
            CheckpointError: a file is damaged, or they differ.
            OSError: a file is missing.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name in self.weights():
            for tensor, _, shape, _ in _rust.read_header(self.path(name))[3]:
                found[tensor] = tuple(shape)
        problems = [f"{name} is missing" for name in wanted if name not in found]
        problems += [f"{name} is not wanted" for name in found if name not in wanted]
        problems += [
            f"{name} is {list(found[name])}, wanted {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in found and found[name] != tuple(tensor.shape)
        ]
        if problems:
            raise CheckpointError.listing(
                f"{self.directory}: its weights are not those that its config describes", problems
            )

    def load(self) -> dict[str, torch.Tensor]:
        """Load the weights.

        Raises:
            CheckpointError: a file is not the one that was saved.
            OSError: a file is missing.
        """
        weights: dict[str, torch.Tensor] = {}
        for name in self.weights():
            path = self.path(name)
            if file_sum(path) != self.record["weights"][name]:
                raise CheckpointError(
                    f"{path} is not the file that was saved with this config.json (its checksum differs): it is "
                    f"damaged, or was replaced; {_WAY_OUT}"
                )
            weights |= load_file(path)
        return weights


def is_copy(record: object) -> bool:
    """Return whether the record of a model is that of a copy in the save."""
    return isinstance(record, dict) and "file" in record


def saved_directory(name: str | Path, called: str, options: Any) -> Path:  # noqa: ANN401 - a TypedDict of options
    """Return the directory of a save, or download that of a repository on the Hub.

    Args:
        name: the directory, or `user/name`, with `@revision` if wanted.
        called: the kind of model in messages.
        options: of `from_pretrained`; `subfolder` is taken out, and `revision` where the save is on the Hub.

    Raises:
        FusionError: there is no directory of this name, and no repository has such a name; or `subfolder` is one of a
            repository.
        MolError: the repository holds no save, or the Hub is unreachable.
        OSError: there is no such repository, or it may not be read.
    """
    directory, subfolder = Path(name), options.pop("subfolder", None) or ""
    if directory.is_dir():
        if not (directory / subfolder / _CONFIG).is_file():
            raise FileNotFoundError(
                f"{directory / subfolder} holds no {_CONFIG}, so {called} was not saved there; name the directory that "
                f"save_pretrained was given{', and its subfolder' if subfolder else ''}"
            )
        return directory / subfolder
    reference = ModelReference.parse(str(name))
    if not can_be_id(reference.name) or directory.exists():
        raise FusionError(f"{directory}: no such directory; {called} is loaded from what save_pretrained wrote")
    if subfolder:
        raise FusionError(
            f"subfolder is {subfolder!r}, and {reference} is no directory here: on the Hub {called} is a repository of "
            "its own; leave subfolder out"
        )
    revision = options.pop("revision", None)
    if reference.revision is None and revision not in (None, "main"):
        reference = replace(reference, revision=revision)
    where = {"cache_dir": options.get("cache_dir"), "token": options.get("token") or None}
    if KEY not in read_object(resolve(reference, weights=False, **where)[0] / _CONFIG):
        raise CheckpointError(
            f"{reference} on the Hub is not {called}: its {_CONFIG} has no `{KEY}`, which save_pretrained of mol writes"
        )
    return resolve(reference, copies=MODELS, **where)[0]


def read_saved(directory: Path, model_type: str) -> Saved:
    """Read config.json of a save, with its record.

    Args:
        directory: of the save.
        model_type: of what is to be loaded.

    Raises:
        ConfigError: a later version of mol wrote it, or it holds something else.
        CheckpointError: config.json is damaged, or not written by mol.
        OSError: it is missing.
    """
    content = read_object(directory / _CONFIG)
    record = content.get(KEY)
    if not isinstance(record, dict):
        raise CheckpointError(
            f"{directory / _CONFIG} has no `{KEY}` to check the weights by, so it was not written by save_pretrained "
            f"of mol; {_WAY_OUT}"
        )
    found = content.get("model_type")
    if found != model_type and found in _LOADED_BY:
        raise ConfigError(f"{directory} holds {_LOADED_BY[str(found)]}")
    if record.get("format") != _FORMAT:
        raise later_format(directory, record, _FORMAT)
    return Saved(directory, content, record)


def write_save(
    directory: Path,
    save: Callable[[Path], None],
    describe: Callable[[Mapping[str, Any]], object],
    models: Callable[[Path], Mapping[str, Any]],
    extra: Callable[[Path], None],
    **more: Any,  # noqa: ANN401 - as JSON holds it
) -> dict[str, Any]:
    """Write a save, which replaces an older one if there is one.

    Args:
        directory: of the save; created if it does not exist. Files in it that no save wrote stay.
        save: writes config.json and weights into a given directory.
        describe: returns the part of config.json that describes the model.
        models: returns the record of each model; may write copies of them into a folder `MODELS` of a given directory.
        extra: writes files that no model needs into a given directory, those of a tokenizer say.
        more: further entries of the record.

    Returns:
        The record in config.json to check the save by.

    Raises:
        ConfigError: a folder `MODELS` is in the way.
        NotADirectoryError: there is a file of this name.
        OSError: something cannot be written; the old save is unchanged.
    """
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; name a directory to save to")
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        _finish(directory)
        for left in directory.glob(f"{_STAGED}*"):  # of a save that was killed before it became valid
            shutil.rmtree(left)
        old = _record(directory)
        before, had_copies = _entries(old, "files"), any(map(is_copy, _models(old).values()))
        token = secrets.token_hex(8)
        staged = directory / f"{_STAGED}{token}"
        staged.mkdir()
        try:
            save(staged)
            content = read_object(staged / _CONFIG)
            weights = {path.name: file_sum(path) for path in sorted(staged.glob("*.safetensors"))}
            own = {path.name for path in staged.iterdir()}
            recorded = dict(models(staged))
            if (staged / MODELS).exists() and (directory / MODELS).exists() and not had_copies:
                raise ConfigError(
                    f"{directory / MODELS} is there, and no save wrote it: a bundle puts copies of its models into a "
                    "folder of this name; save to another directory"
                )
            extra(staged)
            _keep_theirs(directory, staged, before, own)
            files = {path.name for path in staged.iterdir() if path.is_file()} - weights.keys() - {_CONFIG}
            content[KEY] = {
                "format": _FORMAT,
                "version": _rust.__version__,
                "needs": "pip install 'mol-merge[fusion]', then `import mol` before the model is loaded",
                "id": token,
                "described": digest_of(describe(content)),
                "weights": weights,
                "models": recorded,
                "files": {name: _digest(staged / name) for name in sorted(files)},
                **more,
            }
            (staged / _CONFIG).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            for path in staged.rglob("*"):
                sync(path)
            sync(staged)
            (staged / _CONFIG).replace(directory / _CONFIG)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        sync(directory)
        _finish(directory)
        for name in before.keys() - files:
            if (directory / name).is_file() and _digest(directory / name) == before[name]:
                (directory / name).unlink()
        for name in _entries(old, "weights").keys() - weights.keys():
            (directory / name).unlink(missing_ok=True)
        if had_copies and not any(map(is_copy, recorded.values())):
            shutil.rmtree(directory / MODELS, ignore_errors=True)
        record: dict[str, Any] = content[KEY]
        return record


def _record(directory: Path) -> Mapping[str, Any]:
    try:
        record = read_object(directory / _CONFIG).get(KEY)
    except (CheckpointError, FileNotFoundError):
        return {}
    return record if isinstance(record, dict) else {}


def _finish(directory: Path) -> None:
    """Move the files of a valid save out of its staging directory, also of one that was killed meanwhile."""
    token = _record(directory).get("id")
    staged = directory / f"{_STAGED}{token}"
    if isinstance(token, str) and Path(token).name == token and staged.is_dir():
        for path in sorted(staged.iterdir()):
            if path.is_dir() and (directory / path.name).is_dir():  # its copies of models, until then read from here
                shutil.rmtree(directory / path.name)
            path.replace(directory / path.name)
        staged.rmdir()
        sync(directory)


def _models(record: Mapping[str, Any]) -> Mapping[str, Any]:
    models = record.get("models")
    return models if isinstance(models, dict) else {}


def _entries(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the entries of files in a record, without any outside of the directory."""
    entries = record.get(key)
    found = entries.items() if isinstance(entries, dict) else ()
    return {name: entry for name, entry in found if Path(name).name == name}


def _keep_theirs(directory: Path, staged: Path, before: Mapping[str, str], own: set[str]) -> None:
    """Keep files that something else added, or changed, since the last save: a tokenizer's, say."""
    extra = [path for path in staged.iterdir() if path.is_file() and path.name not in own]
    # Files of two tokenizers do not work together; the card is by itself.
    for group in ([path for path in extra if path.name != CARD], [path for path in extra if path.name == CARD]):
        theirs = [
            path
            for path in group
            if (directory / path.name).is_file() and before.get(path.name) != _digest(directory / path.name)
        ]
        for path in group if theirs else ():
            path.unlink()


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def refuse_other_ways(kwargs: Mapping[str, Any]) -> None:
    """Refuse further options of transformers' `save_pretrained`.

    Raises:
        FusionError: one is set.
    """
    if kwargs.get("push_to_hub"):
        raise FusionError(NO_PUSH)
    if kwargs.get("variant"):
        raise FusionError(
            "a fusion is loaded by the usual names of its files: leave variant out, and save to a directory"
        )
    if kwargs.get("distributed_checkpoint"):
        raise FusionError("a fusion is saved by its main process: leave distributed_checkpoint out")
