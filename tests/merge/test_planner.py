"""What the planner does with each tensor: its method, its partners by name, its dtype, its file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.merge.toolkit import based, linear, llamas, plan, problems, sliced, task, tensors
from tests.tiny import bert, bert_config, gpt2, gpt2_config, headers, llama, llama_config

# What is done


def test_no_more_models_can_need_a_value_than_there_are() -> None:
    recipe = based("consensus_ta", {"weight": 1}, "b", "c", parameters={"k": 3})
    assert "`k` is 3, and there are 2 models next to the base" in problems(recipe, *llamas(*"abc"))


def test_every_tensor_is_merged_in_natural_order() -> None:
    planned = plan(linear(0.25, 0.75), *llamas("a", "b", layers=12))
    names = [t.name for t in tensors(planned)]
    assert names[0] == "model.embed_tokens.weight"
    assert names[-2:] == ["lm_head.weight", "model.norm.weight"]
    order = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert order == sorted(order)
    assert set(names) == set(llama(12))
    assert planned.methods == {"linear": len(names)}
    assert (planned.copied, planned.dropped, planned.warnings) == ((), (), ())
    name = "model.layers.10.mlp.up_proj.weight"
    assert task(planned, name) == ({"linear": {"weights": [0.25, 0.75], "normalize": True}}, [(0, name), (1, name)])


@pytest.mark.parametrize(
    ("recipe", "sources"),
    [
        (linear(1, 0), ["a"]),
        (linear(0, 1), ["b"]),
        (linear(0, 3), ["b"]),
        (linear(0, 1, parameters={"normalize": False}), ["b"]),
        (based("slerp", {}, "a", "b", parameters={"t": 0}), ["a"]),
        (based("slerp", {}, "a", "b", parameters={"t": 1}), ["b"]),
        (based("slerp", {}, "b", "a", parameters={"t": 0}), ["a"]),
        (based("ties", {"weight": 1, "density": 0}, "b"), ["a"]),
        (based("ties", {"weight": 0, "density": 0.5}, "b"), ["a"]),
        (based("task_arithmetic", {"weight": 0}, "b"), ["a"]),
        (based("task_arithmetic", {"weight": 1}, "b", parameters={"lambda": 0}), ["a"]),
    ],
)
def test_what_is_one_model_becomes_a_copy(recipe: dict[str, Any], sources: list[str]) -> None:
    planned = plan(recipe, *llamas("a", "b"))
    assert planned.methods == {"copy": len(llama())}
    assert [file.path for file in planned.plan.inputs] == [f"/models/{name}/model.safetensors" for name in sources]
    assert {len(t.sources) for t in tensors(planned)} == {1}


def test_weightless_models_are_left_out() -> None:
    planned = plan(linear(0.5, 0, 0.5), *llamas("a", "b", "c"))
    method, sources = task(planned, "model.norm.weight")
    assert method == {"linear": {"weights": [0.5, 0.5], "normalize": True}}
    assert sources == [(0, "model.norm.weight"), (1, "model.norm.weight")]
    assert [file.path.split("/")[2] for file in planned.plan.inputs] == ["a", "c"]


@pytest.mark.parametrize("names", ["bcd", "bacd", "bcda"])
def test_models_draw_by_their_position_among_the_models_of_the_recipe(names: str) -> None:
    """Neither a model that leaves nor where the base is listed, if it is, changes what the others draw."""
    recipe = based("dare_linear", {"weight": 0.5, "density": 0.5}, *names)
    recipe["models"][names.index("c")]["parameters"] = {"weight": 1, "density": 0}
    method, sources = task(plan(recipe, *llamas("a", "b", "c", "d")), "model.norm.weight")
    assert (method["dare_linear"]["models"], len(sources)) == ([0, 2], 3)


def test_a_model_without_any_influence_is_reported() -> None:
    says = "b has no effect: the recipe gives it no weight in any tensor"
    assert plan(linear(1, 0), *llamas("a", "b")).notes == (says,)
    recipe = based("ties", {"weight": [{"filter": "lm_head", "value": 1}, {"value": 0}]}, "b", "c")
    recipe["models"][1]["parameters"] = {"weight": 1, "density": 0}
    assert plan(recipe, *llamas("a", "b", "c")).notes == (says.replace("b has", "c has"),)


def test_a_weight_of_one_without_normalization_next_to_others_is_no_copy() -> None:
    planned = plan(linear(1, -1, parameters={"normalize": False}), *llamas("a", "b"))
    assert planned.methods == {"linear": len(llama())}


def test_the_base_comes_first_and_has_no_weight() -> None:
    recipe = based("ties", {"weight": 0.5, "density": 0.25}, "b", "a", "c", parameters={"lambda": 0.5})
    method, sources = task(plan(recipe, *llamas("a", "b", "c")), "lm_head.weight")
    assert method["ties"] == {
        "weights": [0.5, 0.5],
        "densities": [0.25, 0.25],
        "normalize": True,
        "rescale": False,
        "lambda": 0.5,
        "majority_sign_method": "total",
    }
    assert [file for file, _ in sources] == [1, 0, 2]


def test_the_same_model_twice_is_allowed() -> None:
    planned = plan(linear(0.5, 0.5, names="aa"), *llamas("a"))
    assert task(planned, "lm_head.weight")[1] == [(0, "lm_head.weight"), (0, "lm_head.weight")]


def test_passthrough_scales() -> None:
    recipe = {
        "merge_method": "passthrough",
        "models": [{"model": "a", "parameters": {"scale": [{"filter": "down_proj", "value": 0.5}, {"value": 1.0}]}}],
    }
    planned = plan(recipe, *llamas("a"))
    assert planned.methods == {"copy": len(llama()) - 4, "scale": 4}
    assert task(planned, "model.layers.3.mlp.down_proj.weight")[0] == {"scale": {"factor": 0.5}}


def test_gradients_run_over_the_layers_and_end_at_the_head() -> None:
    planned = plan(based("slerp", {}, "a", "b", parameters={"t": [0.25, 0.5]}), *llamas("a", "b", layers=3))
    values = {t.name: t.method["slerp"]["t"] for t in tensors(planned)}
    assert values["model.embed_tokens.weight"] == 0.25
    assert [values[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0.25, 0.375, 0.5]
    assert values["model.norm.weight"] == values["lm_head.weight"] == 0.5
    assert [note for note in planned.notes if "gradient has its last value, where mergekit takes its first" in note]
    same = plan(based("slerp", {}, "a", "b", parameters={"t": [0.5, 0.25, 0.5]}), *llamas("a", "b", layers=3))
    assert not [note for note in same.notes if "gradient" in note]


def test_filters_decide_tensor_by_tensor() -> None:
    t = [{"filter": "self_attn", "value": 0.25}, {"filter": "re:mlp\\.(up|down)", "value": 0.75}, {"value": 0.5}]
    planned = plan(based("slerp", {}, "a", "b", parameters={"t": t}), *llamas("a", "b"))
    values = {x.name: x.method["slerp"]["t"] for x in tensors(planned)}
    assert values["model.layers.1.self_attn.k_proj.weight"] == 0.25
    assert values["model.layers.1.mlp.up_proj.weight"] == 0.75
    assert values["model.layers.1.mlp.gate_proj.weight"] == 0.5


def test_a_filter_that_leaves_a_tensor_without_a_value_is_refused() -> None:
    t = [{"filter": "self_attn", "value": 0.25}]
    assert "no `t` whose filter fits" in problems(based("slerp", {}, "a", "b", parameters={"t": t}), *llamas("a", "b"))


def test_weights_that_cancel_for_some_tensors_are_refused_and_named() -> None:
    weight = [{"filter": "mlp", "value": -1}, {"value": 1}]
    recipe = linear(1, 1)
    recipe["models"][1]["parameters"]["weight"] = weight
    text = problems(recipe, *llamas("a", "b"))
    assert "`model.layers.*.mlp.up_proj.weight` (layers 0-3) cannot be made: the weights (1, -1) sum to zero" in text
    assert "self_attn" not in text
    recipe |= {"merge_method": "task_arithmetic", "base_model": "c", "parameters": {"normalize": True}}
    assert plan(recipe, *llamas("a", "b", "c")).methods == {"task_arithmetic": len(llama())}


def test_probabilities_around_a_density_stay_between_0_and_1() -> None:
    recipe = based("della", {"weight": 1.0, "density": 0.9, "epsilon": 0.15}, "b")
    text = problems(recipe, *llamas("a", "b"))
    assert "density 0.9 with epsilon 0.15 asks for probabilities from 0.75 to 1.05" in text
    assert "choose epsilon below 0.1" in text
    for density in (0.0, 1.0):  # nothing is left to chance
        plan(based("della", {"weight": 1.0, "density": density, "epsilon": 0.15}, "b"), *llamas("a", "b"))


# Names


def test_prefixes_are_aligned_and_heads_copied_or_dropped() -> None:
    base = headers("a", bert(head="cls.seq_relationship"), bert_config())
    tuned = headers("b", bert(prefix="", head="classifier"), {"hidden_size": 8})
    planned = plan(linear(0.5, 0.5), base, tuned)
    assert {t.name for t in planned.plan.tensors} == set(base.tensors)
    assert planned.methods == {"linear": len(bert()), "copy": 2}
    _, sources = task(planned, "bert.encoder.layer.2.output.dense.weight")
    assert sources == [(0, "bert.encoder.layer.2.output.dense.weight"), (1, "encoder.layer.2.output.dense.weight")]
    assert any("`*` is `bert.*`" in note for note in planned.notes)
    assert any("model_type" in note for note in planned.notes)
    assert planned.copied == (
        "cls.seq_relationship.bias: copied from a, lacking in b",
        "cls.seq_relationship.weight: copied from a, lacking in b",
    )
    assert planned.dropped == (
        "classifier.bias of b: a has no such tensor",
        "classifier.weight of b: a has no such tensor",
    )


def test_what_another_slice_supplies_is_found_across_prefixes() -> None:
    a, b = headers("a", bert(3), bert_config(3)), headers("b", bert(3, prefix=""), bert_config(3))
    planned = plan(sliced([("a", 0, 2)], [("b", 1, 3)]), a, b)
    assert "embeddings.word_embeddings.weight of b: this tensor comes from another slice" in planned.dropped
    assert not [line for line in planned.dropped if "no such tensor" in line]


def test_strict_tensors_refuses_to_copy_and_to_drop() -> None:
    base = headers("a", bert(head="cls.seq_relationship"), bert_config())
    tuned = headers("b", bert(prefix="", head="classifier"), bert_config())
    text = problems(linear(0.5, 0.5), base, tuned, strict_tensors=True)
    assert "`cls.seq_relationship.weight` is lacking in b" in text
    assert "`classifier.weight` is in b, and a lacks it" in text


def test_a_tensor_of_a_layer_that_an_input_lacks_is_refused() -> None:
    shapes = llama()
    del shapes["model.layers.2.self_attn.q_proj.weight"]
    bias = {f"model.layers.{i}.mlp.up_proj.bias": (16,) for i in range(4)}
    a, b = headers("a", llama(), llama_config()), headers("b", shapes | bias, llama_config())
    text = problems(linear(0.5, 0.5), a, b)
    assert "tensor `model.layers.*.self_attn.q_proj.weight` (layers 2) is lacking in b, and a has it" in text
    assert "tensor `model.layers.*.mlp.up_proj.bias` (layers 0-3) is in b, and a lacks it" in text


def test_a_model_without_weight_there_may_lack_a_tensor_of_a_layer() -> None:
    shapes = llama()
    del shapes["model.layers.2.self_attn.q_proj.weight"]
    a, b = headers("a", llama(), llama_config()), headers("b", shapes, llama_config())
    recipe = linear(0.5, 0.5)
    recipe["models"][1]["parameters"]["weight"] = [{"filter": "q_proj", "value": 0}, {"value": 0.5}]
    planned = plan(recipe, a, b)
    name = "model.layers.2.self_attn.q_proj.weight"
    assert task(planned, name) == ({"copy": {}}, [(0, name)])


def test_masks_that_newer_checkpoints_lack_are_copied() -> None:
    old, new = gpt2(2), {name: s for name, s in gpt2(2).items() if len(s) != 4}
    a, b = headers("a", old, gpt2_config(2)), headers("b", new, gpt2_config(2))
    assert plan(linear(0.5, 0.5), a, b).copied == tuple(
        f"h.{i}.attn.bias: copied from a, lacking in b" for i in range(2)
    )
    assert len(plan(linear(0.5, 0.5, names="ba"), b, a).dropped) == 2


def test_every_input_tensor_is_accounted_for() -> None:
    a = headers("a", llama(4) | {"extra.a": (2,)}, llama_config(4))
    b = headers("b", llama(6) | {"extra.b": (2,)}, llama_config(6))
    planned = plan(linear(0.5, 0.5, layer_alignment="auto"), a, b)
    used = {(source.input, source.tensor) for t in tensors(planned) for source in t.sources}
    unused = {name for name in b.tensors if (1, name) not in used}
    assert {name for name in a.tensors if (0, name) not in used} == set()
    assert unused == {"extra.b"} | {n for n in llama(6) if ".layers.1." in n or ".layers.4." in n}
    assert planned.dropped == (
        "model.layers.1, 4 of b (18 tensors): layer_alignment maps others instead",
        "extra.b of b: a has no such tensor",
    )


# Dtypes


def test_integers_are_copied_when_all_are_equal_and_never_cast() -> None:
    ids = {"position_ids": (1, 4)}
    dtypes = {"": "F32", "position_ids": "I64"}
    a, b = (headers(name, llama() | ids, llama_config(), dtypes) for name in "ab")
    planned = plan(linear(0.5, 0.5, dtype="bfloat16"), a, b)
    assert task(planned, "position_ids") == ({"copy": {}}, [(0, "position_ids"), (1, "position_ids")])
    assert {t.dtype for t in tensors(planned) if t.name != "position_ids"} == {"BF16"}
    assert [t.dtype for t in tensors(planned) if t.name == "position_ids"] == ["I64"]
    assert planned.copied == ("position_ids: I64, copied as it is and not merged",)
    other = headers("b", llama() | ids, llama_config(), {"": "F32", "position_ids": "I32"})
    assert "is I32 in b and I64 in a" in problems(linear(0.5, 0.5), a, other)


def test_a_counter_of_training_steps_is_the_donors_and_need_not_be_equal() -> None:
    """Fine-tunes of a model with batch norms were trained for unequal numbers of steps."""
    name = "conv.norm.num_batches_tracked"
    a, b = (headers(of, llama() | {name: ()}, llama_config(), {"": "F32", name: "I64"}) for of in "ab")
    planned = plan(linear(0.5, 0.5), a, b)
    assert task(planned, name) == ({"copy": {}}, [(0, name)])
    assert planned.copied == (f"{name}: I64, copied as it is and not merged",)
    assert task(plan(based("task_arithmetic", {"weight": 1}, "b"), a, b), name) == ({"copy": {}}, [(1, name)])


def test_each_tensor_keeps_the_dtype_it_has_in_the_donor_and_the_config_says_so() -> None:
    a = headers("a", llama(), llama_config() | {"torch_dtype": "float16"}, {"": "F32", "model.norm.weight": "F64"})
    b = headers("b", llama(), llama_config(), "BF16")
    planned = plan(linear(0.5, 0.5), a, b)
    assert {t.name: t.dtype for t in tensors(planned)} == {
        name: "F64" if name == "model.norm.weight" else "F32" for name in llama()
    }
    assert planned.model_config["torch_dtype"] == "float32"
    assert planned.bytes_written == sum(info.bytes for info in a.tensors.values())


def test_out_dtype_wins_over_dtype() -> None:
    planned = plan(linear(0.5, 0.5, dtype="float32", out_dtype="float16"), *llamas("a", "b"))
    assert {t.dtype for t in tensors(planned)} == {"F16"}
    assert planned.model_config["torch_dtype"] == "float16"
    asked = plan(linear(0.5, 0.5, out_dtype="float16"), *llamas("a", "b"), dtype="bfloat16")
    assert {t.dtype for t in tensors(asked)} == {"BF16"}, "the option comes before the recipe"
    assert {t.dtype for t in plan(linear(0.5, 0.5, dtype="float16"), *llamas("a", "b"), dtype="fp32").plan.tensors} == {
        "F32"
    }


# The plan


def test_tensors_are_spread_over_files_of_the_requested_size() -> None:
    planned = plan(linear(0.5, 0.5), *llamas("a", "b"), out_shard_size=2000)
    outputs = planned.plan.outputs
    count = len(outputs)
    assert outputs[0] == f"model-00001-of-{count:05d}.safetensors"
    sizes = [0] * count
    for t in tensors(planned):
        sizes[t.output] += planned_bytes(t.shape)
    assert all(0 < size <= 2000 for size in sizes)
    assert [t.output for t in tensors(planned)] == sorted(t.output for t in tensors(planned))
    assert sum(sizes) == planned.bytes_written
    assert plan(linear(0.5, 0.5), *llamas("a", "b")).plan.outputs == ("model.safetensors",)


def planned_bytes(shape: tuple[int, ...]) -> int:
    size = 2
    for axis in shape:
        size *= axis
    return size


def test_the_json_says_what_the_plan_says() -> None:
    planned = plan(based("slerp", {}, "a", "b", parameters={"t": [0.1, 0.7]}), *llamas("a", "b"), seed=7).plan
    found = json.loads(planned.to_json())
    assert (found["plan"], found["seed"], found["allow_nonfinite"]) == (2, 7, False)
    assert found["inputs"][1] == {"path": "/models/b/model.safetensors", "size": 1, "mtime_ns": 1, "header": "00"}
    assert found["outputs"] == [{"name": "model.safetensors", "format": "safetensors"}]
    assert found["tensors"] == [
        {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "output": t.output} for t in planned.tensors
    ]
    assert found["tasks"] == [
        {"to": [{"tensor": i, "row": 0}], "by": t.by, "of": [list(source) for source in t.of]}
        for i, t in enumerate(planned.tasks)
    ]


def test_the_donors_config_is_left_as_it_was() -> None:
    a, b = llamas("a", "b")
    before = json.dumps(a.config)
    plan(linear(0.5, 0.5, dtype="float16"), a, b)
    assert json.dumps(a.config) == before


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "della", "breadcrumbs", "sce", "ram"])
def test_the_base_alone_is_copied(method: str) -> None:
    planned = plan({"merge_method": method, "base_model": "a", "models": [{"model": "a"}]}, *llamas("a"))
    assert {(*made.method, *made.sources) for made in tensors(planned)} == {
        ("copy", (0, name)) for name in llamas("a")[0].tensors
    }


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("odd", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", None])
def test_inputs_of_other_dtypes_are_noted_where_the_recipe_has_none(odd: str | None, dtype: str | None) -> None:
    models = llamas("a", "b")
    if odd is not None:
        kept = models[1].tensors[odd]
        models[1].tensors[odd] = kept._replace(dtype="F64", bytes=kept.bytes * 4)
    planned = plan(linear(1, 1, **({} if dtype is None else {"dtype": dtype})), *models)
    noted = [note for note in planned.notes if "the output has the dtypes of a" in note]
    assert len(noted) == (odd is not None and dtype is None)


def test_models_behind_the_layers_that_mergekit_leaves_out_are_noted() -> None:
    recipe = sliced([("a", 0, 2)], [("a", 2, 4), ("b", 2, 4)], merge_method="linear", parameters={"weight": 1})
    line = "is made of all 2 models of the last slice, where mergekit takes as many as the first has, 1"
    assert any(line in note for note in plan(recipe, *llamas("a", "b")).notes)
    even = sliced([("a", 0, 2), ("b", 0, 2)], [("a", 2, 4)], merge_method="linear", parameters={"weight": 1})
    assert not any(line[:20] in note for note in plan(even, *llamas("a", "b")).notes)
