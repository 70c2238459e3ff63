"""Methods that keep entries of task vectors by rank: ties, breadcrumbs, breadcrumbs_ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.reference.averages import add_deltas
from tests.reference.election import elect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tests.reference.tensors import Tensor


def ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    majority_sign_method: str = "total",
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Trim each task vector, then add those that agree; see `elect`."""
    base, *models = tensors
    trimmed = [
        trim(base, model, density, rescale=rescale, precision=precision)
        for model, density in zip(models, densities, strict=True)
    ]
    return elect(base, trimmed, weights, normalize=normalize, lambda_=lambda_, vote=majority_sign_method)


def breadcrumbs(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    gammas: Sequence[float],
    *,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Task arithmetic over task vectors without their largest entries and without their smallest ones."""
    kept = _without_extremes(tensors, densities, gammas, rescale=rescale, precision=precision)
    return add_deltas(tensors[0], kept, weights, normalize=normalize, lambda_=lambda_)


def breadcrumbs_ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    gammas: Sequence[float],
    *,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Take the extremes from task vectors as `breadcrumbs` does, then add those that agree; see `elect`."""
    kept = _without_extremes(tensors, densities, gammas, rescale=rescale, precision=precision)
    return elect(tensors[0], kept, weights, normalize=normalize, lambda_=lambda_)


def trim(base: Tensor, model: Tensor, density: float, *, rescale: bool, precision: type[np.floating]) -> Tensor:
    """Zero all but the k largest entries of the task vector; `rescale` restores the L1 norm it had before."""
    delta = model - base
    if density >= 1.0 or delta.size == 0:
        return delta
    k = max(1, int(density * delta.size)) if density > 0.0 else 0
    survives = by_rank(base, model, precision) < k
    return rescaled(delta, np.where(survives, delta, 0.0), rescale=rescale)


def _without_extremes(
    tensors: Sequence[Tensor],
    densities: Sequence[float],
    gammas: Sequence[float],
    *,
    rescale: bool,
    precision: type[np.floating],
) -> list[Tensor]:
    """Keep trunc(density * n) entries, after the trunc(gamma * n) largest, or as many of those as the rest allows."""
    base, *models = tensors
    found = []
    for model, density, gamma in zip(models, densities, gammas, strict=True):
        delta = model - base
        kept = int(density * delta.size)
        cut = min(int(gamma * delta.size), delta.size - kept)
        ranks = by_rank(base, model, precision)
        survives = (ranks >= cut) & (ranks < cut + kept)
        found.append(rescaled(delta, np.where(survives, delta, 0.0), rescale=rescale))
    return found


def by_rank(base: Tensor, model: Tensor, precision: type[np.floating]) -> NDArray[np.intp]:
    """Rank each entry of a task vector by magnitude, 0 for the largest; of equal ones the lowest index comes first."""
    magnitude = np.abs(model.astype(precision) - base.astype(precision))
    ranks = np.empty(magnitude.size, dtype=np.intp)
    ranks[np.argsort(-magnitude, kind="stable")] = np.arange(magnitude.size)
    return ranks


def rescaled(whole: Tensor, kept: Tensor, *, rescale: bool) -> Tensor:
    """Restore the L1 norm that a task vector had before entries were dropped, with `rescale`."""
    before, after = np.abs(whole).sum(), np.abs(kept).sum()
    return kept * (before / after) if rescale and before >= 1e-7 and after >= 1e-7 else kept
