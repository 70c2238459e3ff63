"""Recipes that are refused for what their method takes: values of parameters, weights, the number of models."""

from __future__ import annotations

import pytest

from mol.config import MergeConfig
from tests.config.toolkit import LINEAR, PASSTHROUGH, SLERP, TIES, refusal


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("t: abc", "`t` is 'abc'; it must be a finite number"),
        ("t: true", "`t` is true; it must be a finite number"),
        ("t: .inf", "`t` is inf; it must be a finite number"),
        ("t: 1e999", "`t` is '1e999'; it must be a finite number"),
        ("t: [0, .nan]", "`t` is nan; it must be a finite number"),
        ("t: 1.7e+308", "`t` is 1.7e+308; it must be a finite number, and no larger than float32 holds (3.4e+38)"),
        ("t: [0, -4.0e+38]", "`t` is -4e+38; it must be a finite number, and no larger than float32 holds (3.4e+38)"),
        (
            "t: 1.0e-300",
            "`t` is 1e-300; it must be a finite number, and zero or no smaller than float32 holds (1.2e-38)",
        ),
        ("t:", "`t` is empty; it must be a finite number"),
        ("t: []", "`t` is an empty list"),
        ("t: {filter: mlp}", "a value of `t` in map form needs `value`"),
        ("t: {filtr: mlp, value: 1}", "unknown key `filtr` in a value of `t`; did you mean `filter`?"),
        ("t: {filter: 3, value: 1}", "`filter` is a part of a tensor's name, not 3"),
        (
            "t: {filter: [q_proj], value: 1}",
            "`filter` is a part of a tensor's name, not ['q_proj']; write an entry for each",
        ),
        (
            "t: {filter: 're:(', value: 1}",
            "filter `re:(` is no regular expression: missing ), unterminated subpattern at position 0",
        ),
        ("t: [1, {value: 1}]", "`t` mixes values with `{filter, value}` maps in one list"),
        ("t: [{value: 1}, [0, 1]]", "`t` mixes values with `{filter, value}` maps in one list"),
        ("t: [[0, 1]]", "`t` is [0, 1]; it must be a finite number"),
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


KARCHER = "merge_method: karcher\nmodels:\n  - model: a\n  - model: b\n"
FUSION = "merge_method: arcee_fusion\nbase_model: a\nmodels:\n  - model: b\n"
MULTISLERP = LINEAR.replace("linear", "multislerp")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            KARCHER + "parameters: {max_iter: 2.5}\n",
            "config.yml:5: `max_iter` is 2.5; it must be a whole number from 0 to 100000",
        ),
        (
            KARCHER + "parameters: {max_iter: -1, tol: -1}\n",
            "config.yml:5: `max_iter` is -1; it must be a whole number from 0 to 100000",
        ),
        (KARCHER + "parameters: {max_iter: -1, tol: -1}\n", "config.yml:5: `tol` is -1; it must be 0 or more"),
        (
            MULTISLERP.replace("weight: 1", "weight: 0"),
            "config.yml:2: the weights [0.0, 0.0] sum to zero, and `normalize_weights: true` divides by their sum; "
            "change them or set `normalize_weights: false`",
        ),
        (MULTISLERP.replace("weight: 1", "eps: 1"), "config.yml:6: `eps` is 1; it must be from 0 to 0.001"),
        (SLERP.replace("slerp", "nearswap").replace("0.5", "-1"), "config.yml:7: `t` is -1; it must be 0 or more"),
        (
            FUSION + "  - model: c\n",
            "config.yml:3: arcee_fusion takes exactly 2 models, the base among them; found 3; the base, a, "
            "is not listed and counts too",
        ),
        (
            "method: arcee_fusion\nmodels: [a, b]\nparameters: {self_attn: 1}\n",
            "config.yml:3: `self_attn`: arcee_fusion has no parameters",
        ),
    ],
)
def test_values_of_other_methods(text: str, problem: str) -> None:
    assert problem in refusal(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("max_iter: 1e3", 1000), ("max_iter: 1000", 1000), ("max_iter: '20'", 20)],
)
def test_whole_numbers(text: str, value: int) -> None:
    config = MergeConfig.from_yaml(KARCHER + f"parameters: {{{text}}}\n")
    assert config.parameters.to_dict() == {"max_iter": value}
    assert isinstance(config.parameters.to_dict()["max_iter"], int)


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
            TIES.replace("- model: b", "- model: a\n  - model: a"),
            "config.yml:3: ties needs a model in addition to the base, a",
        ),
        (
            TIES.replace("parameters:\n  weight: 1\n", ""),
            "config.yml:3: b has no `weight`; give it one under its `parameters`",
        ),
        (
            TIES.replace("ties", "task_arithmetic").replace("parameters:\n  weight: 1\n", ""),
            "config.yml:3: b has no `weight`; give it one under its `parameters`",
        ),
        (
            LINEAR.replace("parameters:\n  weight: 1\n", ""),
            "config.yml:2: a has no `weight`; give it one under its `parameters`",
        ),
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
            "takes it as one more input, and passthrough takes one model only; leave `base_model` out",
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
            "config.yml:3: slice 1: the base, org/bce, must be one of `sources`, with its `layer_range`; "
            "did you mean `org/bcd`?",
        ),
        (  # one family, and no typing error
            PASSTHROUGH.replace("passthrough", "slerp")
            + "      - {model: org/b-v2, layer_range: [0, 2]}\nbase_model: org/b-v1\nparameters: {t: 1}\n",
            "config.yml:3: slice 1: the base, org/b-v1, must be one of `sources`, with its `layer_range`",
        ),
    ],
)
def test_what_the_method_needs(text: str, problem: str) -> None:
    assert problem in refusal(text)


CANCELLING = "models:\n" + "".join(
    f"  - model: m{i}\n    parameters: {{weight: {weight}}}\n" for i, weight in enumerate((0.1, 0.2, -0.3))
)


def test_weights_that_cancel_up_to_rounding() -> None:
    assert "sum to zero" in refusal(f"merge_method: linear\n{CANCELLING}")[0]


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "breadcrumbs", "della_linear", "consensus_ta"])
def test_differences_whose_weights_cancel_are_divided_by_one_with_a_warning(method: str) -> None:
    text = f"merge_method: {method}\nbase_model: x\n{CANCELLING}"
    assert MergeConfig.from_yaml(text).warnings == ()  # it does not divide by them unless the recipe says so
    (warning,) = MergeConfig.from_yaml(text + "parameters: {normalize: true}\n").warnings
    assert warning == (
        "the weights [0.1, 0.2, -0.3] sum to zero: as in mergekit, `normalize: true` divides by 1 instead"
    )


def test_weights_of_ties_may_cancel() -> None:
    assert MergeConfig.from_yaml(f"merge_method: ties\nbase_model: x\n{CANCELLING}").method == "ties"
