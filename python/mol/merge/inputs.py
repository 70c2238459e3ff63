"""The inputs of a merge, opened up: each model's parts, and which of its layers go where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mol.config.methods import METHODS
from mol.merge.model import Model, Slice, SliceSource
from mol.merge.ruled import combiner
from mol.structure.alignment import align
from mol.structure.layers import map_layers
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


def make_slices(config: MergeConfig, models: Mapping[ModelReference, Model], problems: Mismatches) -> list[Slice]:
    """Find the inputs of each slice; whole models are one slice without a range."""
    if config.slices is not None:
        return [
            _slice(config, index, slice_.sources, slice_.base_model or config.base_model, models, problems)
            for index, slice_ in enumerate(config.slices)
        ]
    assert config.models is not None  # MergeConfig has one of the two
    return [_slice(config, 0, config.models, config.base_model, models, problems)]


def set_depths(slices: Sequence[Slice]) -> None:
    """Set for each slice where it lies in the depth of the output; whole models take all of it."""
    last = sum(slice_.length for slice_ in slices) - 1
    first = 0
    for slice_ in slices:
        if last > 0:
            slice_.combine.set_depth(first / last, (first + slice_.length - 1) / last)
        first += slice_.length


def _slice(
    config: MergeConfig,
    index: int,
    sources: Sequence[SourceConfig],
    base: ModelReference | None,
    models: Mapping[ModelReference, Model],
    problems: Mismatches,
) -> Slice:
    spec = METHODS[config.method]
    references = [source.model for source in sources]
    if spec.starts_from(base) and base is not None and base not in references and config.slices is None:
        references.append(base)
    where = f"slice {index + 1}: " if config.slices is not None else ""
    base_position = references.index(base) if base is not None and base in references else None
    spans = [_span(models[source.model], source, where, problems) for source in sources]
    if config.slices is None:
        for source, span in zip(sources, spans, strict=True):
            if span != (0, depth := _depth(models[source.model])):
                problems.add(
                    f"`layer_range` {list(span)} of {models[source.model].label}, which has {depth} layers: an entry "
                    "of `models` is a whole model; write `slices` to choose layers"
                )
        spans = [(0, 0)] * len(references)
    opened = tuple(SliceSource(models[ref], start) for ref, (start, _) in zip(references, spans, strict=True))
    combine = combiner(config, index, sources, references, base)
    if isinstance(combine.fixed, str):
        problems.add(f"{where}{combine.fixed}")
    return Slice(opened, min(end - start for start, end in spans), base_position or 0, combine)


def _depth(model: Model) -> int:
    return 0 if model.structure.main is None else len(model.structure.main)


def _span(model: Model, source: SourceConfig, where: str, problems: Mismatches) -> tuple[int, int]:
    """Return the layers of a source, checked against what the model has."""
    depth = _depth(model)
    if source.layer_range is None:
        return 0, depth
    start, end = source.layer_range
    if model.structure.main is None:
        problems.add(f"{where}{model.label} cannot be cut into layers: {model.structure.ambiguity}")
    elif end > depth:
        problems.add(
            f"{where}layer_range [{start}, {end}] of {model.label} is not within its {depth} layers, [0, {depth}]"
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
