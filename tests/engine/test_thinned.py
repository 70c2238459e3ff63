"""Methods that drop elements of task vectors at random or by rank: against their references, and laws among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.engine.test_methods import assert_methods_agree, family
from tests.engine.toolkit import (
    Case,
    Method,
    Stored,
    assert_agrees,
    encode,
    merge,
    merge_one,
    task_arithmetic,
    thin,
    ties,
)

if TYPE_CHECKING:
    from pathlib import Path

SIZES = (1, 2, 3, 17, 150, 65537, 3 * 65536 + 5)


CASES: dict[str, tuple[int, Method]] = {
    "dare_ties": (4, thin("dare_ties", [0.5, -0.25, 1.5], [0.5, 0.9, 0.1], rescale=True, lambda_=0.8)),
    "dare_ties, normalized": (4, thin("dare_ties", [0.5, 0.25, 1.5], [0.5, 0.9, 0.1], normalize=True)),
    "dare_ties of one": (2, thin("dare_ties", [0.5], [0.3])),
    "breadcrumbs": (4, thin("breadcrumbs", [0.5, -0.25, 1.5], [0.5, 0.9, 0.1], gammas=[0.01, 0.2, 0.5])),
    "breadcrumbs, rescaled": (
        3,
        thin("breadcrumbs", [0.5, 1.0], [0.3, 0.4], gammas=[0.1, 0.0], rescale=True, normalize=True, lambda_=1.5),
    ),
    "breadcrumbs_ties": (4, thin("breadcrumbs_ties", [1.0, 0.5, 1.5], [0.9, 0.9, 0.5], gammas=[0.01, 0.05, 0.1])),
    "breadcrumbs_ties, normalized": (
        4,
        thin("breadcrumbs_ties", [1.0, -0.5, 1.5], [0.9, 1.0, 0.0], gammas=[0.2, 0.3, 0.1], normalize=True),
    ),
    "breadcrumbs_ties, rescaled": (3, thin("breadcrumbs_ties", [1.0, 2.0], [0.5, 0.2], gammas=[1, 0], rescale=True)),
}

ROWS = {
    "della": (4, thin("della", [0.5, -0.25, 1.5], [0.5, 0.9, 0.1], epsilons=[0.15, 0.05, 0.09], rescale=True)),
    "della, normalized": (
        4,
        thin("della", [0.5, 0.25, 1.5], [0.5, 1.0, 0.3], epsilons=[0.4, 0.5, 0.0], normalize=True, models=[3, 0, 1]),
    ),
    "della_linear": (3, thin("della_linear", [0.5, 0.75], [0.5, 0.0], epsilons=[0.2, 0.2], rescale=True, lambda_=0.7)),
}
CASES |= ROWS
CASES |= {f"sce {share}": (4, {"sce": {"select_topk": share}}) for share in (1.0, 0.7, 0.05)}
CASES |= {"sce of two": (3, {"sce": {"select_topk": 0.5}}), "sce of one": (2, {"sce": {"select_topk": 0.5}})}


@pytest.mark.parametrize("mixture", ["bf16", "f16", "f32", "f64", "f32 base, 16-bit models", "bf16 to f32"])
def test_they_agree_with_their_references(tmp_path: Path, mixture: str) -> None:
    assert_methods_agree(tmp_path, mixture, CASES, SIZES, seed=5)


@pytest.mark.parametrize("dtype", ["BF16", "F64"])  # an F32 result is computed in f64 by some of them only
@pytest.mark.parametrize(
    "name", ["breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear"]
)
def test_where_nothing_is_dropped_it_is_the_dense_method(tmp_path: Path, name: str, dtype: str) -> None:
    sources = family(6, 70_001, (dtype,) * 3)
    more = {word: [0.3, 0.0] for start, word in (("b", "gammas"), ("del", "epsilons")) if name.startswith(start)}
    weights, full = [0.5, -0.75], [1.0, 1.0]
    dense = task_arithmetic(*weights) if name.endswith(("linear", "crumbs")) else ties(weights, full, normalize=False)
    thinned = thin(name, weights, full, rescale=True, **more)
    cases = {label: Case(method, sources, dtype) for label, method in (("dense", dense), ("thinned", thinned))}
    merged = merge(tmp_path, cases)
    np.testing.assert_array_equal(merged["dense"].data, merged["thinned"].data)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_identical_models_give_that_model(tmp_path: Path, dtype: str) -> None:
    model = encode(np.random.default_rng(12).normal(0, 0.02, 70_001), dtype)
    cases = {label: Case(method, (model,) * inputs, dtype) for label, (inputs, method) in CASES.items()}
    for label, merged in merge(tmp_path, cases).items():
        assert merged.data.tobytes() == model.data.tobytes(), label


def test_breadcrumbs_without_gamma_trim_as_ties_does(tmp_path: Path) -> None:
    """Among equal magnitudes too: those of lowest index survive."""
    random = np.random.default_rng(7)
    sources = [encode(random.integers(-3, 4, 70_001) / 8, "F32") for _ in range(3)]
    trimmed = ties([1.0, 0.5], [0.4, 0.7], rescale=True)
    crumbs = thin("breadcrumbs_ties", [1.0, 0.5], [0.4, 0.7], gammas=[0.0, 0.0], rescale=True, normalize=True)
    one, two = (merge_one(tmp_path / name, by, *sources) for name, by in (("a", trimmed), ("b", crumbs)))
    np.testing.assert_array_equal(one.data, two.data)


@pytest.mark.parametrize(
    ("density", "gamma", "kept"),
    [
        (0.4, 0.0, [5.0, 0, -4.0, 0, 0]),
        (0.4, 0.2, [0, 0, -4.0, 3.0, 0]),
        (0.4, 0.5, [0, 0, 0, 3.0, 2.0]),  # of the second half, 2.5 elements, two
        (0.4, 1.0, [0, 1.0, 0, 0, 2.0]),  # as many of the smallest as the density says
        (0.19, 0.0, [0, 0, 0, 0, 0]),  # less than one
        (1.0, 0.4, [5.0, 1.0, -4.0, 3.0, 2.0]),  # a density of 1 leaves all as they are
    ],
)
def test_breadcrumbs_by_hand(tmp_path: Path, density: float, gamma: float, kept: list[float]) -> None:
    base, model = encode(np.zeros(5), "F32"), encode([5.0, 1.0, -4.0, 3.0, 2.0], "F32")
    merged = merge_one(tmp_path, thin("breadcrumbs", [1.0], [density], gammas=[gamma]), base, model)
    assert merged.data.tolist() == kept


def test_of_equal_magnitudes_the_first_count_as_the_largest(tmp_path: Path) -> None:
    n = 3 * 65536 + 5
    base, model = encode(np.zeros(n), "BF16"), encode(np.ones(n), "BF16")
    cut, kept = 70_000, 60_000
    method = thin("breadcrumbs", [1.0], [(kept + 0.5) / n], gammas=[(cut + 0.5) / n])
    merged = merge(tmp_path, {"w": Case(method, (base, model), "BF16")}, tile=65536)["w"]
    assert np.flatnonzero(merged.data).tolist() == list(range(cut, cut + kept))


@pytest.mark.parametrize("models", range(1, 10))
def test_any_number_of_models(tmp_path: Path, models: int) -> None:
    sources = family(11, 4099, ("BF16",) * (models + 1))
    weights, densities = [0.5 + 0.25 * i for i in range(models)], [0.3 + 0.05 * i for i in range(models)]
    more: dict[str, dict[str, Any]] = {"breadcrumbs": {"gammas": [0.1] * models}, "della": {"epsilons": [0.2] * models}}
    cases = {
        name: Case(thin(name, weights, densities, **more.get(name, {})), sources, "BF16")
        for name in ("dare_ties", *more)
    }
    cases["sce"] = Case({"sce": {"select_topk": 0.3}}, sources, "F32")
    merged = merge(tmp_path, cases)
    for label, case in cases.items():
        assert_agrees(case, merged[label], label)


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        (1.0, [4.0, 2.0, 2.0, 1.0, 2.0]),
        (0.75, [4.0, 2.0, 2.0, 0, 0]),  # three of the four on which they differ
        (0.5, [4.0, 2.0, 0, 0, 0]),  # the third varies as much as the second
        (0.24, [0, 0, 0, 0, 0]),  # less than one
    ],
)
def test_sce_by_hand(tmp_path: Path, share: float, wanted: list[float]) -> None:
    """On the fourth element they agree, on the fifth one alone moves."""
    models = [[4.0, -1.0, -1.0, 1.0, 0.0], [-1.0, 2.0, 2.0, 1.0, 2.0]]
    base, one, two = (encode(values, "F32") for values in ([0.0] * 5, *models))
    merged = merge_one(tmp_path, {"sce": {"select_topk": share}}, base, one, two)
    assert merged.data.tolist() == wanted


@pytest.mark.parametrize("models", [2, 3, 4, 5])  # five are read in another way
@pytest.mark.parametrize("kind", ["few differ", "none differs", "all vary alike", "grid"])
def test_sce_selects_of_a_large_tensor(tmp_path: Path, kind: str, models: int) -> None:
    """With more elements than a search collects at once; of those that vary alike the first are selected."""
    random, n = np.random.default_rng(31), 3 * 65536 + 5
    moved = {
        "few differ": lambda: np.where(np.arange(n) % 97 == 5, random.normal(0, 1, n), 0.0),
        "none differs": lambda: np.ones(n),
        "all vary alike": lambda: np.full(n, random.normal()),
        "grid": lambda: random.integers(-2, 3, n) / 8,
    }[kind]
    base = random.integers(-8, 9, n) / 16
    sources = tuple(encode(values, "F32") for values in (base, *(base + moved() for _ in range(models))))
    cases = {f"{share}": Case({"sce": {"select_topk": share}}, sources, "F32") for share in (0.01, 0.5, 0.999)}
    for label, merged in merge(tmp_path, cases).items():
        assert_agrees(cases[label], merged, label)


def test_dare_ties_drops_what_dare_linear_drops(tmp_path: Path) -> None:
    base, model = encode(np.zeros(50_000), "F32"), encode(np.ones(50_000), "F32")
    cases = {
        name: merge(tmp_path / name, {"w": Case(thin(name, [1.0], [0.3]), (base, model), "F32")})["w"]
        for name in ("dare_linear", "dare_ties")
    }
    np.testing.assert_array_equal(cases["dare_linear"].data, cases["dare_ties"].data)
    assert 0.29 < cases["dare_ties"].data.mean() < 0.31


def test_votes_that_cancel_elect_plus_in_whatever_is_left(tmp_path: Path) -> None:
    units = encode(np.arange(1, 400) / 1000, "BF16")
    down = Stored("BF16", units.data ^ 0x8000)
    base = encode(np.zeros(399), "BF16")
    method = thin("dare_ties", [0.5, 0.3, 0.2], [1.0] * 3, normalize=True)
    merged = merge_one(tmp_path, method, base, units, down, down)
    np.testing.assert_array_equal(merged.data, units.data)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize(
    "shape", [(301, 519), (70, 2100), (9001, 17), (5, 7, 3), (1003, 1), (3, 1, 65), (2, 70_000)], ids=str
)
def test_rows_are_ranked_each_by_itself(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Whatever tiles rows fall into, and whoever sorts them."""
    sources = tuple(Stored(s.dtype, s.data.reshape(shape)) for s in family(8, int(np.prod(shape)), (dtype,) * 4))
    cases = {label: Case(method, sources[:inputs], dtype) for label, (inputs, method) in ROWS.items()}
    merged = merge(tmp_path / "one", cases, tile=65536, threads=1, simd="off")
    for label, case in cases.items():
        assert_agrees(case, merged[label], label)
    again = merge(tmp_path / "three", cases, tile=2 * 65536, threads=3)
    assert all(np.array_equal(again[label].data, merged[label].data) for label in cases)


@pytest.mark.parametrize("columns", [100, 4000])
def test_the_larger_an_element_of_a_row_the_likelier_it_survives(tmp_path: Path, columns: int) -> None:
    rows = 400_000 // columns
    shuffled = np.random.default_rng(9).permuted(np.tile(np.arange(1.0, columns + 1), (rows, 1)), axis=1)
    base, model = encode(np.zeros((rows, columns)), "F32"), encode(shuffled, "F32")
    method = thin("della_linear", [1.0], [0.5], epsilons=[0.4])
    kept = merge_one(tmp_path, method, base, model).data != 0
    for part in range(4):
        inside = (shuffled > part * columns / 4) & (shuffled <= (part + 1) * columns / 4)
        assert abs(kept[inside].mean() - (0.2 + 0.2 * part)) < 0.01  # 100,000 elements each


def test_della_without_epsilon_drops_what_dare_drops(tmp_path: Path) -> None:
    sources = family(10, 70_001, ("F64",) * 3)
    della = thin("della_linear", [1.0, 0.5], [0.3, 0.6], epsilons=[0.0, 0.0])
    merged = [
        merge_one(tmp_path / str(i), by, *sources)
        for i, by in enumerate((della, thin("dare_linear", [1.0, 0.5], [0.3, 0.6])))
    ]
    np.testing.assert_array_equal(merged[0].data, merged[1].data)
