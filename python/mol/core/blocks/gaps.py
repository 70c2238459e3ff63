"""Probes whether blocks accept a cache with gaps: rows of unequal length, padded side by side under a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from mol.core.blocks.driver import REFUSALS
from mol.core.blocks.inputs import Tokens

if TYPE_CHECKING:
    from mol.core.blocks.runner import BlockRunner

_CHUNKS: Final = ((3, 2), (1, 0), (1, 2), (1, 1))
"""New tokens of two rows, in each of four forwards."""
_POSITIONS: Final = ((0, 2, 3, 5, 6, 9), (1, 4, 5, 7, 8, 0))


def keeps_gaps(runner: BlockRunner, block: int) -> bool:
    """Return whether a block that has a native cache computes with gaps in it what it does on each row alone.

    A block that counts the distance of keys in the cache does not, such as one with a sliding window. The cache says
    whether there is a window: it may be longer than any probe.
    """
    layers: list[Any] = runner.new_cache().layers
    return not any(getattr(layer, "is_sliding", False) for layer in layers) and _probe(runner, block)


def _probe(runner: BlockRunner, block: int) -> bool:
    device, dtype = runner.device, runner.dtype
    positions = torch.tensor(_POSITIONS, device=device)
    hidden = torch.randn(2, 6, runner.width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    wanted, found = [], []
    with torch.no_grad():
        for row in range(2):
            total = sum(counts[row] for counts in _CHUNKS)
            mask = torch.ones(1, total, dtype=torch.long, device=device)
            tokens = Tokens(mask, positions[row : row + 1, :total], total, device, dtype)
            wanted.append(runner.run_block(block, hidden[row : row + 1, :total], runner.context(tokens), live={})[0])
        cache, valid = runner.new_cache(), positions.new_zeros(2, 0)
        done = [0, 0]
        for counts in _CHUNKS:
            length = max(counts)
            new = torch.arange(length, device=device) < positions.new_tensor(counts)[:, None]
            valid = torch.cat([valid, new.long()], 1)
            columns = [[min(done[row] + column, 5) for column in range(length)] for row in range(2)]
            index = positions.new_tensor(columns)
            measure = runner.new_cache()
            cache.seen = measure.seen = valid.shape[1] - length
            tokens = Tokens(valid, positions.gather(1, index), length, device, dtype)
            given = hidden.gather(1, index[..., None].expand(-1, -1, runner.width))
            try:
                result = runner.run_block(block, given, runner.context(tokens, measure), cache=cache, live={})
            except REFUSALS:
                return False  # a block that fails on gaps runs without a cache
            found.append([result[row, : counts[row]] for row in range(2)])
            done = [before + count for before, count in zip(done, counts, strict=True)]
    exact = max(2e-4, 8 * torch.finfo(dtype).eps)
    return all(
        torch.allclose(torch.cat([chunk[row] for chunk in found]), wanted[row], rtol=0.0, atol=exact * scale)
        for row in range(2)
        for scale in [max(1.0, wanted[row].abs().max().item())]
    )
