"""The parts of a merge: models with their layers found, the inputs of each slice, a tensor that is to be made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mol.io.expressions import Leaf, renumbered

if TYPE_CHECKING:
    from mol.io.checkpoint import Checkpoint, TensorInfo
    from mol.io.expressions import Expr
    from mol.merge.combine import Combine
    from mol.structure.alignment import Alignment
    from mol.structure.layers import Stack, Structure


@dataclass(frozen=True, eq=False)
class Model:
    """A checkpoint that takes part, once however often it is listed.

    Attributes:
        index: its position among the models of the recipe.
        label: what the recipe calls it.
        checkpoint: its tensors and config.json.
        structure: its layers and everything else.
        alignment: how its names map onto the donor's.
        first_file: position of its first file among the files of all models.
        used: names of its tensors that have been accounted for.
        own_head: the head in its file is known to differ from its embedding, whatever its config.json says.
    """

    index: int
    label: str
    checkpoint: Checkpoint
    structure: Structure
    alignment: Alignment
    first_file: int
    used: set[str]
    own_head: bool = False

    def read(self, name: str) -> tuple[tuple[Expr, ...], int]:
        """Return what gives one of its tensors (several only where these must be equal), and the bytes of a sweep."""
        made = self.checkpoint.made.get(name) if self.checkpoint.made else None
        if made is None:
            info = self.checkpoint.tensors[name]
            return (Leaf(self.first_file + info.file, name),), info.bytes
        return tuple(renumbered(expr, self.first_file.__add__) for expr in made.of), made.bytes


class SliceSource(NamedTuple):
    """One input of a slice, found.

    Attributes:
        model: the model.
        start: its first layer, for slices and layer ranges.
        stack: the layers that these are of, None where it has none.
    """

    model: Model
    start: int
    stack: Stack | None


class Slice(NamedTuple):
    """One slice, its inputs found.

    Attributes:
        sources: its inputs.
        length: number of output layers; 0 where whole models are merged.
        lead: the input whose layers say which tensors the output's have.
        combine: decides how each tensor is made.
        stack: the donor's layers, which those of the output replace.
    """

    sources: tuple[SliceSource, ...]
    length: int
    lead: int
    combine: Combine
    stack: Stack | None

    @property
    def models(self) -> list[Model]:
        """The models of its inputs, in their order."""
        return [source.model for source in self.sources]


class ModelLayer(NamedTuple):
    """One layer of one model."""

    model: Model
    stack: Stack
    layer: int


class OutputSpec(NamedTuple):
    """An output tensor to be made.

    Attributes:
        name: its name.
        info: the tensor whose shape, and dtype where the recipe sets none, it has.
        owner: the model of that tensor, from which it is copied where others lack it.
        source: the name of that tensor there.
        position: from 0 (first layer) to 1 (last layer).
        pattern: its name with `*` for the layer.
        layer: number of the layer in the output, None outside the layers.
    """

    name: str
    info: TensorInfo
    owner: Model
    source: str
    position: float
    pattern: str
    layer: int | None
