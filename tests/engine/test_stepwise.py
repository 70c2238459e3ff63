"""Methods in the arithmetic of mergekit: the bits that torch gives, operation by operation, in odd shapes."""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from mol.errors import MergeError
from tests.engine import stepwise
from tests.engine.toolkit import Case, Stored, execute, linear, merge, plan_of, slerp, task_arithmetic, thin, ties

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# One element, below a vector, tails of one to seven, rows of odd length, whole vectors, and one with many tiles.
SHAPES = ((1,), (3,), (7,), (8,), (9,), (14,), (31,), (2, 16), (5, 13), (3, 11, 7), (33, 65), (301, 403))
# One row, one column, neither vectors nor four columns, vectors that only some dtypes fill, more than a panel.
BY_COLUMNS = ((1, 9), (40, 1), (300, 3), (130, 12), (70, 16), (6, 1, 1), (40, 3, 1), (1, 4, 5), (4, 3, 2, 5), (9, 2100))


def nuslerp(*, flatten: bool, by_columns: bool = False) -> dict[str, Any]:
    return {"nuslerp": {"weights": [0.5, 0.3], "nuslerp_flatten": flatten, "nuslerp_row_wise": by_columns}}


METHODS = {
    "scale": (1, {"scale": {"factor": 0.7}}),
    "linear": (3, linear(0.5, 0.3, 0.4)),
    "linear, one": (1, linear(0.3)),
    "linear, summed": (4, linear(0.5, -0.3, 0.4, 0.0, normalize=False)),
    "nearswap": (2, {"nearswap": {"t": 0.001}}),
    "task_arithmetic": (4, task_arithmetic(0.5, 0.3, 0.4)),
    "task_arithmetic, normalized": (4, task_arithmetic(0.5, -0.3, 0.4, normalize=True, lambda_=0.8)),
    "task_arithmetic, nearly cancelling": (3, task_arithmetic(0.5, -0.4, normalize=True)),
    "task_arithmetic, seven": (8, task_arithmetic(0.5, 0.3, 0.4, 0.1, -0.7, 0.9, 0.2, normalize=True)),
    "ties": (4, ties([0.5, 0.3, 0.4], [0.6, 0.35, 1.0])),
    "ties, a negative weight": (4, ties([0.5, -0.3, 0.4], [0.6, 0.0, 0.8], normalize=False, lambda_=1.2)),
    "ties, six": (7, ties([0.5, 0.3, 0.4, 0.2, 0.8, 0.1], [1.0, 0.5, 0.7, 0.2, 0.9, 0.4])),
    "ram": (4, {"ram": {"epsilon": 0.05}}),
    "ram, six": (7, {"ram": {"epsilon": 1e-5}}),
    "ramplus_tl": (4, {"ramplus_tl": {"epsilon": 0.05, "r": 0.5, "alpha": 1.0}}),
    "ramplus_tl, six": (7, {"ramplus_tl": {"epsilon": 0.13, "r": -7.3, "alpha": 30.0}}),
    "breadcrumbs": (3, thin("breadcrumbs", [0.5, 0.3], [0.6, 0.35], gammas=[0.05, 0.1], normalize=True, lambda_=0.9)),
    "breadcrumbs_ties": (3, thin("breadcrumbs_ties", [0.5, 0.3], [0.6, 1.0], gammas=[0.0, 0.3])),
    "ties, rescaled": (4, ties([0.5, 0.3, 0.4], [0.6, 0.35, 1.0], rescale=True)),
    "breadcrumbs, rescaled": (3, thin("breadcrumbs", [0.5, 0.3], [0.6, 0.35], gammas=[0.05, 0.1], rescale=True)),
    "model_stock": (3, {"model_stock": {"filter_wise": False}}),
    "model_stock, five": (6, {"model_stock": {"filter_wise": False}}),
    "model_stock by rows": (6, {"model_stock": {"filter_wise": True}}),
    "sce": (4, {"sce": {"select_topk": 1.0}}),
    "sce of some": (4, {"sce": {"select_topk": 0.4}}),
    "sce of nearly all": (4, {"sce": {"select_topk": 1 - 1e-9}}),
    "sce of some, six": (7, {"sce": {"select_topk": 0.4}}),
    "multislerp": (3, {"multislerp": {"weights": [0.5, 0.3, 0.7], "normalize": True, "eps": 1e-8}}),
    "multislerp, two": (2, {"multislerp": {"weights": [0.5, 0.3], "normalize": True, "eps": 1e-8}}),
    "multislerp of differences": (
        5, {"multislerp": {"weights": [0.5, 0.3, 0.7, 0.2], "normalize": False, "eps": 1e-8}}
    ),
    "multislerp, one": (2, {"multislerp": {"weights": [0.5], "normalize": True, "eps": 1e-8}}),
    "nuslerp": (2, nuslerp(flatten=True)),
    "nuslerp of differences": (3, nuslerp(flatten=True)),
    "nuslerp by rows": (3, nuslerp(flatten=False)),
    "nuslerp by columns": (2, nuslerp(flatten=False, by_columns=True)),
    "nuslerp of differences by columns": (3, nuslerp(flatten=False, by_columns=True)),
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="the order of torch's sums is that of vectors of eight",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stored(tensor: torch.Tensor, dtype: str) -> Stored:
    return Stored(dtype, tensor.view(torch.uint16).numpy() if dtype == "BF16" else tensor.numpy())


def as_mergekit(case: Case) -> Case:
    source = case.sources[0]
    more = {"leading": len(source.data)} if case.method.get("nuslerp", {}).get("nuslerp_row_wise") else {}
    return replace(case, method={"mergekit": {"dtype": source.dtype, "by": case.method, **more}})


def made(tmp_path: Path, cases: dict[str, Case]) -> dict[str, Stored]:
    return merge(tmp_path, {name: as_mergekit(case) for name, case in cases.items()})


def models(shape: tuple[int, ...], count: int, dtype: str, seed: int) -> list[torch.Tensor]:
    """A base and models near it; some values are the base's, and many differences are equal in 16 bits."""
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=random)
    found = [base]
    for _ in range(count - 1):
        delta = 0.1 * torch.randn(shape, generator=random) * (torch.rand(shape, generator=random) < 0.8)
        found.append(base + delta)
    return [model.to(DTYPES[dtype]) for model in found]


def expected(method: dict[str, Any], xs: list[torch.Tensor]) -> torch.Tensor:
    ((name, numbers),) = method.items()
    words = {"lambda": "lambda_"}
    made: torch.Tensor = getattr(stepwise, name)(*xs, **{words.get(word, word): n for word, n in numbers.items()})
    return made


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_bit_is_torchs(tmp_path: Path, name: str, dtype: str) -> None:
    count, method = METHODS[name]
    shapes = (*SHAPES, *BY_COLUMNS) if "columns" in name else SHAPES
    given = {str(shape): models(shape, count, dtype, seed) for seed, shape in enumerate(shapes)}
    # What is not finite is refused.
    truths = {key: truth for key, xs in given.items() if (truth := expected(method, xs)).isfinite().all()}
    # Some results are f32 whatever the dtype is.
    out = {key: "F32" if truth.dtype == torch.float32 else dtype for key, truth in truths.items()}
    cases = {key: Case(method, tuple(stored(x, dtype) for x in given[key]), out[key]) for key in truths}
    found = made(tmp_path, cases)
    for key in truths:
        truth = stored(truths[key], out[key])
        # A zero that nothing changes may have either sign.
        assert (
            np.array_equal(found[key].data + 0, truth.data + 0) or found[key].data.tobytes() == truth.data.tobytes()
        ), key


@pytest.mark.parametrize("t", [0.4, 1.3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slerp_sums_as_torch(tmp_path: Path, dtype: str, t: float) -> None:
    given = {}
    for seed, shape in enumerate((*SHAPES, (1025, 1031))):  # the last one is longer than a chunk
        random = torch.Generator().manual_seed(seed)
        given[str(shape)] = [torch.randn(shape, generator=random).to(DTYPES[dtype]) for _ in "ab"]
    given["parallel"] = [given["(31,)"][0], given["(31,)"][0] * 2]
    given["zero"] = [given["(31,)"][0] * 0, given["(31,)"][1]]
    cases = {key: Case(slerp(t), tuple(stored(x, dtype) for x in xs), dtype) for key, xs in given.items()}
    for key, found in made(tmp_path, cases).items():
        exact = stored(stepwise.slerp(*given[key], t=t, own=False), dtype)
        assert found.data.tobytes() == exact.data.tobytes(), key
        # torch's sines and arc cosines are off by a unit now and then.
        theirs = stepwise.slerp(*given[key], t=t)
        ours = torch.from_numpy(found.data.copy()).view(DTYPES[dtype])
        largest = torch.maximum(given[key][0].abs(), given[key][1].abs()).float()
        near = torch.finfo(torch.float32).eps * 8 * largest + torch.finfo(DTYPES[dtype]).eps * theirs.abs().float()
        assert ((ours.float() - theirs.float()).abs() <= near).all(), key


def test_the_result_hangs_on_neither_tiles_nor_threads(tmp_path: Path) -> None:
    xs = tuple(stored(x, "BF16") for x in models((77, 1013), 3, "BF16", 1))
    cases = {
        "ties": as_mergekit(Case(ties([0.5, 0.3], [0.6, 0.35]), xs, "BF16")),
        "slerp": as_mergekit(Case(slerp(0.3), xs[:2], "BF16")),
        "nuslerp by columns": as_mergekit(Case(nuslerp(flatten=False, by_columns=True), xs, "BF16")),
    }
    one = merge(tmp_path / "one", cases, threads=1)
    other = merge(tmp_path / "other", cases, threads=3, tile=1 << 16)
    assert all(one[key].data.tobytes() == other[key].data.tobytes() for key in cases)


@pytest.mark.parametrize(
    ("method", "dtype", "message"),
    [
        (ties([0.5], [0.5], vote="count"), "BF16", "signs are elected by `total` in the arithmetic of mergekit"),
        (
            nuslerp(flatten=False, by_columns=True),
            "BF16",
            "`nuslerp_row_wise` needs `leading`, the length of the first axis, in the arithmetic of mergekit",
        ),
        ({"karcher": {"max_iter": 10, "tol": 1e-5}}, "BF16", "is not among the methods in the arithmetic of mergekit"),
        (slerp(0.5), "F64", "operations are rounded to BF16, F16 or F32, not to F64"),
    ],
)
def test_refusals(tmp_path: Path, method: dict[str, Any], dtype: str, message: str) -> None:
    sources = tuple(stored(x, "BF16") for x in models((8,), 2, "BF16", 0))
    plan = plan_of(tmp_path, {"w": Case({"mergekit": {"dtype": dtype, "by": method}}, sources, "BF16")})
    with pytest.raises(MergeError, match=message):
        execute(plan, tmp_path / "out.partial")


def test_the_first_axis_has_to_divide_the_tensor(tmp_path: Path) -> None:
    sources = tuple(stored(x, "BF16") for x in models((8,), 2, "BF16", 0))
    method = {"mergekit": {"dtype": "BF16", "by": nuslerp(flatten=False, by_columns=True), "leading": 3}}
    plan = plan_of(tmp_path, {"w": Case(method, sources, "BF16")})
    with pytest.raises(MergeError, match=r"8 elements do not divide into 3 rows \(`leading`\)"):
        execute(plan, tmp_path / "out.partial")


def test_sources_in_f64_have_to_be_cast(tmp_path: Path) -> None:
    sources = tuple(Stored("F64", np.ones(8)) for _ in "ab")
    plan = plan_of(tmp_path, {"w": Case({"mergekit": {"dtype": "BF16", "by": slerp(0.5)}}, sources, "BF16")})
    with pytest.raises(MergeError, match="sources in F64, wanted BF16; `cast` them"):
        execute(plan, tmp_path / "out.partial")
