"""The plan contract, from the fixture that rust/tests/plan.rs reads too."""

from __future__ import annotations

import json
from pathlib import Path

from mol.merge.plan import COPY, InputFile, MergePlan, Source, TensorTask, linear, scale, slerp, task_arithmetic, ties

FIXTURE = Path(__file__).parents[1] / "data" / "plan_v1.json"


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
