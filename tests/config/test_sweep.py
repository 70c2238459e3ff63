"""`sweep`: which recipes one lists, what their directories are called, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mol.config import MergeConfig
from mol.errors import ConfigError

MODELS = [{"model": "a"}, {"model": "b"}]
SLERP = {"merge_method": "slerp", "base_model": "a", "models": MODELS}
OWN = [{"model": model, "parameters": {"density": 1}} for model in "ab"]
TIES = {"merge_method": "ties", "base_model": "a", "models": MODELS, "parameters": {"weight": 1.0}}


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        ({"t": [0.3, 0.5, 1]}, ["t-0.3", "t-0.5", "t-1"]),
        ({"t": [[0, 0.5], [1, 0]]}, ["t-0,0.5", "t-1,0"]),
        ({"t": [-0.25, 1e-7]}, ["t--0.25", "t-1e-07"]),
        ({"t": [[{"filter": "mlp", "value": 0.5}, {"value": 1}], 0.25]}, ["t-filter=mlp,value=0.5,value=1", "t-0.25"]),
    ],
)
def test_values_name_directories(sweep: dict[str, Any], names: list[str]) -> None:
    assert list(MergeConfig.from_dict({**SLERP, "sweep": sweep}).sweep) == names


def test_several_parameters_are_a_grid() -> None:
    config = MergeConfig.from_dict({**TIES, "sweep": {"density": [0.2, 0.4], "scaling_factor": [1, 2]}})
    assert [(name, swept.config.parameters.to_dict()) for name, swept in config.sweep.items()] == [
        (f"density-{density}_scaling_factor-{factor}", {"weight": 1.0, "density": density, "lambda": factor})
        for density in (0.2, 0.4)
        for factor in (1, 2)
    ]


def test_what_a_sweep_says_is_stronger_than_the_parameters_of_the_recipe() -> None:
    config = MergeConfig.from_dict({**SLERP, "parameters": {"t": 0.9}, "sweep": {"t": [0.1, 0.2]}})
    assert [swept.config.parameters.to_dict() for swept in config.sweep.values()] == [{"t": 0.1}, {"t": 0.2}]


@pytest.mark.parametrize("models", [["a", "b"], MODELS, [{"model": "a", "parameters": {"weight": 9}}, {"model": "b"}]])
def test_weights_are_of_the_models(models: list[Any]) -> None:
    recipe = {"merge_method": "linear", "models": models, "sweep": {"weights": [[1, 3], {"a": 2, "b": 1}]}}
    config = MergeConfig.from_dict(recipe)
    found = [
        [model.parameters["weight"][0].value for model in swept.config.models or ()] for swept in config.sweep.values()
    ]
    assert found == [[1, 3], [2, 1]]


def test_a_sweep_is_read_back_to_itself() -> None:
    config = MergeConfig.from_dict({**SLERP, "sweep": {"t": [0.3, 0.5]}})
    assert MergeConfig.from_yaml(config.to_yaml() + "\n") == config
    assert config != MergeConfig.from_dict({**SLERP, "sweep": {"t": [0.3, 0.6]}})
    assert config != config.sweep["t-0.3"].config
    assert MergeConfig("slerp", ["a", "b"], base_model="a", sweep={"t": [0.3, 0.5]}).sweep.keys() == config.sweep.keys()


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ({**SLERP, "sweep": {"t": [0.3]}}, "a list of two values or more, not [0.3]; one stands in `parameters`"),
        ({**SLERP, "sweep": {"t": 0.3}}, "a list of two values or more, not 0.3"),
        ({**TIES, "sweep": {"weights": [[1, 2]]}}, "not [[1, 2]]; one stands next to `merge_method`"),
        ({"merge_method": "average", "checkpoints": ["a", "b"], "sweep": {"last": [2]}},
         "not [2]; one stands next to `merge_method`"),
        ({**SLERP, "sweep": {}}, "a map from parameters to lists of values, not an empty one"),
        ({**SLERP, "sweep": [0.3]}, "a map from parameters to lists of values, not [0.3]"),
        ({**SLERP, "sweep": {"tt": [1, 2]}}, "`tt` in `sweep` is no parameter of slerp; did you mean `t`?"),
        ({**SLERP, "sweep": {"weights": [[1, 2], [2, 1]]}}, "`weights` in `sweep` is no parameter of slerp"),
        ({**SLERP, "sweep": {"t": [0.3, 0.30000001]}}, "0.3 and 0.30000001 are the same to six digits"),
        ({**SLERP, "sweep": {"t": [0.5, 0.5]}}, "0.5 and 0.5 are the same to six digits"),
        ({**SLERP, "sweep": {"t": [0.5, "high"]}}, "`t` is 'high'; it must be a finite number"),
        ({**TIES, "sweep": {"density": [0.5, 1.5]}}, "`density`"),
        ({**TIES, "sweep": {"density": [i / 200 for i in range(1, 102)]}}, "asks for 101 models, more than 100"),
        (
            {**TIES, "models": OWN, "sweep": {"density": [0, 1]}},
            "`density` in `sweep` has no effect: each model gives its own; leave it out there",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused(recipe: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_dict(recipe)
    assert problem in str(caught.value)


def test_every_problem_of_every_value_is_listed_once_with_its_line() -> None:
    text = """merge_method: ties
base_model: a
models: [{model: b, parameters: {weight: 1}}]
parameters: {normalize: 3}
sweep:
  density:
    - 0.5
    - 1.5
    - none
"""
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_yaml(text)
    lines = [line.split(":")[1] for line in caught.value.problems]
    assert lines == ["4", "8", "9"]


STAGE = "name: first\nmerge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
RESULT = "merge_method: slerp\nbase_model: first\nmodels: [{model: first}, {model: b}]\n"


@pytest.mark.parametrize(
    ("text", "directories"),
    [
        (f"{STAGE}---\n{RESULT}sweep: {{t: [0.1, 0.2]}}\n", ["t-0.1", "t-0.2"]),
        (f"{STAGE}sweep: {{normalize: [true, false]}}\n---\n{RESULT}parameters: {{t: 0.1}}\n",
         ["normalize-true", "normalize-false"]),
        (f"name: last\n{RESULT}sweep: {{t: [0.1, 0.2]}}\n---\n{STAGE}", ["t-0.1", "t-0.2"]),
    ],
)  # fmt: skip
def test_a_sweep_of_one_document_is_all_of_them_for_each_value(text: str, directories: list[str]) -> None:
    config = MergeConfig.from_yaml(text)
    assert list(config.sweep) == directories
    for swept in config.sweep.values():
        word, value = next(iter(swept.values.items()))
        document, stage = swept.config, swept.config.stages["first"]
        held = document if word == "t" else stage
        assert held.parameters.to_dict()[word] == value
        assert MergeConfig.from_dict(document.to_dict()) == document
    assert MergeConfig.from_dict(config.to_dict()) == config


def test_two_documents_with_a_sweep_are_refused() -> None:
    with pytest.raises(ConfigError, match="recipe:9: `sweep` in a second document; one of them has it, for all"):
        MergeConfig.from_yaml(f"{STAGE}sweep: {{normalize: [true, false]}}\n---\n{RESULT}sweep: {{t: [0.1, 0.2]}}\n")


def test_stages_in_python_go_with_a_sweep_but_have_none() -> None:
    first = {"merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1}}]}
    config = MergeConfig("slerp", ["first", "b"], base_model="first", stages={"first": first}, sweep={"t": [0.1, 0.2]})
    assert [list(swept.config.stages) for swept in config.sweep.values()] == [["first"], ["first"]]
    assert MergeConfig.from_dict(config.to_dict()).sweep.keys() == config.sweep.keys()
    swept = first | {"sweep": {"normalize": [True, False]}}
    with pytest.raises(ConfigError, match="a stage with a `sweep` is several models"):
        MergeConfig("slerp", ["first", "b"], base_model="first", stages={"first": swept})
