"""The inputs of a merge, opened up: each model's parts, and which of its layers go where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mol.config.methods import METHODS
from mol.merge.model import Model, Slice, SliceSource
from mol.merge.ruled import combiner
from mol.structure.alignment import align
from mol.structure.layers import map_layers
from mol.structure.modules import find_modules, stacks_of
from mol.text import ranges

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from mol.config.merge_config import MergeConfig, ModelReference, SourceConfig
    from mol.io.checkpoint import Checkpoint
    from mol.merge.mismatch import Mismatches
    from mol.structure.layers import Stack, Structure


def open_models(
    config: MergeConfig,
    checkpoints: Mapping[ModelReference, Checkpoint],
    structures: Mapping[ModelReference, Structure],
    own_heads: Container[ModelReference],
) -> tuple[dict[ModelReference, Model], Model]:
    """Find the parts of every model of the recipe.

    Returns:
        The models in recipe order, and the donor.
    """
    donor = structures[config.donor()]
    models: dict[ModelReference, Model] = {}
    first_file = 0
    for index, reference in enumerate(config.model_references()):
        checkpoint, structure = checkpoints[reference], structures[reference]
        alignment = align(donor, structure)
        models[reference] = Model(
            index, str(reference), checkpoint, structure, alignment, first_file, set(), reference in own_heads
        )
        first_file += len(checkpoint.files)
    return models, models[config.donor()]


def make_slices(
    config: MergeConfig,
    models: Mapping[ModelReference, Model],
    problems: Mismatches,
    stack: Stack | None,
    where: str = "",
) -> list[Slice]:
    """Find the inputs of each slice; whole models are one slice without a range.

    Args:
        config: the recipe, or that of a module.
        models: every model.
        problems: where ranges that a model does not have go.
        stack: the layers of the donor that ranges are of.
        where: what problems begin with.
    """
    if config.slices is not None:
        return [
            _Slicer(config, index, models, problems, stack, f"{where}slice {index + 1}: ").slice(
                slice_.sources, slice_.base_model or config.base_model
            )
            for index, slice_ in enumerate(config.slices)
        ]
    assert config.models is not None  # MergeConfig has one of the two
    return [_Slicer(config, 0, models, problems, stack, where).slice(config.models, config.base_model)]


def set_depths(slices: Sequence[Slice]) -> None:
    """Set for each slice where it lies in the depth of the output; whole models take all of it."""
    last = sum(slice_.length for slice_ in slices) - 1
    first = 0
    for slice_ in slices:
        if last > 0:
            slice_.combine.set_depth(first / last, (first + slice_.length - 1) / last)
        first += slice_.length


class _Slicer:
    """Finds the inputs of one slice."""

    def __init__(
        self,
        config: MergeConfig,
        index: int,
        models: Mapping[ModelReference, Model],
        problems: Mismatches,
        stack: Stack | None,
        where: str,
    ) -> None:
        self._config = config
        self._index = index
        self._models = models
        self._problems = problems
        self._stack = stack
        self._where = where

    def slice(self, sources: Sequence[SourceConfig], base: ModelReference | None) -> Slice:
        """Find them, the base too if the method starts from it."""
        config, models, problems = self._config, self._models, self._problems
        references = [source.model for source in sources]
        starts = METHODS[config.method].starts_from(base)
        if starts and base is not None and base not in references and config.slices is None:
            references.append(base)
        base_position = references.index(base) if base is not None and base in references else None
        spans = [self._span(models[source.model], source) for source in sources]
        if config.slices is None:
            for source, span in zip(sources, spans, strict=True):
                stack = self._stack_of(models[source.model])
                if source.layer_range is not None and span != (0, depth := 0 if stack is None else len(stack)):
                    problems.add(
                        f"{self._where}`layer_range` {list(span)} of {models[source.model].label}, which has {depth} "
                        "layers: an entry of `models` is a whole model; write `slices` to choose layers"
                    )
            spans = [(0, 0)] * len(references)
        opened = tuple(
            SliceSource(models[ref], start, self._stack_of(models[ref]))
            for ref, (start, _) in zip(references, spans, strict=True)
        )
        combine = combiner(config, self._index, sources, references, base)
        if isinstance(combine.fixed, str):
            problems.add(f"{self._where}{combine.fixed}")
        return Slice(opened, min(end - start for start, end in spans), base_position or 0, combine, self._stack)

    def _stack_of(self, model: Model) -> Stack | None:
        """Return the layers of a model that correspond to the donor's."""
        main = model.structure.main
        return main if self._stack is None else model.alignment.stacks.get(self._stack.prefix, main)

    def _span(self, model: Model, source: SourceConfig) -> tuple[int, int]:
        """Return the layers of a source, checked against what the model has."""
        stack = self._stack_of(model)
        depth = 0 if stack is None else len(stack)
        if source.layer_range is None:
            return 0, depth
        start, end = source.layer_range
        if stack is None or self._stack is None:
            reason = model.structure.ambiguity or "it has no layers that correspond to the base's"
            if model.structure.ambiguity and not self._where.startswith("module "):
                modules = find_modules(model.structure, model.checkpoint.config)
                single = [name for name in modules.words if len(stacks_of(modules, name, model.structure)) == 1]
                reason += f"; `modules` takes slices of each: {', '.join(single)}" if single else ""
            self._problems.add(f"{self._where}{model.label} cannot be cut into layers: {reason}")
        elif end > depth:
            self._problems.add(
                f"{self._where}layer_range [{start}, {end}] of {model.label} is not within its {depth} layers, "
                f"[0, {depth}]"
            )
        return start, end


def layers_for(
    stack: Stack, model: Model, donor: Model, *, strict: bool, problems: Mismatches, warnings: dict[str, None]
) -> tuple[Stack, tuple[int, ...]] | None:
    """Find the layers of a model that correspond to those of a stack of the donor.

    Returns:
        The model's stack, and for each of the donor's layers the number of the model's; None where it has no such
        stack or `layer_alignment: strict` forbids the mapping.
    """
    theirs = model.alignment.stacks.get(stack.prefix)
    if theirs is None:
        problems.add(f"{model.label} has no layers that correspond to `{stack.prefix}` of {donor.label}")
        return None
    if len(theirs) == len(stack):
        return theirs, tuple(range(len(stack)))
    counts = f"{model.label} has {len(theirs)} layers in `{theirs.prefix}`, {donor.label} has {len(stack)}"
    if strict:
        problems.add(f"{counts}; `layer_alignment: auto` maps them proportionally, `slices` choose them one by one")
        return None
    mapping = map_layers(len(stack), len(theirs))
    listed = ", ".join(f"{i}<-{j}" for i, j in enumerate(mapping))
    unused = set(range(len(theirs))) - set(mapping)
    rest = f"; its layers {ranges(unused)} are not used" if unused else ""
    warnings[
        f"layer_alignment auto: {counts}. The output has {len(stack)}; layer by layer ({donor.label}<-{model.label}): "
        f"{listed}{rest}. Models of unequal depth seldom merge well"
    ] = None
    return theirs, mapping
