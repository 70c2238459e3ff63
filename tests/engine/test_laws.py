"""What must hold bit for bit: identities of the methods, and one right rounding in every cast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engine.toolkit import (
    STORAGE,
    Case,
    Method,
    Stored,
    decode,
    encode,
    execute,
    linear,
    merge,
    merge_one,
    plan_of,
    read_shard,
    slerp,
    task_arithmetic,
    ties,
)

if TYPE_CHECKING:
    from pathlib import Path

FLOATS = ("F32", "F16", "BF16", "F64")
COPY: Method = {"copy": {}}


def every_finite(dtype: str, seed: int = 0) -> Stored:
    """All finite values of a 16-bit dtype; of a wider one a million bit patterns and the edges of its range."""
    if dtype in ("F16", "BF16"):
        bits = np.arange(65536, dtype=np.uint16)
    else:
        kind, exponent = (np.uint32, 0x7F800000) if dtype == "F32" else (np.uint64, 0x7FF0 << 48)
        edges = [0, 1, exponent - 1, (exponent >> 1) + 1]
        sign = 1 << (np.dtype(kind).itemsize * 8 - 1)
        drawn = np.random.default_rng(seed).integers(0, 2 * sign - 1, 200_000, dtype=kind, endpoint=True)
        bits = np.concatenate([np.array([*edges, *(edge | sign for edge in edges)], dtype=kind), drawn])
    values = Stored(dtype, bits.view(STORAGE[dtype]))
    return Stored(dtype, values.data[np.isfinite(decode(values))])


def same_bits(one: Stored, two: Stored) -> bool:
    return one.dtype == two.dtype and one.data.shape == two.data.shape and one.data.tobytes() == two.data.tobytes()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", [COPY, {"scale": {"factor": 1.0}}], ids=["copy", "scale"])
def test_a_copy_and_a_scale_of_one_keep_every_bit(tmp_path: Path, method: Method, dtype: str) -> None:
    """Minus zero and the subnormals included."""
    model = every_finite(dtype)
    assert same_bits(merge_one(tmp_path, method, model), model)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("copies", "method"),
    [
        (2, linear(0.5, 0.5)),
        (2, linear(1, 1)),
        (1, linear(1.0, normalize=False)),
        (2, slerp(0.5)),
        (3, task_arithmetic(0.3, -0.7, lambda_=1.3)),
        (3, ties([0.3, 0.7], [0.5, 1.0])),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
def test_identical_models_give_that_model(tmp_path: Path, copies: int, method: Method, dtype: str) -> None:
    model = encode(np.random.default_rng(1).normal(0, 0.02, 70_001), dtype)
    assert same_bits(merge_one(tmp_path, method, *[model] * copies), model)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize(
    ("copies", "method"), [(2, linear(0.3, 0.7)), (2, slerp(0.3)), (5, linear(1, 1, 1, 1, 3))], ids=str
)
def test_any_mean_of_a_16_bit_model_rounds_back_to_it(tmp_path: Path, copies: int, method: Method, dtype: str) -> None:
    model = encode(np.random.default_rng(2).normal(0, 0.02, 70_001), dtype)
    assert same_bits(merge_one(tmp_path, method, *[model] * copies), model)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("method", "survivor"),
    [(linear(1, 0), 0), (linear(0, 1), 1), (slerp(0), 0), (slerp(1), 1), (ties([1.0], [0.0]), 0)],
    ids=str,
)
def test_the_ends_of_a_path_are_the_models(tmp_path: Path, method: Method, survivor: int, dtype: str) -> None:
    """The planner makes copies of these; the arithmetic has to agree with it."""
    random = np.random.default_rng(3)
    models = [encode(random.normal(0, 0.02, 70_001), dtype) for _ in range(2)]
    assert same_bits(merge_one(tmp_path, method, *models), models[survivor])


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("method", [COPY, linear(1.0), {"scale": {"factor": 1.0}}], ids=["copy", "linear", "scale"])
def test_a_cast_rounds_once_to_nearest_even(tmp_path: Path, source: str, target: str, method: Method) -> None:
    """From F64 straight to 16 bits too, where going through f32 would round twice."""
    values = decode(every_finite(source))
    if target in ("F16", "BF16") and source in ("F32", "F64"):
        # Halfway between neighbours of the target, and a hair to each side: where double rounding shows.
        there = np.sort(np.unique(decode(every_finite(target))))
        halfway = there[:-1] + np.diff(there) / 2
        hair = 1 + (2.0**-40 if source == "F64" else 2.0**-22) * np.array([[-1.0], [0.0], [1.0]])
        values = np.concatenate([values, (halfway * hair).ravel()])
    with np.errstate(over="ignore"):
        rounded = encode(values, target)
    values = values[np.isfinite(decode(rounded))]
    model = encode(values, source)
    wanted = encode(decode(model), target)
    finite = np.isfinite(decode(wanted))
    model, wanted = Stored(source, model.data[finite]), Stored(target, wanted.data[finite])
    merged = merge_one(tmp_path, method, model, dtype=target)
    off = np.flatnonzero(decode(merged) != decode(wanted))
    assert off.size == 0, f"{decode(model)[off[0]]!r} became {decode(merged)[off[0]]!r}, not {decode(wanted)[off[0]]!r}"


@pytest.mark.parametrize("dtype", ["I64", "I32", "I16", "I8", "U8", "BOOL"])
def test_integer_and_bool_tensors_are_copied(tmp_path: Path, dtype: str) -> None:
    drawn = np.random.default_rng(4).integers(0, 2 if dtype == "BOOL" else 100, (65537, 3))
    one, two = (Stored(dtype, drawn.astype(STORAGE[dtype])) for _ in range(2))
    merged = merge(tmp_path, {"w": Case(COPY, (one, two), dtype), "v": Case(COPY, (one,), dtype)})
    assert same_bits(merged["w"], one)
    assert same_bits(merged["v"], one)


def test_not_finite_values_pass_when_allowed(tmp_path: Path) -> None:
    """A copy keeps the very bits of a NaN; arithmetic follows IEEE 754; what is too large becomes infinite."""
    payload = np.array([0x7FC12345, 0xFF800000, 0x3F800000, 0x7F800000], dtype=np.uint32).view(np.float32)
    odd, ones = Stored("F32", payload), encode([1.0, 2.0, 3.0, 4.0], "F32")
    cases = {
        "copy": Case(COPY, (odd,), "F32"),
        "linear": Case(linear(0.5, 0.5), (odd, ones), "F32"),
        "cast": Case(COPY, (encode([1e6, -1e6, np.nan, 1.0], "F32"),), "F16"),
        "bf16": Case(linear(0.5, 0.5), (encode([np.nan, -np.inf, 1.0, 2.0], "BF16"), ones), "BF16"),
        "ties": Case(ties([1.0], [0.5]), (ones, odd), "F32"),
        "slerp": Case(slerp(0.5), (ones, odd), "F32"),
    }
    execute(plan_of(tmp_path, cases, allow_nonfinite=True), tmp_path / "out.partial")
    merged = read_shard(tmp_path / "out.partial" / "model.safetensors")
    assert same_bits(merged["copy"], odd)
    np.testing.assert_array_equal(decode(merged["linear"]), [np.nan, -np.inf, 2.0, np.inf])
    np.testing.assert_array_equal(decode(merged["cast"]), [np.inf, -np.inf, np.nan, 1.0])
    np.testing.assert_array_equal(decode(merged["bf16"]), [np.nan, -np.inf, 2.0, 3.0])
