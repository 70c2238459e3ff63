"""Elements that survive by their rank in a row or in a block of it, on scores of every kind: `della`, `cabs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.engine.test_digests import CPU
from tests.engine.toolkit import Case, Stored, assert_agrees, cabs, encode, merge, thin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tests.engine.toolkit import Method

Values = np.ndarray[Any, np.dtype[np.float64]]

METHODS: dict[str, Method] = {
    "della": thin("della", [0.5, -0.25], [0.5, 0.3], epsilons=[0.49, 0.01], rescale=True),
    "della_linear": thin("della_linear", [0.5, 0.75], [0.02, 0.9], epsilons=[0.01, 0.05], models=[4, 2]),
    "cabs, short blocks": cabs(1.0, 0.5, n=3, m=8),
    "cabs, long blocks": cabs(1.0, -0.5, n=40, m=100),
    "cabs, whole rows": cabs(1.0, 0.5, n=20, m=1 << 31),
}
SHAPES = [(1, 1), (64, 1), (9, 5), (5, 63), (3, 64), (3, 65), (7, 128), (7, 129), (3, 511), (5, 1000), (2, 33_001)]


def bell(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    return random.normal(0, 0.003, shape)


def all_equal(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    return random.choice([-0.25, 0.25], shape)


def zeros(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    return np.where(random.random(shape) < 0.1, random.normal(0, 0.003, shape), 0.0)


def five_values(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    return random.integers(-2, 3, shape) / 4


def outliers(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """A few much larger than all others, which then look alike from afar."""
    return random.normal(0, 0.003, shape) * np.where(random.random(shape) < 0.05, 2.0**20, 1.0)


def many_scales(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    return np.ldexp(random.normal(0, 1, shape), random.integers(-60, 0, shape))


def ascending(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    return np.broadcast_to(np.arange(shape[-1]) / 1024, shape)


KINDS = [bell, all_equal, zeros, five_values, outliers, many_scales, ascending]


def sources(kind: Callable[..., Values], shape: tuple[int, ...], dtype: str) -> tuple[Stored, ...]:
    """A base and two models that differ from it as `kind` says: exactly, where the base is zero."""
    random = np.random.default_rng(21)
    base = random.normal(0, 0.02, shape) if kind is bell else np.zeros(shape)
    return tuple(encode(values, dtype) for values in (base, *(base + kind(random, shape) for _ in range(2))))


def same(one: Mapping[str, Stored], other: Mapping[str, Stored]) -> bool:
    return all(one[label].data.tobytes() == other[label].data.tobytes() for label in one)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_agree_with_the_references(tmp_path: Path, kind: Callable[..., Values], dtype: str) -> None:
    cases = {
        f"{label}, {shape}": Case(method, sources(kind, shape, dtype), dtype)
        for shape in SHAPES
        for label, method in METHODS.items()
    }
    merged = merge(tmp_path / "one", cases, tile=65536, threads=1, simd="off")
    for label, case in cases.items():
        assert_agrees(case, merged[label], label)
    for simd in ("avx2", "avx512"):
        if {"avx2": " avx2", "avx512": " avx512f"}[simd] in CPU:
            assert same(merge(tmp_path / simd, cases, tile=2 * 65536, threads=3, simd=simd), merged)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_what_is_not_held_of_a_large_tensor_is_drawn_again_alike(tmp_path: Path, name: str) -> None:
    """With `rescale` elements are drawn once for the factors; of 2^26 bits not all are held for the result."""
    models, shape = 16, (2048, 2048)
    random = np.random.default_rng(5)
    some = [encode(random.uniform(1, 2, (64, shape[1])), "BF16").data for _ in range(models)]
    tuned = tuple(Stored("BF16", np.tile(data, (shape[0] // 64, 1))) for data in some)
    base = encode(np.zeros(shape), "BF16")
    merged = {}
    for rescale in (False, True):
        # The sum is zero where all models drop an element, whatever the factors.
        more = {"epsilons": [0.05] * models} if name == "della_linear" else {}
        method = thin(name, [1.0] * models, [0.1] * models, rescale=rescale, **more)
        merged[rescale] = merge(tmp_path / str(rescale), {"w": Case(method, (base, *tuned), "F32")}, tile=65536)["w"]
    dropped = [merged[rescale].data == 0 for rescale in (False, True)]
    assert dropped[0].mean() == pytest.approx(0.9**models, abs=0.01)
    np.testing.assert_array_equal(*dropped)
