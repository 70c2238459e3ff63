"""Sums of models and of task vectors, and what is no more than that: copy, scale, linear, task_arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.reference.tensors import Tensor


def copy(tensors: Sequence[Tensor]) -> Tensor:
    """Take the first tensor."""
    return tensors[0]


def scale(tensors: Sequence[Tensor], factor: float) -> Tensor:
    """Multiply the one tensor by a factor."""
    return tensors[0] * factor


def linear(tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = True) -> Tensor:
    """Weighted sum of the tensors; a weighted mean with `normalize`."""
    total: Tensor = np.asarray(weights) @ np.stack(tensors)  # (models,) @ (models, n)
    return total / sum(weights) if normalize else total


def task_arithmetic(
    tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = False, lambda_: float = 1.0
) -> Tensor:
    """Add the weighted task vectors (model minus base) to the base; `lambda_` scales their sum after `normalize`."""
    base, *models = tensors
    mix: Tensor = np.asarray(weights) @ np.stack([model - base for model in models])  # (models,) @ (models, n)
    if normalize:
        divisor = sum(weights)
        mix = mix / (divisor if abs(divisor) >= 1e-8 else 1.0)
    return base + lambda_ * mix


def add_deltas(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], *, normalize: bool, lambda_: float
) -> Tensor:
    """Task arithmetic over task vectors."""
    return task_arithmetic([base, *(base + delta for delta in deltas)], weights, normalize=normalize, lambda_=lambda_)
