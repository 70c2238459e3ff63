"""The merge methods in float64 numpy, each as its definition reads: what every kernel of the engine is held to.

A tensor is a flat float64 array, shape (n,). A function has the name of its method in a plan and is called as
the plan says: with the tensors in its order, the base first where there is one, and the method's numbers by name,
`lambda` as `lambda_`. It may ask for `precision` of the arithmetic, `name` and `shape` of the tensor and `seed` of the
plan, too.

Two rules are mol's own and not in the papers:

* TIES trims each tensor on its own (the paper trims the whole task vector at once), keeps exactly
  k = max(1, trunc(density * n)) entries, and among equal magnitudes the lowest index survives.
* Magnitudes are compared in the engine's working precision: two deltas that round to the same float32 are equal.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

Tensor: TypeAlias = NDArray[np.float64]


NOISE = 2.0**-20  # of a sum, in proportion to the magnitudes of its terms


def linear(tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = True) -> Tensor:
    """Weighted sum of the tensors; a weighted mean with `normalize`."""
    total: Tensor = np.asarray(weights) @ np.stack(tensors)  # (models,) @ (models, n)
    return total / sum(weights) if normalize else total


def copy(tensors: Sequence[Tensor]) -> Tensor:
    """Take the first tensor."""
    return tensors[0]


def scale(tensors: Sequence[Tensor], factor: float) -> Tensor:
    """Multiply the one tensor by a factor."""
    return tensors[0] * factor


def slerp(tensors: Sequence[Tensor], t: float) -> Tensor:
    """Walk the great circle from `a` (t = 0) to `b` (t = 1); a straight line where the two are (anti)parallel.

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
    """Walk the great circle between two models, or between their differences from a base, as far as the weights say.

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


def _length(vector: Tensor) -> float:
    """The Euclidean norm, added up in pairs: as exact as the engine's sums, and BLAS is not."""
    return float(np.sqrt((vector * vector).sum()))


def multislerp(
    tensors: Sequence[Tensor], weights: Sequence[float], *, normalize: bool = True, eps: float = 1e-8
) -> Tensor:
    """Walk from the mean direction of the models, or of their differences from a base, to their mean on the sphere.

    The result is as long as they are on average, by weight. Two whose directions cancel are added up by weight; so are
    vectors that are all zero.
    """
    base = tensors[0] if len(tensors) > len(weights) else np.zeros_like(tensors[0])
    vectors = [model - base for model in tensors[len(tensors) - len(weights) :]]
    shares = np.asarray(weights) / (sum(weights) if normalize else 1.0)
    norms = np.array([_length(vector) for vector in vectors])
    units = [vector / (norm + eps if norm > 0 else 1.0) for vector, norm in zip(vectors, norms, strict=True)]
    mean = sum(share * unit for share, unit in zip(shares, units, strict=True))
    length = _length(mean)
    if len(vectors) == 1 or not norms.any() or (len(vectors) == 2 and length < max(eps, 1e-12)):
        return base + sum(share * vector for share, vector in zip(shares, vectors, strict=True))
    mean = mean / length
    tangent = sum(share * (unit - (unit * mean).sum() * mean) for share, unit in zip(shares, units, strict=True))
    angle = _length(tangent) + eps
    moved = np.cos(angle) * mean + np.sinc(angle / np.pi) * tangent
    return base + moved * (shares @ norms)


def karcher(tensors: Sequence[Tensor], *, max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    """Find the point on the sphere with the least sum of squared angles, by steps along its surface.

    The result is as long as the models are on average. Models whose norm is at most `tol` have no direction; where all
    are such, the result is their mean. One that lies opposite to the mean has no say in a step.
    """
    norms = [_length(model) for model in tensors]
    units = [model / norm for model, norm in zip(tensors, norms, strict=True) if norm > tol]
    if not units:
        return np.mean(tensors, axis=0)
    mean: Tensor = np.mean(units, axis=0)
    length = _length(mean)
    mean = units[0] if length < max(tol, 1e-12) else mean / length
    for _ in range(max_iter):
        step = np.zeros_like(mean)
        for unit in units:
            cosine = np.clip((mean * unit).sum(), -1.0, 1.0)
            angle = np.arccos(cosine)
            if angle >= tol and angle > 0 and cosine >= -1 + 1e-8:
                step += angle / np.sin(angle) * (unit - cosine * mean) / len(units)
        length = _length(step)
        if length < tol or length == 0:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * step
        mean /= _length(mean)
    return np.mean(norms) * mean


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


def trim(base: Tensor, model: Tensor, density: float, *, rescale: bool, precision: type[np.floating]) -> Tensor:
    """Zero all but the k largest entries of the task vector; `rescale` restores the L1 norm it had before."""
    delta = model - base
    if density >= 1.0 or delta.size == 0:
        return delta
    k = max(1, int(density * delta.size)) if density > 0.0 else 0
    survives = _by_rank(base, model, precision) < k
    return _rescaled(delta, np.where(survives, delta, 0.0), rescale=rescale)


def _by_rank(base: Tensor, model: Tensor, precision: type[np.floating]) -> NDArray[np.intp]:
    """Rank each entry of a task vector by magnitude, 0 for the largest; of equal ones the lowest index comes first."""
    magnitude = np.abs(model.astype(precision) - base.astype(precision))
    ranks = np.empty(magnitude.size, dtype=np.intp)
    ranks[np.argsort(-magnitude, kind="stable")] = np.arange(magnitude.size)
    return ranks


def _rescaled(whole: Tensor, kept: Tensor, *, rescale: bool) -> Tensor:
    """Restore the L1 norm that a task vector had before entries were dropped, with `rescale`."""
    before, after = np.abs(whole).sum(), np.abs(kept).sum()
    return kept * (before / after) if rescale and before >= 1e-7 and after >= 1e-7 else kept


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


def elect(
    base: Tensor,
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    *,
    normalize: bool,
    lambda_: float,
    vote: str = "total",
) -> Tensor:
    """Elect a sign for each entry, and add up those task vectors that agree with it.

    The weighted deltas vote, so a negative weight flips its model's vote; "total" sums them, "count" counts their
    signs. A draw elects plus, and a zero agrees with nobody. `normalize` divides by the weights of those who agree
    (by 1 where these cancel or nobody agrees); `lambda_` comes after.

    Decimal weights such as 0.5, 0.3 and 0.2 are not exact in binary, so votes that cancel leave noise of either sign:
    a total of at most 2^-20 of the votes' magnitudes is a draw. Weights of both signs cancel by the same measure.
    """
    votes = np.stack([w * delta for w, delta in zip(weights, deltas, strict=True)])  # (models, n)
    ballot = votes if vote == "total" else np.sign(votes)
    elected = np.where(ballot.sum(axis=0) < -NOISE * np.abs(ballot).sum(axis=0), -1.0, 1.0)
    agrees = np.sign(votes) == elected
    mix: Tensor = np.where(agrees, votes, 0.0).sum(axis=0)
    if normalize:
        divisor = np.where(agrees, np.asarray(weights, dtype=np.float64)[:, None], 0.0).sum(axis=0)
        mix = mix / np.where(np.abs(divisor) <= _cancelled(weights), 1.0, divisor)
    return base + lambda_ * mix


def drawn(seed: int, tensor: str, model: int, n: int) -> NDArray[np.uint32]:
    """Draw a number for each element by Philox4x32-10 (Salmon et al., 2011), four a counter."""
    digest = hashlib.sha256(seed.to_bytes(8, "little") + tensor.encode()).digest()
    key = [int.from_bytes(digest[i : i + 4], "little") for i in (0, 4)]
    block = np.arange(-(-n // 4), dtype=np.uint64)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter = [block & low, block >> high, np.full_like(block, model), np.zeros_like(block)]
    for turn in range(10):
        keys = [
            np.uint64((k + turn * step) & 0xFFFFFFFF) for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)
        ]
        a, b = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = [(b >> high) ^ counter[1] ^ keys[0], b & low, (a >> high) ^ counter[3] ^ keys[1], a & low]
    return np.stack(counter, axis=1).ravel()[:n].astype(np.uint32)


def dare_linear(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    models: Sequence[int],
    *,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    seed: int = 0,
    name: str = "w",
) -> Tensor:
    """Task arithmetic over task vectors of which each element survives at random, with the density as probability.

    `models` has a number for each model, by which it draws; `rescale` restores the L1 norm that each had before, where
    the paper divides by the density.
    """
    thinned = _thinned(tensors, densities, models, rescale=rescale, seed=seed, name=name)
    return _added(tensors[0], thinned, weights, normalize=normalize, lambda_=lambda_)


def dare_ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    models: Sequence[int],
    *,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    seed: int = 0,
    name: str = "w",
) -> Tensor:
    """Thin task vectors out as `dare_linear` does, then add those that agree; see `elect`."""
    thinned = _thinned(tensors, densities, models, rescale=rescale, seed=seed, name=name)
    return elect(tensors[0], thinned, weights, normalize=normalize, lambda_=lambda_)


def _thinned(
    tensors: Sequence[Tensor],
    densities: Sequence[float],
    models: Sequence[int],
    *,
    rescale: bool,
    seed: int,
    name: str,
) -> list[Tensor]:
    base, *tuned = tensors
    thinned = []
    for model, density, number in zip(tuned, densities, models, strict=True):
        delta = model - base
        kept = np.where(drawn(seed, name, number, delta.size) >> 1 < round(density * 2**31), delta, 0.0)
        thinned.append(_rescaled(delta, kept, rescale=rescale))
    return thinned


def _added(
    base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], *, normalize: bool, lambda_: float
) -> Tensor:
    """Task arithmetic over task vectors."""
    return task_arithmetic([base, *(base + delta for delta in deltas)], weights, normalize=normalize, lambda_=lambda_)


def della(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    models: Sequence[int],
    *,
    shape: Sequence[int],
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    seed: int = 0,
    name: str = "w",
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Thin task vectors out as `della_linear` does, then add those that agree; see `elect`."""
    kept = [
        _rescaled(
            model - tensors[0], _by_row(tensors[0], model, *numbers, shape, seed, name, precision), rescale=rescale
        )
        for model, *numbers in zip(tensors[1:], densities, epsilons, models, strict=True)
    ]
    return elect(tensors[0], kept, weights, normalize=normalize, lambda_=lambda_)


def della_linear(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    models: Sequence[int],
    *,
    shape: Sequence[int],
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    seed: int = 0,
    name: str = "w",
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Task arithmetic over task vectors of which elements survive at random, the smaller ones of a row more rarely.

    The probability of the smallest element of a row of the last axis is density - epsilon, that of the largest
    density + epsilon, and grows evenly with the rank between; an element that is a row by itself has the density.
    """
    kept = [
        _rescaled(
            model - tensors[0], _by_row(tensors[0], model, *numbers, shape, seed, name, precision), rescale=rescale
        )
        for model, *numbers in zip(tensors[1:], densities, epsilons, models, strict=True)
    ]
    return _added(tensors[0], kept, weights, normalize=normalize, lambda_=lambda_)


def _by_row(
    base: Tensor,
    model: Tensor,
    density: float,
    epsilon: float,
    number: int,
    shape: Sequence[int],
    seed: int,
    name: str,
    precision: type[np.floating],
) -> Tensor:
    """A task vector with what survives of it, and zeros."""
    delta = model - base
    columns = shape[-1] if shape else 1
    if delta.size == 0 or density >= 1.0:
        return delta
    ranks = [
        _by_rank(base[start : start + columns], model[start : start + columns], precision)
        for start in range(0, delta.size, columns)
    ]
    step = (columns - 1 - np.concatenate(ranks)) / max(columns - 1, 1)
    probability = density - epsilon + 2 * epsilon * step if columns > 1 else np.full(delta.size, density)
    limits = np.floor(probability * 2**31 + 0.5) if density > 0 else np.zeros(delta.size)
    return np.where(drawn(seed, name, number, delta.size) >> 1 < limits, delta, 0.0)


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
    return _added(tensors[0], kept, weights, normalize=normalize, lambda_=lambda_)


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
        ranks = _by_rank(base, model, precision)
        survives = (ranks >= cut) & (ranks < cut + kept)
        found.append(_rescaled(delta, np.where(survives, delta, 0.0), rescale=rescale))
    return found


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


def model_stock(tensors: Sequence[Tensor], *, shape: Sequence[int], filter_wise: bool = False) -> Tensor:
    """Go from the base towards the mean of the models, the further the smaller the angles between task vectors are.

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


def _cancelled(weights: Sequence[float]) -> float:
    """The largest divisor that is the noise of weights which cancel, never as large as a weight by itself."""
    magnitudes = [abs(w) for w in weights if w]
    mixed = any(w < 0 for w in weights) and any(w > 0 for w in weights)
    return min(NOISE * sum(magnitudes), min(magnitudes) / 2) if mixed else 0.0
