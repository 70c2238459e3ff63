"""TIES keeps exactly k entries, the lowest indices of equal magnitudes, whatever the data look like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engine.toolkit import Case, assert_agrees, assert_exact, decode, encode, merge, ties

if TYPE_CHECKING:
    from pathlib import Path

    from tests.reference import Tensor

LARGE = 3 * 65536 + 5
DENSITIES = (0.0, 1e-9, 1e-5, 0.1, 0.5, 0.9, 1 - 1e-7, 1.0)
PATTERNS = (
    "equal",
    "two levels",
    "zero",
    "sparse",
    "rising",
    "falling",
    "normal",
    "all exponents",
    "subnormal",
    "spike",
)


def pattern(name: str, n: int, dtype: str) -> Tensor:
    """Deltas against a base of zeros, all of which `dtype` holds exactly once rounded by `encode`."""
    random = np.random.default_rng(7)
    signs = random.choice([-1.0, 1.0], n)
    rising = np.arange(1, n + 1) / n
    patterns = {
        "equal": signs,
        "two levels": signs * random.choice([0.25, 0.5], n),
        "zero": np.zeros(n),
        "sparse": signs * random.integers(1, 4, n) * (random.random(n) < 0.01),
        "rising": signs * rising,
        "falling": signs * rising[::-1],
        "normal": random.normal(0, 0.003, n),
        "all exponents": signs * 2.0 ** random.uniform(-14, 15, n),
        "subnormal": signs * random.integers(0, 50, n) * {"F16": 2.0**-24, "BF16": 2.0**-133}.get(dtype, 2.0**-149),
        # All the weight at one position that a sample of the tensor is likely to miss.
        "spike": signs * np.where(np.abs(np.arange(n) - 0.61 * n) < 25, 8.0, 1.0),
    }
    chosen: Tensor = patterns[name].astype(np.float64)
    return chosen


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_exactly_k_survive(tmp_path: Path, dtype: str) -> None:
    cases = {}
    for n in (1, 2, 17, 4097, LARGE):
        zeros = encode(np.zeros(n), dtype)
        for name in PATTERNS:
            deltas = encode(pattern(name, n, dtype), dtype)
            for density in DENSITIES if n < LARGE else (1e-5, 0.1, 0.5, 0.999):
                case = Case(ties([1.0], [density], normalize=False), (zeros, deltas), dtype)
                cases[f"{name}, n={n}, density={density}"] = case
    merged = merge(tmp_path, cases, tile=65536)
    for label, case in cases.items():
        assert_exact(case, merged[label], label)


@pytest.mark.parametrize("k", [1, 65535, 65536, 65537, 2 * 65536, LARGE - 1])
def test_the_cut_among_equals_may_fall_anywhere(tmp_path: Path, k: int) -> None:
    zeros, ones = encode(np.zeros(LARGE), "BF16"), encode(np.ones(LARGE), "BF16")
    case = Case(ties([1.0], [(k + 0.5) / LARGE], normalize=False), (zeros, ones), "BF16")
    kept = decode(merge(tmp_path, {"w": case}, tile=65536)["w"])
    assert np.flatnonzero(kept).tolist() == list(range(k))


def test_a_large_tensor_that_misleads_a_sample(tmp_path: Path) -> None:
    """Runs of 1024 with a scale of their own each, and magnitudes that crowd about the threshold."""
    n = 1_300_003
    random = np.random.default_rng(11)
    runs = np.repeat(10.0 ** random.uniform(-6, 0, n // 1024 + 1), 1024)[:n]
    crowded = 1 + random.integers(0, 64, n) * 2.0**-23
    zeros = encode(np.zeros(n), "F32")
    cases = {
        f"{label} {density}": Case(ties([1.0], [density], normalize=False), (zeros, deltas), "F32")
        for label, deltas in {
            "runs": encode(runs * random.normal(0, 1, n), "F32"),
            "crowded": encode(crowded, "F32"),
            "late": encode(np.where(np.arange(n) > 0.97 * n, random.normal(5, 1, n), 1e-3), "F32"),
        }.items()
        for density in (0.02, 0.5)
    }
    merged = merge(tmp_path, cases, tile=262144)
    for label, case in cases.items():
        assert_exact(case, merged[label], label)


@pytest.mark.parametrize("vote", ["total", "count"])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_votes_over_a_grid(tmp_path: Path, vote: str, rescale: bool, normalize: bool) -> None:
    """Deltas of a few values only, so that every rule meets ties: in trimming, in the vote, in the divisor."""
    random = np.random.default_rng(13)
    n = 65536 + 77
    base = random.integers(-16, 17, n) / 64
    models = [base + random.integers(-2, 3, n) / 64 for _ in range(4)]
    sources = tuple(encode(values, "BF16") for values in (base, *models))
    settings = {"vote": vote, "rescale": rescale, "normalize": normalize, "lambda_": 0.5}
    cases = {
        f"{weights} {densities}": Case(ties(weights, densities, **settings), sources[: len(weights) + 1], "F32")  # type: ignore[arg-type]
        for weights in ([1.0], [0.5, 0.5], [1.0, 1.0, 2.0], [1.0, -1.0, 0.5, 0.25], [-0.5, -1.0])
        for densities in ([0.3] * len(weights), [0.05 + 0.2 * i for i in range(len(weights))], [1.0] * len(weights))
    }
    merged = merge(tmp_path, cases, tile=65536)
    for label, case in cases.items():
        check = assert_agrees if rescale or normalize else assert_exact
        check(case, merged[label], label)
