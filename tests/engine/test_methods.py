"""Every method against the float64 references: dtypes and their mixtures, odd sizes, tiles crossed, 1 to 9 models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engine.toolkit import (
    Case,
    Method,
    Stored,
    assert_agrees,
    decode,
    encode,
    execute,
    karcher,
    linear,
    merge,
    merge_one,
    multislerp,
    of_rows,
    plan_of,
    ramplus,
    read_shard,
    slerp,
    task_arithmetic,
    ties,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def nuslerp(*weights: float, **switches: bool) -> Method:
    return {"nuslerp": {"weights": [*weights], "nuslerp_flatten": True, "nuslerp_row_wise": False} | switches}


def dare(
    weights: list[float],
    densities: list[float],
    models: list[int] | None = None,
    *,
    lambda_: float = 1.0,
    **switches: bool,
) -> Method:
    models = list(range(len(weights))) if models is None else models
    numbers = {"weights": weights, "densities": densities, "models": models, "lambda": lambda_}
    return {"dare_linear": {**numbers, "normalize": False, "rescale": True, **switches}}


SIZES = (1, 2, 3, 15, 17, 4095, 65535, 65536, 65537, 3 * 65536 + 5)

METHODS: dict[str, tuple[int, Method]] = {
    "scale": (1, {"scale": {"factor": -0.3}}),
    "linear of one": (1, linear(3.0)),
    "linear": (2, linear(0.3, 0.9)),
    "linear, not normalized": (3, linear(0.3, -0.7, 1.1, normalize=False)),
    "linear with a negative weight": (4, linear(0.5, -0.2, 0.4, 0.9)),
    "slerp": (2, slerp(0.3)),
    "slerp beyond": (2, slerp(1.4)),
    "task arithmetic": (4, task_arithmetic(0.3, -0.7, 1.1, lambda_=0.8)),
    "task arithmetic, normalized": (3, task_arithmetic(0.3, 0.9, normalize=True)),
    "ties": (4, ties([1.0, 0.5, 1.5], [0.5, 0.5, 0.5])),
    "ties of one": (2, ties([1.0], [0.2], normalize=False)),
    "ties with negative weights": (4, ties([0.5, -0.25, 1.5], [0.9, 0.3, 0.01], lambda_=0.7)),
    "ties with decimal weights": (4, ties([0.5, 0.3, 0.2], [0.9, 0.9, 0.9])),
    "ties with decimal weights that cancel": (4, ties([0.1, 0.2, -0.3], [1.0, 1.0, 1.0])),
    "ties by count": (4, ties([1.0, -0.5, 0.25], [0.5, 0.8, 1.0], vote="count")),
    "ties, rescaled": (4, ties([1.0, 0.5, 0.25], [0.1, 0.5, 0.7], rescale=True, normalize=False)),
    "nuslerp": (2, nuslerp(0.3, 0.9)),
    "nuslerp over a base": (3, nuslerp(0.3, 0.5)),
    "nuslerp of rows": (2, nuslerp(0.4, 0.2, nuslerp_flatten=False)),
    "nuslerp of columns": (2, nuslerp(0.4, 0.2, nuslerp_flatten=False, nuslerp_row_wise=True)),
    "multislerp over a base": (4, multislerp(0.3, 0.9, 0.5)),
    "multislerp, not normalized": (4, multislerp(0.3, 0.9, -0.5, normalize=False, eps=1e-3)),
    "karcher to the end": (4, karcher(1000, 1e-9)),
    "nearswap": (2, {"nearswap": {"t": 0.002}}),
    "ram": (4, {"ram": {"epsilon": 1e-3}}),
    "ram+": (4, ramplus(1e-3, 0.5, 0.9)),
    "dare": (4, dare([0.3, -0.7, 1.1], [0.5, 0.9, 0.1], lambda_=0.8)),
    "dare of models that are numbered": (4, dare([0.3, -0.7, 1.1], [0.5, 0.9, 0.1], [5, 2**32 - 1, 2])),
    "dare, not rescaled": (3, dare([0.3, 0.9], [0.4, 1.0], rescale=False, normalize=True)),
    **of_rows(),
}

# Where rows and columns have numbers of their own.
MATRICES = {
    "rows": (2, nuslerp(0.4, 0.2, nuslerp_flatten=False)),
    "columns": (2, nuslerp(0.4, 0.2, nuslerp_flatten=False, nuslerp_row_wise=True)),
    "rows over a base": (3, nuslerp(0.4, 0.2, nuslerp_flatten=False)),
    "columns over a base": (3, nuslerp(0.4, 0.2, nuslerp_flatten=False, nuslerp_row_wise=True)),
    "divergences of rows": (2, {"arcee_fusion": {}}),
}

# (dtype of the base or first model, of the second, ...), dtype of the output
MIXTURES = {
    "bf16": (("BF16", "BF16", "BF16", "BF16"), "BF16"),
    "f16": (("F16", "F16", "F16", "F16"), "F16"),
    "f32": (("F32", "F32", "F32", "F32"), "F32"),
    "f64": (("F64", "F64", "F64", "F64"), "F64"),
    "f32 base, 16-bit models": (("F32", "BF16", "F16", "BF16"), "BF16"),
    "bf16 base, f32 models": (("BF16", "F32", "F32", "F16"), "F16"),
    "bf16 to f32": (("BF16", "BF16", "BF16", "BF16"), "F32"),
    "f64 among others, to f32": (("BF16", "F64", "F32", "F16"), "F32"),
    "f32 to f64": (("F32", "F32", "BF16", "F32"), "F64"),
}


def family(seed: int, n: int, dtypes: tuple[str, ...]) -> tuple[Stored, ...]:
    """A base and its fine-tunes, as flat tensors of n elements; a third of each task vector is zero."""
    random = np.random.default_rng([seed, n])
    base = random.normal(0, 0.02, n)
    tuned = [base + random.normal(0, 0.003, n) * (random.random(n) < 0.67) for _ in dtypes[1:]]
    return tuple(encode(values, dtype) for values, dtype in zip([base, *tuned], dtypes, strict=True))


def assert_methods_agree(
    directory: Path, mixture: str, methods: Mapping[str, tuple[int, Method]], sizes: Sequence[int], seed: int
) -> None:
    """Each method, of so many inputs, agrees with its reference on tensors of all sizes."""
    dtypes, out = MIXTURES[mixture]
    families = {n: family(seed, n, dtypes) for n in sizes}
    cases = {
        f"{label}, n={n}": Case(method, sources[:inputs], out)
        for label, (inputs, method) in methods.items()
        for n, sources in families.items()
    }
    merged = merge(directory, cases, tile=65536)
    assert list(merged) == list(cases)
    for label, case in cases.items():
        assert_agrees(case, merged[label], label)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_methods_agree_with_their_references(tmp_path: Path, mixture: str) -> None:
    assert_methods_agree(tmp_path, mixture, METHODS, SIZES, seed=1)


@pytest.mark.parametrize("models", range(1, 10))
def test_any_number_of_models(tmp_path: Path, models: int) -> None:
    sources = family(2, 4099, ("BF16",) * (models + 1))
    weights = [0.5 + 0.25 * i for i in range(models)]
    densities = [0.3 + 0.07 * i for i in range(models)]
    cases = {
        "linear": Case(linear(*weights), sources[1:], "BF16"),
        "task arithmetic": Case(task_arithmetic(*weights, lambda_=0.5), sources, "BF16"),
        "ties": Case(ties(weights, densities), sources, "BF16"),
        "ties by count": Case(ties(weights, densities, vote="count", normalize=False), sources, "F32"),
        "multislerp": Case(multislerp(*weights), sources[1:], "BF16"),
        "multislerp over a base": Case(multislerp(*weights), sources, "F32"),
        "karcher": Case(karcher(), sources[1:], "F32"),
        "ram": Case({"ram": {"epsilon": 0.001}}, sources, "BF16"),
        "ram+": Case(ramplus(0.001, 0.3, 0.5), sources, "F32"),
    }
    merged = merge(tmp_path, cases)
    for label, case in cases.items():
        assert_agrees(case, merged[label], label)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1), (5, 7, 3)], ids=str)
def test_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    n = int(np.prod(shape))
    sources = tuple(Stored(s.dtype, s.data.reshape(shape)) for s in family(3, n, ("F16",) * 4))
    cases = {label: Case(method, sources[:inputs], "F16") for label, (inputs, method) in METHODS.items()}
    cases["copy"] = Case({"copy": {}}, sources[:1], "F32")
    merged = merge(tmp_path, cases)
    for label, case in cases.items():
        assert_agrees(case, merged[label], label)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([3.0, 4.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([1e-9, 2e-9], [3.0, 1.0]),  # a norm this small counts as 1
        ([1.0, 1.0], [1.0, 1.001]),  # nearly parallel: a straight line
        ([1e30, 2e30], [-3e30, 1e30]),  # whose squares f32 cannot hold
    ],
    ids=["one zero", "both zero", "opposite", "tiny", "nearly parallel", "huge"],
)
@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_slerp_at_its_corners(tmp_path: Path, a: list[float], b: list[float], dtype: str) -> None:
    case = Case(slerp(0.25), (encode(a, dtype), encode(b, dtype)), dtype)
    assert_agrees(case, merge(tmp_path, {"w": case})["w"], "slerp")


UNITS = tuple(round(0.001 * i, 3) for i in range(1, 400))
DRAWS = {
    # weights, direction of each delta, result in units: those that go up, averaged
    "a half against a third and a fifth": ([0.5, 0.3, 0.2], [1, -1, -1], 1.0),
    "the half goes down": ([0.5, 0.3, 0.2], [-1, 1, 1], 1.0),
    "two tenths against one twice as heavy": ([0.1, 0.1, 0.2], [-1, -1, 1], 1.0),
    "seven models": ([0.1, 0.2, 0.3, 0.15, 0.15, 0.1, 0.2], [1, 1, 1, -1, -1, -1, -1], 1.0),
}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("draw", DRAWS)
def test_votes_that_cancel_in_decimals_elect_plus(tmp_path: Path, draw: str, dtype: str) -> None:
    weights, signs, wanted = DRAWS[draw]
    exact = decode(encode(UNITS, dtype))  # (n,), and every delta is one of these or its opposite
    sources = [encode(np.zeros(len(exact)), dtype), *(encode(sign * exact, dtype) for sign in signs)]
    case = Case(ties(weights, [1.0] * len(weights)), tuple(sources), dtype)
    merged = decode(merge(tmp_path, {"w": case})["w"])
    assert merged == pytest.approx(wanted * exact, rel=1e-2)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
def test_weights_that_cancel_in_decimals_divide_by_one(tmp_path: Path, dtype: str) -> None:
    """All three agree, and 0.1 + 0.2 - 0.3 is no number to divide by."""
    sources = [encode([value], dtype) for value in (0.0, 1.0, 1.0, -1.0)]
    case = Case(ties([0.1, 0.2, -0.3], [1.0, 1.0, 1.0]), tuple(sources), dtype)
    assert decode(merge(tmp_path, {"w": case})["w"]) == pytest.approx([0.6], rel=1e-2)


def test_a_light_model_that_agrees_with_no_other_is_no_draw(tmp_path: Path) -> None:
    """Its weight is below the noise of the others', and it is the only one that moves."""
    sources = [encode([value], "F32") for value in (0.0, 0.0, 0.0, 1.0)]
    case = Case(ties([1.0, -1.0, -1e-7], [1.0, 1.0, 1.0]), tuple(sources), "F32")
    assert decode(merge(tmp_path, {"w": case})["w"]) == pytest.approx([1.0])


def test_a_divisor_that_cancels_counts_as_one(tmp_path: Path) -> None:
    """Models that agree with weights 1 and -1: TIES adds their votes up and divides by 1."""
    base, up, down = encode([1.0, 1.0], "F32"), encode([3.0, 0.0], "F32"), encode([0.0, 2.5], "F32")
    case = Case(ties([1.0, -1.0], [1.0, 1.0]), (base, up, down), "F32")
    merged = merge(tmp_path, {"w": case})["w"]
    assert merged.data.tolist() == [1 + 2 + 1, 1 - 1 - 1.5]


def test_trimming_is_per_tensor_and_per_model(tmp_path: Path) -> None:
    base = encode([0.0, 0.0, 0.0, 0.0], "F32")
    one, two = encode([1.0, 2.0, 3.0, 4.0], "F32"), encode([4.0, 3.0, 2.0, 1.0], "F32")
    case = Case(ties([1.0, 1.0], [0.25, 0.5], normalize=False), (base, one, two), "F32")
    assert merge(tmp_path, {"w": case})["w"].data.tolist() == [4.0, 3.0, 0.0, 4.0]


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("shape", [(301, 519), (70, 2100), (9001, 17), (5, 7, 3)], ids=str)
def test_numbers_of_rows_and_columns(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """Whatever tiles rows fall into, and whoever adds them up."""
    sources = tuple(Stored(s.dtype, s.data.reshape(shape)) for s in family(4, int(np.prod(shape)), (dtype,) * 3))
    cases = {label: Case(method, sources[:inputs], dtype) for label, (inputs, method) in MATRICES.items()}
    merged = merge(tmp_path / "one", cases, tile=65536, threads=1, simd="off")
    for label, case in cases.items():
        assert_agrees(case, merged[label], label)
    again = merge(tmp_path / "three", cases, tile=2 * 65536, threads=3)
    assert all(np.array_equal(again[label].data, merged[label].data) for label in cases)


def test_a_model_that_leaves_changes_nothing_that_the_others_draw(tmp_path: Path) -> None:
    base, *models = family(4, 4099, ("BF16",) * 4)
    weights, densities = [0.3, 0.0, 0.9], [0.5, 0.5, 0.2]
    case = Case(dare(weights, densities, [0, 1, 2]), (base, *models), "F32")
    alone = Case(dare([0.3, 0.9], [0.5, 0.2], [0, 2]), (base, models[0], models[2]), "F32")
    (all_three, two) = (
        merge_one(tmp_path / str(i), c.method, *c.sources, dtype="F32") for i, c in enumerate((case, alone))
    )
    np.testing.assert_array_equal(all_three.data, two.data)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_what_survives_at_random(tmp_path: Path, density: float) -> None:
    """As many as the density says, others for each model, tensor and seed, and the same ones every time."""
    n = 40_000
    zeros, ones = encode(np.zeros(n), "F32"), encode(np.ones(n), "F32")
    case = Case(dare([1.0, 1024.0], [density, density], rescale=False), (zeros, ones, ones), "F32")
    kept = []
    for seed in (0, 0, 1):
        directory = tmp_path / str(len(kept))
        execute(plan_of(directory, {"a": case, "b": case}, seed=seed), directory / "out.partial")
        for tensor in read_shard(directory / "out.partial" / "model.safetensors").values():
            values = decode(tensor)
            kept += [values % 1024.0 == 1.0, values >= 1024.0]
    same, others = kept[:4], kept[:4] + kept[8:]
    assert all(np.array_equal(mask, again) for mask, again in zip(same, kept[4:8], strict=True))
    spread = np.sqrt(density * (1 - density) / n)
    for i, mask in enumerate(others):
        assert abs(mask.mean() - density) < 5 * spread
        for other in others[:i]:
            assert abs((mask & other).mean() - density**2) < 5 * spread
