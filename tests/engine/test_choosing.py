"""Methods in which models choose elements, such as consensus_ta, magmax and cabs: against references, and by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engine.test_methods import assert_methods_agree, family
from tests.engine.toolkit import (
    Case,
    Method,
    Stored,
    assert_agrees,
    cabs,
    consensus,
    decode,
    encode,
    merge,
    merge_one,
    task_arithmetic,
    ties,
)

if TYPE_CHECKING:
    from pathlib import Path

SIZES = (0, 1, 2, 3, 17, 150, 65537, 3 * 65536 + 5)


def pcb(*densities: float, lambda_: float = 1.0) -> Method:
    return {"pcb": {"densities": list(densities), "lambda": lambda_}}


CASES: dict[str, tuple[int, Method]] = {
    "consensus_ta": (4, consensus("consensus_ta", [1.0, 0.5, 0.75], k=2)),
    "consensus_ta, masks of their own": (4, consensus("consensus_ta", [1.0, -0.5, 0.75], lambdas=[0.2, 0.6, 1.5])),
    "consensus_ta of one": (2, consensus("consensus_ta", [0.4], normalize=True)),
    "consensus_ties": (4, consensus("consensus_ties", [1.0, 0.5, 0.75], k=2, densities=[0.5, 0.9, 0.3])),
    "consensus_ties, rescaled": (
        4,
        consensus("consensus_ties", [1.0, -0.5, 0.75], lambdas=[0.2, 0.6, 1.5], densities=[0.5, 1, 0.1], rescale=True),
    ),
    "consensus_ties, normalized": (
        4,
        consensus("consensus_ties", [1.0, -0.5, 0.75], lambdas=[0.5] * 3, normalize=True),
    ),
    "magmax": (4, {"magmax": {"lambda": 0.5}}),
    "magmax of one": (2, {"magmax": {"lambda": 1.0}}),
    "localize_and_stitch": (4, {"localize_and_stitch": {"densities": [0.1, 0.5, 0.3]}}),
    "localize_and_stitch of whole ones": (3, {"localize_and_stitch": {"densities": [1.0, 1.0]}}),
    "pcb": (4, pcb(0.1, 0.5, 0.9, lambda_=0.8)),
    "pcb, all count": (3, pcb(1.0, 1.0)),
    "pcb of one": (2, pcb(0.2)),
    "cabs": (4, cabs(0.5, -0.25, 1.5, n=3, m=8, lambda_=0.8)),
    "cabs, more than there are": (4, cabs(0.5, 0.25, 1.5, n=2, m=4)),
    "cabs, long blocks": (3, cabs(1.0, 1.0, n=100, m=256)),
}


@pytest.mark.parametrize("mixture", ["bf16", "f16", "f32", "f64", "f32 base, 16-bit models", "bf16 to f32"])
def test_they_agree_with_their_references(tmp_path: Path, mixture: str) -> None:
    assert_methods_agree(tmp_path, mixture, CASES, SIZES, seed=5)


@pytest.mark.parametrize("shape", [(7, 33), (33, 7), (1, 300), (300, 1), (2, 3, 50)])
def test_blocks_do_not_cross_rows(tmp_path: Path, shape: tuple[int, ...]) -> None:
    size = int(np.prod(shape))
    sources = tuple(Stored(dtype, data.reshape(shape)) for dtype, data in family(8, size, ("F32",) * 3))
    case = Case(cabs(1.0, 0.5, n=2, m=8), sources, "F32")
    assert_agrees(case, merge(tmp_path, {"w": case})["w"], "w")


def of(method: Method, base: list[float], *deltas: list[float], directory: Path) -> list[float]:
    """What is added to the base, in numbers that are exact."""
    sources = [encode(base, "F32"), *(encode(np.add(base, delta), "F32") for delta in deltas)]
    return list(decode(merge_one(directory, method, *sources)) - base)


def test_elements_that_too_few_need_are_the_bases(tmp_path: Path) -> None:
    """The sums are 5, 0, 2 and 4; a model needs an element that is at least as large as what the others add to it."""
    a, b = [4.0, 1.0, 2.0, 2.0], [1.0, -1.0, 0.0, 2.0]
    added = {
        k: of(consensus("consensus_ta", [1.0, 1.0], k=k), [8.0] * 4, a, b, directory=tmp_path / f"{k}") for k in (1, 2)
    }
    assert added == {1: [5.0, 0.0, 2.0, 4.0], 2: [0.0, 0.0, 0.0, 4.0]}


@pytest.mark.parametrize("dtype", ["BF16", "F64"])
def test_where_no_model_must_need_it_it_is_the_dense_method(tmp_path: Path, dtype: str) -> None:
    sources = family(6, 70_001, (dtype,) * 3)
    for name, dense in (
        ("consensus_ta", task_arithmetic(1.0, 0.5)),
        ("consensus_ties", ties([1.0, 0.5], [0.4, 0.9], normalize=False)),
    ):
        more = {} if name == "consensus_ta" else {"densities": [0.4, 0.9]}
        sparse = consensus(name, [1.0, 0.5], k=0, **more)
        one, other = (merge_one(tmp_path / f"{name}{i}", by, *sources) for i, by in enumerate((sparse, dense)))
        assert (one.data == other.data).all()


def test_the_largest_difference_is_taken_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    a, b, c = [1.0, -2.0, 0.5, 0.0], [-3.0, 2.0, 0.5, 0.0], [2.0, 1.0, -1.0, 0.0]
    assert of({"magmax": {"lambda": 0.5}}, [4.0] * 4, a, b, c, directory=tmp_path) == [-1.5, -1.0, -0.5, 0.0]


def test_what_is_kept_twice_is_averaged(tmp_path: Path) -> None:
    a, b = [4.0, 3.0, 1.0, 0.0], [0.0, -1.0, 0.5, 8.0]
    method = {"localize_and_stitch": {"densities": [0.5, 0.5]}}
    assert of(method, [8.0] * 4, a, b, directory=tmp_path) == [4.0, 1.0, 0.0, 8.0]


def test_a_model_leaves_what_it_does_not_keep_to_the_next(tmp_path: Path) -> None:
    """One of four neighbours each: the second may not have the first's, and one that is zero is not taken."""
    a = [4.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    b = [8.0, 1.0, 2.0, 0.0, 0.0, 1.0, 0.5, 0.0]
    added = of(cabs(1.0, 1.0, n=1, m=4), [8.0] * 8, a, b, directory=tmp_path)
    assert added == [4.0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 0.0]


def test_models_share_what_a_block_has_too_little_of(tmp_path: Path) -> None:
    """Two of four neighbours each: the third model finds none left and takes its own largest."""
    a, b, c = [4.0, 3.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0], [16.0, 8.0, 0.0, 32.0]
    added = of(cabs(1.0, 1.0, 1.0, n=2, m=4), [64.0] * 4, a, b, c, directory=tmp_path)
    assert added == [20.0, 3.0, 2.0, 33.0]


def test_differences_that_oppose_the_sum_have_no_weight(tmp_path: Path) -> None:
    """Where all of a model's scores are one size, those that are positive count alike."""
    a, b = [2.0, 2.0, 2.0, 2.0], [2.0, 2.0, -1.0, 2.0]
    method = pcb(1.0, 1.0)
    assert of(method, [8.0] * 4, a, a, directory=tmp_path / "a") == a
    assert of(method, [8.0] * 4, a, b, directory=tmp_path / "b") == [2.0, 2.0, 0.0, 2.0]
