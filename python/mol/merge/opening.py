"""Finds or downloads the models of a recipe, and opens them."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mol.config.model_reference import expanded
from mol.errors import CheckpointError, MergeError, MolError, reason_of
from mol.merge.options import MergeOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mol.config import MergeConfig
    from mol.config.model_reference import ModelReference
    from mol.io.adapter import Adapter
    from mol.io.checkpoint import Checkpoint, Known
    from mol.io.hub import Located

_log = logging.getLogger("mol")


def resolve_checkpoints(config: MergeConfig, options: MergeOptions | None = None) -> dict[ModelReference, Checkpoint]:
    """Find or download every model of a recipe and of its stages, and read the headers of their weights.

    All of them, adapters on stages and tokenizers are looked up before the first is downloaded.

    Raises:
        MolError: a model is not available or is damaged; where several are, a MergeError lists them.
        OSError: a model is missing or may not be read.
    """
    opening = _Opening(config, options or MergeOptions())
    opening.look_up()
    opening.open()
    found = opening.result()
    _note_offline(opening.offline)
    _raise_all("models of the recipe cannot be used", opening.failures)
    return found


class _Part(NamedTuple):
    """A model or an adapter that a recipe names."""

    name: ModelReference
    is_adapter: bool


class _Opening:
    """Opens what a recipe names.

    Attributes:
        failures: what cannot be used, and why.
        offline: commits that come from the cache since the Hub is unreachable.
    """

    def __init__(self, config: MergeConfig, options: MergeOptions) -> None:
        self._config = config
        self._options = options
        self._parts: dict[_Part, ModelReference] = {}  # and what the recipe names it in
        self._located: dict[_Part, Located] = {}
        self._models: dict[ModelReference, Checkpoint] = {}  # without adapters: several may be on one
        self._adapters: dict[ModelReference, Adapter] = {}
        self.failures: dict[_Part, MolError | OSError] = {}
        self.offline: list[str] = []
        for reference in config.inputs():
            self._parts.setdefault(_Part(reference.model, is_adapter=False), reference)
            if reference.adapter is not None:
                self._parts.setdefault(_Part(reference.adapter, is_adapter=True), reference)
        self._of_inputs = len(self._parts)
        for reference in adapted_steps(config):
            assert reference.adapter is not None  # that is what they are
            self._parts.setdefault(_Part(reference.adapter, is_adapter=True), reference)

    def look_up(self) -> None:
        """Find everything, and fetch nothing."""
        for number, (part, reference) in enumerate(self._parts.items()):
            offline = self.offline if number < self._of_inputs else []  # said when the step is made
            with self._noting(part, reference):
                self._located[part] = _look_up(
                    part.name, self._config, self._options, adapter=part.is_adapter, offline=offline
                )
        for document in self._config.documents():
            source = document.tokenizer_source
            if source is None or isinstance(source, str) or self._config.is_stage(source):
                continue
            part = _Part(source.model, is_adapter=False)
            if part not in self._parts and part not in self.failures:  # opened when its vocabulary is read
                with self._noting(part, source):
                    _look_up(source.model, self._config, self._options, weights=False, offline=[])

    def open(self) -> None:
        """Open what is at hand, and fetch and open the rest if nothing is missing or damaged so far."""
        known: Known = {}
        rest = []
        for part, found in self._located.items():
            if found.directory is None:
                rest.append(part)
            else:
                self._open(part, known)
        if not self.failures:
            for part in rest:
                self._open(part, known)

    def _open(self, part: _Part, known: Known) -> None:
        from mol.io.checkpoint import Checkpoint

        found, name = self._located[part], str(part.name)
        with self._noting(part, self._parts[part]):
            if part.is_adapter:
                from mol.io.adapter import Adapter

                self._adapters[part.name] = Adapter.open(found.fetch(), name=name, revision=found.commit)
            else:
                self._models[part.name] = Checkpoint.open(found.fetch(), name=name, revision=found.commit, known=known)

    def result(self) -> dict[ModelReference, Checkpoint]:
        """Return the models of the recipe that can be used, with their adapters."""
        found: dict[ModelReference, Checkpoint] = {}
        for reference in self._config.inputs():
            model = self._models.get(reference.model)
            if model is None:
                continue
            if reference.adapter is None:
                found[reference] = model
            elif reference.adapter in self._adapters:
                with self._noting(_Part(reference, is_adapter=False), reference):
                    found[reference] = _adapted(model, self._adapters[reference.adapter], self._config)
        return found

    @contextmanager
    def _noting(self, part: _Part, reference: ModelReference) -> Iterator[None]:
        """Context manager that keeps why a part cannot be used."""
        try:
            yield
        except (FileNotFoundError, CheckpointError) as error:
            self.failures[part] = _with_location(error, reference, self._config)
        except (MolError, OSError) as error:
            self.failures[part] = error


def adapted_steps(config: MergeConfig) -> tuple[ModelReference, ...]:
    """Return what a recipe names that is the result of one of its stages with an adapter on it."""
    named = dict.fromkeys(reference for document in config.documents() for reference in document.model_references())
    return tuple(reference for reference in named if reference.adapter is not None and config.is_stage(reference))


def adapted_step(
    name: str, step: Checkpoint, config: MergeConfig, options: MergeOptions
) -> dict[ModelReference, Checkpoint]:
    """Return a step of a recipe with each adapter that a later step, or the result, has on it.

    Raises:
        MolError: an adapter is not available, is damaged, or does not fit.
        OSError: one is missing or may not be read.
    """
    offline: list[str] = []
    found = {}
    for reference in adapted_steps(config):
        if reference.name == name and reference.adapter is not None:
            from mol.io.adapter import Adapter

            try:
                located = _look_up(reference.adapter, config, options, adapter=True, offline=offline)
                adapter = Adapter.open(located.fetch(), name=str(reference.adapter), revision=located.commit)
            except (FileNotFoundError, CheckpointError) as error:
                raise _with_location(error, reference, config) from error
            found[reference] = _adapted(step, adapter, config)
    _note_offline(offline)
    return found


def _adapted(model: Checkpoint, adapter: Adapter, config: MergeConfig) -> Checkpoint:
    """Return a model with an adapter on it."""
    from mol.merge.adapters import with_adapter
    from mol.merge.surviving import with_surviving

    dtype = config.out_dtype or config.dtype
    return with_surviving(with_adapter(model, adapter), model, adapter.name, dtype)


def tokenizer_directory(
    config: MergeConfig, checkpoints: Mapping[ModelReference, Checkpoint], options: MergeOptions
) -> Path:
    """Return the directory of the tokenizer that a recipe chooses, found or downloaded if it is no input."""
    source = config.tokenizer_source
    if source is None or isinstance(source, str):
        source = config.donor()
    # A step of the recipe is no directory of that name; an adapter has no tokenizer.
    for name in (source, source.model):
        if name in checkpoints:
            return checkpoints[name].directory
    return _look_up(source.model, config, options, weights=False).fetch()


def _look_up(
    reference: ModelReference,
    config: MergeConfig,
    options: MergeOptions,
    *,
    weights: bool = True,
    adapter: bool = False,
    offline: list[str] | None = None,
) -> Located:
    from mol.io.hub import look_up

    return look_up(
        reference,
        cache_dir=options.cache_dir,
        token=options.token,
        weights=weights,
        adapter=adapter,
        code=options.trust_remote_code or config.trust_remote_code,
        offline=offline,
    )


def _with_location(
    error: FileNotFoundError | CheckpointError, reference: ModelReference, config: MergeConfig
) -> FileNotFoundError | CheckpointError:
    """Return the error with where the recipe names the model, and with a directory of that name next to the recipe."""
    documents = config.documents()
    location = next((part.locations[reference] for part in documents if reference in part.locations), None)
    if location is None or (isinstance(error, MolError) and error.problems):
        return error
    name = (reference.adapter or reference).name
    there = Path(location.rpartition(":")[0]).parent / name
    misplaced = there.is_dir() and not expanded(name).exists()
    hint = f"; {there} is there: paths start from the working directory, not from the recipe's" if misplaced else ""
    return type(error)(f"{location}: {reason_of(error)}{hint}")


def _note_offline(commits: Sequence[str]) -> None:
    if commits:
        _log.warning("offline: using the cached commits %s", ", ".join(commits))


def _raise_all(header: str, failures: Mapping[_Part, MolError | OSError]) -> None:
    errors: Sequence[MolError | OSError] = list(failures.values())
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise MergeError.listing(header, [reason_of(error) for error in errors])
