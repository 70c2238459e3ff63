"""`rules` of a recipe: how they are read, what comes back of them, and what is refused, all at once."""

from __future__ import annotations

import pytest

from mol.config import MergeConfig
from mol.config.model_reference import ModelReference
from tests.config.toolkit import SLERP, TIES, refusal

RULES = """\
rules:
  - filter: self_attn
    copy: b
  - filter: re:layers\\.[01]\\.
    merge_method: linear
    models:
      - a
      - model: b
        parameters: {weight: 2}
    parameters: {weight: 0.5}
  - filter: "*.mlp.*"
    parameters: {t: [0, 1]}
"""


def test_a_rule_is_read_and_written_back() -> None:
    config = MergeConfig.from_yaml(SLERP + RULES)
    first, second, third = config.rules
    assert (first.filter, first.copy) == ("self_attn", ModelReference("b"))
    assert second.method == "linear"
    assert str(second) == "`re:layers\\.[01]\\.`: linear of a, b (weight 0.5)"
    assert (third.method, third.copy) == (None, None)
    assert MergeConfig.from_dict(config.to_dict()) == config
    assert MergeConfig.from_yaml(config.to_yaml()) == config


def test_parameters_of_a_rule_come_before_those_of_the_recipe() -> None:
    text = TIES + "  density: 0.25\nrules:\n  - filter: mlp\n    parameters: {density: [{filter: up, value: 0.75}]}\n"
    config = MergeConfig.from_yaml(text)
    ruled = config.under_rule(config.rules[0])
    where = {"slice_index": 0, "source": 0, "position": 0.0}
    values = {
        name: [ruled.resolve(name, source_tensor=tensor, output_tensor=tensor, **where) for tensor in ("up", "down")]  # type: ignore[arg-type]
        for name in ("density", "weight")
    }
    assert values == {"density": [0.75, 0.25], "weight": [1.0, 1.0]}


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{filter: mlp}", "a rule needs `copy: MODEL`, `merge_method` or `parameters`"),
        ("{filter: mlp, copy: c}", "`copy` of a rule names c, which is no input of the recipe; it has a, b"),
        (
            "{filter: mlp, copy: a, merge_method: ties}",
            "`merge_method` next to `copy`: a rule copies one model, or has",
        ),
        ("{filter: mlp, merge_method: tis}", "unknown merge method `tis`; did you mean `ties`?"),
        ("{filter: mlp, method: ties}", "unknown key `method` in an entry of `rules`: write `merge_method`"),
        ("{filter: mlp, merge_method: ties}", "b has no `weight`; give it one under its `parameters`"),
        (
            "{filter: mlp, merge_method: ties, weight: 1}",
            "unknown key `weight` in an entry of `rules`: write `parameters:",
        ),
        (
            "{filter: mlp, merge_method: ties, parameters: {wight: 1}}",
            "unknown parameter `wight` for ties; did you",
        ),
        ("{filter: mlp, merge_method: linear, models: [a]}", "a has no `weight`"),
        (
            "{filter: mlp, merge_method: model_stock}",
            "model_stock takes at least 3 models",
        ),
        ("{filter: mlp, merge_method: slerp, models: [a, a], parameters: {t: 0}}", "a is listed twice in a rule"),
        ("{filter: mlp, models: [c], parameters: {t: 0}}", "`models` of a rule names c, which is no input"),
        ("{filter: 're:(', copy: a}", "filter `re:(` is no regular expression"),
        ("self_attn", "an entry of `rules` is a map, not 'self_attn'"),
    ],
)
def test_what_makes_no_rule_is_refused(entry: str, problem: str) -> None:
    found = refusal(f"{SLERP}rules:\n  - {entry}\n")
    assert any(line.startswith("config.yml:9: ") and problem in line for line in found), found


def test_problems_of_all_rules_are_listed() -> None:
    text = f"{SLERP}rules:\n  - {{filter: mlp}}\n  - {{copy: c}}\n  - {{merge_method: linear}}\n"
    assert [line.split(":")[1] for line in refusal(text)] == ["9", "10", "11", "11"]
    assert "`rules` is a list" in refusal(f"{SLERP}rules: {{mlp: a}}\n")[0]


def test_a_weight_is_advised_only_where_the_method_of_the_rule_has_one() -> None:
    config = MergeConfig.from_yaml(f"{SLERP}rules:\n  - {{filter: mlp, weight: 1, parameters: {{t: 0.25}}}}\n")
    assert config.notes[0].startswith("`weight` has no effect on slerp: a parameter of linear, nuslerp")


def test_a_rule_behind_one_that_takes_all_is_never_used() -> None:
    config = MergeConfig.from_yaml(f"{SLERP}rules:\n  - {{copy: a}}\n  - {{filter: mlp, copy: b}}\n")
    assert config.notes == ("rule 2 (`mlp`: copy of b) is never used: rule 1 takes the same tensors before it",)
