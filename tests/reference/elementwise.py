"""Methods that compare the models element by element: nearswap, arcee_fusion, ram, ramplus_tl, sce."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.reference.election import NOISE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.reference.tensors import Tensor


def nearswap(tensors: Sequence[Tensor], t: float) -> Tensor:
    """Move each element of `a` by `t` towards `b`, and no further than `b`; a gap below 1e-6 counts as that."""
    a, b = tensors
    share = np.clip(t / np.maximum(np.abs(a - b), 1e-6), 0.0, 1.0)
    return share * b + (1 - share) * a


def arcee_fusion(
    tensors: Sequence[Tensor], *, shape: Sequence[int], precision: type[np.floating] = np.float32
) -> Tensor:
    """Take the values of `b` where they matter most, and those of `a` elsewhere.

    A value matters as much as its distance times the divergence of its row of `b` from that of `a`, both as
    distributions by softmax, and must reach the median plus one and a half times the distance of the quartiles.
    """
    a, b = tensors
    if a.size == 0:
        return a
    columns = shape[-1] if shape else 1
    rows = [tensor.reshape(-1, columns) for tensor in tensors]  # (rows, columns)
    powers = [np.exp(row - row.max(axis=1, keepdims=True)) for row in rows]
    q, p = (power / power.sum(axis=1, keepdims=True) + 1e-8 for power in powers)
    divergence = np.maximum((p * np.log(p / q)).sum(axis=1), 0.0).astype(precision)
    distance = np.abs(b.astype(precision) - a.astype(precision))
    importance = distance * np.repeat(divergence, columns)
    ordered = np.sort(importance).astype(np.float64)
    low, median, high = (ordered[int(share * (a.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= median + 1.5 * (high - low), b, a)


def ram(tensors: Sequence[Tensor], epsilon: float = 1e-5) -> Tensor:
    """Add to the base the mean of those task vectors that change an element by more than `epsilon`."""
    base, *models = tensors
    deltas = np.stack([model - base for model in models])  # (models, n)
    changes = np.abs(deltas) > epsilon
    return base + np.where(changes, deltas, 0.0).sum(axis=0) / np.maximum(changes.sum(axis=0), 1)


def ramplus_tl(
    tensors: Sequence[Tensor],
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
) -> Tensor:
    """Do as `ram`, but what only one model changes is multiplied by 1 + r * min(shared / unique, alpha).

    `unique` counts the elements of the tensor that this model changes alone, `shared` those that others change too.
    """
    base, *models = tensors
    deltas = np.stack([model - base for model in models])  # (models, n)
    changes = np.abs(deltas) > epsilon
    count = changes.sum(axis=0)
    alone = changes & (count == 1)
    unique, shared = alone.sum(axis=1), (changes & (count > 1)).sum(axis=1)
    factor = 1 + r * np.clip(shared / np.maximum(unique, 1), 0, alpha)
    mean = np.where(changes, deltas, 0.0).sum(axis=0) / np.maximum(count, 1)
    return base + np.where(count == 1, (np.where(alone, deltas, 0.0) * factor[:, None]).sum(axis=0), mean)


def sce(tensors: Sequence[Tensor], select_topk: float = 1.0, *, precision: type[np.floating] = np.float32) -> Tensor:
    """Add those task vectors that have the elected sign of an entry, weighted by their shares of the squares of all.

    With `select_topk` below 1 only that share is left of the entries on which the models differ: those of the largest
    variance; of equal ones the lowest index survives. Shares are even where the mean squares sum to less than 1e-6.
    """
    base, *models = tensors
    deltas = np.stack([model - base for model in models])  # (models, n)
    if select_topk < 1.0 and base.size:
        rounded = [model.astype(precision) - base.astype(precision) for model in models]
        count = precision(len(models))
        mean = sum(rounded[1:], rounded[0]) / count
        squares = [(delta - mean) ** 2 for delta in rounded]
        variance = sum(squares[1:], squares[0]) / count
        selected = np.argsort(-variance, kind="stable")[: int(np.count_nonzero(variance) * select_topk)]
        mask = np.zeros(base.size)
        mask[selected] = 1.0
        deltas = deltas * mask
    energy = (deltas**2).sum(axis=1)
    even = energy.sum() / max(base.size, 1) < 1e-6
    shares = np.full(len(models), 1 / len(models)) if even else energy / energy.sum()
    total = deltas.sum(axis=0)
    elected = np.where(total < -NOISE * np.abs(deltas).sum(axis=0), -1.0, 1.0)
    agrees = np.sign(deltas) == elected
    divisor = np.where(agrees, shares[:, None], 0.0).sum(axis=0)
    mix: Tensor = np.where(agrees, deltas * shares[:, None], 0.0).sum(axis=0)
    return base + mix / np.maximum(divisor, 1e-6)
