"""The election of signs that TIES and the methods named after it end with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.reference.tensors import Tensor


NOISE = 2.0**-20  # of a sum, in proportion to the magnitudes of its terms


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
    signs. A draw elects plus, and a zero agrees with no model. `normalize` divides by the weights of those that agree
    (by 1 where these cancel or none agrees); `lambda_` comes after.

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
        mix = mix / np.where(np.abs(divisor) <= cancelled(weights), 1.0, divisor)
    return base + lambda_ * mix


def cancelled(weights: Sequence[float]) -> float:
    """The largest divisor that is the noise of weights which cancel, never as large as a weight by itself."""
    magnitudes = [abs(w) for w in weights if w]
    mixed = any(w < 0 for w in weights) and any(w > 0 for w in weights)
    return min(NOISE * sum(magnitudes), min(magnitudes) / 2) if mixed else 0.0
