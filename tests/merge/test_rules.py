"""Rules: each tensor is made by the first that fits its name; the same bytes as a recipe of that method alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mol
from tests.merge.models import make_llama, weights_of
from tests.merge.toolkit import based, linear, llamas, plan, problems, sliced, task, tensors

if TYPE_CHECKING:
    from pathlib import Path


SLERP = {"merge_method": "slerp", "parameters": {"t": 0.25}}


def test_the_first_rule_that_fits_makes_the_tensor() -> None:
    rules = [
        {"filter": "q_proj", "copy": "b"},
        {"filter": "self_attn", **SLERP, "models": ["c", "b"], "base_model": "b"},
        {"filter": "re:layers\\.[12]\\.mlp", "parameters": {"weight": 1}},
        {"filter": "lm_head", "merge_method": "ties", "base_model": "c", "parameters": {"weight": 1, "density": 0.5}},
    ]
    planned = plan(linear(0.5, 0.25, 0.25, rules=rules), *llamas("a", "b", "c"))
    at = "model.layers.1."
    assert task(planned, f"{at}self_attn.q_proj.weight") == ({"copy": {}}, [(1, f"{at}self_attn.q_proj.weight")])
    method, sources = task(planned, f"{at}self_attn.k_proj.weight")
    assert (method, [source for source, _ in sources]) == ({"slerp": {"t": 0.25}}, [1, 2])
    assert task(planned, f"{at}mlp.up_proj.weight")[0]["linear"]["weights"] == [1, 1, 1]
    assert task(planned, "model.layers.3.mlp.up_proj.weight")[0]["linear"]["weights"] == [0.5, 0.25, 0.25]
    method, sources = task(planned, "lm_head.weight")
    assert (list(method), [source for source, _ in sources]) == (["ties"], [2, 0, 1])
    assert set(planned.ruled.values()) == {1, 2, 3, 4}
    assert "rule 1 (`q_proj`: copy of b) made 4 tensors" in planned.notes
    assert planned.warnings == ()


def test_rules_that_take_nothing_are_warned_of() -> None:
    rules = [{"filter": "mlp", "copy": "a"}, {"filter": "up_proj", "copy": "b"}, {"filter": "upproj", "copy": "b"}]
    assert plan(linear(0.5, 0.5, rules=rules), *llamas("a", "b")).warnings == (
        "rule 2 (`up_proj`: copy of b) has no effect: rules before it take every tensor that it fits",
        "rule 3 (`upproj`: copy of b) fits no tensor and has no effect; did you mean `up_proj`?",
    )


def test_rules_hold_under_slices() -> None:
    both = [[("a", 0, 2), ("b", 0, 2)], [("b", 1, 4), ("a", 1, 4)]]
    rules = [{"filter": "self_attn", "copy": "b"}, {"filter": "down", "parameters": {"t": [0, 1]}}]
    recipe = sliced(*both, merge_method="slerp", base_model="a", parameters={"t": 0.5}, rules=rules)
    planned = plan(recipe, *llamas("a", "b"))
    q = "model.layers.{}.self_attn.q_proj.weight"
    made = {made.name: (made.method, made.sources) for made in tensors(planned)}
    assert [made[q.format(i)] for i in range(5)] == [
        ({"copy": {}}, [(1, q.format(layer))]) for layer in (0, 1, 1, 2, 3)
    ]
    down = [made[f"model.layers.{i}.mlp.down_proj.weight"][0] for i in range(5)]
    assert down == [{"copy": {}}, {"copy": {}}, {"copy": {}}, {"slerp": {"t": 0.5}}, {"copy": {}}]


def test_a_copy_of_what_is_no_source_of_a_slice_is_refused_where_it_is_taken() -> None:
    rules = [{"filter": "self_attn", "copy": "b"}, {"filter": "mlp", "models": ["b"], "parameters": {"scale": 2}}]
    recipe = sliced([("a", 0, 2)], [("b", 2, 4)], rules=rules)
    found = problems(recipe, *llamas("a", "b"))
    assert (
        "tensor `model.layers.*.self_attn.q_proj.weight` (layers 0-1) cannot be made: rule 1: `copy: b`: it is not "
        "among the sources of slice 1" in found
    )
    assert "(layers 0-1) cannot be made: rule 2: b is not among the sources of slice 1" in found
    assert "layers 2-3" not in found


def test_a_base_that_the_recipe_does_not_list_is_the_base_of_rules_too() -> None:
    rules = [{"filter": "mlp", "merge_method": "ties", "parameters": {"weight": 1, "density": 0.5}}]
    recipe = based("task_arithmetic", {"weight": 1}, "b", "c", rules=rules)
    planned = plan(recipe, *llamas("a", "b", "c"))
    method, sources = task(planned, "model.layers.0.mlp.up_proj.weight")
    assert (list(method), [source for source, _ in sources]) == (["ties"], [2, 0, 1])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("models")
    return [make_llama(directory / name, seed) for seed, name in enumerate("abc")]


def test_bytes_are_those_of_recipes_of_each_method_alone(models: list[Path], tmp_path: Path) -> None:
    a, b, c = map(str, models)
    ties = {"merge_method": "ties", "parameters": {"weight": 0.5, "density": 0.4}}
    inputs = {"base_model": a, "models": [{"model": a}, {"model": b}, {"model": c}]}
    rules: list[dict[str, Any]] = [{"filter": "mlp", **SLERP, "models": [b]}, {"filter": "lm_head", "copy": c}]
    mol.run_merge({**inputs, **ties, "rules": rules}, tmp_path / "mixed")
    mol.run_merge({**inputs, **ties}, tmp_path / "ties")
    mol.run_merge({**inputs, **SLERP, "models": inputs["models"][:2]}, tmp_path / "slerp")
    mixed, by_ties, by_slerp = (weights_of(tmp_path / name) for name in ("mixed", "ties", "slerp"))
    for name, tensor in mixed.items():
        wanted = by_slerp if "mlp" in name else weights_of(models[2]) if name == "lm_head.weight" else by_ties
        np.testing.assert_array_equal(tensor, wanted[name], err_msg=name)
    manifest = json.loads((tmp_path / "mixed" / "mol_manifest.json").read_text())
    assert {entry["name"]: entry.get("rule") for entry in manifest["tensors"]} == {
        name: 1 if "mlp" in name else 2 if name == "lm_head.weight" else None for name in mixed
    }
    card = (tmp_path / "mixed" / "README.md").read_text()
    assert "rule 1 (`mlp`: slerp of" in card
    assert "made 6 tensors" in card
