"""Fit a map between the hidden states of two models, and say how well one tells the other; all in float64.

Rows are tokens: row i of x (N, D) and of y (N, H) belong to the same place of the same text. Nothing here is random:
the same states give the same map. Work is done on the device of the states; most of it is one product of D x D x N.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from mol.errors import ConfigError

_RIDGE: Final = 1e-3
_ROUNDING: Final = 1e-13


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
    if ridge == 0.0:
        weight = (torch.linalg.pinv(x) @ y).T
    else:
        gram = x.T @ x
        penalty = ridge * gram.diagonal().mean()
        # States that never change have no Gram matrix to speak of; any positive number then gives W = 0.
        gram.diagonal().add_(torch.where(penalty > 0, penalty, 1.0))
        weight = torch.cholesky_solve(x.T @ y, torch.linalg.cholesky(gram)).T
    return weight.contiguous(), y_mean - weight @ x_mean


def fit_orthogonal(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Fit y = W x with W orthogonal, which keeps lengths and angles (Schoenemann, 1966, "orthogonal Procrustes").

    W = U V^T from the singular value decomposition of y^T x. Where H > D its columns are orthonormal, and this too is
    the best fit; where H < D its rows are, and W aligns the two best, which is not quite the least error. There is no
    bias: take the mean off both first where one is wanted, it is then mean(y) - W mean(x).

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
    """Tell which share of the variance of y a ridge fit explains from x, on rows it was not fitted on.

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
    """Tell how alike two representations are but for rotation and scale (Kornblith et al., 2019, linear CKA).

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


def _less_mean(states: torch.Tensor) -> torch.Tensor:
    """Take the mean row off; what is rounding, beside the states themselves, becomes 0."""
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
