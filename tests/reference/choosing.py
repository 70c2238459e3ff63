"""Methods in which models choose elements before they are added up: magmax, localize_and_stitch, pcb, cabs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.reference.averages import add_deltas
from tests.reference.trimming import by_rank

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.reference.tensors import Tensor


def magmax(tensors: Sequence[Tensor], lambda_: float = 1.0, *, precision: type[np.floating] = np.float32) -> Tensor:
    """Add the task vector that is the largest at each entry; of equal magnitudes the first."""
    base, *models = tensors
    magnitudes = [np.abs(model.astype(precision) - base.astype(precision)) for model in models]
    largest = np.argmax(magnitudes, axis=0)  # the first of equals
    deltas = np.stack([model - base for model in models])  # (models, n)
    return base + lambda_ * np.take_along_axis(deltas, largest[None], axis=0)[0]


def localize_and_stitch(
    tensors: Sequence[Tensor], densities: Sequence[float], *, precision: type[np.floating] = np.float32
) -> Tensor:
    """Add the mean of those task vectors that keep an entry, where each keeps its largest ones."""
    base, *models = tensors
    total, count = np.zeros(base.size), np.zeros(base.size)
    for model, density in zip(models, densities, strict=True):
        kept = max(1, int(density * base.size)) if density > 0 else 0
        survives = by_rank(base, model, precision) < kept
        total += np.where(survives, model - base, 0.0)
        count += survives
    return base + total / np.maximum(count, 1)


def pcb(
    tensors: Sequence[Tensor],
    densities: Sequence[float],
    lambda_: float = 1.0,
    *,
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Add the mean of the task vectors, each entry weighted by how it scores in the competition of all.

    It scores exp(N size^2) tanh(delta * sum of deltas) among N models; the size is |delta|, from 0 for the smallest
    to 1 for the largest, without the 0.01% at either end. The weight goes from 0 for the smallest score that counts
    to 1 for the largest.
    """
    base, *models = tensors
    if base.size == 0:
        return base
    deltas = np.stack([model.astype(precision) - base.astype(precision) for model in models]).astype(np.float64)
    count, n = deltas.shape
    ordered = np.sort(np.abs(deltas), axis=1)
    cut = n // 10_000
    low, high = ordered[:, cut, None], ordered[:, n - 1 - cut, None]
    clamped = np.clip(np.abs(deltas), low, high)
    size = np.where(high > low, (clamped - low) / np.where(high > low, high - low, 1.0), 0.0)
    scores = (np.exp(count * size**2) * np.tanh(deltas * deltas.sum(axis=0))).astype(precision).astype(np.float64)
    shares = np.zeros_like(scores)
    for share, score, density in zip(shares, scores, densities, strict=True):
        below = int((1.0 - density) * n)
        least = np.sort(score)[below] if below < n else np.inf
        if least < score.max():
            share[:] = np.maximum(score - least, 0.0) / (score.max() - least)
        else:
            share[:] = (score > 0) & (score >= least)
    mean = (np.sign(deltas) * clamped * shares).sum(axis=0) / np.maximum(shares.sum(axis=0), 1e-12)
    return base + lambda_ * mean


def cabs(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    n: int = 64,
    m: int = 256,
    *,
    shape: Sequence[int],
    lambda_: float = 1.0,
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Task arithmetic over the n largest of each m neighbours in a row, first those that no model has taken before.

    Zeros are not taken, and among equal magnitudes the lowest index is.
    """
    base, *models = tensors
    columns = shape[-1] if shape else 1
    taken = np.zeros(base.size, dtype=bool)
    kept = []
    for model in models:
        magnitude = np.abs(model.astype(precision) - base.astype(precision))
        survives = np.zeros(base.size, dtype=bool)
        for row in range(0, base.size, max(columns, 1)):
            for start in range(row, row + columns, m):
                block = np.arange(start, min(start + m, row + columns))
                block = block[magnitude[block] > 0]
                survives[block[np.lexsort((-magnitude[block], taken[block]))][:n]] = True
        taken |= survives
        kept.append(np.where(survives, model - base, 0.0))
    return add_deltas(base, kept, weights, normalize=False, lambda_=lambda_)
