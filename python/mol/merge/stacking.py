"""Makes a tower of layers from slices of several models, and config.json describe it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mol.merge.model import ModelLayer
from mol.structure.layer_kinds import move_kinds
from mol.structure.model_config import LayerOrigin, restack, tie_flag
from mol.structure.names import FOR_EACH_LAYER, SHARED_BY_LAYERS, is_buffer
from mol.text import ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Model, Slice
    from mol.merge.tasks import TaskBuilder
    from mol.structure.layers import Stack


class Stacker:
    """Puts layers one upon the other."""

    def __init__(
        self, donor: Model, tasks: TaskBuilder, config: dict[str, Any], problems: Mismatches, notes: dict[str, None]
    ) -> None:
        """Start with nothing.

        Args:
            donor: the model whose names the output has.
            tasks: where what makes the layers goes.
            config: config.json of the output, changed in place.
            problems: where everything that does not fit goes.
            notes: where it is said what was changed.
        """
        self._donor = donor
        self._tasks = tasks
        self._config = config
        self._problems = problems
        self._notes = notes

    def add(self, stack: Stack, slices: Sequence[Slice]) -> None:
        """Make a tower from slices, one after the other."""
        dtypes: dict[str, str] = {}
        shapes: dict[str, set[tuple[int, ...]]] = {}
        for layer in range(len(stack)):
            for suffix, name in zip(stack.layers[layer], stack.names(layer), strict=True):
                info = self._donor.checkpoint.tensors[name]
                dtypes.setdefault(suffix, info.dtype)
                shapes.setdefault(suffix, set()).add(info.shape)
        leads: list[ModelLayer] = []
        for slice_ in slices:
            last = slice_.length - 1
            for i in range(slice_.length):
                inputs = []
                for source in slice_.sources:
                    assert source.stack is not None  # make_slices refuses ranges of a model without
                    inputs.append(ModelLayer(source.model, source.stack, source.start + i))
                out_layer = len(leads)
                lead = inputs[slice_.lead]
                self._check_fits(lead, stack, shapes, out_layer)
                position = i / last if last else 1.0
                self._tasks.add_layer(stack.start(out_layer), lead, inputs, slice_.combine, position, out_layer, dtypes)
                leads.append(lead)
        held = [name for name in self._donor.structure.loose if name.startswith(stack.start(0))]
        if held and any(source.start for source in slices[0].sources):
            of = " and ".join(dict.fromkeys(model.label for model in slices[0].models))
            self._notes[
                f"`{held[0]}` is used by all layers of `{stack.prefix}`: it is made of that of {of} and stays in the "
                "first layer, though another one stands there now; mergekit moves it with its layer, where no class "
                "reads it"
            ] = None
        self._restack(stack, leads)
        if tie_flag(self._config) and slices[0].sources != slices[-1].sources:
            self._notes["head and embedding are tied: both come from the first slice"] = None

    def _check_fits(
        self, lead: ModelLayer, stack: Stack, shapes: Mapping[str, set[tuple[int, ...]]], out_layer: int
    ) -> None:
        """Check that a layer of another model can stand among the donor's."""
        if lead.model is self._donor:
            return
        for suffix, name in zip(lead.stack.layers[lead.layer], lead.stack.names(lead.layer), strict=True):
            info = lead.model.checkpoint.tensors[name]
            wanted = shapes.get(suffix)
            pattern = f"{stack.prefix}.*.{suffix}"
            if wanted is None:
                if not is_buffer(name, info.shape):
                    problem = f"comes from {lead.model.label}, and no layer of {self._donor.label} has it"
                    self._problems.add_tensor(pattern, out_layer, problem)
            elif info.shape not in wanted:
                shape = min(wanted)
                self._problems.add_shape(self._donor, lead.model, pattern, out_layer, info.shape, shape)

    def _restack(self, stack: Stack, leads: list[ModelLayer]) -> None:
        """Make config.json describe the sliced layers, and check that it does."""
        origins = [LayerOrigin(lead.model.checkpoint.config, lead.layer, len(lead.stack)) for lead in leads]
        in_place = [lead.layer for lead in leads] == list(range(len(stack)))
        if not in_place and stack is self._donor.structure.main:
            for name in filter(FOR_EACH_LAYER.search, self._donor.structure.loose):
                self._problems.add(
                    f"`{name}` of {self._donor.label} has a part for each of its {len(stack)} layers in their order, "
                    "and cannot follow layers that move; leave each layer at its position"
                )
        if not in_place and any(map(SHARED_BY_LAYERS.search, stack.suffixes)):
            self._problems.add(
                f"layers of `{stack.prefix}` of {self._donor.label} share a transformer, which only the first of them "
                "stores, and cannot move without it; leave each layer at its position"
            )
        unchanged = in_place and all(lead.model is self._donor for lead in leads)
        if not unchanged:
            notes, problems = restack(self._config, self._donor.structure, stack, origins)
            moved, more = move_kinds(self._config, self._donor.checkpoint.config, self._donor.structure, stack, origins)
            notes += moved
            self._notes.update(dict.fromkeys(notes))
            for problem in (*problems, *more):
                self._problems.add(problem)
            if not notes and len({frozenset(layer) for layer in stack.layers}) > 1:
                odd = [
                    i
                    for i, lead in enumerate(leads[: len(stack)])
                    if frozenset(lead.stack.layers[lead.layer]) != frozenset(stack.layers[i])
                ]
                if odd:
                    self._problems.add(
                        f"the layers of {self._donor.label} are of several kinds, and config.json has no list that "
                        f"says which layer is of which: layers {ranges(odd)} of the output would be read as another "
                        "kind; choose ranges that keep each kind at its position"
                    )
