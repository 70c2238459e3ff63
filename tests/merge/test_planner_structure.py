"""What the planner makes of how models are built: architectures, widths, layers, slices."""

from __future__ import annotations

from typing import Any

import pytest

from mol.config import MergeConfig
from tests.merge.toolkit import linear, llamas, plan, problems, sliced, task, tensors
from tests.tiny import bert, bert_config, gpt2, gpt2_config, headers, llama, llama_config

# Architectures and widths


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
    assert "rows are paired by token only where a tokenizer is known" in text
    assert "fusion" not in text


def test_different_architectures_are_a_crime() -> None:
    a, b = headers("a", llama(), llama_config()), headers("b", llama(), llama_config() | {"model_type": "mistral"})
    assert "different architectures: a (llama), b (mistral)" in problems(linear(0.5, 0.5), a, b)
    planned = plan(linear(0.5, 0.5), a, b, allow_crimes=True)
    assert planned.methods == {"linear": len(llama())}
    assert "different architectures are mixed" in planned.warnings[0]


def test_different_architectures_are_reported_with_their_sizes_and_point_to_fusion() -> None:
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
    says = [note.split()[2] for note in planned.notes if "has no model_type" in note]
    assert says == names


# Layers


def test_unequal_depths_are_mapped_loudly_or_refused() -> None:
    a = headers("gpt2", gpt2(12), gpt2_config(12))
    b = headers("distilgpt2", gpt2(6, prefix="transformer."), gpt2_config(6))
    config = MergeConfig(method="slerp", models=["gpt2", "distilgpt2"], parameters={"t": 0.5})
    planned = plan(config, a, b)
    assert {t.name for t in planned.plan.tensors} == set(a.tensors)
    assert task(planned, "h.11.mlp.c_fc.bias")[1] == [(0, "h.11.mlp.c_fc.bias"), (1, "transformer.h.5.mlp.c_fc.bias")]
    assert planned.model_config["n_layer"] == 12
    assert "0<-0, 1<-0, 2<-1" in planned.warnings[0]
    strict = MergeConfig(method="slerp", models=["gpt2", "distilgpt2"], parameters={"t": 0.5}, layer_alignment="strict")
    assert "distilgpt2 has 6 layers in `transformer.h`, gpt2 has 12" in problems(strict, a, b)


def test_slices_are_stacked_and_renumbered() -> None:
    planned = plan(sliced([("a", 0, 3)], [("b", 1, 4)]), *llamas("a", "b"))
    assert planned.model_config["num_hidden_layers"] == 6
    origin = {t.name: t.sources[0] for t in tensors(planned)}
    assert [origin[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(6)] == [
        (input_, f"model.layers.{layer}.mlp.up_proj.weight")
        for input_, layer in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3))
    ]
    assert origin["model.embed_tokens.weight"].input == 0
    assert origin["model.norm.weight"].input == origin["lm_head.weight"].input == 1
    assert planned.dropped == (
        "model.layers.3 of a (9 tensors): in no slice",
        "lm_head.weight of a: this tensor comes from another slice",
        "model.norm.weight of a: this tensor comes from another slice",
        "model.layers.0 of b (9 tensors): in no slice",
        "model.embed_tokens.weight of b: this tensor comes from another slice",
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
    values = {t.name: t.method["slerp"]["t"] for t in tensors(plan(recipe, *llamas("a", "b")))}
    assert [values[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(4)] == [0.25, 0.75, 0.25, 0.75]
    assert values["model.embed_tokens.weight"] == 0.25
    assert values["lm_head.weight"] == 0.75


def test_ranges_outside_a_model_are_refused() -> None:
    assert "[2, 9] of b is not within its 4 layers" in problems(sliced([("a", 0, 2)], [("b", 2, 9)]), *llamas("a", "b"))


def test_slices_of_an_encoder_and_a_decoder_are_refused() -> None:
    shapes = {f"{s}.block.{i}.layer.0.x.weight": (4, 4) for s in ("encoder", "decoder") for i in range(2)}
    a = headers("a", shapes, {"is_encoder_decoder": True, "num_layers": 2})
    text = problems(sliced([("a", 0, 1)]), a)
    assert "a cannot be cut into layers: it has an encoder and a decoder" in text
    assert "; `modules` takes slices of each: encoder, decoder" in text.replace("decoder, encoder", "encoder, decoder")
    assert plan(linear(0.5, 0.5), a, headers("b", shapes, a.config)).methods == {"linear": 4}


def test_a_tower_that_is_not_sliced_comes_from_one_model() -> None:
    """Its last norm stands behind its layers, and yet belongs to the first slice as they do."""
    tower = {f"vision.blocks.{i}.attn.weight": (2, 2) for i in range(3)}
    shapes = llama(4) | tower | {"vision.post_layernorm.weight": (2,), "vision.head.weight": (2, 2)}
    config = {**llama_config(4), "vision_config": {"num_hidden_layers": 3}}
    a, b = (headers(name, shapes, config) for name in "ab")
    planned = plan(sliced([("a", 0, 2)], [("b", 2, 4)]), a, b)
    origin = {task.name: planned.plan.inputs[task.sources[0].input].path for task in tensors(planned)}
    for name in ("vision.blocks.2.attn.weight", "vision.post_layernorm.weight", "vision.head.weight"):
        assert origin[name] == origin["model.embed_tokens.weight"]
    assert origin["model.norm.weight"] == origin["model.layers.3.mlp.down_proj.weight"]
    assert origin["model.norm.weight"] != origin["model.embed_tokens.weight"]
    assert planned.dropped_tensors == 4 * (len(llama(4)) - 3) // 4 + len(shapes) - len(llama(4)) + 3


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
def test_lists_that_are_per_layer_are_distinguished_from_others(
    section: dict[str, Any], stacked: dict[str, Any] | None
) -> None:
    a = headers("a", llama(4), llama_config(4) | section)
    found = plan(sliced([("a", 0, 2)], [("a", 0, 4)]), a).model_config
    wanted = section if stacked is None else stacked
    assert {key: found[key] for key in section} == wanted


def test_layers_of_another_model_bring_their_kinds_at_the_same_numbers_too() -> None:
    a, b = (
        headers(name, llama(4), llama_config(4) | {"layer_types": [kind] * 4})
        for name, kind in (("a", FULL), ("b", SLIDING))
    )
    found = plan(sliced([("a", 0, 2)], [("b", 2, 4)]), a, b).model_config
    assert found["layer_types"] == [FULL, FULL, SLIDING, SLIDING]


def test_what_another_config_leaves_open_is_as_in_the_donors() -> None:
    windows = {"max_window_layers": 2, "use_sliding_window": True}
    a, b = (
        headers(name, llama(4), llama_config(4) | windows | more)
        for name, more in (("a", {}), ("b", {"max_window_layers": None}))
    )
    assert plan(sliced([("a", 0, 2)], [("b", 1, 4)]), a, b).model_config["max_window_layers"] == 3


FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
KINDS = [SLIDING, FULL, SLIDING, SLIDING, FULL]


@pytest.mark.parametrize(
    ("section", "stated"),
    [
        ({"sliding_window_pattern": 2}, {"layer_types": KINDS}),
        ({"model_type": "gemma2"}, {"layer_types": KINDS}),
        ({"full_attention_interval": 4}, {"layer_types": [LINEAR] * 4 + [FULL]}),
        (
            {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
            {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2, 3, 4]},
        ),
        ({"interleave_moe_layer_step": 2}, {"moe_layers": [1, 4]}),
        ({"no_rope_layer_interval": 4}, {"no_rope_layers": [1, 1, 1, 1, 0]}),
        ({"moe_layers": [0, 1, 2, 3]}, {"moe_layers": [0, 1, 2, 3, 4]}),
        ({"max_window_layers": 3, "use_sliding_window": True}, {"max_window_layers": 4}),
        ({"max_window_layers": 28, "use_sliding_window": False}, {"max_window_layers": 5}),
        ({"first_k_dense_replace": 3}, {"first_k_dense_replace": 4}),
        ({"num_kv_shared_layers": 2}, {"num_kv_shared_layers": 3}),
        ({"moe_layer_end_index": 3, "moe_layer_start_index": 1}, {"moe_layer_end_index": 4}),
        ({"moe_layer_end_index": -1}, {"moe_layer_end_index": 4}),
        (
            {"per_layer_config": {"1": {"head_dim": 2}, "3": {"head_dim": 4}}},
            {"per_layer_config": {"1": {"head_dim": 2}, "4": {"head_dim": 4}}},
        ),
        ({"block_types": ["rec", "rec", "attn"]}, {"block_types": ["rec", "rec", "attn", "attn", "rec"]}),
        ({"attn_layer_period": 2, "layers_block_type": list("abab")}, {"layers_block_type": list("abaab")}),
        (
            {"block_configs": [{"n": i} for i in range(4)]},
            {"block_configs": [{"n": i} for i in (0, 1, 2, 2, 3)]},
        ),
    ],
)  # fmt: skip
def test_what_hangs_on_the_number_of_a_layer_moves_with_it(section: dict[str, Any], stated: dict[str, Any]) -> None:
    a = headers("a", llama(4), llama_config(4) | section)
    planned = plan(sliced([("a", 0, 3)], [("a", 2, 4)]), a)
    assert {key: planned.model_config[key] for key in stated} == stated
    assert (
        any(next(iter(stated)) in note or "layer_types" in note for note in planned.notes) or section.keys() == stated
    )
    whole = plan(sliced([("a", 0, 4)]), a).model_config
    assert {key: whole[key] for key in section} == section


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (
            {"first_k_dense_replace": 1},
            "`first_k_dense_replace: 1` says from which number on layers are of another kind",
        ),
        ({"max_window_layers": 2, "use_sliding_window": True}, "`max_window_layers: 2` says from which number on"),
        ({"depths": [2, 2, 6, 2]}, "`depths` lists stages, each of another width by its number"),
        ({"moe_layer_end_index": 1}, "`moe_layer_end_index: 1` says from which number on layers are of another kind"),
        ({"attn_layer_period": 3}, "`attn_layer_period: 3` makes the kind of a layer depend on its number"),
        ({"text_config": {"moe_layer_freq": 3}}, "`text_config.moe_layer_freq: 3` makes the kind of a layer depend on"),
    ],
)
def test_kinds_that_cannot_be_stated_are_refused_by_name(section: dict[str, Any], problem: str) -> None:
    a = headers("a", llama(4), llama_config(4) | section)
    assert problem in problems(sliced([("a", 1, 3)], [("a", 0, 2)]), a)
    b = headers("b", llama(4), a.config)
    assert plan(sliced([("a", 0, 2)], [("b", 2, 4)]), a, b).model_config == a.config


@pytest.mark.parametrize(
    ("outputs", "cut", "wanted"), [([4], (0, 2), [3]), ([0, 1, 4], (0, 2), [0, 1, 3]), ([2, 4], (0, 3), None)]
)
def test_features_of_a_backbone_are_those_of_the_same_layers(
    outputs: list[int], cut: tuple[int, int], wanted: list[int] | None
) -> None:
    names = ["stem", "stage1", "stage2", "stage3", "stage4"]
    section = {"stage_names": names, "out_indices": outputs, "out_features": [names[i] for i in outputs]}
    a = headers("a", llama(4), llama_config(4) | section)
    recipe = sliced([("a", *cut)], [("a", 3, 4)]) if wanted else sliced([("a", *cut)])
    if wanted is None:
        assert "`out_indices: [2, 4]` says behind which layers features are taken" in problems(recipe, a)
        return
    found = plan(recipe, a).model_config
    assert found["stage_names"] == names[:4]
    assert found["out_indices"] == wanted
    assert found["out_features"] == [names[i] for i in wanted]
    assert plan(sliced([("a", 0, 4)]), a).model_config == a.config


def test_periods_of_other_things_than_layers_stay() -> None:
    section = {"speaker_cache_update_period": 3, "diffusion_max_period": 3, "min_period": 3}
    a = headers("a", llama(4), llama_config(4) | section)
    found = plan(sliced([("a", 1, 3)], [("a", 0, 2)]), a).model_config
    assert {key: found[key] for key in section} == section


def test_a_list_of_kinds_counts_the_layers_where_no_number_does() -> None:
    config = {key: value for key, value in llama_config(4).items() if key != "num_hidden_layers"}
    kinds = {"layers_block_type": ["mamba", "moe", "attention", "mlp"]}
    found = plan(sliced([("a", 0, 2)], [("a", 1, 4)]), headers("a", llama(4), config | kinds)).model_config
    assert found["layers_block_type"] == ["mamba", "moe", "moe", "attention", "mlp"]
    assert "counts no layers as 4" in problems(sliced([("a", 0, 2)], [("a", 1, 4)]), headers("a", llama(4), config))


def test_words_of_a_tower_are_whole_words() -> None:
    """The text model of an `owlvit` is no `vit`."""
    shapes = llama(4, prefix="owlvit.text_model.", head=False)
    shapes |= {f"owlvit.vision_model.layers.{i}.fc.weight": (2, 2) for i in range(4)}
    sections = {"text_config": llama_config(4), "vision_config": {"num_hidden_layers": 4, "hidden_size": 2}}
    found = plan(sliced([("a", 0, 4)], [("a", 2, 4)]), headers("a", shapes, sections)).model_config
    assert [found[key]["num_hidden_layers"] for key in sections] == [6, 4]


def test_numbers_of_layers_are_read_in_the_model_that_a_layer_is_from() -> None:
    a, b = (
        headers(name, llama(4), llama_config(4) | {"per_layer_config": {key: {"head_dim": 2}}})
        for name, key in (("a", "0"), ("b", "2"))
    )
    found = plan(sliced([("a", 0, 2)], [("b", 1, 4)]), a, b).model_config
    assert found["per_layer_config"] == {"0": {"head_dim": 2}, "3": {"head_dim": 2}}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.embed_tokens_per_layer.weight", "has a part for each of its 4 layers"),
        ("model.layers.1.shared_transf.q.weight", "share a transformer, which only the first of them stores"),
    ],
)
def test_what_is_of_all_layers_keeps_them_where_they_are(name: str, says: str) -> None:
    a, b = (headers(of, llama(4) | {name: (16, 4 * 2)}, llama_config(4)) for of in "ab")
    assert says in problems(sliced([("a", 0, 4)], [("a", 2, 4)]), a)
    assert says in problems(sliced([("a", 1, 4)], [("a", 0, 1)]), a)
    assert len(plan(sliced([("a", 0, 2)], [("b", 2, 4)]), a, b).plan.tensors) == len(a.tensors)


def test_layers_that_stay_in_step_change_nothing() -> None:
    a = headers("a", llama(4), llama_config(4) | {"attn_layer_period": 2, "sliding_window_pattern": 2})
    planned = plan(sliced([("a", 0, 4)], [("a", 2, 4)]), a)
    assert (planned.notes, "layer_types" in planned.model_config) == ((), False)


def test_layers_of_a_pruned_model_keep_what_each_has() -> None:
    """Nemotrons have layers without attention and of several widths, which `block_configs` lists."""
    shapes = {name: shape for name, shape in llama(4).items() if "layers.1.self_attn" not in name}
    shapes |= {f"model.layers.2.mlp.{p}_proj.weight": (4, 8) for p in ("gate", "up")}
    shapes["model.layers.2.mlp.down_proj.weight"] = (8, 4)
    blocks = [{"attention": {"no_op": i == 1}, "ffn": {"ffn_mult": 0.5 if i == 2 else 2.0}} for i in range(4)]
    a, b = (headers(name, shapes, llama_config(4) | {"block_configs": blocks}) for name in "ab")
    assert plan(linear(0.5, 0.5), a, b).methods == {"linear": len(shapes)}
    planned = plan(sliced([("a", 0, 3)], [("b", 1, 4)]), a, b)
    assert planned.model_config["block_configs"] == [blocks[i] for i in (0, 1, 2, 1, 2, 3)]
    made = {made.name: made.shape for made in tensors(planned)}
    assert made["model.layers.4.mlp.down_proj.weight"] == (8, 4)
    assert [i for i in range(6) if f"model.layers.{i}.self_attn.q_proj.weight" not in made] == [1, 3]
    assert "of several kinds" not in problems(
        sliced([("a", 0, 2), ("b", 1, 3)], merge_method="linear", parameters={"weight": 1}), a, b
    )


def test_layers_of_several_kinds_keep_their_positions_when_the_config_has_no_list() -> None:
    shapes: dict[str, tuple[int, ...]] = {f"layers.{i}.{'attn' if i % 2 else 'mamba'}.weight": (2, 2) for i in range(4)}
    shapes |= {f"layers.{i}.norm.weight": (2,) for i in range(4)}
    a = headers("a", shapes, {"num_hidden_layers": 4})
    assert "read as another kind" in problems(sliced([("a", 0, 1)], [("a", 2, 4)]), a)
    assert len(plan(sliced([("a", 2, 4)]), a).plan.tensors) == 4


def test_a_config_that_counts_other_layers_than_there_are_is_refused() -> None:
    a = headers("a", llama(4), {"num_hidden_layers": 3})
    assert "config.json of the donor counts no layers as 4" in problems(sliced([("a", 0, 2)]), a)
