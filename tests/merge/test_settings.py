"""What config.json of the inputs says next to sizes: refused where shapes mean something else, warned of elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.merge.toolkit import linear, plan, problems
from tests.tiny import gpt2, gpt2_config, headers, llama, llama_config

if TYPE_CHECKING:
    from mol.io.checkpoint import Checkpoint

LLAMA = llama_config() | {
    "num_key_value_heads": 2, "head_dim": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_position_embeddings": 64,
}  # fmt: skip


def pair(first: dict[str, Any], second: dict[str, Any]) -> list[Checkpoint]:
    """Two Llamas of equal tensors; a key with ... is left out."""
    return [
        headers(name, llama(), {key: value for key, value in (LLAMA | changes).items() if value is not ...})
        for name, changes in (("a", first), ("b", second))
    ]


def said(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    planned = plan(linear(0.5, 0.5), *pair(first, second))
    return [*planned.warnings, *(note for note in planned.notes if note.startswith("config.json"))]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_attention_heads": 4}, "`num_attention_heads` is 4 in b, and 2 in a"),
        ({"num_key_value_heads": 1}, "`num_key_value_heads` is 1 in b, and 2 in a"),
        ({"head_dim": 8}, "`head_dim` is 8 in b, and 4 in a"),
    ],
)
def test_equal_shapes_that_are_cut_otherwise_are_refused(changes: dict[str, Any], line: str) -> None:
    assert f"config.json: {line}: equal shapes are cut into other parts" in problems(
        linear(0.5, 0.5), *pair({}, changes)
    )
    planned = plan(linear(0.5, 0.5), *pair({}, changes), allow_crimes=True)
    assert any(line in warning for warning in planned.warnings)


@pytest.mark.parametrize(("key", "right"), [("hidden_size", 8), ("vocab_size", 16)])
def test_a_size_of_the_donor_that_no_tensor_has_is_refused(key: str, right: int) -> None:
    found = problems(linear(0.5, 0.5), *pair({key: 77}, {key: right}))
    assert f"`{key}` is 77 in a, and no tensor has this size" in found
    assert f"correct it (b has {right})" in found
    plan(linear(0.5, 0.5), *pair({key: right}, {key: 77}))
    plan(linear(0.5, 0.5), *pair({key: 77, "text_config": {key: right}}, {key: right}))


@pytest.mark.parametrize(
    ("key", "ours", "theirs"),
    [
        ("n_groups", 2, 4),
        ("mamba_n_heads", 2, 4),
        ("qk_rope_head_dim", 2, 4),
        ("multi_query", True, False),
        ("rope_interleave", True, False),
        ("num_heads_per_layer_heads", [2, 2, 4, 4], [2, 4, 2, 4]),
    ],
)
@pytest.mark.parametrize("section", ["", "text_config", "vision_config"])
def test_so_are_groups_states_and_orders_wherever_they_are_stated(
    key: str, ours: object, theirs: object, section: str
) -> None:
    first, second = ({section: {key: value}} if section else {key: value} for value in (ours, theirs))
    assert "equal shapes are cut into other parts" in problems(linear(0.5, 0.5), *pair(first, second))


def test_unequal_widths_are_reported_by_their_sizes_alone() -> None:
    a = headers("a", gpt2(2, hidden=8), gpt2_config(2, hidden=8))
    b = headers("b", gpt2(2, hidden=12), gpt2_config(2, hidden=12) | {"n_head": 3})
    text = problems(linear(0.5, 0.5), a, b)
    assert "n_head 3 (wanted 2)" in text
    assert "cut into other parts" not in text


@pytest.mark.parametrize(
    ("key", "ours", "theirs"),
    [
        ("hidden_act", "silu", "gelu"),
        ("rope_theta", 10000.0, 1000000.0),
        ("rope_theta", 500000.0, ...),
        ("rms_norm_eps", 1e-6, 1e-5),
        ("sliding_window", None, 4096),
        ("sliding_window", 4096, 8192),
        ("sliding_window", 16, ...),
        ("max_position_embeddings", 64, 128),
        ("num_experts_per_tok", 2, 4),
        ("attn_logit_softcapping", 50.0, None),
        ("query_pre_attn_scalar", 224, 256),
        ("partial_rotary_factor", 0.5, 1.0),
        ("routed_scaling_factor", 2.5, 1.0),
        ("layer_types", ["full"] * 4, ["sliding"] * 4),
    ],
)
def test_a_setting_of_the_forward_pass_is_warned_of_with_the_value_of_the_output(
    key: str, ours: object, theirs: object
) -> None:
    (line,) = said({key: ours}, {key: theirs})
    assert line.startswith(f"config.json: `{key}` is ")
    assert line.endswith(", as a")
    (nested,) = (
        said({"text_config": {key: ours}, key: ...}, {"text_config": {key: theirs}, key: ...})
        if (theirs is not ...)
        else (line,)
    )
    assert nested == line


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("absent", [None, ..., {"rope_type": "default"}])
def test_a_rope_scaling_that_one_model_lacks_is_warned_of(key: str, absent: object) -> None:
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    (line,) = said({key: absent}, {key: scaled})
    assert line == 'config.json: `rope_type` is "yarn" in b; the output has "default", as a'
    (line,) = said({key: scaled}, {key: scaled | {"factor": 8.0}})
    assert line == "config.json: `rope_scaling.factor` is 8.0 in b; the output has 4.0, as a"


GEMMA = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
GEMMA_5 = {
    "rope_theta": ...,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"dtype": "bfloat16", "torch_dtype": ...}, {}),
        ({"dtype": "float32"}, {"torch_dtype": "float16"}),
        ({}, {"rope_theta": ..., "rope_parameters": {"rope_theta": 10000, "rope_type": "default"}}),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_theta": ..., "rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
        ),
        (GEMMA, GEMMA_5),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0]}}, {"rope_scaling": {"rope_type": "longrope"}}),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1]}}, {"rope_scaling": None}),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
         {"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 32, "attention_factor": None}}),
        ({"rope_theta": ...}, {}),
        ({"rope_scaling": None}, {}),
        ({"num_key_value_heads": None, "head_dim": None}, {}),
        ({"num_key_value_heads": ..., "head_dim": ...}, {}),
        ({"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}, {"use_cache": False}),
        ({"hidden_act": "swish"}, {}),
        ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu_pytorch_tanh"}),
        ({"hidden_activation": None, "hidden_act": "gelu"}, {"hidden_activation": "gelu_pytorch_tanh"}),
        ({"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21},
         {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28}),
        ({"use_sliding_window": False, "sliding_window": 4096}, {"sliding_window": 4096}),
        ({"sliding_window": 4096}, {"sliding_window": ...}),
        ({"_name_or_path": "x", "transformers_version": "4.40"}, {"_name_or_path": "y"}),
        ({"eos_token_id": 2, "attention_dropout": 0.1}, {"eos_token_id": [2, 3], "attention_dropout": 0.0}),
        ({"hidden_act": ..., "text_config": {"hidden_act": "silu", "rms_norm_eps": 1e-6}}, {}),
        ({"task_specific_params": {"x": 1}, "top_k": 50}, {"task_specific_params": None, "top_k": 20}),
    ],
)  # fmt: skip
def test_spelling_and_defaults_are_no_difference(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert said(first, second) == []
    assert said(second, first) == []


def test_what_cannot_be_known_is_noted_in_one_line() -> None:
    assert said({"own_word": 1, "other": "x"}, {"own_word": 2, "other": "y"}) == [
        "config.json of the inputs differs in `other`, `own_word` too; the output has what a has"
    ]


def test_models_of_unequal_depth_have_lists_of_unequal_length() -> None:
    a, b = (
        headers(name, llama(layers), llama_config(layers) | {"layer_types": ["full"] * layers})
        for name, layers in (("a", 4), ("b", 2))
    )
    planned = plan(linear(0.5, 0.5, layer_alignment="auto"), a, b)
    assert not any("config.json" in line for line in (*planned.warnings, *planned.notes))
