"""ModelReference: the name of a model in a recipe, a directory or a hub id, revision and adapter with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mol.errors import ConfigError
from mol.text import closest

_MAX_NAME = 4095
_ARCHITECTURE = "override_architecture"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as a recipe names it.

    Attributes:
        name: local directory, or hub id such as `org/model`.
        revision: branch, tag or commit of a hub id; None means the default branch.
        adapter: the adapter (LoRA) that is applied to the model, named like a model; it has none itself.
        architecture: the class that the recipe names in `override_architecture`, which must be the model's own; None
            without it.
    """

    name: str
    revision: str | None = None
    adapter: ModelReference | None = None
    architecture: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """Return `name`, `name@revision` or either with `+adapter`, as a recipe writes it."""
        text = self.name if self.revision is None else f"{self.name}@{self.revision}"
        return text if self.adapter is None else f"{text}+{self.adapter}"

    @property
    def model(self) -> ModelReference:
        """The model without its adapter."""
        return self if self.adapter is None else replace(self, adapter=None)

    @classmethod
    def parse(cls, value: object) -> ModelReference:
        """Read a reference in any form a recipe may use.

        A text that names an existing local path is that path, whatever signs it holds. Otherwise `+` separates an
        adapter from its model, and `@` a revision from a hub id.

        Args:
            value: `name[@revision]`, with `+adapter[@revision]` after it if wanted, a path, a ModelReference, or a
                mapping `{path, revision}` or `{model: {path, revision}, lora: {path, revision}}`.

        Raises:
            ConfigError: the value is none of these, or is empty.
        """
        if isinstance(value, ModelReference):
            return value
        if isinstance(value, Mapping):
            return cls._parse_mapping(value)
        if isinstance(value, Path):
            return cls(str(value))
        if not isinstance(value, str):
            raise ConfigError(f"a model is named by text, not by {value!r}; put the name in quotes")
        return cls._parse_text(value)

    @classmethod
    def _parse_text(cls, text: str) -> ModelReference:
        if not text.strip():
            raise ConfigError("the name of a model is empty")
        if len(text) > _MAX_NAME:
            raise ConfigError(f"the name of a model has {len(text)} characters, and no path may have so many")
        if "\0" in text:
            raise ConfigError("the name of a model holds a NUL character")
        if is_local(text):
            return cls(text)
        if "+" in text:
            model, adapter = _split_adapter(text)
            return replace(cls._parse_text(model), adapter=cls._parse_text(adapter))
        name, at, revision = text.rpartition("@")
        if not at:
            return cls(text)
        if not name or not revision:
            raise ConfigError(f"`{text}` is no local path, and not `name@revision` either: a part is empty")
        if "@" in name and not is_local(name):
            raise ConfigError(f"`{text}` is no local path and has more than one `@`: write `name@revision`")
        return cls(name, revision)

    @classmethod
    def _parse_mapping(cls, value: Mapping[Any, Any]) -> ModelReference:
        architecture = value.get(_ARCHITECTURE)
        if architecture is not None:
            if not isinstance(architecture, str):
                raise ConfigError(
                    f"`{_ARCHITECTURE}` in a model reference is the name of a class, not {architecture!r}"
                )
            rest = {key: inner for key, inner in value.items() if key != _ARCHITECTURE}
            return replace(cls._parse_mapping(rest), architecture=architecture)
        unknown = [str(key) for key in value if key not in {"model", "lora", "path", "revision", _ARCHITECTURE}]
        if unknown:
            raise ConfigError(f"unknown key `{unknown[0]}` in a model reference, which has `path` and `revision`")
        if "model" in value:
            inner = value["model"]
            if "path" in value or "revision" in value:
                raise ConfigError("a model reference is `{model: {path, revision}}`; here `model` is given with them")
            if isinstance(inner, Mapping) and "model" in inner:
                raise ConfigError("a model reference is `{model: {path, revision}}`; here `model` is nested twice")
            model = cls.parse(inner)
            return model if value.get("lora") is None else model._with_adapter(value["lora"])
        if value.get("lora") is not None:
            raise ConfigError("`lora` in a model reference stands next to `model`: `{model: {path}, lora: {path}}`")
        path, revision = value.get("path"), value.get("revision")
        if not isinstance(path, (str, Path)) or not str(path).strip():
            raise ConfigError("a model reference in map form needs `path`, a directory or a hub id (a text)")
        if revision is not None and (not isinstance(revision, str) or not revision.strip()):
            raise ConfigError(f"the revision of `{path}` must be text, not {revision!r}; put it in quotes")
        return cls(str(path), revision)

    def _with_adapter(self, value: object) -> ModelReference:
        adapter = ModelReference.parse(value)
        if self.adapter is not None or adapter.adapter is not None:
            raise ConfigError(
                f"`{self}` and `{adapter}`: a model takes one adapter; merge the others in a stage before"
            )
        return replace(self, adapter=adapter)

    def identity(self) -> tuple[object, ...]:
        """Return what the name means here, equal for every spelling: a directory, or a repository's revision.

        Which commit a branch or tag points to is known only once it is resolved, so `name@COMMIT` differs from `name`.
        """
        if self.adapter is not None:
            return self.model.identity(), self.adapter.identity()
        if self.revision is None:
            found = _stat(self.name)
            if found is not None:
                return found.st_dev, found.st_ino
            if self.name.startswith(("/", "./", "../", "~/")) or self.name in (".", ".."):
                path = os.path.abspath(os.path.expanduser(self.name))  # noqa: PTH100, PTH111 - for any text
                return (f"/{path.lstrip('/')}",)  # POSIX lets two slashes at the start stand
        return self.name.rstrip("/"), self.revision or "main"

    def is_directory(self) -> bool:
        """Return whether the name is a directory's, not a repository's."""
        return self.revision is None and is_local(self.name)

    def to_plain(self) -> str | dict[str, dict[str, str]]:
        """Return the form that YAML holds, which `parse` reads back to this reference on any machine."""
        named = [self] if self.adapter is None else [self, self.adapter]
        if not any(sign in reference.name for reference in named for sign in "+@"):
            return str(self)
        return {key: reference._parts() for key, reference in zip(("model", "lora"), named, strict=False)}

    def _parts(self) -> dict[str, str]:
        return {"path": self.name} | ({} if self.revision is None else {"revision": self.revision})


def whole_model(value: object) -> ModelReference:
    """Read a reference to a model as it lies in its directory, where no adapter can be applied.

    Raises:
        ConfigError: as `ModelReference.parse`, or it names an adapter.
    """
    reference = ModelReference.parse(value)
    if reference.adapter is not None:
        raise ConfigError(
            f"`{reference}` is a model with an adapter, which only a merge applies; "
            "merge the two (`merge_method: passthrough`) and name the result"
        )
    return reference


def may_be_one(a: ModelReference, b: ModelReference) -> bool:
    """Return whether two references that differ may turn out to be one model: revisions of one repository."""
    if a.adapter is not None or b.adapter is not None:
        pairs = ((a.model, b.model), (a.adapter, b.adapter))
        return all(x == y or (x is not None and y is not None and may_be_one(x, y)) for x, y in pairs)
    return a.name == b.name and not is_local(a.name)


def _split_adapter(text: str) -> tuple[str, str]:
    """Split `model+adapter` at its one `+`, or at that which makes one part or both names of what exists.

    Raises:
        ConfigError: a part is empty, or several splits would do.
    """
    signs = [at for at, sign in enumerate(text) if sign == "+"]
    parts = [(text[:at], text[at + 1 :]) for at in signs]
    if len(parts) > 1:
        found = [[is_local(part) or "+" not in part for part in pair] for pair in parts]
        parts = [pair for pair, sound in zip(parts, found, strict=True) if all(sound)]
    if len(parts) != 1:
        raise ConfigError(
            f"`{text}` is no local path and has more than one `+`: write `{{model: {{path: ...}}, lora: ...}}`"
        )
    if not all(part.strip() for part in parts[0]):
        raise ConfigError(f"`{text}` is no local path, and not `model+adapter` either: a part is empty")
    return parts[0]


def is_local(text: str) -> bool:
    """Return whether a text names something that exists in the file system."""
    return _stat(text) is not None


def expanded(text: str) -> Path:
    """Return the path of a text, with the home directory for `~`; `~name` is the name of a file."""
    path = Path(text)
    return path.expanduser() if path.parts[:1] == ("~",) else path


def _stat(text: str) -> os.stat_result | None:
    try:
        return expanded(text).stat()
    except (OSError, ValueError, RuntimeError):
        # A name too long or with a NUL cannot exist; `~/` without a home cannot be expanded.
        return None


def nearby(name: str) -> str:
    """Return `; did you mean ...?` for a path that does not exist but resembles one next to it, else nothing."""
    path = Path(name)
    try:
        siblings = [entry.name for entry in path.expanduser().parent.iterdir() if entry.is_dir()]
    except (OSError, ValueError, RuntimeError):
        return ""  # nothing can be listed there
    near = closest(path.name, siblings)
    return f"; did you mean `{path.parent / near}`?" if near else ""
