"""Model Stock: how far from the base to the mean of the models, by the angles between their task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engine.test_methods import MIXTURES, family
from tests.engine.toolkit import Case, Method, Stored, assert_agrees, encode, merge, merge_one

if TYPE_CHECKING:
    from pathlib import Path


def stock(*, filter_wise: bool = False) -> Method:
    return {"model_stock": {"filter_wise": filter_wise}}


def near(seed: int, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> tuple[Stored, ...]:
    """A base and fine-tunes that have a part of their task vectors in common."""
    base, common, *own = (source.data for source in family(seed, int(np.prod(shape)), ("F64",) * (len(dtypes) + 1)))
    tuned = [base + 0.5 * (common - base) + (model - base) for model in own]
    return tuple(encode(values.reshape(shape), dtype) for values, dtype in zip([base, *tuned], dtypes, strict=True))


@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_it_agrees_with_its_reference(tmp_path: Path, mixture: str, filter_wise: bool) -> None:
    dtypes, out = MIXTURES[mixture]
    shapes = ((), (1,), (17,), (1, 1), (5, 7, 3), (301, 519), (9001, 17), (2, 70_000), (65537,), (3, 0), (0, 3))
    cases = {
        f"{shape} {count}": Case(stock(filter_wise=filter_wise), near(13, shape, dtypes)[:count], out)
        for shape in shapes
        for count in (3, 4)
    }
    merged = merge(tmp_path / "one", cases, tile=65536, threads=1, simd="off")
    for label, case in cases.items():
        assert_agrees(case, merged[label], label)
    again = merge(tmp_path / "three", cases, tile=2 * 65536, threads=3)
    assert all(np.array_equal(again[label].data, merged[label].data) for label in cases)


@pytest.mark.parametrize(
    ("models", "wanted"),
    [
        ([[3.0, 1.0], [5.0, 1.0]], [4.0, 1.0]),  # parallel: the mean
        ([[2.0, 1.0], [1.0, 2.0]], [1.0, 1.0]),  # perpendicular: the base
        ([[2.0, 1.0], [0.0, 1.0]], [1.0, 1.0]),  # opposite: no ratio, the base
        ([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0]),  # none of them moves
        ([[5.0, 1.0], [4.0, 5.0]], [1 + 3.5 * 0.75, 1 + 2 * 0.75]),  # a cosine of 0.6: a ratio of 3 / 4
    ],
)
def test_by_hand(tmp_path: Path, models: list[list[float]], wanted: list[float]) -> None:
    sources = [encode(values, "F64") for values in ([1.0, 1.0], *models)]
    assert merge_one(tmp_path, stock(), *sources).data.tolist() == pytest.approx(wanted, abs=1e-12)


def test_rows_have_ratios_of_their_own(tmp_path: Path) -> None:
    base, one, two = (
        encode(values, "F32")
        for values in ([[0.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]], [[4.0, 0.0], [0.0, 2.0]])
    )
    by_row = merge_one(tmp_path / "rows", stock(filter_wise=True), base, one, two)
    assert by_row.data.tolist() == [[3.0, 0.0], [0.0, 0.0]]
    whole = merge_one(tmp_path / "whole", stock(), base, one, two)
    assert 0 < whole.data[0, 0] < 3
    assert whole.data[1].all()
