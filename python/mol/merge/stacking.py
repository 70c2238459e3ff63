"""Checks that layers of several models fit into one stack, and makes config.json describe it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mol.structure.model_config import LayerOrigin, broken_cycles, restack
from mol.structure.names import is_buffer
from mol.text import ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Model
    from mol.merge.tasks import ModelLayer
    from mol.structure.layers import Stack


def check_fits(
    lead: ModelLayer,
    donor: Model,
    stack: Stack,
    shapes: Mapping[str, set[tuple[int, ...]]],
    out_layer: int,
    problems: Mismatches,
) -> None:
    """Check that a layer of another model can stand among the donor's.

    Args:
        lead: the layer.
        donor: the model whose stack it goes into.
        stack: of the donor.
        shapes: those of each tensor in the donor's layers, by its name within a layer.
        out_layer: its number in the output.
        problems: collects what does not fit.
    """
    if lead.model is donor:
        return
    for suffix, name in zip(lead.stack.layers[lead.layer], lead.stack.names(lead.layer), strict=True):
        info = lead.model.checkpoint.tensors[name]
        wanted = shapes.get(suffix)
        pattern = f"{stack.prefix}.*.{suffix}"
        if wanted is None:
            if not is_buffer(name, info.shape):
                problem = f"comes from {lead.model.label}, and no layer of {donor.label} has it"
                problems.add_tensor(pattern, out_layer, problem)
        elif info.shape not in wanted:
            problems.add_shape(donor, lead.model, pattern, out_layer, info.shape, min(wanted))


def restack_config(
    model_config: dict[str, Any], donor: Model, stack: Stack, leads: Sequence[ModelLayer], problems: Mismatches
) -> tuple[Sequence[str], Sequence[str]]:
    """Make config.json describe the sliced layers, and check that it does; return notes and warnings.

    Args:
        model_config: of the output, changed in place.
        donor: the model that it comes from.
        stack: of the donor.
        leads: for each layer of the output the one that determines its tensors.
        problems: collects what config.json cannot describe.
    """
    if [lead.layer for lead in leads] == list(range(len(stack))) and leads[0].model is donor:
        return (), ()
    origins = [LayerOrigin(lead.model.checkpoint.config, lead.layer, len(lead.stack)) for lead in leads]
    notes, found = restack(model_config, donor.structure, origins)
    for problem in found:
        problems.add(problem)
    if notes:
        return notes, ()
    warnings = broken_cycles(model_config, donor.structure, origins)
    if len({frozenset(layer) for layer in stack.layers}) > 1:
        odd = [
            i
            for i, lead in enumerate(leads[: len(stack)])
            if frozenset(lead.stack.layers[lead.layer]) != frozenset(stack.layers[i])
        ]
        if odd:
            problems.add(
                f"the layers of {donor.label} are of several kinds, and config.json has no list that says which layer "
                f"is of which: layers {ranges(odd)} of the output would be read as another kind; choose ranges that "
                "keep each kind at its position"
            )
    return notes, warnings
