"""Recipes that are refused for how they are written: keys, entries and files; the words, the lines, all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mol.config import MergeConfig, load_recipe, methods
from mol.errors import ConfigError
from tests.config.toolkit import LINEAR, PASSTHROUGH, SLERP, refusal

if TYPE_CHECKING:
    from pathlib import Path

METHODS = ", ".join(f"`{name}`" for name in methods.METHODS)


def test_everything_at_once_in_the_order_of_lines() -> None:
    text = """\
merge_method: ties
base_model: a
models:
  - model: b
    paramters: {}
  - model: c
    parameters:
      weigth: 1
      density: 1.5
parameters:
  lambda: .nan
  normalise: true
dtyp: float16
dtype: floot16
"""
    assert refusal(text) == (
        "config.yml:5: unknown key `paramters` in an entry of `models`; did you mean `parameters`?",
        "config.yml:8: unknown parameter `weigth` for ties; did you mean `weight`?",
        "config.yml:9: `density` is 1.5; it must be from 0 to 1",
        "config.yml:11: `lambda` is nan; it must be a finite number",
        "config.yml:12: unknown parameter `normalise` for ties; did you mean `normalize`?",
        "config.yml:13: unknown key `dtyp` in a recipe; did you mean `dtype`?",
        "config.yml:14: `dtype` floot16 is not one of float32, float16, bfloat16, float64; did you mean `float16`?",
    )


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("slrp", "unknown merge method `slrp`; did you mean `slerp`?"),
        ("task-arithmetic", "unknown merge method `task-arithmetic`; did you mean `task_arithmetic`?"),
        (
            "zzz",
            f"unknown merge method `zzz`; there are {', '.join(METHODS.split(', ')[:8])} and more: `mol-merge methods` "
            f"lists all {len(methods.METHODS)}",
        ),
        ("[ties]", "`merge_method` is the name of a method, not ['ties']"),
    ],
)
def test_methods(word: str, message: str) -> None:
    assert refusal(SLERP.replace("slerp", word)) == (f"config.yml:1: {message}",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            SLERP.replace("merge_method: slerp\n", ""),
            f"config.yml:1: `merge_method` is missing; it is one of {METHODS}",
        ),
        ("merge_method: linear\n", "config.yml:1: a recipe has either `models` or `slices`; here is neither"),
        (SLERP + "slices: []\n", "config.yml:8: a recipe has either `models` or `slices`; here is both"),
        (SLERP + "modles: []\n", "config.yml:8: unknown key `modles` in a recipe; did you mean `modules`?"),
        (
            "merge_method: linear\nmodules: {}\n",
            "config.yml:2: `modules` is a map from the names of modules to `models` or `slices`, not empty",
        ),
        (SLERP + "name: b\n", "config.yml:8: a model is called `b`, as this recipe is; it cannot be made of itself"),
        (SLERP + "method: ties\n", "config.yml:8: `method` and `merge_method` differ; give one of them"),
        (
            SLERP + "use_safetensors: false\n",
            "config.yml:8: `use_safetensors: false`: weights are never written as pickles",
        ),
        (SLERP + "precision: half\n", "config.yml:8: `precision` is `exact` or `mergekit`, not 'half'"),
        (SLERP + "layer_alignment: loose\n", "config.yml:8: `layer_alignment` is `auto` or `strict`, not 'loose'"),
        (SLERP + "trust_remote_code: maybe\n", "config.yml:8: `trust_remote_code` must be true or false, not 'maybe'"),
        (SLERP + "output_path: [a]\n", "config.yml:8: `output_path` is a path, not ['a']"),
        (
            SLERP + "dtype: int64\n",
            "config.yml:8: `dtype` int64 is not one of float32, float16, bfloat16, float64: weights "
            "would be cut to whole numbers",
        ),
        (
            SLERP + "out_dtype: float8_e4m3fn\n",
            "config.yml:8: `out_dtype` float8_e4m3fn is not one of float32, float16, bfloat16, "
            "float64: quantized output comes later",
        ),
        (
            SLERP + "tokenizer:\n  source: base\n  tokens: [x]\n",
            "config.yml:10: `tokens` is a map from tokens to `source` and `force`, not ['x']",
        ),
        (SLERP + "tokenizer:\n  tokens:\n    x: a\n", "config.yml:10: token 'x' needs a map with `source`, not 'a'"),
        (
            SLERP + "tokenizer:\n  tokens:\n    y: {sorce: a}\n",
            "config.yml:10: unknown key `sorce` in the rule of token 'y'; did you mean `source`?",
        ),
        (
            SLERP + "tokenizer:\n  tokens:\n    z: {source: {kind: zeros}}\n",
            "config.yml:10: `kind` is `zero` or `model_token`, not 'zeros'; did you mean `zero`?",
        ),
        (
            SLERP + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n",
            "config.yml:8: the source of token 'x' needs either `token` or `token_id`",
        ),
        (
            SLERP + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: -1}}}}\n",
            "config.yml:8: `token_id` is a whole number from 0 to 16,777,216, not -1",
        ),
        (
            SLERP + "tokenizer: {source: base, pad_to_multiple_of: 0}\n",
            "config.yml:8: `pad_to_multiple_of` is a whole number from 1 to 1,048,576, not 0",
        ),
        (
            SLERP + "tokenizer: {sorce: base, source: base}\n",
            "config.yml:8: unknown key `sorce` in `tokenizer`; did you mean `source`?",
        ),
        (
            SLERP + "tokenizer_source: base\ntokenizer: {source: union}\n",
            "config.yml:9: `tokenizer` and `tokenizer_source` exclude each other",
        ),
        (SLERP + "tokenizer: base\n", "config.yml:8: `tokenizer` is a map with `source`: `base`, `union` or a model"),
        (
            SLERP + "chat_template: chatlm\n",
            "config.yml:8: `chat_template` is `auto`, `alpaca`, `chatml`, `exaone`, `llama3`, `mistral` or Jinja text, "
            "not 'chatlm'; did you mean `chatml`?",
        ),
    ],
)
def test_keys_of_a_recipe(text: str, problem: str) -> None:
    assert refusal(text) == (problem,)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "merge_method: linear\nmodels: {a: 1}\n",
            "config.yml:2: `models` is a list, its entries begin with `- `; here is a map",
        ),
        (
            "merge_method: linear\nmodels: a\n",
            "config.yml:2: `models` is a list, its entries begin with `- `; here is 'a'",
        ),
        ("merge_method: linear\nmodels: []\n", "config.yml:2: `models` is empty"),
        ("merge_method: linear\nmodels:\n  - [a]\n", "config.yml:3: an entry of `models` is a map, not a list"),
        (
            "merge_method: linear\nmodels:\n  - parameters: {weight: 1}\n",
            "config.yml:3: an entry of `models` needs `model`",
        ),
        (
            "merge_method: linear\nmodels:\n  - model: 7\n",
            "config.yml:3: a model is named by text, not by 7; put the name in quotes",
        ),
        (LINEAR.replace("weight: 1", "[a]: 1"), "config.yml:6: a key of a map must be a word, not a list or a map"),
        (
            LINEAR.replace("parameters:\n  weight: 1", "parameters: [1]"),
            "config.yml:5: `parameters` is a map from parameters to values, not [1]",
        ),
        (
            PASSTHROUGH.replace("[0, 2]", "[2, 2]"),
            "config.yml:4: `layer_range` [2, 2] holds no layer: it counts from 0 and does not include its end",
        ),
        (
            PASSTHROUGH.replace("[0, 2]", "[-1, 2]"),
            "config.yml:4: `layer_range` [-1, 2] holds no layer: it counts from 0 and does not include its end",
        ),
        (
            PASSTHROUGH.replace("[0, 2]", "[0]"),
            "config.yml:4: `layer_range` is two whole numbers, as in [0, 16], not [0]",
        ),
        (
            PASSTHROUGH.replace("[0, 2]", "[0, 1.5]"),
            "config.yml:4: `layer_range` is two whole numbers, as in [0, 16], not [0, 1.5]",
        ),
        (
            PASSTHROUGH.replace("[0, 2]", "all"),
            "config.yml:4: `layer_range` is two whole numbers, as in [0, 16], not 'all'",
        ),
        (PASSTHROUGH.replace(", layer_range: [0, 2]", ""), "config.yml:4: an entry of `sources` needs `layer_range`"),
        (
            "merge_method: passthrough\nslices:\n  - parameters: {}\n",
            "config.yml:3: a slice needs `sources`, a list of `{model, layer_range}`",
        ),
        (
            PASSTHROUGH.replace("layer_range", "layer_rnage"),
            "config.yml:4: unknown key `layer_rnage` in an entry of `sources`; did you mean `layer_range`?",
        ),
        (
            PASSTHROUGH + "    layer_range: [0, 2]\n",
            "config.yml:5: unknown key `layer_range` in a slice: each of `sources` has its own",
        ),
        (
            PASSTHROUGH.replace("[0, 2]", "[0, 2], weight: 1").replace("passthrough", "linear"),
            "config.yml:4: unknown key `weight` in an entry of `sources`: write `parameters: {weight: ...}`",
        ),
    ],
)
def test_shapes_of_entries(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_yaml(text, "config.yml")
    assert problem in (caught.value.problems or (str(caught.value),))


def test_an_adapter_is_named_after_its_model() -> None:
    (problem,) = refusal(LINEAR.replace("model: b", "{model: base, lora: adapter}"))
    assert problem.startswith("config.yml:4: unknown key `lora` in an entry of `models`: write `model: NAME+ADAPTER`")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"x\.yml:2: not UTF-8 text"):
        load_recipe(path)
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(ConfigError, match=r"x\.yml: more than 16 MiB"):
        load_recipe(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.yml"):
        load_recipe(tmp_path / "missing.yml")
    with pytest.raises(IsADirectoryError):
        load_recipe(tmp_path)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a", "b", "*", "re:("])
)
KEYS = st.sampled_from(
    [
        "model",
        "models",
        "slices",
        "sources",
        "layer_range",
        "parameters",
        "weight",
        "weights",
        "t",
        "filter",
        "value",
        "x",
    ]
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)


@given(
    method=st.sampled_from(["linear", "slerp", "ties", "task_arithmetic", "passthrough", "x"]),
    key=st.sampled_from(
        [
            "models",
            "slices",
            "parameters",
            "weights",
            "layer_range",
            "base_model",
            "tokenizer",
            "dtype",
            "chat_template",
        ]
    ),
    tree=TREES,
)
def test_no_recipe_raises_anything_but_a_config_error(method: str, key: str, tree: object) -> None:
    recipe = {"merge_method": method, "models": ["a", "b"], key: tree}
    try:
        config = MergeConfig.from_dict(recipe)
    except ConfigError:
        return
    assert MergeConfig.from_yaml(config.to_yaml()) == config


@pytest.mark.parametrize(
    ("text", "tool"),
    [
        (
            "base_model: a\ngate_mode: hidden\nexperts:\n  - source_model: b\n    positive_prompts: [x]\n",
            "mergekit-moe",
        ),
        ("genome:\n  models: [a, b]\n  merge_method: linear\n", "mergekit-evolve"),
    ],
)
def test_recipes_of_other_commands_of_mergekit_are_called_by_their_name(text: str, tool: str) -> None:
    (problem,) = refusal(text)
    assert f"this is a recipe of {tool}" in problem
