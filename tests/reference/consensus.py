"""Consensus merging, by masks of what each model needs: consensus_ta, consensus_ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.reference.election import NOISE, cancelled
from tests.reference.trimming import trim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tests.reference.tensors import Tensor


def consensus_ta(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    lambdas: Sequence[float],
    k: int = 1,
    *,
    normalize: bool = False,
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Task arithmetic without the entries that fewer than `k` models need; see `_needed`."""
    base, *models = tensors
    sum_of_weights = sum(weights)
    divisor = sum_of_weights if normalize and abs(sum_of_weights) >= 1e-8 else 1.0
    votes = _votes(tensors, weights, [1.0] * len(models), rescale=False, precision=precision)
    merged = _in_order(votes) * precision(1.0 / divisor)
    return base + np.where(_needed(base, models, merged, lambdas, precision) >= k, merged.astype(np.float64), 0.0)


def consensus_ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    lambdas: Sequence[float],
    k: int = 1,
    *,
    normalize: bool = True,
    rescale: bool = False,
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """TIES without the entries that fewer than `k` models need; see `elect` and `_needed`."""
    base, *models = tensors
    votes = _votes(tensors, weights, densities, rescale=rescale, precision=precision)
    total, mass = _in_order(votes), _in_order([np.abs(vote) for vote in votes])
    elected = np.where(total < -precision(NOISE) * mass, precision(-1), precision(1))
    agreeing = [np.where(np.sign(vote) == elected, vote, precision(0)) for vote in votes]
    merged = _in_order(agreeing)
    if normalize:
        divisor = _in_order([precision(w) * (part != 0) for w, part in zip(weights, agreeing, strict=True)])
        merged = merged / np.where(np.abs(divisor) <= cancelled(weights), precision(1), divisor)
    return base + np.where(_needed(base, models, merged, lambdas, precision) >= k, merged.astype(np.float64), 0.0)


def _needed(
    base: Tensor,
    models: Sequence[Tensor],
    merged: NDArray[np.floating],
    lambdas: Sequence[float],
    precision: type[np.floating],
) -> NDArray[np.intp]:
    """Count for each entry the models whose TALL mask is set: |delta| >= lambda |merged - delta|.

    It is decided in the engine's working precision, and so is what is compared: equal deltas are common, and lie on the
    edge of a mask.
    """
    count = np.zeros(base.size, dtype=np.intp)
    for model, threshold in zip(models, lambdas, strict=True):
        delta = model.astype(precision) - base.astype(precision)
        count += np.abs(delta) >= precision(threshold) * np.abs(merged - delta)
    return count


def _votes(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    rescale: bool,
    precision: type[np.floating],
) -> list[NDArray[np.floating]]:
    """Weighted task vectors after `trim`, in the working precision."""
    base, *models = tensors
    votes = []
    for model, weight, density in zip(models, weights, densities, strict=True):
        kept = trim(base, model, density, rescale=False, precision=precision)
        restored = trim(base, model, density, rescale=rescale, precision=precision)
        whole, left = np.abs(restored).sum(), np.abs(kept).sum()
        factor = precision(weight * (whole / left if left else 1.0))
        votes.append(np.where(kept != 0, model.astype(precision) - base.astype(precision), precision(0)) * factor)
    return votes


def _in_order(parts: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    """Add up one after the other, as the engine does."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
