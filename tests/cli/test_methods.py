"""The verb `methods`, and the README's table: both say what the rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mol.cli import main
from mol.config import MergeConfig
from mol.config.method_spec import REQUIRED
from mol.config.methods import METHODS

if TYPE_CHECKING:
    from mol.config.method_spec import MethodSpec

README = Path(__file__).parents[2] / "README.md"


def test_the_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for spec in METHODS.values():
        assert [line for line in lines if line.startswith(f"{spec.name} ") and line.endswith(spec.title)]


@pytest.mark.parametrize("spec", METHODS.values(), ids=lambda spec: spec.name)
def test_a_method_is_described_with_a_recipe_to_start_from(
    spec: MethodSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["methods", spec.name]) == 0
    said = capsys.readouterr().out
    described, recipe = said[: said.index("\n# ")], said[said.index("\n# ") + 1 :]
    assert spec.url in described
    assert MergeConfig.from_yaml(recipe).method == spec.name
    for name, parameter in spec.parameters.items():
        (line,) = [line for line in described.splitlines() if line.startswith(f"{name} ")]
        assert ("required" in line) == (parameter.default is REQUIRED)


def test_one_row_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "slerp", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| `slerp` | ")
    assert lines[2] in README.read_text(encoding="utf-8")


def test_programs_get_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in document["methods"]] == list(METHODS)
    assert main(["methods", "ties", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    density = next(each for each in row["parameters"] if each["name"] == "density")
    assert (density["required"], density["default"], density["low"], density["high"]) == (False, 1.0, 0.0, 1.0)
    weight = next(each for each in row["parameters"] if each["name"] == "weight")
    assert (weight["required"], weight["default"], weight["low"], weight["high"]) == (True, None, None, None)
    assert MergeConfig.from_yaml(row["example"]).method == "ties"


def test_an_unknown_name_is_refused_as_in_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "slrp"]) == 1
    assert "unknown merge method `slrp`; did you mean `slerp`?" in capsys.readouterr().err


def test_the_readme_has_the_table_that_the_rows_make(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table in README.read_text(encoding="utf-8"), f"`mol-merge methods --markdown` prints for it:\n{table}"
