"""The plan contract, from the fixture that rust/tests/plan.rs reads too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mol import _rust
from mol.errors import MergeError
from mol.merge.plan import COPY, InputFile, MergePlan, Source, TensorTask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.merge.plan import Method

FIXTURE = Path(__file__).parents[1] / "data" / "plan_v1.json"


def scale(factor: float) -> Method:
    return {"scale": {"factor": factor}}


def linear(weights: Sequence[float], *, normalize: bool) -> Method:
    return {"linear": {"weights": weights, "normalize": normalize}}


def slerp(t: float) -> Method:
    return {"slerp": {"t": t}}


def task_arithmetic(weights: Sequence[float], *, normalize: bool, lambda_: float) -> Method:
    return {"task_arithmetic": {"weights": weights, "normalize": normalize, "lambda": lambda_}}


def ties(weights: Sequence[float], densities: Sequence[float], *, lambda_: float, **more: Any) -> Method:  # noqa: ANN401
    return {"ties": {"weights": weights, "densities": densities, "lambda": lambda_, **more}}


def test_every_method_is_written_as_the_engine_reads_it() -> None:
    first, last = 0, 1
    plan = MergePlan(
        inputs=(
            InputFile("/models/base/model.safetensors", 4096, 1700000000123456789, "00ff"),
            InputFile("/models/d\u00e4ta +@1/model.safetensors", 1 << 40, 0, "a1b2"),
        ),
        outputs=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        tasks=(
            TensorTask("a.copied", "I64", (), first, COPY, (Source(0, "a"), Source(1, "b.a"))),
            TensorTask("b.scaled", "F32", (3,), first, scale(-0.1), (Source(0, "b"),)),
            TensorTask(
                "c.averaged",
                "BF16",
                (2, 3),
                first,
                linear([0.1, 2.5e-8], normalize=True),
                (Source(0, "c"), Source(1, "b.c")),
            ),
            TensorTask("d.interpolated", "F16", (0, 7), last, slerp(1 / 3), (Source(0, "d"), Source(1, "b.d"))),
            TensorTask(
                "e.added",
                "F64",
                (4,),
                last,
                task_arithmetic([-1.0], normalize=False, lambda_=0.7),
                (Source(0, "e"), Source(1, 'b."e"\n')),
            ),
            TensorTask(
                "f.elected",
                "BF16",
                (4,),
                last,
                ties([0.5, 1.0], [0.2, 1.0], normalize=True, rescale=False, lambda_=1.0, majority_sign_method="count"),
                (Source(0, "f"), Source(1, "b.f"), Source(1, "b.g")),
            ),
        ),
        seed=7,
        allow_nonfinite=True,
    )
    assert json.loads(plan.to_json()) == json.loads(FIXTURE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("shapes", [[(2**62, 4)], [(2**63 - 1, 2)], [(2**59,), (2**59,), (2**59,)], [(2**64 - 1,)]])
def test_sizes_beyond_64_bits_are_an_error_in_words(shapes: list[tuple[int, ...]]) -> None:
    tasks = [TensorTask(f"t{i}", "F64", shape, 0, COPY, (Source(0, "a"),)) for i, shape in enumerate(shapes)]
    plan = MergePlan((InputFile("/a", 1, 0, "00"),), ("model.safetensors",), tuple(tasks)).to_json()
    for ask in (_rust.plan_cost, _rust.plan_digest):
        with pytest.raises(MergeError, match="is more than any disk holds"):
            ask(plan)


def test_the_cost_of_many_threads_does_not_overflow() -> None:
    task = TensorTask("t", "F32", (1 << 20,), 0, ties([1.0], [0.5], normalize=True, rescale=False, lambda_=1.0,
                      majority_sign_method="total"), (Source(0, "a"), Source(1, "a")))  # fmt: skip
    plan = MergePlan((InputFile("/a", 1, 0, "00"),) * 2, ("model.safetensors",), (task,)).to_json()
    assert _rust.plan_cost(plan, threads=2**63)[1] >= 2**63
