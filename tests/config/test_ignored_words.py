"""Words that mergekit takes no notice of: noted where they change nothing, else refused with the way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mol.config import MergeConfig
from mol.config.model_reference import ModelReference
from mol.errors import ConfigError
from tests.config.toolkit import LINEAR, PASSTHROUGH, SLERP, TIES, refusal

if TYPE_CHECKING:
    from pathlib import Path

ANCHORS = """\
const_tag: &ATT 0.7071067812
const_tag: &OUT 0.5
scale-env: &env
  parameters:
    scale:
    - filter: q_proj
      value: *ATT
    - filter: down_proj
      value: *OUT
    - value: 1.0
merge_method: passthrough
slices:
- sources:
  - model: a
    layer_range: [0, 2]
- sources:
  - model: a
    layer_range: [0, 2]
    <<: *env
"""


def notes(text: str) -> tuple[str, ...]:
    return MergeConfig.from_yaml(text).notes


def test_keys_of_the_authors_own_hold_anchors_also_twice() -> None:
    config = MergeConfig.from_yaml(ANCHORS)
    assert config.slices is not None
    scale = config.slices[1].sources[0].parameters.to_dict()["scale"]
    assert scale == [
        {"filter": "q_proj", "value": 0.7071067812},
        {"filter": "down_proj", "value": 0.5},
        {"value": 1.0},
    ]
    assert config.slices[0].sources[0].parameters.to_dict() == {}
    assert config.notes == (
        "`const_tag` holds YAML anchors for other keys and has no effect of its own",
        "`scale-env` holds YAML anchors for other keys and has no effect of its own",
    )


@pytest.mark.parametrize("holder", ["base: &a a", "shared: {x: &a a}", "list: [&a a]", "models_a: &a a"])
def test_an_anchor_may_stand_at_any_depth_of_a_holder(holder: str) -> None:
    assert MergeConfig.from_yaml(f"{holder}\n{SLERP.replace('base_model: a', 'base_model: *a')}").base_model == (
        ModelReference("a")
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LINEAR + "dtyp: &d float16\n", "unknown key `dtyp` in a recipe; did you mean `dtype`?"),
        (LINEAR + "paramters: &p {normalize: false}\n", "unknown key `paramters` in a recipe; did you mean"),
        (LINEAR + "dtype: &d float16\ndtype: &e float32\n", "key `dtype` is given twice"),
        (SLERP.replace("  t: 0.5", "  t: &t 0.5\n  t: &u 0.6"), "key `t` is given twice"),
        (LINEAR + "mine: *nowhere\n", "alias `*nowhere` has no anchor `&nowhere` before it"),
    ],
)
def test_what_is_no_holder_of_anchors_stays_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_yaml(text, "config.yml")
    assert problem in str(caught.value)


def test_the_name_of_a_single_recipe_is_a_title() -> None:
    assert notes("name: my-merge\n" + LINEAR) == (
        "`name: 'my-merge'` has no effect: it only distinguishes stages of a recipe",
    )


@pytest.mark.parametrize(
    "word",
    ["description: x", "author: x", "license: mit", "tags: [x]", "embed_slerp: true", "architecture: Y", "x-mine: 1",
     "lora_merge_cache: /tmp", "model_name: x"],
)  # fmt: skip
def test_words_about_the_model_and_of_no_effect_are_noted(word: str) -> None:
    key = word.partition(":")[0]
    line = f"`{key}` in a recipe has no effect in mergekit, and none here"
    assert notes(f"{LINEAR}{word}\n") == (line,)
    assert notes(LINEAR.replace("parameters:\n", f"parameters:\n  {word}\n")) == (
        line.replace("a recipe", "`parameters`"),
    )


@pytest.mark.parametrize(
    ("word", "option"), [("random_seed: 0", "--random-seed"), ("copy_tokenizer: true", "--copy-tokenizer")]
)
def test_options_of_the_command_in_a_recipe_are_noted_with_their_option(word: str, option: str) -> None:
    (note,) = notes(f"{LINEAR}{word}\n")
    assert note.endswith(f"has no effect, in mergekit neither: the command has `{option}` for it")


@pytest.mark.parametrize(
    "text",
    [
        PASSTHROUGH.replace("  - sources:", "  - merge_method: passthrough\n    sources:"),
        PASSTHROUGH.replace("model: a,", "model: a, revision: main,"),
        PASSTHROUGH.replace("model: a,", "model: a, merge_method: passthrough,"),
        PASSTHROUGH.replace("model: a,", "model: a, dtype: float16,") + "dtype: float16\n",
        TIES.replace("weight: 1", "weight: 1\n  dtype: float16") + "dtype: float16\n",
        TIES.replace("model: b", "model: b\n    parameters: {normalize: true}"),
        TIES.replace("model: b", "model: b\n    parameters: {lambda: 0.5}") + "  lambda: 0.5\n",
        TIES + "normalize: true\n",
        TIES + "int8_mask: true\n",
        PASSTHROUGH.replace("  - sources:", "  - residual_weight: 0.5\n    sources:"),
    ],
)
def test_a_word_in_the_wrong_map_that_changes_nothing_is_noted_once(text: str) -> None:
    (note,) = notes(text)
    assert "has no effect" in note


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            PASSTHROUGH.replace("model: a,", "model: a@v1, revision: v2,"),
            "config.yml:4: `revision` in an entry of `sources` is v2, and the model is a@v1; give one of them",
        ),
        (
            PASSTHROUGH.replace("model: a,", "model: a, revision: 7,"),
            "config.yml:4: `revision` in an entry of `sources` must be text, not 7; put it in quotes",
        ),
        (
            TIES + "  base_model: c\n",
            "config.yml:7: unknown parameter `base_model` for ties: it is a key of the recipe, "
            "write it next to `parameters`",
        ),
        (
            TIES.replace("model: b", "model: b\n    density: 0.5"),
            "config.yml:5: unknown key `density` in an entry of `models`: write `parameters: {density: ...}`",
        ),
        (
            TIES + "nomalize: true\n",
            "config.yml:7: unknown key `nomalize` in a recipe; did you mean `parameters: {normalize: ...}`?",
        ),
        (TIES + "  nomalize: true\n", "config.yml:7: unknown parameter `nomalize` for ties; did you mean `normalize`?"),
    ],
)
def test_a_word_in_the_wrong_map_that_may_mean_something_is_refused_with_the_way_out(text: str, problem: str) -> None:
    (found,) = refusal(text)
    assert found.startswith(problem)


IGNORED = "has no effect: mergekit ignores it, and so does mol"


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            PASSTHROUGH.replace("  - sources:", "  - merge_method: slerp\n    sources:"),
            f"`merge_method` in a slice, 'slerp', {IGNORED}: a recipe has one method",
        ),
        (
            PASSTHROUGH.replace("model: a,", "model: a, dtype: float16,"),
            f"`dtype` in an entry of `sources` {IGNORED}: it is a key of the recipe, write it next to `merge_method`",
        ),
        (
            TIES + "  dtype: float16\n",
            f"`dtype` in `parameters` for ties {IGNORED}: it is a key of the recipe, write it next to `parameters`",
        ),
        (
            LINEAR.replace("model: b", "model: b\n    name: second"),
            f"`name` in an entry of `models` {IGNORED}; leave it out, or make it a comment with `#`",
        ),
        (TIES + "normalize: false\n", f"`normalize` in a recipe {IGNORED}: write `parameters: {{normalize: ...}}`"),
        (
            TIES.replace("model: b", "model: b\n    parameters: {normalize: false}"),
            f"`normalize` of a single model {IGNORED}: it belongs to the whole merge, in `parameters` of the recipe",
        ),
        (
            LINEAR + "monitoring: {smoothing: 0.3}\n",
            f"`monitoring` in a recipe {IGNORED}; leave it out, or make it a comment with `#`",
        ),
        (SLERP + "  smoothing: 1\n", f"`smoothing` in `parameters` for slerp {IGNORED}; its parameters are `t`"),
        (SLERP + "  tt: 1\n", f"`tt` in `parameters` for slerp {IGNORED}; did you mean `t`?"),
        (LINEAR + "dype: float32\nout_dtype: float16\n", f"`dype` in a recipe {IGNORED}; did you mean `dtype`?"),
        (SLERP + "wieghts: 1\n", f"`wieghts` in a recipe {IGNORED}; leave it out, or make it a comment with `#`"),
    ],
)
def test_what_mergekit_ignores_is_warned_of_and_named(text: str, warning: str) -> None:
    config = MergeConfig.from_yaml(text, "config.yml")
    assert config.warnings == (warning,)
    assert MergeConfig.from_yaml(config.to_yaml()).warnings == ()


def test_the_revision_next_to_a_model_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PASSTHROUGH.replace("model: a,", "model: a, revision: v2,")
    config = MergeConfig.from_yaml(text, "config.yml")
    assert config.inputs() == (ModelReference("a", "v2"),)
    (warning,) = config.warnings
    assert "mergekit ignores it and takes a; here a is taken at v2" in warning
    assert MergeConfig.from_yaml(config.to_yaml()) == config
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    config = MergeConfig.from_yaml(text, "config.yml")
    assert config.inputs() == (ModelReference("a"),)
    assert config.warnings == (f"`revision` in an entry of `sources` {IGNORED}: a is a directory",)


def test_in_a_recipe_of_the_short_form_or_in_python_nothing_is_ignored() -> None:
    (problem,) = refusal("merge_method: linear\nmodels: [a, b]\nparameters: {weights: [1, 1]}\nzzz: 1\n")
    assert problem.startswith("config.yml:4: unknown key `zzz` in a recipe; leave it out")
    with pytest.raises(ConfigError, match="unknown parameter `zzz` for slerp"):
        MergeConfig("slerp", ["a", "b"], {"zzz": 1})


def test_more_ignored_words_than_a_recipe_has_are_refused() -> None:
    with pytest.raises(ConfigError, match="more than 100 problems"):
        MergeConfig.from_yaml(LINEAR + "\n".join(f"key{i}: {i}" for i in range(300)))


def test_suggestions_are_words_of_the_method_in_use() -> None:
    config = MergeConfig.from_yaml(SLERP + "  smooth: 1\n")
    assert config.warnings[0].endswith("; its parameters are `t`")


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("'0,5'", "0.5"), ("50%", "0.5"), ("12,5 %", "0.125"), ("-0,25", "-0.25")],
)
def test_a_decimal_comma_and_a_percentage_are_read_out(value: str, wanted: str) -> None:
    (problem,) = refusal(LINEAR.replace("weight: 1", f"weight: {value}"))
    assert problem.endswith(f"it must be a finite number; write {wanted}")


def test_a_decimal_comma_in_a_map_of_one_line_is_pointed_out() -> None:
    (problem,) = refusal(LINEAR.replace("\n  weight: 1", " {weight: 0,5}"))
    assert problem == (
        "config.yml:5: unknown parameter `5` for linear: a decimal has a point, as in 0.5; a comma ends the entry"
    )


def test_an_unknown_method_is_the_one_complaint() -> None:
    """About what the method decides, nothing is said."""
    text = TIES.replace("ties", "zzz").replace("weight: 1", "weight: 1\n  density: 0.5\n  int8_mask: true\n  t: 1")
    (problem,) = refusal(text)
    assert problem.startswith("config.yml:1: unknown merge method `zzz`; there are `linear`, ")


def test_the_tokenizer_may_be_named_as_older_recipes_do() -> None:
    assert MergeConfig.from_yaml(LINEAR + "tokenizer_source: model:b\n").tokenizer_source == ModelReference("b")


@pytest.mark.parametrize("number", ["0x" + "F" * 4000, "1" * 5000, "1:" * 300 + "1", "-" + "9" * 500])
def test_numbers_without_end_are_refused(number: str) -> None:
    for text in (f"merge_method: linear\nmodels: {number}\n", LINEAR.replace("weight: 1", f"weight: {number}")):
        with pytest.raises(ConfigError, match="nothing in a recipe is so large"):
            MergeConfig.from_yaml(text)


def test_hostile_values_of_python_are_refused_with_a_message() -> None:
    huge = 16**4000
    for recipe in ({"merge_method": huge}, {"merge_method": "linear", "models": [{"model": "a", huge: 1}]},
                   {"merge_method": "linear", "models": [huge]}, {"k" * 10_000: 1}):  # fmt: skip
        with pytest.raises(ConfigError):
            MergeConfig.from_dict(recipe)


def test_long_words_are_cut_in_messages() -> None:
    word = "x" * 100_000
    for text in (f"merge_method: {word}\n", LINEAR + f"dtype: {word}\n", f"merge_method: linear\nmodels: {word}\n",
                 LINEAR + f"chat_template: {word}\n", LINEAR.replace("weight: 1", f"weight: {word}")):  # fmt: skip
        assert max(map(len, refusal(text))) < 400
    with pytest.raises(ConfigError, match="a key of 100000 characters"):
        MergeConfig.from_yaml(f'? "{word}"\n: 1\n')


def test_a_text_of_mistakes_alone_is_cut_short() -> None:
    with pytest.raises(ConfigError, match="more than 100 problems") as caught:
        MergeConfig.from_yaml("\n".join(f"key{i}: {i}" for i in range(5000)))
    assert len(caught.value.problems) <= 101


def test_characters_that_are_none_are_refused_and_pairs_are_joined() -> None:
    assert MergeConfig.from_yaml(LINEAR + 'chat_template: "{{ messages }} \\ud83d\\ude00 {{ x }}"\n').chat_template == (
        "{{ messages }} \U0001f600 {{ x }}"
    )
    with pytest.raises(ConfigError, match="half of a surrogate pair"):
        MergeConfig.from_yaml(LINEAR + 'chat_template: "{{ messages }} \\ud83d {{ x }}"\n')
    assert "NUL" in refusal(LINEAR.replace("model: a", 'model: "a\\0b"'))[0]
    assert "`output_path` is a path" in refusal(LINEAR + 'output_path: "a\\0b"\n')[0]


def test_names_and_filters_without_end_are_refused_with_a_message() -> None:
    assert "the name of a model has 5000 characters" in refusal(LINEAR.replace("model: a", f"model: {'a' * 5000}"))[0]
    for pattern in ("(" * 5000, "(" * 5000 + ")" * 5000, "a{99999999999999999999}"):
        text = LINEAR.replace("weight: 1", f'weight: {{filter: "re:{pattern}", value: 1}}')
        (problem,) = refusal(text)
        assert "is no regular expression" in problem
        assert len(problem) < 400
