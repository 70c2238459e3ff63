"""The inputs of a merge: models with their layers found, and the inputs of each slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mol.io.expressions import Source, renumbered

if TYPE_CHECKING:
    from mol.io.checkpoint import Checkpoint
    from mol.io.expressions import Expr
    from mol.merge.combine import Combine
    from mol.structure.alignment import Alignment
    from mol.structure.layers import Structure


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
            return (Source(self.first_file + info.file, name),), info.bytes
        return tuple(renumbered(expr, self.first_file.__add__) for expr in made.of), made.bytes


@dataclass(frozen=True)
class SliceSource:
    """One input of a slice, found.

    Attributes:
        model: the model.
        start: its first layer, for slices and layer ranges.
    """

    model: Model
    start: int


@dataclass(frozen=True)
class Slice:
    """One slice, its inputs found.

    Attributes:
        sources: its inputs.
        length: number of output layers; 0 where whole models are merged.
        lead: the input whose layers say which tensors the output's have.
        combine: decides how each tensor is made.
    """

    sources: tuple[SliceSource, ...]
    length: int
    lead: int
    combine: Combine

    @property
    def models(self) -> list[Model]:
        """The models of its inputs, in their order."""
        return [source.model for source in self.sources]
