"""The flat form: every key that only it has, and what it becomes in mergekit's grammar."""

from __future__ import annotations

from typing import Any

import pytest

from mol.config import MergeConfig, ModelReference, Rule, SliceConfig, SourceConfig
from mol.errors import ConfigError

A, B, C = ModelReference("a"), ModelReference("b"), ModelReference("c")


ALIGNMENT = "filled in, since the recipe is in the short form: `layer_alignment` auto (mergekit's form has strict)"


def plain(text: str) -> dict[str, Any]:
    """Return the recipe in mergekit's grammar, and see that it reads back equal."""
    config = MergeConfig.from_yaml(text, "config.yml")
    assert MergeConfig.from_yaml(config.to_yaml()) == config
    return config.to_dict()


def refusal(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_yaml(text, "config.yml")
    return caught.value.problems


def test_the_seeds_yaml() -> None:
    text = """\
merge_method: slerp
models:
  - gpt2
  - bert-base-uncased
trust_remote_code: false
output_path: ./merged_model
"""
    assert plain(text) == {
        "merge_method": "slerp",
        "models": [{"model": "gpt2"}, {"model": "bert-base-uncased"}],
        "base_model": "gpt2",
        "parameters": {"t": 0.5},
        "layer_alignment": "auto",
        "output_path": "./merged_model",
    }


@pytest.mark.parametrize(
    "weights",
    ["weights: [0.7, 0.3]", "parameters: {weights: [0.7, 0.3]}", "weights: {b: 0.3, a: 0.7}", "weights: [7e-1, '0.3']"],
)
def test_weights(weights: str) -> None:
    config = MergeConfig.from_yaml(f"merge_method: linear\nmodels: [a, b]\n{weights}\n")
    assert config.models is not None
    assert [source.parameters["weight"] for source in config.models] == [(Rule(0.7),), (Rule(0.3),)]


def test_the_first_model_is_the_base_and_needs_no_weight() -> None:
    config = MergeConfig.from_yaml(
        "merge_method: task_arithmetic\nmodels: [a, b, c]\nparameters: {weights: {b: 1.0, c: 0.5}}\n"
    )
    assert str(config.base_model) == "a"


def test_negative_weights_and_the_scaling_factor() -> None:
    config = MergeConfig.from_yaml("""\
merge_method: task_arithmetic
base_model: a
models: [a, b, c]
parameters:
  weights: {b: 1.0, c: -0.5}
  scaling_factor: 0.9
  normalize: false
""")
    assert config.models is not None
    assert [source.parameters.to_dict() for source in config.models] == [{}, {"weight": 1.0}, {"weight": -0.5}]
    assert config.parameters["lambda"] == (Rule(0.9),)


def test_parts_of_the_model() -> None:
    text = """\
merge_method: slerp
models: [a, b]
parameters:
  mlp: 0.2
  self_attn: {t: [0, 1]}
  layer_params:
    layers.0.: 0.9
  t:
    - {filter: norm, value: 0.1}
    - 0.4
"""
    assert "mixes values" in refusal(text)[0]
    t = plain(text.replace("    - 0.4\n", "    - value: 0.4\n"))["parameters"]["t"]
    assert t == [
        {"filter": "layers.0.", "value": 0.9},
        {"filter": "mlp", "value": 0.2},
        {"filter": "self_attn", "value": [0.0, 1.0]},
        {"filter": "norm", "value": 0.1},
        {"value": 0.4},
    ]


def test_parts_without_a_value_for_the_rest() -> None:
    parameters = plain("merge_method: slerp\nmodels: [a, b]\nparameters: {embed_tokens: 0, lm_head: 1}\n")["parameters"]
    assert parameters["t"] == [
        {"filter": "embed_tokens", "value": 0.0},
        {"filter": "lm_head", "value": 1.0},
        {"value": 0.5},
    ]


def test_parts_of_methods_with_several_parameters() -> None:
    text = "merge_method: ties\nmodels: [a, b]\nparameters: {mlp: {density: 0.2}}\n"
    assert plain(text)["parameters"]["density"] == [{"filter": "mlp", "value": 0.2}, {"value": 0.8}]
    assert refusal(text.replace("{density: 0.2}", "0.2")) == (
        "config.yml:3: `mlp` must say which parameter of ties it sets: `mlp: {weight: ...}`",
    )


def test_a_range_of_layers_for_all() -> None:
    config = MergeConfig.from_yaml("merge_method: ties\nbase_model: c\nmodels: [a, b]\nlayer_range: [0, 3]\n")
    assert config.slices == (SliceConfig((SourceConfig(A, (0, 3)), SourceConfig(B, (0, 3)), SourceConfig(C, (0, 3)))),)
    assert MergeConfig("ties", ["a", "b"], base_model="c", layer_range=(0, 3)) == config


def test_a_range_of_layers_for_each() -> None:
    config = MergeConfig.from_yaml("""\
merge_method: linear
models:
  - {name: a, weight: 0.9, layer_range: [0, 3]}
  - {model: b, weight: 0.1, layer_range: [3, 6]}
""")
    assert config.slices is not None
    (part,) = config.slices
    assert [source.layer_range for source in part.sources] == [(0, 3), (3, 6)]
    assert [source.parameters["weight"] for source in part.sources] == [(Rule(0.9),), (Rule(0.1),)]


FLAT_SLICES = """\
merge_method: linear
slices:
  - {model: a, layer_range: [0, 3], weight: 0.9}
  - {model: b, layer_range: [0, 3], weight: 0.1}
"""


def test_flat_slices_are_the_sources_of_one_slice() -> None:
    config = MergeConfig.from_yaml(FLAT_SLICES)
    assert config.slices is not None
    assert len(config.slices) == 1
    assert [source.parameters.to_dict() for source in config.slices[0].sources] == [{"weight": 0.9}, {"weight": 0.1}]
    assert config.notes == (
        "`slices` without `sources` are the inputs of one slice; to stack slices, give each its `sources`",
        ALIGNMENT,
    )


def test_flat_slices_of_passthrough_are_stacked() -> None:
    text = FLAT_SLICES.replace("linear", "passthrough").replace(", weight: 0.9", "").replace(", weight: 0.1", "")
    config = MergeConfig.from_yaml(text)
    assert config.slices is not None
    assert [len(part.sources) for part in config.slices] == [1, 1]
    assert config.notes == (ALIGNMENT,)


def test_the_default_base_of_slices() -> None:
    config = MergeConfig.from_yaml(
        FLAT_SLICES.replace("linear", "slerp").replace(", weight: 0.9", "").replace(", weight: 0.1", "")
    )
    assert config.base_model == A


def test_what_the_short_form_fills_in_is_said() -> None:
    config = MergeConfig.from_yaml("merge_method: ties\nmodels: [a, b]\n")
    assert config.notes[-1] == (
        "filled in, since the recipe is in the short form: `weight` 1 (mergekit's form needs one), "
        "`density` 0.8 (mergekit's form has 1), `layer_alignment` auto (mergekit's form has strict)"
    )
    given = MergeConfig.from_yaml(
        "merge_method: ties\nbase_model: a\nlayer_alignment: strict\nmodels:\n"
        "  - {name: b, weight: 0.5, parameters: {density: 0.3}}\n"
    )
    assert given.notes == ()


@pytest.mark.parametrize("key", ["weight: 0.6", "layer_range: [0, 2]"])
def test_a_key_next_to_model_leaves_a_recipe_in_mergekits_grammar(key: str) -> None:
    """A fault in that grammar, or a word that it ignores; never the defaults of another form."""
    text = (
        "merge_method: ties\nbase_model: a\nmodels:\n  - {model: a}\n"
        f"  - {{model: b, {key}, parameters: {{weight: 1}}}}\n"
    )
    if key.startswith("weight"):
        assert refusal(text) == (
            "config.yml:5: unknown key `weight` in an entry of `models`: write `parameters: {weight: ...}`",
        )
        return
    config = MergeConfig.from_yaml(text)
    assert (config.layer_alignment, config.slices, "density" in config.parameters) == ("strict", None, False)
    assert config.notes == (
        "`layer_range` in an entry of `models` has no effect in mergekit, and none here: whole models are merged; "
        "layers are chosen by `slices`",
    )


def test_keys_a_level_too_high_and_the_missing_base_are_one_refusal() -> None:
    text = "merge_method: ties\nmodels:\n- {model: a, density: 1.0, weight: 0.6}\n- {model: b, weight: 0.25}\n"
    key = "unknown key `{}` in an entry of `models`: write `parameters: {{{}: ...}}`".format
    assert refusal(text) == (
        "config.yml:2: ties needs `base_model`, the model it starts from",
        f"config.yml:3: {key('density', 'density')}",
        f"config.yml:3: {key('weight', 'weight')}",
        f"config.yml:4: {key('weight', 'weight')}",
    )


def test_a_list_under_weight_is_a_gradient_and_is_said() -> None:
    config = MergeConfig.from_yaml("merge_method: linear\nmodels: [a, b]\nparameters: {weight: [0.7, 0.3]}\n")
    assert config.parameters["weight"] == (Rule((0.7, 0.3)),)
    assert config.notes == (
        "`weight: [0.7, 0.3]` is a gradient over the layers; one weight per model is written `weights`",
        ALIGNMENT,
    )


@pytest.mark.parametrize("word", ["eps: 1e-8", "fallback_linear: true"])
def test_parameters_of_the_seed_that_are_built_in(word: str) -> None:
    config = MergeConfig.from_yaml(f"merge_method: slerp\nmodels: [a, b]\nparameters: {{{word}}}\n")
    assert any(note.startswith(f"`{word.partition(':')[0]}` has no effect on slerp: ") for note in config.notes)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models: [a, b]\nweights: [1]\n", "config.yml:3: `weights` has 1 entries for 2 models"),
        ("models: [a, b]\nweights: 1\n", "config.yml:3: `weights` is a list, one for each model, or a map from"),
        (
            "models: [org/a, b]\nweights: {org/aa: 1, b: 1}\n",
            "config.yml:3: `weights` names `org/aa`, which is no model",
        ),
        ("models: [a, b]\nweights: {a: 1}\n", "config.yml:3: `weights` has no weight for `b`"),
        ("models: [a]\nweights: [1]\nparameters: {weights: [1]}\n", "config.yml:4: `weights` is given twice"),
        ("models: [a]\nweights: [x]\n", "config.yml:3: `weight` is 'x'; it must be a finite number"),
        ("models: [a, b]\nweights: [1, -1]\n", "config.yml:2: the weights [1.0, -1.0] sum to zero"),
        ("models: [a, b]\nbase_model: c\n", "config.yml:2: `base_model` c is not among `models`"),
        ("models: [a, true]\n", "config.yml:2: an entry of `models` is a map, not true"),
        (
            "slices:\n  - sources:\n      - {name: a, layer_range: [0, 1]}\n",
            "config.yml:4: unknown key `name` in an entry of `sources`: a model is named by `model`",
        ),
        (
            "models:\n  - {model: a, layer_range: [0, 2]}\n  - b\n",
            "config.yml:4: an entry of `sources` needs `layer_range`",
        ),
        ("models: [a]\nlayer_range: [2, 1]\n", "config.yml:3: `layer_range` [2, 1] holds no layer"),
        ("models: [a]\nparameters: {layer_params: 3}\n", "config.yml:3: `layer_params` is a map from a part of a"),
        ("layer_range: [0, 1]\nslices: []\n", "config.yml:2: `layer_range` together with `slices`"),
        ("models: [a]\npush_to_hub: true\n", "config.yml:3: `push_to_hub`: upload the finished directory instead"),
        ("models: [a]\ntarget_hidden_dim: 3\n", "config.yml:3: `target_hidden_dim`: this belongs to fusion"),
    ],
)
def test_refused(text: str, problem: str) -> None:
    found = refusal(f"merge_method: linear\n{text}")
    assert any(line.startswith(problem) for line in found), found


def test_a_base_that_is_required_and_not_listed_counts_for_slerp() -> None:
    assert MergeConfig.from_yaml("merge_method: slerp\nbase_model: a\nmodels: [b]\n").base_model == A
    assert "found 3" in refusal("merge_method: slerp\nbase_model: a\nmodels: [b, c]\n")[0]
