"""`precision: mergekit` in a plan: its ends of gradients, its first slice, its casts, and what it says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mol import run_merge
from mol.merge.stepwise import STEPWISE_NOTE
from tests.merge.models import make_llama, weights_of
from tests.merge.toolkit import based, linear, llamas, plan, problems, task, tensors
from tests.tiny import headers, llama, llama_config

if TYPE_CHECKING:
    from pathlib import Path

    from mol.merge.planned import PlannedMerge

AS_MERGEKIT = {"precision": "mergekit"}


def sources(*given: tuple[str, float], layers: tuple[int, int]) -> dict[str, Any]:
    return {
        "sources": [{"model": m, "layer_range": [*layers], "parameters": {"weight": weight}} for m, weight in given]
    }


def weights(planned: PlannedMerge, name: str) -> list[float]:
    method = task(planned, name)[0]
    inner = method["mergekit"]["by"] if "mergekit" in method else method
    found: list[float] = next(iter(inner.values()))["weights"]
    return found


def test_tensors_outside_the_layers_take_the_first_value_of_a_gradient() -> None:
    recipe = based("task_arithmetic", {"weight": [0.25, 0.5, 1.0]}, "b", "c")
    stepwise, exact = (plan(recipe | more, *llamas("a", "b", "c")) for more in (AS_MERGEKIT, {}))
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert weights(stepwise, name) == [0.25, 0.25]
    assert weights(exact, "lm_head.weight") == [1.0, 1.0]
    norm = "model.layers.3.input_layernorm.weight"
    assert weights(stepwise, norm) == weights(exact, norm) == [1.0, 1.0]


def test_what_lies_behind_the_layers_is_made_of_as_many_models_as_the_first_slice_has() -> None:
    recipe = {
        "merge_method": "linear",
        "slices": [
            sources(("a", 0.5), ("b", 0.5), layers=(0, 2)),
            sources(("c", 0.75), ("a", 0.2), ("b", 0.05), layers=(2, 4)),
        ],
    }
    stepwise, exact = (plan(recipe | more, *llamas("a", "b", "c")) for more in (AS_MERGEKIT, {}))
    assert weights(stepwise, "model.embed_tokens.weight") == [0.5, 0.5]
    assert weights(stepwise, "lm_head.weight") == [0.75, 0.2]
    assert weights(stepwise, "model.layers.3.mlp.up_proj.weight") == [0.75, 0.2, 0.05]
    assert weights(exact, "lm_head.weight") == [0.75, 0.2, 0.05]


def test_a_base_that_is_cut_off_is_a_problem() -> None:
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "a",
        "slices": [
            sources(("a", 1), ("b", 0.5), layers=(0, 2)),
            sources(("b", 0.75), ("c", 0.2), ("a", 1), layers=(2, 4)),
        ],
    }
    said = problems(recipe | AS_MERGEKIT, *llamas("a", "b", "c"))
    assert "made of the first 2 models of the last slice, and the base is not among them; list the base first" in said


def test_inputs_are_cast_to_the_dtype_of_the_recipe() -> None:
    planned = plan(linear(0.5, 0.5, **AS_MERGEKIT, dtype="float16", out_dtype="float32"), *llamas("a", "b"))
    made = planned.plan.tasks[0]
    assert not any("`dtype` has no effect" in note for note in planned.notes)
    assert made.by["mergekit"]["dtype"] == "F16"
    assert made.of == tuple({"cast": {"of": (i, planned.plan.tensors[0].name), "to": "F16"}} for i in (0, 1))
    assert {tensor.dtype for tensor in tensors(planned)} == {"F32"}
    plain = plan(linear(0.5, 0.5, **AS_MERGEKIT), *llamas("a", "b")).plan.tasks[0]
    assert plain.by["mergekit"]["dtype"] == "BF16"
    assert plain.of == ((0, planned.plan.tensors[0].name), (1, planned.plan.tensors[0].name))


def test_a_copy_is_cast_too() -> None:
    recipe = {"merge_method": "passthrough", "models": [{"model": "a"}], **AS_MERGEKIT}
    made = plan(recipe | {"dtype": "float16", "out_dtype": "float32"}, *llamas("a")).plan.tasks[0]
    assert "copy" in made.by
    assert made.of[0]["cast"]["to"] == "F16"  # type: ignore[call-overload, index]


def test_models_of_unlike_dtypes_need_one() -> None:
    models = [
        headers("a", llama(), llama_config(), {"": "F32"}),
        headers("b", llama(), llama_config(), {"": "BF16"}),
    ]
    said = problems(linear(0.5, 0.5, **AS_MERGEKIT), *models)
    assert "is BF16 and F32; `precision: mergekit` needs `dtype` then" in said
    assert plan(linear(0.5, 0.5, **AS_MERGEKIT, dtype="float32"), *models).plan.tasks


def test_f64_tensors_need_a_dtype() -> None:
    models = [headers(name, llama(), llama_config(), {"": "F64"}) for name in "ab"]
    said = problems(linear(0.5, 0.5, **AS_MERGEKIT), *models)
    assert "is F64, and `precision: mergekit` rounds to float32, float16 or bfloat16; add `dtype`" in said


def test_a_model_without_weight_takes_part() -> None:
    recipe = based("task_arithmetic", {"weight": 0}, "b", "c")
    assert weights(plan(recipe | AS_MERGEKIT, *llamas("a", "b", "c")), "lm_head.weight") == [0.0, 0.0]
    assert task(plan(recipe, *llamas("a", "b", "c")), "lm_head.weight")[0] == {"copy": {}}


def test_it_is_noted_and_methods_keep_their_names() -> None:
    planned = plan(linear(0.5, 0.5, **AS_MERGEKIT), *llamas("a", "b"))
    assert STEPWISE_NOTE in planned.notes
    assert set(planned.methods) == {"linear"}
    assert STEPWISE_NOTE not in plan(linear(0.5, 0.5), *llamas("a", "b")).notes


def test_a_stage_rounds_as_if_it_were_written(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        make_llama(tmp_path / name, seed, layers=3)

    def recipe(*names: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        models = [{"model": str(tmp_path / n) if len(n) == 1 else n, "parameters": {"weight": 0.3}} for n in names]
        return {"merge_method": "linear", "models": models, **AS_MERGEKIT, **more}

    stage, last = recipe("a", "b", name="stage"), recipe("stage", "c", name="result")
    run_merge("\n---\n".join(json.dumps(document) for document in (stage, last)), tmp_path / "at-once")
    run_merge(stage | {"name": None}, tmp_path / "first")
    run_merge(recipe("a", "b") | {"models": recipe(str(tmp_path / "first"), "c")["models"]}, tmp_path / "second")
    assert weights_of(tmp_path / "at-once").keys() == weights_of(tmp_path / "second").keys()
    for name, stored in weights_of(tmp_path / "at-once").items():
        assert stored.data.tobytes() == weights_of(tmp_path / "second")[name].data.tobytes(), name


def test_columns_lie_along_the_first_axis_of_each_tensor() -> None:
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
    recipe = {"merge_method": "nuslerp", "models": models, **AS_MERGEKIT}
    for parameters in ({}, {"nuslerp_flatten": False}):
        planned = plan(recipe | {"parameters": parameters}, *llamas("a", "b"))
        assert all("leading" not in made.method["mergekit"] for made in tensors(planned))
    parameters = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    planned = plan(recipe | {"parameters": parameters}, *llamas("a", "b"))
    assert [made.method["mergekit"]["leading"] for made in tensors(planned)] == [
        made.shape[0] for made in tensors(planned)
    ]
