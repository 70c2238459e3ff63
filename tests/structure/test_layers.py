from __future__ import annotations

import pytest

from mol.structure.alignment import align
from mol.structure.layers import Structure, find_structure, is_layer_count_key, is_side_tower, map_layers
from mol.structure.names import is_buffer, natural_key, side_of
from tests.tiny import bert, gpt2, headers, llama


def structure(shapes: dict[str, tuple[int, ...]], **config: object) -> Structure:
    checkpoint = headers("m", shapes, dict(config))
    return find_structure(checkpoint.tensors, checkpoint.config)


@pytest.mark.parametrize(
    ("shapes", "prefix", "count", "loose"),
    [
        (llama(4), "model.layers", 4, 3),
        (gpt2(12), "h", 12, 4),
        (gpt2(6, prefix="transformer."), "transformer.h", 6, 4),
        (bert(3, head="classifier"), "bert.encoder.layer", 3, 8),
        (bert(3, prefix=""), "encoder.layer", 3, 6),
    ],
)
def test_layers_are_the_numbered_repeat(
    shapes: dict[str, tuple[int, ...]], prefix: str, count: int, loose: int
) -> None:
    found = structure(shapes)
    assert found.main is not None
    assert (found.main.prefix, len(found.main), len(found.loose)) == (prefix, count, loose)
    names = {name for i in range(count) for name in found.main.names(i)}
    assert names | set(found.loose) == set(shapes)


def test_experts_inside_a_layer_belong_to_the_layer() -> None:
    shapes = {f"layers.{i}.experts.{e}.w{w}.weight": (2,) for i in range(3) for e in range(12) for w in (1, 2)}
    found = structure(shapes)
    assert found.main is not None
    assert (found.main.prefix, len(found.main)) == ("layers", 3)
    assert found.main.layers[0][:5] == tuple(
        f"experts.{e}.w{w}.weight" for e, w in ((0, 1), (0, 2), (1, 1), (1, 2), (2, 1))
    )


def test_one_layer_of_many_experts_is_one_layer() -> None:
    found = structure({f"layers.0.experts.{e}.w.weight": (2,) for e in range(8)}, num_hidden_layers=1)
    assert found.main is not None
    assert (found.main.prefix, len(found.main)) == ("layers", 1)


@pytest.mark.parametrize("each", [False, True])
def test_a_table_of_positions_that_the_first_layer_has_for_all_is_outside(each: bool) -> None:
    shapes = {f"encoder.block.{i}.layer.0.SelfAttention.q.weight": (8, 8) for i in range(3)}
    table = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes |= {table.format(i): (4, 2) for i in range(3 if each else 1)}
    found = structure(shapes)
    assert list(found.loose) == ([] if each else [table.format(0)])
    assert found.main is not None
    assert [len(layer) for layer in found.main.layers] == [1 + each] * 3


def test_a_numbered_head_is_no_stack_of_layers() -> None:
    head = {f"classifier.{i}.{kind}": (8,) for i in (0, 1) for kind in ("weight", "bias")}
    found = structure(llama(2) | head, num_hidden_layers=2)
    assert [stack.prefix for stack in found.stacks] == ["model.layers"]
    assert set(head) < set(found.loose)


def test_layers_of_bare_parameters_count_where_there_is_nothing_else() -> None:
    found = structure({f"layers.{i}.weight": (2,) for i in range(3)} | {"norm": (2,)})
    assert found.main is not None
    assert len(found.main) == 3


def test_a_wrapper_numbered_zero_is_looked_through() -> None:
    shapes = {f"0.auto_model.{name}": shape for name, shape in bert(3, prefix="").items()}
    found = structure(shapes, num_hidden_layers=3)
    assert found.main is not None
    assert found.main.prefix == "0.auto_model.encoder.layer"
    assert set(found.loose) == {name for name in shapes if ".layer." not in name}


def test_the_language_model_is_the_main_tower_of_a_vision_language_model() -> None:
    vision = {f"model.visual.blocks.{i}.attn.qkv.weight": (64, 64) for i in range(6)}
    found = structure(vision | llama(4, prefix="model.language_model."), text_config={"num_hidden_layers": 4})
    assert found.main is not None
    assert found.main.prefix == "model.language_model.layers"
    assert [stack.prefix for stack in found.stacks] == ["model.visual.blocks", "model.language_model.layers"]


def test_an_encoder_and_a_decoder_have_no_main_tower() -> None:
    shapes = {
        f"{side}.block.{i}.layer.{j}.x.weight": (4,) for side in ("encoder", "decoder") for i in (0, 1) for j in (0, 1)
    }
    found = structure(shapes, num_layers=2)
    assert found.main is None
    assert [(stack.prefix, len(stack)) for stack in found.stacks] == [("decoder.block", 2), ("encoder.block", 2)]
    assert "an encoder and a decoder" in found.ambiguity


@pytest.mark.parametrize(
    "name", ["multi_modal_projector.linear_1", "model.vision_tower.layers", "qformer.encoder.layer"]
)
def test_what_stands_next_to_a_language_model(name: str) -> None:
    assert is_side_tower(name)
    assert not is_side_tower("vocab_projector.bias")


def test_a_decoder_next_to_an_encoder_of_images_is_the_main_tower() -> None:
    """As the OPT of a BLIP-2 is."""
    shapes = {
        f"{prefix}.{i}.fc.weight": (4,)
        for prefix in ("vision_model.encoder.layers", "qformer.encoder.layer", "language_model.model.decoder.layers")
        for i in range(3)
    }
    found = structure(shapes, text_config={"num_hidden_layers": 3})
    assert found.main is not None
    assert found.main.prefix == "language_model.model.decoder.layers"


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "depth"])
def test_keys_that_count_layers(key: str) -> None:
    assert is_layer_count_key(key)


@pytest.mark.parametrize("key", ["max_window_layers", "num_nextn_predict_layers", "layer_norm_eps", "num_heads"])
def test_keys_that_count_something_else(key: str) -> None:
    assert not is_layer_count_key(key)


def test_a_deeper_model_is_thinned_out_as_distillation_does() -> None:
    assert map_layers(6, 12) == (0, 2, 4, 7, 9, 11)
    assert map_layers(12, 6) == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5)
    assert map_layers(3, 3) == (0, 1, 2)
    assert map_layers(1, 5) == (0,)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("model.embed_tokens.weight", "first"),
        ("wpe.weight", "first"),
        ("bert.embeddings.LayerNorm.weight", "first"),
        ("model.norm.weight", "last"),
        ("transformer.ln_f.bias", "last"),
        ("model.embedding_norm.weight", "last"),
        ("gpt_neox.embed_out.weight", "last"),
        ("embed_out.weight", "last"),
        ("lm_head.weight", "last"),
        ("bert.pooler.dense.bias", "last"),
        ("cls.predictions.transform.LayerNorm.weight", "last"),
        ("decoder.final_layer_norm.weight", "last"),
        ("model.mystery.weight", "unknown"),
    ],
)
def test_the_side_of_a_weight(name: str, side: str) -> None:
    assert side_of(name) == side


def test_names_sort_by_their_numbers() -> None:
    assert sorted(["l.10.w", "l.2.w", "a", "l.2.b"], key=natural_key) == ["a", "l.2.b", "l.2.w", "l.10.w"]


def test_causal_masks_are_buffers_and_biases_are_not() -> None:
    assert is_buffer("h.0.attn.bias", (1, 1, 8, 8))
    assert not is_buffer("h.0.attn.bias", (8,))
    assert is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq", (4,))


@pytest.mark.parametrize(
    ("ours", "theirs", "pairs"),
    [
        (bert(), bert(prefix=""), (("bert.", ""),)),
        (bert(prefix=""), bert(), (("", "bert."),)),
        (llama(), llama(prefix=""), (("model.", ""),)),
        (gpt2(), gpt2(prefix="transformer."), (("", "transformer."),)),
        (
            llama(prefix="model.language_model."),
            llama(prefix="language_model.model."),
            (("model.language_model.", "language_model.model."),),
        ),
        (llama(), llama(), ()),
        ({"net.a": (2,), "net.b": (2,)}, {"a": (2,), "b": (2,)}, (("net.", ""),)),
    ],
)
def test_prefixes_are_aligned(
    ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]], pairs: tuple[tuple[str, str], ...]
) -> None:
    alignment = align(structure(ours), structure(theirs))
    assert alignment.pairs == pairs
    assert {alignment.find(name, theirs) for name in ours} == set(theirs)
