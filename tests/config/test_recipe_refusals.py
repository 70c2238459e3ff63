"""Recipes that are refused: the words, the lines, and all problems at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mol.config import MergeConfig, load_recipe, parse_recipe
from mol.config.methods import LATER_METHODS
from mol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SLERP = "merge_method: slerp\nbase_model: a\nmodels:\n  - model: a\n  - model: b\nparameters:\n  t: 0.5\n"
LINEAR = "merge_method: linear\nmodels:\n  - model: a\n  - model: b\nparameters:\n  weight: 1\n"
TIES = "merge_method: ties\nbase_model: a\nmodels:\n  - model: b\nparameters:\n  weight: 1\n"
PASSTHROUGH = "merge_method: passthrough\nslices:\n  - sources:\n      - {model: a, layer_range: [0, 2]}\n"
METHODS = "`linear`, `slerp`, `task_arithmetic`, `ties`, `passthrough`"


def refusal(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, "config.yml")
    lines = [f"  - {problem}" for problem in caught.value.problems]
    assert str(caught.value) == "\n".join(["config.yml is refused:", *lines])
    return caught.value.problems


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
        ("zzz", f"unknown merge method `zzz`; there are {METHODS}"),
        ("dare-ties", f"merge method `dare-ties` is known but not built yet; there are {METHODS}"),
        ("[ties]", "`merge_method` is the name of a method, not ['ties']"),
    ],
)
def test_methods(word: str, message: str) -> None:
    assert refusal(SLERP.replace("slerp", word)) == (f"config.yml:1: {message}",)


@pytest.mark.parametrize("method", LATER_METHODS)
def test_methods_to_come_are_refused_by_name(method: str) -> None:
    assert refusal(SLERP.replace("slerp", method))[0].startswith(f"config.yml:1: merge method `{method}` is known but")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            SLERP.replace("merge_method: slerp\n", ""),
            f"config.yml:1: `merge_method` is missing; it is one of {METHODS}",
        ),
        ("merge_method: linear\n", "config.yml:1: a recipe has either `models` or `slices`; here is neither"),
        (SLERP + "slices: []\n", "config.yml:8: a recipe has either `models` or `slices`; here is both"),
        (SLERP + "modules: {}\n", "config.yml:8: `modules`: models of several modules come later"),
        (SLERP + "name: x\n", "config.yml:8: unknown key `name` in a recipe: recipes in several stages come later"),
        (SLERP + "method: ties\n", "config.yml:8: `method` and `merge_method` differ; give one of them"),
        (
            SLERP + "use_safetensors: false\n",
            "config.yml:8: `use_safetensors: false`: weights are never written as pickles",
        ),
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
            SLERP + "tokenizer_source: union\n",
            "config.yml:8: the tokenizer `union` comes later; there are `base` and the models of the recipe",
        ),
        (
            SLERP + "tokenizer: {}\n",
            "config.yml:8: the tokenizer `union` comes later; there are `base` and the models of the recipe",
        ),
        (
            SLERP + "tokenizer_source: org/x\n",
            "config.yml:8: the tokenizer's model org/x is none of the recipe's models",
        ),
        (
            SLERP + "tokenizer:\n  source: base\n  tokens: {x: {source: a}}\n",
            "config.yml:10: `tokens` of `tokenizer` comes later",
        ),
        (
            SLERP + "tokenizer: {source: base, pad_to_multiple_of: 8}\n",
            "config.yml:8: `pad_to_multiple_of` of `tokenizer` comes later",
        ),
        (
            SLERP + "tokenizer: {sorce: base, source: base}\n",
            "config.yml:8: unknown key `sorce` in `tokenizer`; did you mean `source`?",
        ),
        (
            SLERP + "tokenizer_source: base\ntokenizer: {source: base}\n",
            "config.yml:9: `tokenizer` and `tokenizer_source` exclude each other",
        ),
        (SLERP + "tokenizer: base\n", "config.yml:8: `tokenizer` is a map with `source`: `base` or a model"),
        (
            SLERP + "chat_template: llama3\n",
            "config.yml:8: the built-in chat template `llama3` comes later; write its Jinja text",
        ),
        (
            SLERP + "chat_template: chatlm\n",
            "config.yml:8: `chat_template` is `auto` or Jinja text, not 'chatlm'; did you mean `chatml`?",
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
            PASSTHROUGH.replace("[0, 2]", "[0, 2], weight: 1"),
            "config.yml:4: unknown key `weight` in an entry of `sources`: write `parameters: {weight: ...}`",
        ),
    ],
)
def test_shapes_of_entries(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, "config.yml")
    assert problem in (caught.value.problems or (str(caught.value),))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("t: abc", "`t` is 'abc'; it must be a finite number"),
        ("t: true", "`t` is true; it must be a finite number"),
        ("t: .inf", "`t` is inf; it must be a finite number"),
        ("t: 1e999", "`t` is '1e999'; it must be a finite number"),
        ("t: [0, .nan]", "`t` is nan; it must be a finite number"),
        ("t:", "`t` is empty; it must be a finite number"),
        ("t: []", "`t` is an empty list"),
        ("t: {filter: mlp}", "a value of `t` in map form needs `value`"),
        ("t: {filtr: mlp, value: 1}", "unknown key `filtr` in a value of `t`; did you mean `filter`?"),
        ("t: {filter: 3, value: 1}", "`filter` is a part of a tensor's name, not 3"),
        (
            "t: {filter: 're:(', value: 1}",
            "filter `re:(` is no regular expression: missing ), unterminated subpattern at position 0",
        ),
        ("t: [1, {value: 1}]", "`t` mixes values with `{filter, value}` maps in one list"),
        ("t: [{value: 1}, [0, 1]]", "`t` mixes values with `{filter, value}` maps in one list"),
        ("t: [[0, 1]]", "`t` is [0, 1]; it must be a finite number"),
        ("tt: 1\n  t: 1", "unknown parameter `tt` for slerp; did you mean `t`?"),
        ("zzz: 1\n  t: 1", "unknown parameter `zzz` for slerp; its parameters are `t`"),
    ],
)
def test_values_of_parameters(text: str, problem: str) -> None:
    assert refusal(SLERP.replace("t: 0.5", text)) == (f"config.yml:7: {problem}",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("density: -0.1", "`density` is -0.1; it must be from 0 to 1"),
        ("density: [0, 2]", "`density` is 2; it must be from 0 to 1"),
        ("normalize: 2", "`normalize` is 2; it must be true or false"),
        (
            "majority_sign_method: totl",
            "`majority_sign_method` is 'totl'; it must be `total` or `count`; did you mean `total`?",
        ),
        ("lambda: 1\n  scaling_factor: 1", "`scaling_factor` is `lambda` again: give one of the two"),
    ],
)
def test_values_of_ties(text: str, problem: str) -> None:
    line = 7 + text.count("\n")
    assert refusal(TIES + f"  {text}\n") == (f"config.yml:{line}: {problem}",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SLERP.replace("parameters:\n  t: 0.5\n", ""), "config.yml:3: slerp needs the parameter `t`"),
        (SLERP.replace("base_model: a\n", ""), "config.yml:2: slerp needs `base_model`, the model it starts from"),
        (
            SLERP.replace("  - model: b\n", ""),
            "config.yml:3: slerp takes exactly 2 models, the base among them; found 1",
        ),
        (
            SLERP.replace("  - model: b\n", "  - model: b\n  - model: c\n"),
            "config.yml:3: slerp takes exactly 2 models, the base among them; found 3",
        ),
        (
            SLERP.replace("base_model: a", "base_model: c"),
            "config.yml:3: slerp takes exactly 2 models, the base among them; found 3; the base, c, "
            "is not listed and counts too",
        ),
        (
            SLERP.replace("- model: b", "- model: b\n    parameters: {t: 1}"),
            "config.yml:6: `t` of a single model: it belongs to the whole merge, in `parameters` of the recipe",
        ),
        (
            TIES.replace("- model: b", "- model: a"),
            "config.yml:3: ties takes at least 2 models, the base among them; found 1",
        ),
        (
            TIES.replace("- model: b", "- model: a\n  - model: a"),
            "config.yml:3: ties needs a model besides the base, a",
        ),
        (TIES.replace("parameters:\n  weight: 1\n", ""), "config.yml:3: b has no `weight`"),
        (
            TIES.replace("ties", "task_arithmetic").replace("parameters:\n  weight: 1\n", ""),
            "config.yml:3: b has no `weight`",
        ),
        (LINEAR.replace("parameters:\n  weight: 1\n", ""), "config.yml:2: a has no `weight`"),
        (
            LINEAR.replace("weight: 1", "weight: 0"),
            "config.yml:2: the weights [0.0, 0.0] sum to zero, and `normalize: true` divides by "
            "their sum; change them or set `normalize: false`",
        ),
        (
            PASSTHROUGH + "      - {model: b, layer_range: [0, 2]}\n",
            "config.yml:3: slice 1: passthrough takes exactly 1 model; found 2",
        ),
        (
            "merge_method: passthrough\nbase_model: b\nmodels:\n  - model: a\n",
            "config.yml:3: `base_model` b is not among `models`: passthrough has no base, mergekit "
            "takes it as one more input and finds no weight for it; list it among `models`, or leave "
            "`base_model` out",
        ),
        (
            "merge_method: linear\nbase_model: b\nmodels:\n  - model: a\n    parameters: {weight: 1}\n",
            "config.yml:3: `base_model` b is not among `models`: linear has no base, mergekit takes "
            "it as one more input and finds no weight for it; list it among `models`, or leave "
            "`base_model` out",
        ),
        (
            PASSTHROUGH.replace("passthrough", "slerp")
            + "      - {model: b, layer_range: [0, 3]}\nbase_model: a\nparameters: {t: 1}\n",
            "config.yml:3: slice 1: the layer ranges of a slice have equal length; found a [0, 2], b [0, 3]",
        ),
        (
            PASSTHROUGH.replace("passthrough", "slerp")
            + "      - {model: org/bcd, layer_range: [0, 2]}\nbase_model: org/bce\nparameters: {t: 1}\n",
            "config.yml:3: slice 1: the base, org/bce, must be one of `sources`; did you mean `org/bcd`?",
        ),
    ],
)
def test_what_the_method_needs(text: str, problem: str) -> None:
    assert problem in refusal(text)


def test_weights_that_cancel_up_to_rounding() -> None:
    text = "merge_method: task_arithmetic\nbase_model: x\nmodels:\n"
    text += "".join(f"  - model: m{i}\n    parameters: {{weight: {w}}}\n" for i, w in enumerate((0.1, 0.2, -0.3)))
    assert parse_recipe(text).method == "task_arithmetic"  # it does not divide by them unless told to
    assert "sum to zero" in refusal(text + "parameters: {normalize: true}\n")[0]


def test_weights_of_ties_may_cancel() -> None:
    text = "merge_method: ties\nbase_model: x\nmodels:\n"
    text += "".join(f"  - model: m{i}\n    parameters: {{weight: {w}}}\n" for i, w in enumerate((1, -1)))
    assert parse_recipe(text).method == "ties"


def test_adapters_are_refused_by_name() -> None:
    (problem,) = refusal(LINEAR.replace("model: b", "model: base+adapter"))
    assert problem.startswith("config.yml:4: `base+adapter` is no local path, and `+` then names an adapter (LoRA)")


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
    assert parse_recipe(config.to_yaml()) == config
