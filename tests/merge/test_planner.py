from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mol.config import MergeConfig, ModelReference, recipe_from_dict
from mol.errors import MergeError
from mol.merge.options import MergeOptions
from mol.merge.planner import PlannedMerge, plan_merge
from tests.conftest import bert, bert_config, gpt2, gpt2_config, headers, llama, llama_config

if TYPE_CHECKING:
    from mol.io.checkpoint import Checkpoint


def plan(recipe: dict[str, Any] | MergeConfig, *checkpoints: Checkpoint, **options: Any) -> PlannedMerge:  # noqa: ANN401
    config = recipe if isinstance(recipe, MergeConfig) else recipe_from_dict(recipe)
    table = {ModelReference(checkpoint.name): checkpoint for checkpoint in checkpoints}
    return plan_merge(config, table, options=MergeOptions(**options))


def linear(*weights: float, names: str = "abcd", **more: Any) -> dict[str, Any]:  # noqa: ANN401
    models = [{"model": name, "parameters": {"weight": w}} for name, w in zip(names, weights, strict=False)]
    return {"merge_method": "linear", "models": models, **more}


def based(method: str, each: dict[str, Any], *names: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """A recipe of a method that starts from a base `a`; `each` are the parameters of every model."""
    models = [{"model": name, "parameters": each} for name in names]
    return {"merge_method": method, "base_model": "a", "models": models, **more}


def llamas(*names: str, layers: int = 4, **shapes: Any) -> list[Checkpoint]:  # noqa: ANN401
    return [headers(name, llama(layers, **shapes), llama_config(layers)) for name in names]


def task(planned: PlannedMerge, name: str) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """What is done to a tensor, and to what."""
    (found,) = [task for task in planned.plan.tasks if task.name == name]
    return dict(found.method), [tuple(source) for source in found.sources]


def problems(recipe: dict[str, Any] | MergeConfig, *checkpoints: Checkpoint, **options: Any) -> str:  # noqa: ANN401
    with pytest.raises(MergeError) as caught:
        plan(recipe, *checkpoints, **options)
    return str(caught.value)


# What is done


def test_every_tensor_is_merged_in_natural_order() -> None:
    planned = plan(linear(0.25, 0.75), *llamas("a", "b", layers=12))
    names = [t.name for t in planned.plan.tasks]
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
    assert {len(t.sources) for t in planned.plan.tasks} == {1}


def test_weightless_models_are_left_out() -> None:
    planned = plan(linear(0.5, 0, 0.5), *llamas("a", "b", "c"))
    method, sources = task(planned, "model.norm.weight")
    assert method == {"linear": {"weights": [0.5, 0.5], "normalize": True}}
    assert sources == [(0, "model.norm.weight"), (1, "model.norm.weight")]
    assert [file.path.split("/")[2] for file in planned.plan.inputs] == ["a", "c"]


def test_a_model_without_any_influence_is_told() -> None:
    told = "no weight of b is used: the recipe gives it no influence on any tensor"
    assert plan(linear(1, 0), *llamas("a", "b")).notes == (told,)
    recipe = based("ties", {"weight": [{"filter": "lm_head", "value": 1}, {"value": 0}]}, "b", "c")
    recipe["models"][1]["parameters"] = {"weight": 1, "density": 0}
    assert plan(recipe, *llamas("a", "b", "c")).notes == (told.replace("of b", "of c"),)


def test_a_weight_of_one_without_normalization_beside_others_is_no_copy() -> None:
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
    values = {t.name: t.method["slerp"]["t"] for t in planned.plan.tasks}
    assert values["model.embed_tokens.weight"] == 0.25
    assert [values[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == [0.25, 0.375, 0.5]
    assert values["model.norm.weight"] == values["lm_head.weight"] == 0.5


def test_filters_decide_tensor_by_tensor() -> None:
    t = [{"filter": "self_attn", "value": 0.25}, {"filter": "re:mlp\\.(up|down)", "value": 0.75}, {"value": 0.5}]
    planned = plan(based("slerp", {}, "a", "b", parameters={"t": t}), *llamas("a", "b"))
    values = {x.name: x.method["slerp"]["t"] for x in planned.plan.tasks}
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


# Names


def test_prefixes_are_aligned_and_heads_copied_or_dropped() -> None:
    base = headers("a", bert(head="cls.seq_relationship"), bert_config())
    tuned = headers("b", bert(prefix="", head="classifier"), {"hidden_size": 8})
    planned = plan(linear(0.5, 0.5), base, tuned)
    assert {t.name for t in planned.plan.tasks} == set(base.tensors)
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


def test_what_another_slice_gives_is_told_across_prefixes() -> None:
    a, b = headers("a", bert(3), bert_config(3)), headers("b", bert(3, prefix=""), bert_config(3))
    planned = plan(sliced([("a", 0, 2)], [("b", 1, 3)]), a, b)
    assert "embeddings.word_embeddings.weight of b: another slice gives this tensor" in planned.dropped
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
    used = {(source.input, source.tensor) for t in planned.plan.tasks for source in t.sources}
    unused = {name for name in b.tensors if (1, name) not in used}
    assert {name for name in a.tensors if (0, name) not in used} == set()
    assert unused == {"extra.b"} | {n for n in llama(6) if ".layers.1." in n or ".layers.4." in n}
    assert planned.dropped == (
        "model.layers.1, 4 of b (18 tensors): layer_alignment maps others in their place",
        "extra.b of b: a has no such tensor",
    )


# Shapes, dtypes, architectures


def test_unequal_widths_are_one_error_that_lists_what_differs() -> None:
    medium = headers("microsoft/DialoGPT-medium", gpt2(24, hidden=16), gpt2_config(24, hidden=16))
    large = headers("microsoft/DialoGPT-large", gpt2(36, hidden=20), gpt2_config(36, hidden=20))
    config = MergeConfig(method="slerp", models=[medium.name, large.name], parameters={"t": 0.5})
    text = problems(config, medium, large)
    assert "fusion" in text
    assert "n_embd 20 (wanted 16), n_layer 36 (wanted 24)" in text
    assert "`wte.weight` has shape [16, 20] in microsoft/DialoGPT-large, wanted [16, 16]" in text
    assert "`h.*.attn.c_attn.weight` (layers 0-23) has shape [20, 60]" in text
    assert len(text.splitlines()) < 30


def test_other_vocabularies_are_refused_with_the_way_out() -> None:
    a, b = headers("a", llama(), llama_config()), headers("b", llama(vocab=18), llama_config(vocab=18))
    text = problems(linear(0.5, 0.5), a, b)
    assert "vocabulary sizes differ: b has 18 rows in `model.embed_tokens.weight`, `lm_head.weight`, wanted 16" in text
    assert "tokenizer" in text
    assert "fusion" not in text


def test_different_architectures_are_a_crime() -> None:
    a, b = headers("a", llama(), llama_config()), headers("b", llama(), llama_config() | {"model_type": "mistral"})
    assert "different architectures: a (llama), b (mistral)" in problems(linear(0.5, 0.5), a, b)
    planned = plan(linear(0.5, 0.5), a, b, allow_crimes=True)
    assert planned.methods == {"linear": len(llama())}
    assert "different architectures are mixed" in planned.warnings[0]


def test_different_architectures_are_told_with_their_sizes_and_point_to_fusion() -> None:
    a, b = headers("a", gpt2(2), gpt2_config(2)), headers("b", bert(3), bert_config(3))
    text = problems(linear(0.5, 0.5), a, b)
    assert "fusion (MoLRuntime)" in text
    assert "config.json of a has n_embd 8, n_head 2, n_layer 2, n_positions 6, vocab_size 16" in text
    assert "config.json of b has hidden_size 8, num_hidden_layers 3, vocab_size 16" in text


def test_notes_come_in_the_order_of_the_recipe() -> None:
    config = {key: value for key, value in llama_config().items() if key != "model_type"}
    names = ["c", "a", "e", "d", "b"]
    recipe = {"merge_method": "linear", "models": names}
    planned = plan(recipe, *(headers(name, llama(), config) for name in names))
    told = [note.split()[2] for note in planned.notes if "has no model_type" in note]
    assert told == names


def test_integers_are_copied_when_all_are_equal_and_never_cast() -> None:
    ids = {"position_ids": (1, 4)}
    dtypes = {"": "F32", "position_ids": "I64"}
    a, b = (headers(name, llama() | ids, llama_config(), dtypes) for name in "ab")
    planned = plan(linear(0.5, 0.5, dtype="bfloat16"), a, b)
    assert task(planned, "position_ids") == ({"copy": {}}, [(0, "position_ids"), (1, "position_ids")])
    assert {t.dtype for t in planned.plan.tasks if t.name != "position_ids"} == {"BF16"}
    assert [t.dtype for t in planned.plan.tasks if t.name == "position_ids"] == ["I64"]
    assert planned.copied == ("position_ids: I64, copied as it is and not merged",)
    other = headers("b", llama() | ids, llama_config(), {"": "F32", "position_ids": "I32"})
    assert "is I32 in b and I64 in a" in problems(linear(0.5, 0.5), a, other)


def test_each_tensor_keeps_the_dtype_it_has_in_the_donor_and_the_config_says_so() -> None:
    a = headers("a", llama(), llama_config() | {"torch_dtype": "float16"}, {"": "F32", "model.norm.weight": "F64"})
    b = headers("b", llama(), llama_config(), "BF16")
    planned = plan(linear(0.5, 0.5), a, b)
    assert {t.name: t.dtype for t in planned.plan.tasks} == {
        name: "F64" if name == "model.norm.weight" else "F32" for name in llama()
    }
    assert planned.model_config["torch_dtype"] == "float32"
    assert planned.bytes_written == sum(info.bytes for info in a.tensors.values())


def test_out_dtype_wins_over_dtype() -> None:
    planned = plan(linear(0.5, 0.5, dtype="float32", out_dtype="float16"), *llamas("a", "b"))
    assert {t.dtype for t in planned.plan.tasks} == {"F16"}
    assert planned.model_config["torch_dtype"] == "float16"
    assert {t.dtype for t in plan(linear(0.5, 0.5, dtype="float16"), *llamas("a", "b"), dtype="fp32").plan.tasks} == {
        "F32"
    }


# Layers


def test_unequal_depths_are_mapped_loudly_or_refused() -> None:
    a = headers("gpt2", gpt2(12), gpt2_config(12))
    b = headers("distilgpt2", gpt2(6, prefix="transformer."), gpt2_config(6))
    config = MergeConfig(method="slerp", models=["gpt2", "distilgpt2"], parameters={"t": 0.5})
    planned = plan(config, a, b)
    assert {t.name for t in planned.plan.tasks} == set(a.tensors)
    assert task(planned, "h.11.mlp.c_fc.bias")[1] == [(0, "h.11.mlp.c_fc.bias"), (1, "transformer.h.5.mlp.c_fc.bias")]
    assert planned.model_config["n_layer"] == 12
    assert "0<-0, 1<-0, 2<-1" in planned.warnings[0]
    strict = MergeConfig(method="slerp", models=["gpt2", "distilgpt2"], parameters={"t": 0.5}, layer_alignment="strict")
    assert "distilgpt2 has 6 layers in `transformer.h`, gpt2 has 12" in problems(strict, a, b)


def sliced(*slices: list[tuple[str, int, int]], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": m, "layer_range": [start, end]} for m, start, end in sources]} for sources in slices
        ],
        **more,
    }


def test_slices_are_stacked_and_renumbered() -> None:
    planned = plan(sliced([("a", 0, 3)], [("b", 1, 4)]), *llamas("a", "b"))
    assert planned.model_config["num_hidden_layers"] == 6
    origin = {t.name: t.sources[0] for t in planned.plan.tasks}
    assert [origin[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(6)] == [
        (input_, f"model.layers.{layer}.mlp.up_proj.weight")
        for input_, layer in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3))
    ]
    assert origin["model.embed_tokens.weight"].input == 0
    assert origin["model.norm.weight"].input == origin["lm_head.weight"].input == 1
    assert planned.dropped == (
        "model.layers.3 of a (9 tensors): in no slice",
        "lm_head.weight of a: another slice gives this tensor",
        "model.norm.weight of a: another slice gives this tensor",
        "model.layers.0 of b (9 tensors): in no slice",
        "model.embed_tokens.weight of b: another slice gives this tensor",
    )


def test_weights_behind_the_layers_take_all_sources_of_the_last_slice() -> None:
    recipe = sliced([("a", 0, 2)], [("a", 2, 4), ("b", 2, 4)], merge_method="linear", parameters={"weight": 0.5})
    planned = plan(recipe, *llamas("a", "b"))
    assert task(planned, "lm_head.weight")[1] == [(0, "lm_head.weight"), (1, "lm_head.weight")]
    assert task(planned, "model.embed_tokens.weight")[1] == [(0, "model.embed_tokens.weight")]


def test_a_gradient_runs_over_each_slice() -> None:
    recipe = sliced(
        [("a", 0, 2), ("b", 0, 2)], [("a", 2, 4), ("b", 2, 4)],
        merge_method="slerp", base_model="a", parameters={"t": [0.25, 0.75]},
    )  # fmt: skip
    values = {t.name: t.method["slerp"]["t"] for t in plan(recipe, *llamas("a", "b")).plan.tasks}
    assert [values[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(4)] == [0.25, 0.75, 0.25, 0.75]
    assert values["model.embed_tokens.weight"] == 0.25
    assert values["lm_head.weight"] == 0.75


def test_ranges_outside_a_model_are_refused() -> None:
    assert "[2, 9] of b is not within its 4 layers" in problems(sliced([("a", 0, 2)], [("b", 2, 9)]), *llamas("a", "b"))


def test_slices_of_an_encoder_and_a_decoder_are_refused() -> None:
    shapes = {f"{s}.block.{i}.layer.0.x.weight": (4, 4) for s in ("encoder", "decoder") for i in range(2)}
    a = headers("a", shapes, {"is_encoder_decoder": True, "num_layers": 2})
    assert "a cannot be cut into layers: it has an encoder and a decoder" in problems(sliced([("a", 0, 1)]), a)
    assert plan(linear(0.5, 0.5), a, headers("b", shapes, a.config)).methods == {"linear": 4}


def test_per_layer_lists_go_with_the_layers_at_any_depth() -> None:
    kinds = ["full", "linear", "linear", "full"]
    config = {
        "model_type": "x",
        "num_hidden_layers": 4,
        "layer_types": kinds,
        "mlp_only_layers": [0, 3],
        "eos_token_id": [1, 2],
        "text_config": {"n_layer": 4, "rope": {"per_layer": [0, 1, 2, 3]}},
        "vision_config": {"num_hidden_layers": 4, "layer_types": kinds},
    }
    shapes = llama(4) | {f"vision.blocks.{i}.attn.weight": (2, 2) for i in range(4)}
    planned = plan(sliced([("a", 0, 2)], [("a", 1, 2)], [("a", 3, 4)], [("a", 2, 4)]), headers("a", shapes, config))
    found = planned.model_config
    assert found["num_hidden_layers"] == found["text_config"]["n_layer"] == 6
    assert found["layer_types"] == ["full", "linear", "linear", "full", "linear", "full"]
    assert found["mlp_only_layers"] == [0, 3, 5]
    assert found["text_config"]["rope"]["per_layer"] == [0, 1, 1, 3, 2, 3]
    assert found["eos_token_id"] == [1, 2]
    assert found["vision_config"] == config["vision_config"]
    assert config["num_hidden_layers"] == 4


@pytest.mark.parametrize(
    ("section", "stacked"),
    [
        ({"eos_token_id": [1, 2, 3, 4], "image_token_ids": [5, 6, 7, 8]}, None),
        ({"rope_scaling": {"long_factor": [1.0, 2.0, 3.0, 4.0], "type": "longrope"}}, None),
        ({"vision_feature_layer": [1, 3]}, None),
        ({"attention_types": [[["full", "local"], 2]]}, {"attention_types": [[["full", "local"] * 3, 1]]}),
        ({"attention_types": [[["a"], 1], [["b"], 3]]}, {"attention_types": [[["a", "b", "a", "b", "b", "b"], 1]]}),
        ({"hybrid_override_pattern": "M-M*"}, {"hybrid_override_pattern": "M-M-M*"}),
        ({"full_attn_idxs": [1]}, {"full_attn_idxs": [1, 3]}),
    ],
)
def test_lists_that_are_per_layer_are_told_from_others(section: dict[str, Any], stacked: dict[str, Any] | None) -> None:
    a = headers("a", llama(4), llama_config(4) | section)
    found = plan(sliced([("a", 0, 2)], [("a", 0, 4)]), a).model_config
    wanted = section if stacked is None else stacked
    assert {key: found[key] for key in section} == wanted


def test_layers_that_fall_out_of_step_are_warned_of() -> None:
    a = headers("a", llama(4), llama_config(4) | {"sliding_window_pattern": 2})
    planned = plan(sliced([("a", 0, 3)], [("a", 2, 4)]), a)
    assert "`sliding_window_pattern: 2` tells the kind of a layer by its number" in planned.warnings[0]
    assert plan(sliced([("a", 0, 4)], [("a", 2, 4)]), a).warnings == ()


def test_layers_of_several_kinds_keep_their_places_when_the_config_has_no_list() -> None:
    shapes = {f"layers.{i}.{'attn' if i % 2 else 'mamba'}.weight": (2, 2) for i in range(4)}
    shapes |= {f"layers.{i}.norm.weight": (2,) for i in range(4)}
    a = headers("a", shapes, {"num_hidden_layers": 4})
    assert "read as another kind" in problems(sliced([("a", 0, 1)], [("a", 2, 4)]), a)
    assert len(plan(sliced([("a", 2, 4)]), a).plan.tasks) == 4


def test_a_config_that_counts_other_layers_than_there_are_is_refused() -> None:
    a = headers("a", llama(4), {"num_hidden_layers": 3})
    assert "config.json of the donor counts no layers as 4" in problems(sliced([("a", 0, 2)]), a)


# Tied embeddings


def tie(name: str, *, tied: bool, head: bool) -> Checkpoint:
    return headers(name, llama(2, head=head), llama_config(2, tied=tied))


def test_tied_models_stay_tied() -> None:
    planned = plan(linear(0.5, 0.5), tie("a", tied=True, head=False), tie("b", tied=True, head=False))
    assert planned.model_config["tie_word_embeddings"] is True
    assert not [t for t in planned.plan.tasks if t.name == "lm_head.weight"]


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_tied_and_an_untied_model_give_an_untied_one(names: str) -> None:
    tied, untied = tie("a", tied=True, head=False), tie("b", tied=False, head=True)
    planned = plan(linear(0.25, 0.75, names=names), tied, untied)
    method, sources = task(planned, "lm_head.weight")
    assert method == {"linear": {"weights": [0.25, 0.75], "normalize": True}}
    wanted = {"a": "model.embed_tokens.weight", "b": "lm_head.weight"}
    assert sources == [(i, wanted[name]) for i, name in enumerate(names)]
    assert planned.model_config["tie_word_embeddings"] is False
    assert any("tied in a" in note for note in planned.notes)
    assert planned.dropped == ()


def test_a_head_that_its_own_model_ignores_is_not_merged() -> None:
    a, b = tie("a", tied=True, head=False), tie("b", tied=True, head=True)
    planned = plan(linear(0.5, 0.5), a, b)
    assert planned.model_config["tie_word_embeddings"] is True
    assert planned.dropped == ("lm_head.weight of b: its scores are made with the embedding, to which it is tied",)
    reverse = plan(linear(0.5, 0.5, names="ba"), b, a)
    assert task(reverse, "lm_head.weight")[1] == task(reverse, "model.embed_tokens.weight")[1]


def test_a_written_head_of_a_tied_model_is_made_as_the_embedding_is() -> None:
    a, b = tie("a", tied=True, head=True), tie("b", tied=True, head=True)
    planned = plan(based("slerp", {}, "a", "b", parameters={"t": [0.25, 0.75]}), a, b)
    assert task(planned, "lm_head.weight") == task(planned, "model.embed_tokens.weight")


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_class_that_ties_by_default_ignores_heads_on_disk(names: str) -> None:
    config = {key: value for key, value in llama_config(2).items() if key != "tie_word_embeddings"}
    a, b = headers("a", llama(2), config), headers("b", llama(2, head=False), config)
    t = [{"filter": "lm_head", "value": 1.0}, {"value": 0.25}]
    planned = plan(based("slerp", {}, "a", "b", parameters={"t": t}) | {"base_model": names[0]}, a, b)
    made = {task.name: task.method for task in planned.plan.tasks}
    assert made.get("lm_head.weight", made["model.embed_tokens.weight"]) == {"slerp": {"t": 0.25}}
    assert planned.model_config.get("tie_word_embeddings") is None
    assert planned.notes == ()


# The plan


def test_tensors_are_spread_over_files_of_the_size_asked_for() -> None:
    planned = plan(linear(0.5, 0.5), *llamas("a", "b"), out_shard_size=2000)
    outputs = planned.plan.outputs
    count = len(outputs)
    assert outputs[0] == f"model-00001-of-{count:05d}.safetensors"
    sizes = [0] * count
    for t in planned.plan.tasks:
        sizes[t.output] += planned_bytes(t.shape)
    assert all(0 < size <= 2000 for size in sizes)
    assert [t.output for t in planned.plan.tasks] == sorted(t.output for t in planned.plan.tasks)
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
    assert (found["plan"], found["seed"], found["allow_nonfinite"]) == (1, 7, False)
    assert found["inputs"][1] == {"path": "/models/b/model.safetensors", "size": 1, "mtime_ns": 1, "header": "00"}
    assert found["tasks"] == [
        {
            "name": t.name,
            "dtype": t.dtype,
            "shape": list(t.shape),
            "output": t.output,
            "method": t.method,
            "sources": [{"input": source.input, "tensor": source.tensor} for source in t.sources],
        }
        for t in planned.tasks
    ]


def test_the_donors_config_is_left_as_it_was() -> None:
    a, b = llamas("a", "b")
    before = json.dumps(a.config)
    plan(linear(0.5, 0.5, dtype="float16"), a, b)
    assert json.dumps(a.config) == before


def test_a_donor_without_scores_gets_no_head() -> None:
    bare = headers("a", llama(2, head=False), llama_config(2) | {"architectures": ["LlamaModel"]})
    planned = plan(linear(0.4, 0.3, 0.3), bare, tie("b", tied=False, head=True), tie("c", tied=True, head=False))
    assert {t.name for t in planned.plan.tasks} == set(bare.tensors)
    assert planned.dropped == ("lm_head.weight of b: a has no such tensor",)
