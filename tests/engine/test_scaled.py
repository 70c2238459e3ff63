"""Codes of 8-bit floats times scales, against float64 numpy: every code, every kind of block, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mol.errors import MolError
from tests.engine.toolkit import (
    Stored,
    decode,
    encode,
    execute,
    linear,
    made_by,
    plan_of_tasks,
    preflight,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.engine.toolkit import Plan

FORMATS = {"F8_E4M3": (4, 7), "F8_E5M2": (5, 15)}  # bits of exponent, bias
RANDOM = np.random.default_rng(8)


def values_of(codes: Any, dtype: str) -> Any:  # noqa: ANN401
    """The numbers that codes mean, in float64."""
    bits, bias = FORMATS[dtype]
    rest = 7 - bits
    codes = codes.astype(np.int64)
    exponent, significand = codes >> rest & (1 << bits) - 1, (codes & (1 << rest) - 1) / (1 << rest)
    values = np.where(exponent > 0, (1 + significand) * 2.0 ** (exponent - bias), significand * 2.0 ** (1 - bias))
    magnitudes = codes & 127
    if dtype == "F8_E4M3":
        values[magnitudes == 127] = np.nan
    else:
        values[magnitudes == 124] = np.inf
        values[magnitudes > 124] = np.nan
    return np.where(codes < 128, values, -values)


def finite_codes(dtype: str, *shape: int) -> Stored:
    codes = np.flatnonzero(np.isfinite(values_of(np.arange(256), dtype))).astype(np.uint8)
    return Stored(dtype, RANDOM.choice(codes, shape))


def factors(*shape: int) -> Any:  # noqa: ANN401
    return np.exp(RANDOM.normal(-4, 1, shape))


def plan_for(
    directory: Path,
    expr: Any,  # noqa: ANN401
    stored: Mapping[str, Stored],
    shape: tuple[int, ...],
    out: str = "F32",
    **more: Any,  # noqa: ANN401
) -> Plan:
    return plan_of_tasks(directory, stored, (0, expr), shape=shape, out=out, **more)


def made(directory: Path, *arguments: Any, **more: Any) -> Stored:  # noqa: ANN401
    return made_by(plan_for(directory, *arguments, **more), directory)


def scaled(*block: int) -> dict[str, Any]:
    return {"scaled": {"of": [0, "w"], "by": [0, "w_scale"], "block": list(block)}}


def spread(scales: Any, shape: tuple[int, ...], block: tuple[int, int]) -> Any:  # noqa: ANN401
    """The scale of each element."""
    rows, columns = (np.arange(n) // size for n, size in zip(shape[-2:], block, strict=True))
    grid = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    return scales.reshape(grid)[..., rows[:, None], columns]


@pytest.mark.parametrize("dtype", FORMATS)
def test_every_code_decodes_to_the_number_of_its_bits(tmp_path: Path, dtype: str) -> None:
    stored = {"w": Stored(dtype, np.arange(256, dtype=np.uint8).reshape(2, 128)), "w_scale": encode([[1.0]], "F32")}
    result = made(tmp_path, scaled(2, 128), stored, (2, 128), allow_nonfinite=True)
    np.testing.assert_array_equal(decode(result), values_of(np.arange(256), dtype))


# Shape of the codes, block, shape of the scales.
BLOCKS: dict[str, tuple[tuple[int, ...], tuple[int, int], tuple[int, ...]]] = {
    "blocks that fit": ((64, 96), (32, 32), (2, 3)),
    "blocks that end in part": ((37, 53), (16, 16), (3, 4)),
    "rows": ((37, 53), (1, 53), (37, 1)),
    "rows, scales without the axis of one": ((37, 53), (1, 53), (37,)),
    "columns": ((37, 53), (37, 1), (1, 53)),
    "tensor": ((37, 53), (37, 53), (1, 1)),
    "tensor, one number": ((37, 53), (37, 53), ()),
    "a block larger than the tensor": ((37, 53), (128, 128), (1,)),
    "elements": ((5, 7), (1, 1), (5, 7)),
    "experts whose blocks end in part": ((3, 20, 33), (16, 32), (3, 2, 2)),
    "longer than a strip": ((3, 9001), (2, 128), (2, 71)),
    "no rows": ((0, 7), (4, 4), (0, 2)),
}


@pytest.mark.parametrize("of_scales", ["F32", "BF16"])
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("case", BLOCKS)
def test_codes_times_scales_are_rounded_once(tmp_path: Path, case: str, dtype: str, of_scales: str) -> None:
    shape, block, grid = BLOCKS[case]
    stored = {"w": finite_codes(dtype, *shape), "w_scale": encode(factors(*grid), of_scales)}
    exact = values_of(stored["w"].data, dtype) * spread(decode(stored["w_scale"]), shape, block)
    result = made(tmp_path, scaled(*block), stored, shape)
    np.testing.assert_array_equal(result.data, exact.astype(np.float32))


def test_scaled_codes_are_merged_as_the_weights_that_they_are(tmp_path: Path) -> None:
    """In a stage, in rows of it, next to a tensor, over several tiles and with any instruction set."""
    shape = (300, 900)
    stored = {"w": finite_codes("F8_E4M3", *shape), "w_scale": encode(factors(3, 8), "F32")}
    weights = values_of(stored["w"].data, "F8_E4M3") * spread(decode(stored["w_scale"]), shape, (128, 128))
    other = encode(RANDOM.normal(0, 1, shape), "BF16")
    stored |= {"v": other, "plain": Stored("F32", weights.astype(np.float32))}
    found = {}
    for name, of in {"codes": scaled(128, 128), "weights": [0, "plain"]}.items():
        stage = {"merged": {"by": linear(0.3, 0.7), "of": [of, [0, "v"]]}}
        expr = {"rows": {"of": stage, "from": 10, "to": 290}}
        for i, options in enumerate([{"threads": 1, "simd": "off"}, {"threads": 3, "tile": 1 << 16}]):
            made = tmp_path / f"{name}-{i}"
            plan = plan_for(made, expr, stored, (280, 900), "BF16")
            execute(plan, made / "out.partial", **options)
            found[name, i] = (made / "out.partial" / "model.safetensors").read_bytes()
    assert len(set(found.values())) == 1


def test_a_code_that_is_no_number_is_named(tmp_path: Path) -> None:
    codes = finite_codes("F8_E4M3", 4, 5)
    codes.data[2, 3] = 0x7F
    stored = {"w": codes, "w_scale": encode([1.0], "F32")}
    with pytest.raises(MolError, match=r"in\.safetensors: tensor `w` holds NaN at element 13"):
        made(tmp_path, scaled(4, 5), stored, (4, 5))


def test_a_scale_that_is_no_number_is_named(tmp_path: Path) -> None:
    stored = {"w": finite_codes("F8_E4M3", 4, 5), "w_scale": encode([1.0, np.nan, 1.0, 1.0], "F32")}
    with pytest.raises(MolError, match=r"in\.safetensors: tensor `w_scale` holds NaN at element 1"):
        made(tmp_path, scaled(1, 5), stored, (4, 5))


OF = {"of": [0, "w"], "by": [0, "w_scale"], "block": [2, 3]}
REFUSED: dict[str, tuple[Any, list[str]]] = {
    "scales for other blocks": ({"scaled": {**OF, "block": [2, 2]}}, ["`scaled`", "[2, 2]", "[4, 6]", "want [2, 3]"]),
    "scales the other way round": ({"scaled": {**OF, "by": [0, "turned"]}}, ["`scaled`", "[3, 2]", "want [2, 2]"]),
    "blocks of nothing": ({"scaled": {**OF, "block": [0, 3]}}, ["`scaled`", "[0, 3]"]),
    "codes that are numbers": ({"scaled": {**OF, "of": [0, "plain"]}}, ["in.safetensors", "`plain` is BF16"]),
    "codes that are made": ({"scaled": {**OF, "of": {"transpose": [0, "w"]}}}, ["`scaled`", "`transpose`", "codes"]),
    "codes in a row": ({"scaled": {**OF, "of": [0, "vector"]}}, ["`scaled`", "[6]", "matrix"]),
    "scales that are codes": ({"scaled": {**OF, "by": [0, "w"]}}, ["in.safetensors", "`w` is F8_E4M3"]),
    "scales of twice the precision": ({"scaled": {**OF, "by": [0, "double"]}}, ["`scaled`", "F64"]),
    "codes without scales": ([0, "w"], ["in.safetensors", "`w` is F8_E4M3"]),
    "codes without scales in a stack": ({"stack": [[0, "w"]]}, ["in.safetensors", "`w` is F8_E4M3"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    expr, words = REFUSED[case]
    grid = np.ones((2, 2))
    stored = {
        "w": finite_codes("F8_E4M3", 4, 6),
        "vector": finite_codes("F8_E4M3", 6),
        "w_scale": encode(grid, "F32"),
        "turned": encode(np.ones((3, 2)), "F32"),
        "double": encode(grid, "F64"),
        "plain": encode(np.ones((4, 6)), "BF16"),
    }
    plan = plan_for(tmp_path, expr, stored, (4, 6))
    for attempt in (preflight, execute):
        with pytest.raises(MolError) as caught:
            attempt(plan, tmp_path / "out.partial")
        for word in words:
            assert word in str(caught.value)
    assert not (tmp_path / "out.partial").exists()
