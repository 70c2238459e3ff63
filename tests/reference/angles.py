"""Methods that follow angles between models: slerp, nuslerp, multislerp, karcher, model_stock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.reference.tensors import Tensor


def slerp(tensors: Sequence[Tensor], t: float) -> Tensor:
    """Interpolate on the great circle from `a` (t = 0) to `b` (t = 1); on a line where the two are (anti)parallel.

    The angle is that of the unit vectors, and it is the original vectors that are interpolated.
    """
    a, b = tensors
    norm_a, norm_b = (norm if norm > 1e-8 else 1.0 for norm in (np.linalg.norm(a), np.linalg.norm(b)))
    cosine = np.clip(np.sum((a / norm_a) * (b / norm_b)), -1.0, 1.0)
    if abs(cosine) > 0.9995:
        return (1.0 - t) * a + t * b
    angle = np.arccos(cosine)
    arc: Tensor = (np.sin((1.0 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return arc


def nuslerp(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    *,
    shape: Sequence[int],
    nuslerp_flatten: bool = True,
    nuslerp_row_wise: bool = False,
) -> Tensor:
    """Interpolate between two models, or their differences from a base, on the great circle, as far as the weights say.

    Each row has an angle of its own without `nuslerp_flatten`, each column with `nuslerp_row_wise`, mergekit's word for
    it. Where |cos| > 1 - 1e-8 the line is straight, and a tensor of one row is taken whole.
    """
    *base, a, b = tensors
    start = base[0] if base else np.zeros_like(a)
    columns = shape[-1] if len(shape) > 1 and not nuslerp_flatten and a.size > shape[-1] else a.size
    vectors = [(model - start).reshape(-1, max(columns, 1)) for model in (a, b)]  # (rows, columns)
    if nuslerp_row_wise and columns != a.size:
        vectors = [np.ascontiguousarray(vector.T) for vector in vectors]
    t = weights[1] / sum(weights)
    norms = [np.linalg.norm(vector, axis=1, keepdims=True) for vector in vectors]
    unit_a, unit_b = (vector / np.where(norm > 1e-8, norm, 1.0) for vector, norm in zip(vectors, norms, strict=True))
    cosine = np.clip((unit_a * unit_b).sum(axis=1, keepdims=True), -1.0, 1.0)
    straight = np.abs(cosine) > 1.0 - 1e-8
    angle = np.where(straight, 1.0, np.arccos(cosine))
    weight_a = np.where(straight, 1.0 - t, np.sin((1.0 - t) * angle) / np.sin(angle))
    weight_b = np.where(straight, t, np.sin(t * angle) / np.sin(angle))
    arc = weight_a * vectors[0] + weight_b * vectors[1]
    if nuslerp_row_wise and columns != a.size:
        arc = arc.T
    return start + arc.ravel()


def multislerp(
    tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = True, eps: float = 1e-8
) -> Tensor:
    """Move from the mean direction of the models, or of their differences from a base, to their mean on the sphere.

    The result is as long as they are on average, by weight. Two whose directions cancel are added up by weight; so are
    vectors that are all zero.
    """
    base = tensors[0] if len(tensors) > len(weights) else np.zeros_like(tensors[0])
    vectors = [model - base for model in tensors[len(tensors) - len(weights) :]]
    shares = np.asarray(weights) / (sum(weights) if normalize else 1.0)
    norms = np.array([norm_of(vector) for vector in vectors])
    units = [vector / (norm + eps if norm > 0 else 1.0) for vector, norm in zip(vectors, norms, strict=True)]
    mean = sum(share * unit for share, unit in zip(shares, units, strict=True))
    length = norm_of(mean)
    if len(vectors) == 1 or not norms.any() or (len(vectors) == 2 and length < max(eps, 1e-12)):
        return base + sum(share * vector for share, vector in zip(shares, vectors, strict=True))
    mean = mean / length
    tangent = sum(share * (unit - (unit * mean).sum() * mean) for share, unit in zip(shares, units, strict=True))
    angle = norm_of(tangent) + eps
    moved = np.cos(angle) * mean + np.sinc(angle / np.pi) * tangent
    return base + moved * (shares @ norms)


def karcher(tensors: Sequence[Tensor], *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """Find the point on the sphere with the least sum of squared angles, by steps along its surface.

    The result is as long as the models are on average. Models whose norm is at most `tol` have no direction; where all
    are such, the result is their mean. One that lies opposite to the mean has no part in a step.
    """
    norms = [norm_of(model) for model in tensors]
    units = [model / norm for model, norm in zip(tensors, norms, strict=True) if norm > tol]
    if not units:
        return np.mean(tensors, axis=0)
    mean: Tensor = np.mean(units, axis=0)
    length = norm_of(mean)
    mean = units[0] if length < max(tol, 1e-12) else mean / length
    for _ in range(max_iter):
        step = np.zeros_like(mean)
        for unit in units:
            cosine = np.clip((mean * unit).sum(), -1.0, 1.0)
            angle = np.arccos(cosine)
            if angle >= tol and angle > 0 and cosine >= -1 + 1e-8:
                step += angle / np.sin(angle) * (unit - cosine * mean) / len(units)
        length = norm_of(step)
        if length < tol or length == 0:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * step
        mean /= norm_of(mean)
    return np.mean(norms) * mean


def model_stock(tensors: Sequence[Tensor], *, shape: Sequence[int], filter_wise: bool = False) -> Tensor:
    """Move from the base towards the mean of the models, the further the smaller the angles between task vectors are.

    The ratio is N c / (1 + (N - 1) c) for the mean cosine c of N models, of the tensor or of each row of the last axis;
    a product of two norms is at least 1e-6.
    """
    base, *models = tensors
    columns = shape[-1] if len(shape) > 1 and filter_wise else base.size
    rows = np.stack([model - base for model in models]).reshape(len(models), -1, max(columns, 1))  # (models, rows, n)
    norms = np.linalg.norm(rows, axis=2)
    count = len(models)
    cosines = [
        np.clip((rows[i] * rows[j]).sum(axis=1) / np.maximum(norms[i] * norms[j], 1e-6), -1.0, 1.0)
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = np.mean(cosines, axis=0)  # (rows,)
    divisor = 1 + (count - 1) * cosine
    flat = np.abs(divisor) < 1e-6
    ratio = np.where(flat, 0.0, count * cosine / np.where(flat, 1.0, divisor))
    return base + (ratio[:, None] * rows.mean(axis=0)).ravel()


def norm_of(vector: Tensor) -> float:
    """The Euclidean norm, added up in pairs: as exact as the engine's sums, and BLAS is not."""
    return float(np.sqrt((vector * vector).sum()))
