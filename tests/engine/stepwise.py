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


def of(function: Callable[[Tensor], Tensor], x: Tensor, *, own: bool) -> Tensor:
    """With `own` it is torch's, and sines are not rounded correctly; else it is that of f64, rounded."""
    return function(x) if own else function(x.double()).to(torch.float32).to(x.dtype)


def slerp(a: Tensor, b: Tensor, *, t: float, own: bool = True) -> Tensor:
    x, y = a.float().ravel(), b.float().ravel()
    along = cosine(x, y)
    share = torch.tensor(t, dtype=torch.float32)
    if along.abs() > 0.9995:
        first, second = 1 - share, share
    else:
        angle = of(torch.acos, along, own=own)
        first = of(torch.sin, (1 - share) * angle, own=own) / of(torch.sin, angle, own=own)
        second = of(torch.sin, share * angle, own=own) / of(torch.sin, angle, own=own)
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


def middle(delta: Tensor, kept: int, cut: int, *, rescale: bool) -> Tensor:
    """Return the `kept` largest elements behind the `cut` largest, the others as zeros; equal ones in order."""
    if kept == delta.numel():
        return delta
    order = delta.abs().ravel().argsort(descending=True, stable=True)
    mask = torch.zeros(delta.numel(), dtype=delta.dtype)
    mask[order[cut : cut + kept]] = 1
    found = delta * mask.reshape(delta.shape)
    whole, rest = delta.abs().sum(), found.abs().sum()
    return found * (whole / rest) if rescale and min(whole, rest) >= 1e-7 else found


def ties(
    *xs: Tensor, weights: list[float], densities: list[float], normalize: bool, rescale: bool, lambda_: float,
    majority_sign_method: str,
) -> Tensor:  # fmt: skip
    assert majority_sign_method == "total"
    base, *models = xs
    n = base.numel()
    deltas = [
        middle(x - base, n if d >= 1 else max(1, int(d * n)) if d > 0 else 0, 0, rescale=rescale)
        for x, d in zip(models, densities, strict=True)
    ]
    return _added(base, deltas, weights, normalize=normalize, lambda_=lambda_, elect=True)


def breadcrumbs(
    *xs: Tensor, weights: list[float], densities: list[float], gammas: list[float], normalize: bool, rescale: bool,
    lambda_: float, elect: bool = False,
) -> Tensor:  # fmt: skip
    base, *models = xs
    n = base.numel()
    deltas = []
    for x, density, gamma in zip(models, densities, gammas, strict=True):
        kept = n if density >= 1 else int(density * n)
        deltas.append(middle(x - base, kept, min(int(gamma * n), n - kept), rescale=rescale))
    return _added(base, deltas, weights, normalize=normalize, lambda_=lambda_, elect=elect)


def breadcrumbs_ties(*xs: Tensor, **numbers: Any) -> Tensor:  # noqa: ANN401
    return breadcrumbs(*xs, elect=True, **numbers)


def ram(*xs: Tensor, epsilon: float) -> Tensor:
    base, *models = xs
    deltas = torch.stack([x - base for x in models])
    changes = deltas.abs() > epsilon
    parts: Tensor = deltas * changes / changes.sum(dim=0).clamp(min=1)
    return base + parts.sum(dim=0)


def model_stock(*xs: Tensor, filter_wise: bool) -> Tensor:
    columns = xs[0].shape[-1] if filter_wise else xs[0].numel()
    base, *models = (x.reshape(-1, columns) for x in xs)
    deltas = [x - base for x in models]
    norms = [torch.norm(delta, dim=-1, keepdim=True) for delta in deltas]
    cosines = []
    for i, delta in enumerate(deltas):
        for j in range(i + 1, len(deltas)):
            lengths = (norms[i] * norms[j]).clamp(min=1e-6)
            cosines.append(((delta * deltas[j]).sum(dim=-1, keepdim=True) / lengths).clamp(-1, 1))
    mean, count = torch.stack(cosines).mean(dim=0), len(models)
    divisor = 1 + (count - 1) * mean
    ratio = torch.where(divisor.abs() < 1e-6, 0.0, count * mean / divisor)
    # Sums of models are rounded one by one.
    total = models[0].clone()
    for model in models[1:]:
        total = total + model
    return (ratio * (total / count) + (1 - ratio) * base).reshape(xs[0].shape)


def sce(*xs: Tensor, select_topk: float) -> Tensor:
    base, *models = xs
    deltas = torch.stack([x - base for x in models])
    if select_topk < 1:
        variance = deltas.var(dim=0, unbiased=False).ravel()
        order = variance.argsort(descending=True, stable=True)
        mask = torch.zeros_like(variance)
        mask[order[: int(variance.count_nonzero() * select_topk)]] = 1  # a product in f32
        deltas = deltas * mask.reshape(base.shape)
    sign = (deltas.sum(dim=0) >= 0).to(base.dtype) * 2 - 1
    shares = (deltas**2).mean(dim=list(range(1, deltas.ndim)))
    total = shares.sum()
    shares = torch.ones_like(shares) / len(shares) if total.abs() < 1e-6 else shares / total
    agreed = shares.reshape(-1, *[1] * base.ndim) * (deltas.sign() == sign)
    return base + (deltas * agreed).sum(dim=0) / agreed.sum(dim=0).clamp(min=1e-6)


def multislerp(*xs: Tensor, weights: list[float], normalize: bool, eps: float) -> Tensor:
    count, base = len(weights), xs[0]
    based = len(xs) > count
    models = xs[-count:]
    if count == 1:
        return models[0]
    vectors = torch.stack([x - base for x in models] if based else models).reshape(count, -1)
    factors = torch.tensor(weights, dtype=base.dtype)
    factors = factors / factors.sum() if normalize else factors
    norms = torch.norm(vectors, dim=-1)
    units, each = vectors / (norms.unsqueeze(-1) + eps), factors.unsqueeze(-1)
    mean = (units * each).sum(dim=0)
    length = torch.norm(mean)
    if length < eps:
        made = (vectors * each).sum(dim=0)
    else:
        mean = mean / length
        across = units - (units * mean).sum(dim=-1, keepdim=True) * mean
        step = (across * each).sum(dim=0)
        angle = torch.norm(step) + eps
        made = (mean * torch.cos(angle) + step * (torch.sin(angle) / angle)) * (factors * norms).sum()
    made = made.reshape(base.shape)
    return made + base if based else made


def nuslerp(
    *xs: Tensor, weights: list[float], nuslerp_flatten: bool, nuslerp_row_wise: bool, own: bool = False
) -> Tensor:
    a, b = (x - xs[0] for x in xs[1:]) if len(xs) == 3 else xs
    t, dim = weights[1] / sum(weights), 0 if nuslerp_row_wise else -1
    vectors = [x.ravel() if nuslerp_flatten else x for x in (a, b)]
    units = [x / torch.norm(x, dim=dim, keepdim=True).clamp(min=1e-7) for x in vectors]
    along = (units[0] * units[1]).sum(dim=dim, keepdim=True).clamp(-1, 1)
    angle = of(torch.acos, along, own=own)
    first, second = (of(torch.sin, share * angle, own=own) for share in (1 - t, t))
    made = (first * vectors[0] + second * vectors[1]) / of(torch.sin, angle, own=own)
    made = torch.where(1 - along * along <= 1e-16, (1 - t) * vectors[0] + t * vectors[1], made).reshape(a.shape)
    return xs[0] + made if len(xs) == 3 else made


def ramplus_tl(*xs: Tensor, epsilon: float, r: float, alpha: float) -> Tensor:
    """The result is in f32."""
    base, *models = xs
    deltas = torch.stack([x - base for x in models])
    changes = deltas.abs() > epsilon
    count = changes.sum(dim=0)
    alone = changes & (count == 1)
    sizes = [part.flatten(1).sum(dim=1).float() for part in (changes & (count > 1), alone)]
    factors = 1 + r * (sizes[0] / sizes[1].clamp(min=epsilon)).clamp(0, alpha)
    factors = torch.where(alone, factors.reshape(-1, *[1] * base.ndim), changes.float())
    parts: Tensor = deltas * changes / count.clamp(min=1) * factors
    return base + parts.sum(dim=0)
