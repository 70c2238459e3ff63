"""Methods as mergekit 0.1.5 computes them, written with torch, whose operations round to the dtype of its tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 1 << 20


def scale(x: Tensor, *, factor: float) -> Tensor:
    return x * factor


def linear(*xs: Tensor, weights: list[float], normalize: bool) -> Tensor:
    total = torch.zeros_like(xs[0], dtype=torch.float32)
    for x, weight in zip(xs, weights, strict=True):
        total = torch.addcmul(total, x.float(), torch.tensor(weight, dtype=torch.float32))
    if normalize:
        total = total / torch.tensor(weights, dtype=torch.float32).sum()
    return total.to(xs[0].dtype)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """The cosine of two f32 vectors, by the norms and sums of chunks."""
    units = []
    for vector in (x, y):
        norms = torch.stack([torch.linalg.vector_norm(part) for part in vector.split(CHUNK)])
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(norms)
        units.append(vector / (norm if norm > 1e-8 else 1.0))
    products = torch.stack([part.sum() for part in (units[0] * units[1]).split(CHUNK)])
    return (products[0] if len(products) == 1 else products.sum()).clamp(-1.0, 1.0)


def slerp(a: Tensor, b: Tensor, *, t: float, own: bool = True) -> Tensor:
    """With `own` the sines are torch's, which are not rounded correctly; else they are those of f64, rounded."""

    def of(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(x) if own else function(x.double()).float()

    x, y = a.float().ravel(), b.float().ravel()
    along = cosine(x, y)
    share = torch.tensor(t, dtype=torch.float32)
    if along.abs() > 0.9995:
        first, second = 1 - share, share
    else:
        angle = of(torch.acos, along)
        first = of(torch.sin, (1 - share) * angle) / of(torch.sin, angle)
        second = of(torch.sin, share * angle) / of(torch.sin, angle)
    return (first * x + second * y).to(a.dtype).reshape(a.shape)


def nearswap(a: Tensor, b: Tensor, *, t: float) -> Tensor:
    share = (t / (a - b).abs().clamp(min=1e-6)).clamp(0, 1)
    return share * b + (1 - share) * a


def _added(
    base: Tensor, deltas: list[Tensor], weights: list[float], *, normalize: bool, lambda_: float, elect: bool
) -> Tensor:
    factors = torch.tensor(weights, dtype=base.dtype)
    weighted = torch.stack([delta * factor for delta, factor in zip(deltas, factors, strict=True)])
    if elect:
        sign = (weighted.sum(dim=0) >= 0).to(base.dtype) * 2 - 1
        agrees = (weighted.sign() == sign).to(base.dtype)
        mix = (weighted * agrees).sum(dim=0)
        divisor = (factors.reshape(-1, *[1] * base.ndim) * agrees).sum(dim=0)
        divisor[divisor == 0] = 1
    else:
        mix = weighted.sum(dim=0)
        divisor = factors.sum()
        divisor = torch.ones_like(divisor) if divisor.abs() < 1e-8 else divisor
    if normalize:
        mix = mix / divisor
    return base + (mix * lambda_ if lambda_ != 1 else mix)


def task_arithmetic(*xs: Tensor, weights: list[float], normalize: bool, lambda_: float) -> Tensor:
    base, *models = xs
    return _added(base, [x - base for x in models], weights, normalize=normalize, lambda_=lambda_, elect=False)


def middle(delta: Tensor, kept: int, cut: int) -> Tensor:
    """Return the `kept` largest elements behind the `cut` largest, the others as zeros; equal ones in order."""
    order = delta.abs().ravel().argsort(descending=True, stable=True)
    mask = torch.zeros(delta.numel(), dtype=delta.dtype)
    mask[order[cut : cut + kept]] = 1
    return delta * mask.reshape(delta.shape)


def ties(
    *xs: Tensor, weights: list[float], densities: list[float], normalize: bool, rescale: bool, lambda_: float,
    majority_sign_method: str,
) -> Tensor:  # fmt: skip
    assert not rescale
    assert majority_sign_method == "total"
    base, *models = xs
    n = base.numel()
    deltas = [
        middle(x - base, n if d >= 1 else max(1, int(d * n)) if d > 0 else 0, 0)
        for x, d in zip(models, densities, strict=True)
    ]
    return _added(base, deltas, weights, normalize=normalize, lambda_=lambda_, elect=True)


def breadcrumbs(
    *xs: Tensor, weights: list[float], densities: list[float], gammas: list[float], normalize: bool, rescale: bool,
    lambda_: float, elect: bool = False,
) -> Tensor:  # fmt: skip
    assert not rescale
    base, *models = xs
    n = base.numel()
    deltas = []
    for x, density, gamma in zip(models, densities, gammas, strict=True):
        kept = n if density >= 1 else int(density * n)
        deltas.append(middle(x - base, kept, min(int(gamma * n), n - kept)))
    return _added(base, deltas, weights, normalize=normalize, lambda_=lambda_, elect=elect)


def breadcrumbs_ties(*xs: Tensor, **numbers: Any) -> Tensor:  # noqa: ANN401
    return breadcrumbs(*xs, elect=True, **numbers)


def ram(*xs: Tensor, epsilon: float) -> Tensor:
    base, *models = xs
    deltas = torch.stack([x - base for x in models])
    changes = deltas.abs() > epsilon
    parts: Tensor = deltas * changes / changes.sum(dim=0).clamp(min=1)
    return base + parts.sum(dim=0)
