"""The recipes that `mol-merge examples` writes."""

from __future__ import annotations

import pytest

from mol.config import MergeConfig
from mol.config.examples import EXAMPLES
from mol.config.methods import METHODS


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_is_a_recipe_without_remarks(name: str) -> None:
    config = MergeConfig.from_yaml(EXAMPLES[name], name)
    assert [
        note for note in config.notes if not note.startswith("filled in, since the recipe is in the short form")
    ] == []
    assert MergeConfig.from_yaml(config.to_yaml()) == config


def test_every_method_and_every_name_of_the_seed_is_there() -> None:
    assert {MergeConfig.from_yaml(text).method for text in EXAMPLES.values()} == set(METHODS)
    seed = {f"{name}_example.yml" for name in ("slerp", "ties", "task_arithmetic", "linear", "gradient_slerp")}
    assert seed <= set(EXAMPLES)
