"""mergekit's grammar: one recipe for each thing that it can say (merge-semantics, section 1.1)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from mol.config import (
    MergeConfig,
    ModelReference,
    ParameterMap,
    Rule,
    SliceConfig,
    SourceConfig,
    load_recipe,
)
from mol.config.methods import foreign_parameters
from mol.config.tokenizer import TokenizerSection, TokenRule

if TYPE_CHECKING:
    from pathlib import Path

A, B, C = ModelReference("a"), ModelReference("b"), ModelReference("c")

LINEAR = """
merge_method: linear
models:
  - model: a
    parameters: {weight: 0.75}
  - model: b
    parameters: {weight: 1e-3}
"""
SLERP = """
merge_method: slerp
base_model: a
models:
  - model: a
  - model: b
parameters: {t: 0.5}
"""
TIES = """
merge_method: ties
base_model: a
models:
  - model: b
    parameters: {weight: 1, density: 0.5}
"""
TASK_ARITHMETIC = """
merge_method: task_arithmetic
base_model: a
models:
  - model: b
  - model: c
parameters: {weight: -0.5}
"""
PASSTHROUGH = """
merge_method: passthrough
slices:
  - sources:
      - {model: a, layer_range: [0, 8]}
  - sources:
      - {model: a, layer_range: [4, 12]}
"""
ALL = {
    "linear": LINEAR,
    "slerp": SLERP,
    "ties": TIES,
    "task_arithmetic": TASK_ARITHMETIC,
    "passthrough": PASSTHROUGH,
}


@pytest.mark.parametrize("method", ALL)
def test_every_method_reads_and_reads_back_equal(method: str) -> None:
    config = MergeConfig.from_yaml(ALL[method])
    assert config.method == method
    assert config.source_text == ALL[method]
    assert config.layer_alignment == "strict"
    again = MergeConfig.from_yaml(config.to_yaml())
    assert again == config
    assert hash(again) == hash(config)
    assert MergeConfig.from_dict(config.to_dict()) == config


def test_models() -> None:
    config = MergeConfig.from_yaml(LINEAR)
    assert config.models == (
        SourceConfig(A, None, ParameterMap({"weight": (Rule(0.75),)})),
        SourceConfig(B, None, ParameterMap({"weight": (Rule(0.001),)})),
    )
    assert config.slices is None
    assert config.donor() == A
    assert config.model_references() == (A, B)


def test_slices() -> None:
    config = MergeConfig.from_yaml(PASSTHROUGH)
    assert config.models is None
    assert config.slices == (SliceConfig((SourceConfig(A, (0, 8)),)), SliceConfig((SourceConfig(A, (4, 12)),)))
    assert config.model_references() == (A,)


def test_a_base_that_is_not_listed_stays_the_base() -> None:
    config = MergeConfig.from_yaml(TIES)
    assert config.models is not None
    assert [source.model for source in config.models] == [B]
    assert config.base_model == A
    assert config.donor() == A
    assert config.model_references() == (B, A)


def test_slerp_of_the_base_and_one_listed_model() -> None:
    assert MergeConfig.from_yaml(SLERP.replace("  - model: a\n", "")).base_model == A


def test_a_base_that_is_listed_needs_no_weight() -> None:
    config = MergeConfig.from_yaml(TIES + "  - model: a\n")
    assert config.model_references() == (B, A)


def test_an_unlisted_base_of_linear_is_one_more_input_where_the_recipe_weighs_it() -> None:
    text = "merge_method: linear\nbase_model: c\nmodels:\n  - model: a\n  - model: b\nparameters: {weight: 1}\n"
    config = MergeConfig.from_yaml(text)
    assert config.models is not None
    assert [source.model for source in config.models] == [A, B, C]
    assert config.donor() == C
    assert config.notes == ("the base, c, is not among `models`: linear takes it as one more input",)


def test_the_same_model_twice() -> None:
    config = MergeConfig.from_yaml(LINEAR.replace("model: b", "model: a"))
    assert config.models is not None
    assert [source.model for source in config.models] == [A, A]
    assert config.model_references() == (A,)


def test_the_base_of_a_slice_is_stronger_and_residual_weight_is_noted() -> None:
    config = MergeConfig.from_yaml("""
merge_method: slerp
base_model: a
slices:
  - base_model: b
    residual_weight: 1
    sources:
      - {model: a, layer_range: [0, 4]}
      - {model: b, layer_range: [0, 4]}
    parameters: {t: [0, 1]}
  - sources:
      - {model: a, layer_range: [4, 8], parameters: {}}
      - {model: b, layer_range: [8, 12]}
    parameters: {t: 0.1}
""")
    assert config.slices is not None
    assert [part.base_model for part in config.slices] == [B, None]
    assert config.slices[0].parameters["t"] == (Rule((0.0, 1.0)),)
    assert config.slices[1].sources[1].layer_range == (8, 12)
    assert config.notes == ("`residual_weight` has no effect: mergekit reads it and never uses it",)
    assert MergeConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("0.3", (Rule(0.3),)),
        ("1", (Rule(1.0),)),
        ("'0.3'", (Rule(0.3),)),
        ("1e-3", (Rule(0.001),)),
        ("[0, 0.5, 1]", (Rule((0.0, 0.5, 1.0)),)),
        ("{value: 0.3}", (Rule(0.3),)),
        ("{filter: mlp, value: 0.3}", (Rule(0.3, "mlp"),)),
        ("[{filter: mlp, value: [0, 1]}, {value: 0.3}]", (Rule((0.0, 1.0), "mlp"), Rule(0.3))),
        ("[{filter: '*', value: 0.3}]", (Rule(0.3),)),
        ("[{filter: 're:^h', value: 0.3}, {filter: '*.mlp.*', value: 1}]", (Rule(0.3, "re:^h"), Rule(1.0, "*.mlp.*"))),
    ],
)
def test_values(text: str, rules: tuple[Rule, ...]) -> None:
    config = MergeConfig.from_yaml(SLERP.replace("t: 0.5", f"t: {text}"))
    assert config.parameters["t"] == rules
    assert MergeConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("method", "text", "name", "value"),
    [
        ("ties", "normalize: false", "normalize", False),
        ("ties", "normalize: 'true'", "normalize", True),
        ("ties", "rescale: true", "rescale", True),
        ("ties", "lambda: 0.5", "lambda", 0.5),
        ("ties", "scaling_factor: 0.5", "lambda", 0.5),
        ("ties", "majority_sign_method: sum", "majority_sign_method", "total"),
        ("ties", "majority_sign_method: mass", "majority_sign_method", "total"),
        ("ties", "majority_sign_method: count", "majority_sign_method", "count"),
        ("ties", "normalize: [true, false]", "normalize", (True, False)),
        ("linear", "normalize_weights: false", "normalize", False),
        ("passthrough", "scale: 0.5", "scale", 0.5),
    ],
)
def test_parameters_by_all_their_words(method: str, text: str, name: str, value: object) -> None:
    config = MergeConfig.from_yaml(
        ALL[method].replace("parameters: {weight: -0.5}\n", "") + f"parameters: {{{text}}}\n"
    )
    assert config.parameters[name] == (Rule(value),)  # type: ignore[arg-type]
    assert config.notes == ()


@pytest.mark.parametrize(
    ("word", "dtype"),
    [
        ("float32", "F32"),
        ("float16", "F16"),
        ("bfloat16", "BF16"),
        ("float64", "F64"),
        ("torch.bfloat16", "BF16"),
        ("bf16", "BF16"),
    ],
)
def test_dtypes(word: str, dtype: str) -> None:
    config = MergeConfig.from_yaml(LINEAR + f"dtype: {word}\nout_dtype: {word}\n")
    assert (config.dtype, config.out_dtype) == (dtype, dtype)
    assert MergeConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize("text", ["tokenizer_source: {}", "tokenizer: {{source: {}}}"])
@pytest.mark.parametrize(("word", "source"), [("base", "base"), ("b", B), ("union", "union")])
def test_tokenizers(text: str, word: str, source: object) -> None:
    config = MergeConfig.from_yaml(LINEAR + text.format(word) + "\n")
    assert config.tokenizer_source == source
    assert MergeConfig.from_yaml(config.to_yaml()) == config


def test_a_tokenizer_without_a_source_is_the_union_as_in_mergekit() -> None:
    assert MergeConfig.from_yaml(LINEAR + "tokenizer: {}\n").tokenizer_source == "union"


def test_a_tokenizer_of_a_model_that_is_not_merged_is_said() -> None:
    config = MergeConfig.from_yaml(LINEAR + "tokenizer_source: org/x\n")
    assert config.tokenizer_source == ModelReference("org/x")
    assert config.model_references() == (A, B)
    assert config.notes == ("org/x is none of the models that are merged, so its tokenizer alone is used",)
    near = MergeConfig.from_yaml(LINEAR.replace(": a", ": org/model") + "tokenizer_source: org/modle\n")
    assert near.notes[0].endswith("; did you mean `org/model`?")


SECTION = """
tokenizer:
  source: union
  pad_to_multiple_of: 64
  tokens:
    <|im_start|>:
      source: org/chat
      force: true
    <|pad|>: {source: {kind: zero}}
    <x>: {source: {kind: model_token, model: b, token: </s>}}
    <y>: {source: {kind: model_token, model: {model: {path: b}}, token_id: 7}, force: "true"}
    <z>: {}
"""


def test_a_section_for_the_tokenizer() -> None:
    config = MergeConfig.from_yaml(LINEAR + SECTION)
    chat = ModelReference("org/chat")
    assert config.tokenizer == TokenizerSection(
        "union",
        (
            TokenRule("<|im_start|>", chat, force=True),
            TokenRule("<|pad|>"),
            TokenRule("<x>", B, "</s>"),
            TokenRule("<y>", B, 7, force=True),
            TokenRule("<z>", keeps=True),
        ),
        64,
    )
    assert (config.model_references(), config.merged_models()) == ((A, B, chat), (A, B))
    assert MergeConfig.from_yaml(config.to_yaml()) == config
    assert dataclasses.replace(config, dtype="F32").tokenizer == config.tokenizer


def test_chat_templates() -> None:
    jinja = "{% for m in messages %}{{ m }}{% endfor %}"
    config = MergeConfig.from_yaml(LINEAR + f'chat_template: "{jinja}"\n')
    assert config.chat_template == jinja
    assert MergeConfig.from_yaml(config.to_yaml()) == config
    assert MergeConfig.from_yaml(LINEAR + "chat_template: auto\n").chat_template == "auto"


def test_references_in_all_forms() -> None:
    config = MergeConfig.from_yaml("""
merge_method: linear
base_model: {path: org/a, revision: main}
models:
  - model: org/a@main
  - model: {model: {path: "org/b", revision: "12"}}
  - model: {path: "./c+d@e f"}
parameters: {weight: 1}
""")
    expected = (ModelReference("org/a", "main"), ModelReference("org/b", "12"), ModelReference("./c+d@e f"))
    assert config.model_references() == expected
    assert config.base_model == expected[0]
    assert MergeConfig.from_yaml(config.to_yaml()) == config


def test_our_own_keys_do_not_change_the_form() -> None:
    config = MergeConfig.from_yaml(
        SLERP
        + "output_path: out\ntrust_remote_code: true\nallow_crimes: true\nlayer_alignment: auto\nprecision: exact\n"
    )
    assert config.output_path == "out"
    assert config.trust_remote_code
    assert config.allow_crimes
    assert config.layer_alignment == "auto"
    assert MergeConfig.from_yaml(config.to_yaml()) == config
    assert MergeConfig.from_yaml(SLERP + "output_path: out\n").layer_alignment == "strict"


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (SLERP + "device: cuda\n", "`device` has no effect: a merge runs on the CPU"),
        (SLERP + "lazy_unpickle: true\n", "`lazy_unpickle` has no effect: weights are always read in small parts"),
        (
            SLERP + "low_cpu_mem_usage: true\n",
            "`low_cpu_mem_usage` has no effect: a merge always runs in constant memory",
        ),
        (
            SLERP + "use_safetensors: true\n",
            "`use_safetensors` has no effect: weights are always written as safetensors",
        ),
        (
            TIES + "parameters: {int8_mask: true}\n",
            "`int8_mask` has no effect on ties: in mergekit it changes the type of a temporary, never the result",
        ),
        (
            TASK_ARITHMETIC.replace("weight: -0.5", "weight: 1, density: 0.5"),
            f"`density` has no effect on task_arithmetic: {foreign_parameters()['density']}",
        ),
        (
            SLERP.replace("t: 0.5", "t: [{value: 1}, {filter: mlp, value: 0}]"),
            "a value of `t` for mlp is never used: it follows one for all tensors",
        ),
    ],
)
def test_what_has_no_effect_is_noted(text: str, note: str) -> None:
    assert MergeConfig.from_yaml(text).notes == (note,)


def test_empty_optional_keys_are_as_if_absent() -> None:
    assert MergeConfig.from_yaml(LINEAR + "base_model:\ndtype: null\nparameters:\n") == MergeConfig.from_yaml(LINEAR)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "größe.yml"
    path.write_bytes(b"\xef\xbb\xbf" + LINEAR.encode())  # a byte order mark is no part of the text
    config = load_recipe(path)
    assert config == MergeConfig.from_yaml(str(path)) == MergeConfig.from_yaml(path) == MergeConfig.from_yaml(LINEAR)
    assert config.source_text == LINEAR


def test_models_know_their_lines() -> None:
    config = MergeConfig.from_yaml(SLERP, "config.yml")
    assert config.locations == {A: "config.yml:5", B: "config.yml:6"}
