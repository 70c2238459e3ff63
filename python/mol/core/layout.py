"""How a stack lays out its hidden states, and the way there and back from (B, T, D)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mol.errors import ArchitectureError

if TYPE_CHECKING:
    import torch


class Layout:
    """The order of axes in a stack's hidden states: (B, T, D) in most; (T, B, D), (B, D, T), (B*T, D) or more in some.

    Attributes:
        width: D, the product of all axes that are neither batch nor sequence.
    """

    def __init__(self, shape: tuple[int, ...], batch: int, length: int, name: str) -> None:
        """Read the layout from the shape that a forward of `batch` sequences of `length` tokens gave.

        Raises:
            ArchitectureError: the two numbers are not found in the shape.
        """
        self._flat = len(shape) == 2 and shape[0] == batch * length
        if self._flat:
            self._order: tuple[int, ...] | None = None
            self._rest = shape[1:]
        elif len(shape) >= 3 and batch in shape and length in shape:
            axes = shape.index(batch), shape.index(length)
            rest = tuple(axis for axis in range(len(shape)) if axis not in axes)
            self._rest = tuple(shape[axis] for axis in rest)
            order = (*axes, *rest)
            self._order = None if order == (0, 1, 2) else order
        else:
            raise ArchitectureError(
                f"{name}: hidden states of shape {list(shape)} for {batch} sequences of {length} tokens: which axis is "
                "the sequence cannot be told"
            )
        self.width = math.prod(self._rest)

    def to_block(self, hidden: torch.Tensor) -> torch.Tensor:
        """Lay (B, T, D) out as the block wants it."""
        if self._flat:
            return hidden.reshape(-1, self.width)
        if self._order is None:
            return hidden
        back = [self._order.index(axis) for axis in range(len(self._order))]
        return hidden.reshape(*hidden.shape[:2], *self._rest).permute(*back).contiguous()

    def from_block(self, hidden: torch.Tensor, batch: int) -> torch.Tensor:
        """Return what a block gave as (B, T, D)."""
        if self._flat:
            return hidden.reshape(batch, -1, self.width)
        if self._order is None:
            return hidden
        return hidden.permute(*self._order).reshape(batch, -1, self.width)
