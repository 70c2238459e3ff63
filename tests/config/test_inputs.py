"""Inputs that are odd and mean something: the base alone, a base that is not listed, models that are listed twice."""

from __future__ import annotations

import pytest

from mol.config import MergeConfig, ModelReference
from tests.config.toolkit import LINEAR, PASSTHROUGH, SLERP, TIES, refusal

ALONE = "merge_method: {}\nbase_model: a\nmodels:\n  - model: a\n    parameters: {{weight: 1, density: 0.5}}\n"


@pytest.mark.parametrize(
    "method", ["task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs_ties", "sce", "ram"]
)
def test_the_base_alone_is_warned_of(method: str) -> None:
    config = MergeConfig.from_yaml(ALONE.format(method))
    assert f"no model next to the base, a: {method} gives the base itself" in config.warnings


def test_methods_that_need_more_refuse_the_base_alone() -> None:
    assert refusal(ALONE.format("model_stock")) == (
        "config.yml:3: model_stock takes at least 3 models, the base among them; found 1",
    )
    assert refusal(ALONE.format("arcee_fusion")) == (
        "config.yml:3: arcee_fusion takes exactly 2 models, the base among them; found 1",
    )


def test_karcher_averages_a_base_that_is_not_listed() -> None:
    config = MergeConfig.from_yaml("merge_method: karcher\nbase_model: c\nmodels: [{model: a}, {model: b}]\n")
    assert [str(source.model) for source in config.models or ()] == ["a", "b", "c"]
    assert config.warnings == ("the base, c, is not among `models`: karcher takes it as one more input",)


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        (LINEAR.replace("model: b", "model: a"), "a is listed 2 times"),
        (TIES.replace("  - model: b\n", "  - model: b\n  - model: b\n  - model: b\n"), "b is listed 3 times"),
        (
            "merge_method: linear\nparameters: {weight: 1}\nslices:\n  - sources:\n"
            "      - {model: a, layer_range: [0, 2]}\n      - {model: a, layer_range: [2, 4]}\n",
            "slice 1: a is listed 2 times",
        ),
    ],
)
def test_a_model_that_is_listed_twice_counts_twice_and_is_warned_of(text: str, repeated: str) -> None:
    (warning,) = MergeConfig.from_yaml(text).warnings
    assert warning == (f"{repeated}, and each counts; mergekit 0.1.5 refuses that, older versions take one of them")


@pytest.mark.parametrize("text", [LINEAR, SLERP, TIES, PASSTHROUGH])
def test_usual_inputs_are_not_warned_of(text: str) -> None:
    assert MergeConfig.from_yaml(text).warnings == ()


def test_bounds_of_layers_may_be_whole_numbers_with_a_point() -> None:
    config = MergeConfig.from_yaml(PASSTHROUGH.replace("[0, 2]", "[0.0, 2.0]"))
    assert config.slices is not None
    assert config.slices[0].sources[0].layer_range == (0, 2)
    assert "two whole numbers" in refusal(PASSTHROUGH.replace("[0, 2]", "[0, 2.5]"))[0]


@pytest.mark.parametrize(("filter_", "noted"), [("'model.layers.*.mlp*'", True), ("mlp", False), ("'*'", False)])
def test_a_glob_which_mergekit_lacks_is_noted(filter_: str, noted: bool) -> None:
    text = SLERP.replace("  t: 0.5\n", f"  t:\n    - filter: {filter_}\n      value: 0.3\n    - value: 0.5\n")
    line = "the filter `model.layers.*.mlp*` is a glob for the whole name; mergekit looks for it as it stands"
    assert (line in MergeConfig.from_yaml(text).notes) == noted


def test_a_base_with_an_adapter_alone_is_that_model() -> None:
    text = "merge_method: task_arithmetic\nbase_model: a+lora\nmodels: [{model: a+lora, parameters: {weight: 1}}]\n"
    assert MergeConfig.from_yaml(text).base_model == ModelReference("a", adapter=ModelReference("lora"))
