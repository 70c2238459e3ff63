"""Fits and likeness of hidden states, against numpy and against answers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mol.core.fitting.maps import fit_linear, fit_orthogonal, linear_cka, r_squared
from mol.errors import ConfigError


def states(rows: int, width: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) * scale + scale


def rotation(width: int, other: int, seed: int = 1) -> torch.Tensor:
    """(other, width) with orthonormal rows or columns."""
    return torch.nn.init.orthogonal_(
        torch.empty(other, width, dtype=torch.float64), generator=torch.Generator().manual_seed(seed)
    )


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(2, 40),
    width=st.integers(1, 12),
    other=st.integers(1, 12),
    ridge=st.sampled_from([1e-4, 1e-2, 1.0]),
    seed=st.integers(0, 999),
)
def test_ridge_is_the_closed_form(rows: int, width: int, other: int, ridge: float, seed: int) -> None:
    x, y = states(rows, width, seed).numpy(), states(rows, other, seed + 1).numpy()
    centred, target = x - x.mean(0), y - y.mean(0)
    gram = centred.T @ centred
    expected = np.linalg.solve(gram + ridge * np.trace(gram) / width * np.eye(width), centred.T @ target).T
    weight, bias = fit_linear(torch.from_numpy(x), torch.from_numpy(y), ridge=ridge)
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(bias.numpy(), y.mean(0) - expected @ x.mean(0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_affine_map_is_found(ridge: float, dtype: torch.dtype) -> None:
    x, weight, bias = states(200, 8), torch.randn(5, 8, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    found, offset = fit_linear(x.to(dtype), (x @ weight.T + bias).to(dtype), ridge=ridge)
    assert found.dtype == offset.dtype == torch.float64
    tolerance = 1e-8 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, weight, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(offset, bias, rtol=tolerance, atol=tolerance)


def test_without_ridge_the_smallest_of_many_fits_is_taken() -> None:
    x, y = states(6, 20), states(6, 3, 1)
    weight, bias = fit_linear(x, y, ridge=0.0)
    augmented = np.linalg.lstsq((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy(), rcond=None)[0].T
    np.testing.assert_allclose(weight.numpy(), augmented, atol=1e-10)
    torch.testing.assert_close(x @ weight.T + bias, y)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_a_ridge_means_the_same_for_states_of_any_size(factor: float) -> None:
    x, y = states(50, 6), states(50, 4, 1)
    weight, _ = fit_linear(x, y, ridge=0.1)
    scaled, _ = fit_linear(x * factor, y, ridge=0.1)
    torch.testing.assert_close(scaled * factor, weight, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_states_that_never_change_are_mapped_to_the_mean(ridge: float) -> None:
    x, y = torch.full((10, 3), 0.1), states(10, 2)
    weight, bias = fit_linear(x, y, ridge=ridge)
    assert not weight.any()
    torch.testing.assert_close(bias, y.mean(0))


@pytest.mark.parametrize(("width", "other"), [(6, 6), (6, 9), (9, 6)])
def test_procrustes_is_orthogonal_and_finds_a_rotation(width: int, other: int) -> None:
    x, true = states(300, width), rotation(width, other)
    noise = states(300, other, 2)
    for y in (x @ true.T, x @ true.T + noise):
        weight = fit_orthogonal(x, y)
        small = weight @ weight.T if other <= width else weight.T @ weight
        torch.testing.assert_close(small, torch.eye(min(width, other), dtype=torch.float64))
    if other >= width:
        torch.testing.assert_close(fit_orthogonal(x, x @ true.T), true)


@settings(deadline=None, max_examples=25)
@given(width=st.integers(1, 6), wider=st.integers(0, 3), seed=st.integers(0, 999))
def test_no_other_orthogonal_map_is_better(width: int, wider: int, seed: int) -> None:
    x, y = states(30, width, seed), states(30, width + wider, seed + 1)
    best = (x @ fit_orthogonal(x, y).T - y).norm()
    others = [(x @ rotation(width, width + wider, n).T - y).norm() for n in range(20)]
    assert best <= min(others) + 1e-9


def test_r_squared_against_numpy() -> None:
    x, y = states(60, 5), states(60, 3, 1) + states(60, 5)[:, :3]
    weight, bias = fit_linear(x[::2], y[::2], ridge=0.01)
    seen = y[1::2].numpy()
    error = ((x[1::2] @ weight.T + bias).numpy() - seen) ** 2
    expected = 1 - error.sum() / ((seen - seen.mean(0)) ** 2).sum()
    assert r_squared(x, y, ridge=0.01) == pytest.approx(expected, rel=1e-10)
    assert r_squared(x, y, ridge=0.01) == r_squared(x.clone(), y.clone(), ridge=0.01)


def test_r_squared_of_what_is_predicted_and_what_is_not() -> None:
    x = states(400, 8)
    assert r_squared(x, x @ rotation(8, 8).T + 3.0, ridge=0.0) == pytest.approx(1.0)
    assert r_squared(x, states(400, 4, 5)) == pytest.approx(0.0, abs=0.1)
    # As many numbers as rows: a fit that is perfect where it was made and useless elsewhere.
    assert r_squared(states(40, 30), states(40, 2, 7), ridge=0.0) < 0.0
    assert r_squared(x, torch.full((400, 2), 0.1)) == 0.0


def test_cka_against_the_definition() -> None:
    x, y = states(30, 4), states(30, 7, 1)
    centre = np.eye(30) - 1 / 30
    k, m = centre @ x.numpy() @ x.numpy().T @ centre, centre @ y.numpy() @ y.numpy().T @ centre
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-10)


def test_cka_sees_neither_rotation_nor_scale_nor_offset() -> None:
    x = states(50, 6)
    assert linear_cka(x, x) == pytest.approx(1.0)
    assert linear_cka(x, 7.0 * x @ rotation(6, 9).T + 5.0) == pytest.approx(1.0)
    assert linear_cka(x, states(50, 6, 3)) < 0.5
    assert linear_cka(x, torch.full((50, 3), 0.1)) == 0.0


@pytest.mark.parametrize("fit", [fit_linear, fit_orthogonal, r_squared, linear_cka])
def test_states_that_cannot_be_fitted_are_refused(fit: object) -> None:
    assert callable(fit)
    x = states(8, 3)
    with pytest.raises(ConfigError, match=r"\(8, 3\) and \(7, 3\), wanted \(tokens, width\)"):
        fit(x, x[:7])
    with pytest.raises(ConfigError, match=r"\(2, 4, 3\)"):
        fit(x.reshape(2, 4, 3), x)
    with pytest.raises(ConfigError, match="at least"):
        fit(x[:1], x[:1])
    broken = x.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(ConfigError, match="y has values that are not finite"):
        fit(x, broken)


@pytest.mark.parametrize("ridge", [-1.0, float("nan"), float("inf")])
def test_a_ridge_below_zero_is_refused(ridge: float) -> None:
    with pytest.raises(ConfigError, match="ridge"):
        fit_linear(states(8, 3), states(8, 3), ridge=ridge)
