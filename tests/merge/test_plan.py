"""The plan contract, from the fixture that rust/tests/plan.rs reads too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mol import _rust
from mol.errors import MergeError
from mol.io.expressions import Leaf, leaves
from mol.merge.plan import COPY, InputFile, MergePlan, OutputTensor, Result, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.merge.plan import Method

FIXTURE = Path(__file__).parents[1] / "data" / "plan_v2.json"
CODES = {"scaled": {"of": Leaf(1, "b.q"), "by": Leaf(1, "b.q_scale"), "block": (128, 1)}}
ADAPTED = {"of": Leaf(0, "h"), "a": Leaf(1, "h.A"), "b": Leaf(1, "h.B"), "scale": 0.5, "magnitude": None}


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


def dare_linear(
    weights: Sequence[float], densities: Sequence[float], models: Sequence[int], *, lambda_: float, **more: bool
) -> Method:
    numbers = {"weights": weights, "densities": densities, "models": models}
    return {"dare_linear": {**numbers, "lambda": lambda_, **more}}


def test_the_plan_is_written_as_the_engine_reads_it() -> None:
    first, last = 0, 1
    plan = MergePlan(
        inputs=(
            InputFile("/models/base/model.safetensors", 4096, 1700000000123456789, "00ff"),
            InputFile("/models/d\u00e4ta +@1/model.safetensors", 1 << 40, 0, "a1b2"),
        ),
        outputs=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
        tensors=(
            OutputTensor("a.copied", "I64", (), first),
            OutputTensor("b.scaled", "F32", (3,), first),
            OutputTensor("c.averaged", "BF16", (2, 3), first),
            OutputTensor("d.interpolated", "F16", (0, 7), last),
            OutputTensor("e.added", "F64", (4,), last),
            OutputTensor("f.elected", "BF16", (4,), last),
            OutputTensor("f.thinned", "BF16", (4,), last),
            OutputTensor("g.experts", "BF16", (2, 3, 5), last),
            OutputTensor("h.embedding", "F32", (6, 5), last),
            OutputTensor("i.swept", "F32", (4,), last),
        ),
        tables={
            "v0": {
                "rows": 6,
                "runs": [(0, 1, 3), (4, 0, 1)],
                "fills": [(3, "zero"), (5, {"mean": [(Leaf(0, "h"), 2), (Leaf(1, "b.h"), 0)]})],
            }
        },
        tasks=(
            Task(0, COPY, (Leaf(0, "a"), Leaf(1, "b.a"))),
            Task(1, scale(-0.1), (Leaf(0, "b"),)),
            Task(2, linear([0.1, 2.5e-8], normalize=True), (Leaf(0, "c"), Leaf(1, "b.c"))),
            Task(3, slerp(1 / 3), (Leaf(0, "d"), Leaf(1, "b.d"))),
            Task(4, task_arithmetic([-1.0], normalize=False, lambda_=0.7), (Leaf(0, "e"), Leaf(1, 'b."e"\n'))),
            Task(
                5,
                ties([0.5, 1.0], [0.2, 1.0], normalize=True, rescale=False, lambda_=1.0, majority_sign_method="count"),
                (Leaf(0, "f"), Leaf(1, "b.f"), Leaf(1, "b.g")),
                also=(Result(9, task_arithmetic([0.25, 0.5], normalize=True, lambda_=1.5)),),
            ),
            Task(
                6,
                dare_linear([0.5, 1.0], [0.2, 1.0], [0, 2**32 - 1], normalize=False, rescale=True, lambda_=1.0),
                (Leaf(0, "f"), Leaf(1, "b.f"), Leaf(1, "b.g")),
            ),
            Task(
                7,
                COPY,
                (
                    {
                        "rows": {
                            "of": {"transpose": {"columns": {"of": Leaf(0, "g"), "from": 2, "to": 5}}},
                            "from": 0,
                            "to": 3,
                        }
                    },
                ),
            ),
            Task(
                7,
                linear([1.0, 1.0], normalize=True),
                (
                    {"stack": [Leaf(0, "g.1"), Leaf(0, "g.2")]},
                    {"cast": {"of": {"merged": {"by": scale(2.0), "of": [CODES]}}, "to": "BF16"}},
                ),
                row=3,
                reads=(Leaf(1, "b.fisher"),),
            ),
            Task(8, COPY, ({"gather": {"of": {"lora": ADAPTED}, "table": "v0"}},)),
        ),
        seed=7,
        allow_nonfinite=True,
    )
    assert json.loads(plan.to_json()) == json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert list(leaves(plan.tasks[-1].of)) == [Leaf(0, "h"), Leaf(1, "h.A"), Leaf(1, "h.B")]


@pytest.mark.parametrize("shapes", [[(2**62, 4)], [(2**63 - 1, 2)], [(2**59,), (2**59,), (2**59,)], [(2**64 - 1,)]])
def test_sizes_beyond_64_bits_are_an_error_with_a_message(shapes: list[tuple[int, ...]]) -> None:
    tensors = tuple(OutputTensor(f"t{i}", "F64", shape, 0) for i, shape in enumerate(shapes))
    tasks = tuple(Task(i, COPY, (Leaf(0, "a"),)) for i in range(len(shapes)))
    plan = MergePlan((InputFile("/a", 1, 0, "00"),), ("model.safetensors",), tensors, tasks).to_json()
    for ask in (_rust.plan_cost, _rust.plan_digest):
        with pytest.raises(MergeError, match="is more than any disk holds"):
            ask(plan)


def test_the_fuzzer_knows_the_words_of_every_method() -> None:
    known = set((Path(__file__).parents[2] / "fuzz" / "plan.dict").read_text().split())
    words = {word for name, numbers, _ in _rust.methods() for word in (name, *numbers)}
    assert {rf'"\"{word}\""' for word in words} <= known


def test_the_cost_of_many_threads_does_not_overflow() -> None:
    method = ties([1.0], [0.5], normalize=True, rescale=False, lambda_=1.0, majority_sign_method="total")
    tensor, task = OutputTensor("t", "F32", (1 << 20,), 0), Task(0, method, (Leaf(0, "a"), Leaf(1, "a")))
    plan = MergePlan((InputFile("/a", 1, 0, "00"),) * 2, ("model.safetensors",), (tensor,), (task,)).to_json()
    assert _rust.plan_cost(plan, threads=2**63)[2] >= 2**63
