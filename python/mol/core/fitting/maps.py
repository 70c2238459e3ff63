"""Fits linear maps between the hidden states of two models, and scores how well one predicts the other; in float64.

Rows are tokens: row i of x (N, D) and of y (N, H) belong to the same position of the same text. Nothing here is random:
the same states give the same map. Work is done on the device of the states; most of it is one product of D x D x N.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch

from mol.errors import ConfigError

_RIDGE: Final = 1e-3
_RIDGES: Final = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9)
_GROUP: Final = 64
"""Consecutive rows that are fitted on, or held out, together."""
_ROUNDING: Final = 1e-13


class Fit(NamedTuple):
    """A map y = W x + b that was fitted.

    Attributes:
        weight: W (H, D), float64.
        bias: b (H,), float64; zero if none was requested.
        ridge: of the fit.
        held_out: share of y that the map explains on held-out rows, of its variance if there is a b and of its size
            otherwise; below 0 for a map that is worse than none.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    ridge: float
    held_out: float


def fit_linear(x: torch.Tensor, y: torch.Tensor, *, ridge: float = _RIDGE) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit y = W x + b by ridge least squares.

    Minimises sum |W x + b - y|^2 + lambda |W|^2 with lambda = ridge * (mean diagonal of the Gram matrix of x less its
    mean), so that ridge means the same for states of any size and number. b is not penalised. Stitching trained models
    by such a map is due to Pan et al. (2023, "Stitchable Neural Networks").

    Args:
        x: (N, D).
        y: (N, H).
        ridge: 0 gives the plain fit, the one of least norm where several fit equally.

    Returns:
        W (H, D) and b (H,), float64.

    Raises:
        ConfigError: the rows do not pair, there are fewer than two, a value is not finite, or ridge is below 0.
    """
    if not (ridge >= 0.0 and math.isfinite(ridge)):
        raise ConfigError(f"ridge {ridge} is not a number of 0 or more")
    x, y = _paired(x, y)
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = _less_mean(x), _less_mean(y)
    weight = (torch.linalg.pinv(x) @ y).T.contiguous() if ridge == 0.0 else _ridge_map(x.T @ x, x.T @ y, ridge)
    return weight, y_mean - weight @ x_mean


def fit_held_out(x: torch.Tensor, y: torch.Tensor, *, bias: bool = True) -> Fit:
    """Fit y = W x + b with the ridge, of some powers of ten, that is best on held-out rows.

    How much ridge a fit needs depends on the number of tokens, and on single tokens whose states are a hundred times as
    large as the others (Sun et al., 2024, "Massive Activations in Large Language Models"), so there is no rule of
    thumb. Every fourth group of rows is held out, since neighbours are alike; the map itself is fitted on all rows.

    Args:
        x: (N, D), N >= 4.
        y: (N, H).
        bias: whether there is a b.

    Raises:
        ConfigError: the rows do not pair, there are fewer than four, or a value is not finite.
    """
    x, y = _paired(x, y, least=4)
    held = torch.arange(len(x), device=x.device) // min(_GROUP, len(x) // 4) % 4 == 3

    def products(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        x_rows, y_rows = x[rows], y[rows]
        if bias:
            inner, outer = _less_mean(x_rows), _less_mean(y_rows)
            return inner.T @ inner, inner.T @ outer, x_rows.mean(0), y_rows.mean(0)
        return x_rows.T @ x_rows, x_rows.T @ y_rows, x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1])

    gram, cross, x_mean, y_mean = products(~held)
    inputs, outputs = x[held] - x_mean, y[held] - y_mean
    errors = [(inputs @ _ridge_map(gram, cross, ridge).T - outputs).square().sum() for ridge in _RIDGES]
    best = int(torch.stack(errors).argmin())
    size = outputs.square().sum()
    gram, cross, x_mean, y_mean = products(torch.ones_like(held))
    weight = _ridge_map(gram, cross, _RIDGES[best])
    held_out = float(1.0 - errors[best] / size) if size > 0.0 else 0.0
    return Fit(weight, y_mean - weight @ x_mean, _RIDGES[best], held_out)


def fit_orthogonal(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Fit y = W x with W orthogonal, which keeps lengths and angles (Schoenemann, 1966, "orthogonal Procrustes").

    W = U V^T from the singular value decomposition of y^T x. Where H > D its columns are orthonormal, and this too is
    the best fit; where H < D its rows are, and W aligns the two best, which is not quite the least error. There is no
    bias: for one, subtract the means first, it is then mean(y) - W mean(x).

    Args:
        x: (N, D).
        y: (N, H).

    Returns:
        W (H, D), float64.

    Raises:
        ConfigError: the rows do not pair, there are fewer than two, or a value is not finite.
    """
    x, y = _paired(x, y)
    left, _, right = torch.linalg.svd(y.T @ x, full_matrices=False)
    weight: torch.Tensor = left @ right
    return weight


def r_squared(x: torch.Tensor, y: torch.Tensor, *, ridge: float = _RIDGE) -> float:
    """Return the share of the variance of y that a ridge fit explains from x, on held-out rows.

    Fitted on rows 0, 2, 4, ... and measured on rows 1, 3, 5, ..., so that both halves see all of the text.

    Args:
        x: (N, D), N >= 4.
        y: (N, H).
        ridge: see `fit_linear`.

    Returns:
        1 for a map without error; 0 for one no better than the mean, and for a y that does not vary; below 0 for worse.

    Raises:
        ConfigError: see `fit_linear`; also where there are fewer than four rows.
    """
    x, y = _paired(x, y, least=4)
    weight, bias = fit_linear(x[::2], y[::2], ridge=ridge)
    told, seen = x[1::2] @ weight.T + bias, y[1::2]
    spread = _less_mean(seen).square().sum()
    if spread == 0.0:
        return 0.0
    return float(1.0 - (told - seen).square().sum() / spread)


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the similarity of two representations up to rotation and scale (Kornblith et al., 2019, linear CKA).

    |y^T x|^2 / (|x^T x| |y^T y|) of the states less their means, in Frobenius norms.

    Args:
        x: (N, D).
        y: (N, H).

    Returns:
        0 to 1; 0 where one of them does not vary.

    Raises:
        ConfigError: the rows do not pair, there are fewer than two, or a value is not finite.
    """
    x, y = _paired(x, y)
    x, y = _less_mean(x), _less_mean(y)
    alone = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    if alone == 0.0:
        return 0.0
    return float((y.T @ x).square().sum() / alone)


def _ridge_map(gram: torch.Tensor, cross: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return W (H, D) from the products x^T x (D, D) and x^T y (D, H)."""
    penalty = ridge * gram.diagonal().mean()
    # The Gram matrix of constant states is zero; any positive penalty then gives W = 0.
    penalised = gram + torch.where(penalty > 0, penalty, 1.0) * torch.eye(
        len(gram), dtype=gram.dtype, device=gram.device
    )
    return torch.cholesky_solve(cross, torch.linalg.cholesky(penalised)).T.contiguous()


def _less_mean(states: torch.Tensor) -> torch.Tensor:
    """Return the states minus their mean row; differences that are only rounding become 0."""
    rest = states - states.mean(0)
    noise = _ROUNDING * torch.linalg.matrix_norm(states)
    return torch.where(torch.linalg.matrix_norm(rest) > noise, rest, 0.0)


def _paired(x: torch.Tensor, y: torch.Tensor, *, least: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y):
        raise ConfigError(
            f"states are {tuple(x.shape)} and {tuple(y.shape)}, wanted (tokens, width) with the same number of tokens"
        )
    if len(x) < least:
        raise ConfigError(f"a fit needs at least {least} tokens, and there are {len(x)}")
    for name, states in (("x", x), ("y", y)):
        if not states.isfinite().all():
            raise ConfigError(f"{name} has values that are not finite: leave padding out, or run the model in float32")
    return x.detach().double(), y.detach().double()
