"""Layout: the order of axes in a stack's hidden states, and the conversion from and to (B, T, D)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mol.errors import ArchitectureError

if TYPE_CHECKING:
    from collections.abc import Collection

    import torch


class Layout:
    """The order of axes in a stack's hidden states: (B, T, D) in most; (T, B, D), (B, D, T), (B*T, D) or more in some.

    Attributes:
        width: D, the product of all axes that are neither batch nor sequence.
        is_grid: whether the sequence is several axes, such as the rows and columns of an image.
    """

    def __init__(self, shape: tuple[int, ...], batch: int, length: int, name: str) -> None:
        """Read the layout from the shape that a forward of `batch` sequences of `length` tokens gave.

        Raises:
            ArchitectureError: the two numbers are not found in the shape.
        """
        self.is_grid = False
        self._lead: tuple[int, ...] = ()
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
                f"{name}: hidden states of shape {list(shape)} for {batch} sequences of {length} tokens: it is "
                "not clear which axis is the sequence"
            )
        self.width = math.prod(self._rest)

    @classmethod
    def of_signal(cls, shape: tuple[int, ...], batch: int, widths: Collection[int], name: str) -> Layout:
        """Read the layout from a shape whose sequence has the length that an image or a sound gave it.

        Args:
            shape: of the hidden states.
            batch: how many images or sounds they are of.
            widths: numbers of channels that the blocks know: D is the last axis, or else the second.
            name: the stack's name in messages.

        Raises:
            ArchitectureError: the batch is not found in the shape.
        """
        if len(shape) >= 3 and shape[-1] not in widths and shape[1] in widths:
            layout = cls.of_signal((shape[0], *shape[2:], shape[1]), batch, widths, name)
            # The axis of channels goes to the end, and back.
            layout._order = (0, *range(2, len(shape)), 1)
            return layout
        if len(shape) == 3 and shape[1] == batch != shape[0]:
            return cls(shape, batch, shape[0], name)
        layout = cls.__new__(cls)
        layout.width, layout._rest, layout._order = shape[-1], shape[-1:], None
        layout.is_grid = len(shape) > 3 or (len(shape) == 3 and shape[0] not in (1, batch))
        layout._flat = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1 != batch)
        layout._lead = shape[1:-1] if layout.is_grid else (1,) if layout._flat and len(shape) == 3 else ()
        if math.prod(shape[:-1]) % batch or (not layout._flat and shape[0] % batch):
            raise ArchitectureError(
                f"{name}: hidden states of shape {list(shape)} for {batch} images or sounds: which axis is which "
                "cannot be determined"
            )
        return layout

    def length(self, shape: tuple[int, ...], batch: int) -> int:
        """Return T of hidden states of this shape in a block, for so many sequences."""
        return math.prod(shape) // (batch * self.width)

    def to_block(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return (B, T, D) in the layout of the block."""
        if self._flat:
            return hidden.reshape(*self._lead, -1, self.width)
        if self.is_grid:
            hidden = hidden.reshape(-1, *self._lead, self.width)
            return hidden if self._order is None else hidden.permute(*self._back()).contiguous()
        if self._order is None:
            return hidden
        return hidden.reshape(*hidden.shape[:2], *self._rest).permute(*self._back()).contiguous()

    def from_block(self, hidden: torch.Tensor, batch: int) -> torch.Tensor:
        """Return a block's result as (B, T, D)."""
        if self._order is not None:
            hidden = hidden.permute(*self._order)
        elif not self._flat and not self.is_grid:
            return hidden
        return hidden.reshape(batch, -1, self.width)

    def _back(self) -> list[int]:
        order = self._order or ()
        return [order.index(axis) for axis in range(len(order))]
