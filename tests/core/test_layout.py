"""Layouts of hidden states, there and back."""

from __future__ import annotations

import pytest
import torch

from mol.core.blocks.layout import Layout
from mol.errors import ArchitectureError

# (shape that a block is handed for 3 images or sounds, number of channels, positions of each)
SIGNALS = [
    ((3, 17, 8), 8, 17),
    ((17, 3, 8), 8, 17),
    ((51, 8), 8, 17),
    ((1, 51, 8), 8, 17),  # side by side in one row
    ((3, 4, 5, 8), 8, 20),  # rows and columns
    ((3, 8, 4, 5), 8, 20),  # channels first
    ((3, 8, 17), 8, 17),
    ((12, 4, 8), 8, 16),  # windows
]


@pytest.mark.parametrize(("shape", "channels", "length"), SIGNALS)
def test_hidden_states_of_signals_come_back_as_they_were(shape: tuple[int, ...], channels: int, length: int) -> None:
    layout = Layout.of_signal(shape, 3, {channels}, "it")
    native = torch.randn(shape)
    hidden = layout.from_block(native, 3)
    assert hidden.shape == (3, length, channels)
    assert layout.width == channels
    assert torch.equal(layout.to_block(hidden), native)


def test_axes_keep_their_meaning() -> None:
    """Of channels first, the position of row 1 and column 2 is 1 * 5 + 2."""
    native = torch.randn(3, 8, 4, 5)
    hidden = Layout.of_signal((3, 8, 4, 5), 3, {8}, "it").from_block(native, 3)
    assert torch.equal(hidden[1, 7], native[1, :, 1, 2])


def test_a_shape_that_holds_no_batch_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"\[16, 4, 8\] for 3 images or sounds"):
        Layout.of_signal((16, 4, 8), 3, {8}, "it")
