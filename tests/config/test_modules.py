"""`modules` of a recipe: how they are read, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from mol.config import MergeConfig
from mol.config.model_reference import ModelReference
from tests.config.toolkit import refusal

TEXT = """\
merge_method: slerp
base_model: a
parameters: {t: 0.5}
modules:
  text_decoder:
    slices:
      - sources:
          - {model: a, layer_range: [0, 8]}
          - {model: b, layer_range: [0, 8]}
    parameters:
      t: [0, 1]
  vision_tower:
    merge_method: passthrough
    models:
      - model: c
"""


def test_modules_are_read_and_written_back() -> None:
    config = MergeConfig.from_yaml(TEXT)
    assert [module.name for module in config.modules] == ["text_decoder", "vision_tower"]
    assert (config.models, config.slices) == (None, None)
    assert config.model_references() == tuple(map(ModelReference, "abc"))
    assert config.donor() == ModelReference("a")
    assert MergeConfig.from_dict(config.to_dict()) == config
    assert MergeConfig.from_yaml(config.to_yaml()) == config
    assert dataclasses.replace(config, dtype="bfloat16").modules == config.modules
    assert config.of_module(config.modules[1]).method == "passthrough"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("      - model: c\n", "      - model: c\nmodels: []\n", "16: `models` next to `modules`: write it into each"),
        ("    models:\n      - model: c\n", "", "12: the module `vision_tower` has either `models` or `slices`"),
        ("passthrough", "passthru", "13: unknown merge method `passthru`; did you mean `passthrough`?"),
        ("          - {model: b, layer_range: [0, 8]}\n", "", "7: slice 1: slerp takes exactly 2 models, the base"),
        ("      t: [0, 1]\n", "      t: x\n", "11: `t` is 'x'"),
        (
            "passthrough\n    models:\n      - model: c\n",
            "ties\n    models:\n      - model: c\n    parameters: {weight: {auto: norm}}\n",
            "12: `weight: {auto: ...}` in the module `vision_tower`: it weighs whole models",
        ),
    ],
)  # fmt: skip
def test_modules_are_checked_as_recipes_are(old: str, new: str, problem: str) -> None:
    found = refusal(TEXT.replace(old, new))
    assert any(line.startswith(f"config.yml:{problem}") for line in found), found


@pytest.mark.parametrize("value", ["[]", "{}", "x", "{a: []}"])
def test_what_is_no_map_of_modules_is_refused(value: str) -> None:
    assert "modules" in refusal(f"merge_method: linear\nmodules: {value}\n")[0]
