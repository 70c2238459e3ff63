"""A model is held against its own config.json: layers, both ends, towers; what predicts further tokens is no layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.merge.toolkit import based, linear, plan, problems, sliced, task
from tests.tiny import bert, bert_config, gpt2, gpt2_config, headers, llama, llama_config

if TYPE_CHECKING:
    from mol.io.checkpoint import Checkpoint
    from tests.tiny import Shapes

PASS = {"merge_method": "passthrough", "models": [{"model": "a"}]}


def without(shapes: Shapes, *parts: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if not any(part in name for part in parts)}


# Layers


@pytest.mark.parametrize(
    ("shapes", "config", "says"),
    [
        (llama(4), llama_config(6), "num_hidden_layers: 6): found 4 (`model.layers`, numbers 0-3)"),
        (llama(6), llama_config(4), "num_hidden_layers: 4): found 6 (`model.layers`, numbers 0-5)"),
        (llama(1), llama_config(4), "num_hidden_layers: 4): found 1 (numbers 0)"),
        (gpt2(5), gpt2_config(6), "n_layer: 6): found 5 (`h`, numbers 0-4)"),
        (bert(2), bert_config(3), "num_hidden_layers: 3): found 2 (`bert.encoder.layer`, numbers 0-1)"),
        (
            {f"{side}.layers.{i}.fc.weight": (2, 2) for side in ("encoder", "decoder") for i in range(3)},
            {"is_encoder_decoder": True, "encoder_layers": 3, "decoder_layers": 4, "num_hidden_layers": 3},
            "decoder_layers: 4): found 3 (`decoder.layers`, numbers 0-2)",
        ),
        (
            llama(4, prefix="model.language_model.") | {f"model.visual.blocks.{i}.fc.weight": (2, 2) for i in range(3)},
            {"text_config": llama_config(4), "vision_config": {"depth": 5, "hidden_size": 2}},
            "vision_config.depth: 5): found 3 (`model.visual.blocks`, numbers 0-2)",
        ),
        (
            llama(3, prefix="model.language_model.") | {f"model.visual.blocks.{i}.fc.weight": (2, 2) for i in range(4)},
            {"text_config": llama_config(4), "vision_config": {"depth": 4, "hidden_size": 2}},
            "num_hidden_layers: 4): found 3 (`model.language_model.layers`, numbers 0-2)",
        ),
        (without(llama(6), ".layers.0.", ".layers.3."), llama_config(6), "`model.layers.0, 3` hold no tensor"),
    ],
)
def test_other_layers_than_config_json_counts_are_refused(shapes: Shapes, config: dict[str, Any], says: str) -> None:
    text = problems(PASS, headers("a", shapes, config))
    assert says in text
    assert "/models/a" in text
    assert "layer_alignment" not in text


def test_every_incomplete_model_is_listed() -> None:
    a, b = headers("a", llama(6), llama_config(6)), headers("b", llama(4), llama_config(6))
    text = problems(linear(0.5, 0.5, names="bab"), b, a)
    assert "/models/b/config.json counts other layers" in text
    assert "layer_alignment" not in text


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((".layers.3.mlp.up_proj.",), "`model.layers.3.mlp.up_proj.weight` is not among its tensors"),
        ((".layers.1.self_attn.",), "`model.layers.1.self_attn.q_proj.weight`"),
        ((".layers.1.mlp.up_proj.", ".layers.4.self_attn.q_proj."), "`model.layers.4.self_attn.q_proj.weight`"),
    ],
)
def test_a_tensor_that_one_layer_lacks_is_missed_in_a_single_model_too(parts: tuple[str, ...], says: str) -> None:
    text = problems(PASS, headers("a", without(llama(6), *parts), llama_config(6)))
    assert says in text
    assert "which every other layer of `model.layers` has" in text


@pytest.mark.parametrize(
    ("shapes", "more"),
    [
        (without(llama(6), ".layers.3.mlp.up_proj."), {"mlp_only_layers": [3]}),
        (without(llama(6), ".layers.3.mlp."), {"block_configs": [{"mlp": {"no_op": i == 3}} for i in range(6)]}),
        (without(llama(6), ".layers.0.input_layernorm."), {}),
        (without(llama(6), ".layers.5.mlp.up_proj."), {}),
        (without(llama(6), ".layers.3.mlp.up_proj.", ".layers.4.mlp.up_proj."), {}),
        (without(llama(6), ".layers.3.mlp.") | {"model.layers.3.moe.gate.weight": (2, 2)}, {}),
    ],
)
def test_a_layer_of_another_kind_lacks_nothing(shapes: Shapes, more: dict[str, Any]) -> None:
    plan(PASS, headers("a", shapes, llama_config(6) | more))


@pytest.mark.parametrize(
    ("shapes", "config"),
    [
        # A file of the encoder alone, and one of a decoder whose config counts both.
        ({f"encoder.block.{i}.x.weight": (2, 2) for i in range(3)}, {"is_encoder_decoder": True, "num_layers": 3}),
        # The last layer of a tower that is not used is not stored.
        (
            llama(4, prefix="model.language_model.") | {f"model.visual.blocks.{i}.fc.weight": (2, 2) for i in range(4)},
            {"text_config": llama_config(4), "vision_config": {"depth": 5}, "vision_feature_layer": -2},
        ),
        # Layers that were cut out, each with its entry in the config.
        (
            without(llama(4), ".layers.2."),
            {**llama_config(4), "block_configs": [{"no_op": i == 2} for i in range(4)], "layer_types": ["full"] * 4},
        ),
        # What a class without a head stores: no prefix, no head.
        (llama(4, prefix="", head=False), llama_config(4)),
        (bert(3, prefix=""), {**bert_config(3), "architectures": ["BertModel"]}),
        # A tower without a name, as in a Cosmos3.
        (
            llama(4, prefix="") | {f"blocks.{i}.attn.qkv.weight": (4, 4) for i in range(3)},
            {
                "architectures": ["Cosmos3OmniForConditionalGeneration"],
                "text_config": llama_config(4),
                "vision_config": {"depth": 3, "hidden_size": 4},
            },
        ),
        # A BLT embeds bytes in an encoder next to the layers.
        (
            {
                "lm_head.weight": (16, 4),
                "model.local_encoder.embed_tokens.weight": (16, 4),
                **{f"model.local_encoder.layers.{i}.fc.weight": (4, 4) for i in range(2)},
                **{f"model.global_transformer.layers.{i}.fc.weight": (16, 16) for i in range(3)},
            },
            {"architectures": ["BltForCausalLM"], "vocab_size": 16, "tie_word_embeddings": False},
        ),
        # Stages count as the layers inside of them.
        (
            {f"encoder.stages.{i}.layers.{j}.fc.weight": (2, 2) for i in range(3) for j in range(2)},
            {"num_hidden_layers": 6, "hidden_size": 2, "num_attention_heads": 1},
        ),
    ],
)
def test_what_is_whole_by_its_own_measure_passes(shapes: Shapes, config: dict[str, Any]) -> None:
    assert len(plan(PASS, headers("a", shapes, config)).plan.tensors) == len(shapes)


# Both ends


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("model.norm", "the norm behind the last layer is not among its tensors"),
        ("lm_head", "no head (`lm_head`) is among its tensors"),
        ("embed_tokens", "no embedding of tokens is among its tensors"),
    ],
)
def test_a_model_without_one_of_its_ends_is_refused(part: str, says: str) -> None:
    short = headers("a", without(llama(), part), llama_config())
    assert f"/models/a: {says}" in problems(PASS, short)
    whole = headers("b", llama(), llama_config())
    for names in ("ab", "ba"):
        assert f"/models/a: {says}" in problems(linear(0.5, 0.5, names=names), short, whole)


def test_a_norm_is_missed_where_another_model_has_it() -> None:
    a = headers("a", gpt2(3), gpt2_config(3))
    b = headers("b", without(gpt2(3, prefix="transformer."), "ln_f"), gpt2_config(3))
    assert "/models/b: the norm behind the last layer is not among its tensors; a has `ln_f.weight`" in problems(
        linear(0.5, 0.5), a, b
    )


def test_a_tied_model_needs_no_head_and_one_of_its_ends_will_do() -> None:
    config = llama_config(tied=True)
    for shapes in (llama(head=False), without(llama(), "embed_tokens")):
        assert len(plan(PASS, headers("a", shapes, config)).plan.tensors) == len(shapes)


def test_a_donor_without_the_tower_that_its_config_describes_is_refused() -> None:
    """As a fine-tune on texts that kept the config of the whole; next to its base it is one."""
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "text_config": llama_config(),
        "vision_config": {"num_hidden_layers": 3, "hidden_size": 8},
    }
    bare = headers("b", llama(), config)
    assert "vision_config.num_hidden_layers: 3): found no tensor of a tower" in problems(linear(1, names="b"), bare)
    tower = {f"vision_tower.layers.{i}.fc.weight": (8, 8) for i in range(3)}
    assert plan(linear(1, 1), headers("a", llama() | tower, config), bare).methods["linear"] == len(llama())


# Tails that predict further tokens


def predicting(name: str, layers: int = 4, *, tail: bool = True, nested: bool = False) -> Checkpoint:
    """A model whose config counts a module behind the last layer, numbered on, that predicts one token more."""
    prefix = "model.language_model." if nested else "model."
    shapes = llama(layers + tail, prefix=prefix)
    if tail:
        shapes |= {f"{prefix}layers.{layers}.eh_proj.weight": (8, 16), f"{prefix}layers.{layers}.enorm.weight": (8,)}
    config = llama_config(layers) | {"num_nextn_predict_layers": 1}
    return headers(name, shapes, {"text_config": config} if nested else config)


@pytest.mark.parametrize("nested", [False, True])
def test_a_tail_is_copied_and_the_layers_are_merged(nested: bool) -> None:
    a, b = predicting("a", nested=nested), predicting("b", nested=nested)
    planned = plan(linear(0.5, 0.5), a, b)
    assert {t.name for t in planned.plan.tensors} == set(a.tensors)
    assert planned.methods == {"linear": len(llama(4)), "copy": 11}
    prefix = "model.language_model." if nested else "model."
    assert task(planned, f"{prefix}layers.4.eh_proj.weight") == (
        {"copy": {}},
        [(0, f"{prefix}layers.4.eh_proj.weight")],
    )
    assert planned.copied == (
        f"{prefix}layers.4 of a (11 tensors): copied, predicts further tokens and is no layer of the stack",
    )
    assert planned.dropped == (
        f"{prefix}layers.4 of b (11 tensors): predicts further tokens and is no layer; that of a is copied",
    )
    assert any("predicts further tokens: it is copied" in note for note in planned.notes)
    assert planned.warnings == ()


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_fine_tune_may_have_lost_the_tail(names: str) -> None:
    a, b = predicting("a"), predicting("b", tail=False)
    planned = plan(linear(0.5, 0.5, names=names), a, b)
    assert len(planned.plan.tensors) == len(llama(4)) + (11 if names == "ab" else 0)
    assert "layer_alignment" not in " ".join((*planned.notes, *planned.warnings, *planned.dropped))
    if names == "ba":
        assert planned.dropped == (
            "model.layers.4 of a (11 tensors): predicts further tokens and is no layer; b has none",
        )


def test_slices_leave_the_tail_behind_the_last_layer() -> None:
    planned = plan(sliced([("a", 0, 3)], [("b", 1, 4)]), predicting("a"), predicting("b"))
    assert planned.model_config["num_hidden_layers"] == 6
    assert planned.model_config["num_nextn_predict_layers"] == 1
    assert task(planned, "model.layers.6.eh_proj.weight")[1] == [(0, "model.layers.4.eh_proj.weight")]
    assert task(planned, "model.layers.5.mlp.up_proj.weight")[1] == [(1, "model.layers.3.mlp.up_proj.weight")]
    assert "it is numbered 6 in the output" in planned.copied[0]
    assert "[0, 5] of a is not within its 4 layers" in problems(sliced([("a", 0, 5)]), predicting("a"))


def test_lists_that_go_on_with_the_tail_keep_its_entries() -> None:
    a = predicting("a")
    a.config["layer_types"] = ["full", "linear", "linear", "full", "predict"]
    planned = plan(sliced([("a", 0, 3)], [("a", 1, 4)]), a)
    assert planned.model_config["layer_types"] == ["full", "linear", "linear", "linear", "linear", "full", "predict"]


def test_unequal_depths_are_counted_without_the_tail() -> None:
    text = problems(based("task_arithmetic", {"weight": 1}, "b"), predicting("a", 4), predicting("b", 6, tail=False))
    assert "b has 6 layers in `model.layers`, a has 4" in text
