"""Rows to train on, and what a step did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mol.training.state import optimizer_state
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from mol.core.mol_runtime import MoLRuntime
    from mol.training.trainer import MoLTrainer


def rows_of(*lengths: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Rows of tokens that are their own labels, of these lengths."""
    return [{"input_ids": tokens_of(1, length, seed + number)[0]} for number, length in enumerate(lengths)]


def counting_rows(count: int, length: int = 12) -> list[dict[str, torch.Tensor]]:
    """Rows in which each token is the one before it plus one: there is something to learn."""
    return [{"input_ids": (torch.arange(length) + 7 * number) % 100 + 5} for number in range(count)]


def batch_of(rows: list[dict[str, torch.Tensor]], *, left: bool = False, length: int = 0) -> dict[str, torch.Tensor]:
    """A batch of rows, padded with 0 on one side to the longest or to a length."""
    ids = [row["input_ids"] for row in rows]
    width = max(length, *map(len, ids))

    def padded(row: torch.Tensor) -> torch.Tensor:
        rest = row.new_zeros(width - len(row))
        return torch.cat([rest, row] if left else [row, rest])

    return {
        "input_ids": torch.stack([padded(row) for row in ids]),
        "attention_mask": torch.stack([padded(torch.ones_like(row)) for row in ids]),
    }


def gradients_of(trainer: MoLTrainer) -> dict[str, torch.Tensor]:
    """The gradients of the first step of a trainer that clips nothing, which AdamW's mean holds a tenth of."""
    return {name: kept["exp_avg"] * 10 for name, kept in optimizer_state(trainer.optimizer.optimizer).items()}


def weights_of(mol: MoLRuntime) -> dict[str, torch.Tensor]:
    """A copy of what is trained."""
    return {name: value.detach().clone() for name, value in mol.state_dict().items()}


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """How far two sets of tensors are from each other, relative to the second."""
    assert first.keys() == second.keys()
    both = [torch.cat([tensors[name].flatten() for name in first]) for tensors in (first, second)]
    return ((both[0] - both[1]).norm() / both[1].norm()).item()


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Two sets of tensors are equal bit for bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.numpy().tobytes() == second[name].numpy().tobytes(), name  # NaN, of what is not loaded, too
