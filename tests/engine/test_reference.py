"""The references themselves, held to examples worked by hand and to slow loops written from the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests import reference


def test_linear_by_hand() -> None:
    a, b = np.array([1.0, 2.0]), np.array([3.0, -2.0])
    assert reference.linear([a, b], [1, 3]).tolist() == [2.5, -1.0]
    assert reference.linear([a, b], [1, -1], normalize=False).tolist() == [-2.0, 4.0]


def test_slerp_of_perpendicular_vectors_is_on_the_circle() -> None:
    halfway = reference.slerp([np.array([1.0, 0.0]), np.array([0.0, 1.0])], 0.5)
    assert halfway == pytest.approx([math.sqrt(0.5)] * 2)


@pytest.mark.parametrize("b", [[2.0, 4.0], [-2.0, -4.0], [1.0, 2.01]])
def test_slerp_of_parallel_and_opposite_vectors_is_a_straight_line(b: list[float]) -> None:
    a = np.array([1.0, 2.0])
    assert reference.slerp([a, np.array(b)], 0.25) == pytest.approx(0.75 * a + 0.25 * np.array(b))


def test_task_arithmetic_by_hand() -> None:
    base, one, two = np.array([1.0, 1.0]), np.array([2.0, 1.0]), np.array([1.0, 3.0])
    assert reference.task_arithmetic([base, one, two], [2, 4], lambda_=0.5).tolist() == [2.0, 5.0]
    assert reference.task_arithmetic([base, one, two], [1, 3], normalize=True).tolist() == [1.25, 2.5]
    assert reference.task_arithmetic([base, one, two], [1, -1], normalize=True).tolist() == [2.0, -1.0]


@pytest.mark.parametrize(
    ("density", "kept"),
    [
        (0.0, [0, 0, 0, 0, 0]),
        (1e-9, [0, 2, 0, 0, 0]),  # never fewer than one; of three equal the first
        (0.4, [0, 2, -2, 0, 0]),
        (0.79, [0, 2, -2, 0, 2]),  # 3.95 is 3
        (1.0, [1, 2, -2, 0, 2]),
    ],
)
def test_trim_keeps_the_lowest_indices_of_equal_magnitudes(density: float, kept: list[float]) -> None:
    delta = np.array([1.0, 2.0, -2.0, 0.0, 2.0])
    trimmed = reference.trim(np.zeros(5), delta, density, rescale=False, precision=np.float32)
    assert trimmed.tolist() == kept


def test_trim_compares_in_the_working_precision() -> None:
    """1 and 1 + 2^-30 are one number in float32, and two in float64."""
    delta = np.array([1.0, 1.0 + 2.0**-30])
    as_f32, as_f64 = (
        reference.trim(np.zeros(2), delta, 0.5, rescale=False, precision=kind) for kind in (np.float32, np.float64)
    )
    assert np.flatnonzero(as_f32).tolist() == [0]
    assert np.flatnonzero(as_f64).tolist() == [1]


def test_rescale_restores_the_l1_norm() -> None:
    trimmed = reference.trim(np.zeros(4), np.array([1.0, -3.0, 2.0, 0.0]), 0.5, rescale=True, precision=np.float32)
    assert trimmed == pytest.approx([0.0, -3.6, 2.4, 0.0])


@pytest.mark.parametrize("vote", ["total", "count"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -0.25, 2.0], [1.0, -1.0, 0.0]])
def test_ties_against_a_loop_over_elements(vote: str, normalize: bool, weights: list[float]) -> None:
    random = np.random.default_rng(5)
    base = random.integers(-4, 5, 200) / 8
    models = [base + random.integers(-2, 3, 200) / 8 for _ in weights]
    merged = reference.ties(
        [base, *models], weights, [1.0] * 3, normalize=normalize, lambda_=0.5, majority_sign_method=vote
    )
    for i, result in enumerate(merged):
        deltas = [w * (model[i] - base[i]) for w, model in zip(weights, models, strict=True)]
        balance = sum(deltas) if vote == "total" else sum(int(d > 0) - int(d < 0) for d in deltas)
        sign = 1 if balance >= 0 else -1
        agreeing = [(w, d) for w, d in zip(weights, deltas, strict=True) if d * sign > 0]
        divisor = sum(w for w, _ in agreeing) if normalize else 1
        assert result == base[i] + 0.5 * sum(d for _, d in agreeing) / (divisor or 1)
