"""One model under two names: what is merged is what the names resolve to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mol.errors import ConfigError, MergeError
from mol.merge import plan_recipe, run_merge
from tests.io.hub_server import COMMIT, serving
from tests.merge.models import contents_of, make_llama, weights_of

if TYPE_CHECKING:
    from pathlib import Path


def arithmetic(base: str, *models: str) -> dict[str, Any]:
    listed = [{"model": model, "parameters": {"weight": 1.0}} for model in models]
    return {
        "merge_method": "task_arithmetic",
        "base_model": base,
        "models": listed,
        "parameters": {"normalize": True},
    }


def test_a_base_spelled_twice_does_not_halve_the_task_vector(tmp_path: Path) -> None:
    a, b = make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2)
    (tmp_path / "link").symlink_to("a")
    run_merge(arithmetic(str(a), str(a), str(b)), tmp_path / "one")
    for number, base in enumerate((f"{tmp_path}/./a", str(tmp_path / "link"), f"/{a}")):
        report = run_merge(arithmetic(base, str(a), str(b)), tmp_path / f"out{number}")
        expected = {name: array.tobytes() for name, array in weights_of(tmp_path / "one").items()}
        assert {name: array.tobytes() for name, array in weights_of(report.out).items()} == expected
        assert [source.name for source in report.planned.sources] == [str(a), str(b)]
        assert any("they are one model" in note for note in report.planned.notes)


HUB = """
import json, sys, mol
reports = []
for number, (recipe, more) in enumerate(json.loads(sys.argv[1])):
    try:
        report = mol.plan_recipe(recipe)
        reports.append([[source.name for source in report.sources], report.methods, report.notes])
    except mol.MolError as error:
        reports.append(str(error))
print(json.dumps(reports))
"""


def test_a_commit_and_the_branch_that_points_to_it_are_one_model(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        make_llama(tmp_path / name, seed)
    slerp = {"merge_method": "slerp", "parameters": {"t": 0.5}, "base_model": f"org/a@{COMMIT}"}
    recipes = [
        (slerp | {"models": [{"model": "org/a"}, {"model": "org/b"}]}, None),
        (slerp | {"models": [{"model": "org/b"}]}, None),
        (arithmetic("org/a@main", f"org/a@{COMMIT}", "org/a", "org/b"), None),
        (arithmetic("org/a@main", f"org/a@{COMMIT}", "org/b"), None),
        (arithmetic("old/a", "org/a", "org/b"), None),
    ]
    repositories = {f"org/{name}": contents_of(tmp_path / name) for name in "ab"}
    with serving(repositories | {"old/a": repositories["org/a"]}) as hub:  # as the Hub answers to a name of before
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-c", HUB, json.dumps(recipes)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    first, second, third, fourth, renamed = json.loads(done.stdout)
    assert first[0] == ["org/a", "org/b"]
    assert f"`org/a@{COMMIT}` is the same commit as `org/a`: they are one model" in first[2]
    assert second[0] == ["org/b", f"org/a@{COMMIT}"]
    assert "is listed twice" in third
    assert len(fourth[0]) == 2
    assert renamed[0] == ["org/a", "org/b"]
    assert "`old/a` is the same commit as `org/a`: they are one model" in renamed[2]


def test_directories_with_the_same_files_of_weights_are_warned_of(tmp_path: Path) -> None:
    a, b = make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2)
    shutil.copytree(a, tmp_path / "c")
    weights = tmp_path / "c" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(a / "model.safetensors")
    planned = plan_recipe(arithmetic(str(a), str(tmp_path / "c"), str(b)))
    assert any("have the very same files of weights" in line for line in planned.warnings)
    assert not plan_recipe(arithmetic(str(a), str(b))).warnings


def test_a_range_of_layers_under_models_must_be_the_whole_model(tmp_path: Path) -> None:
    a, b = make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2)
    recipe = arithmetic(str(a), str(b))
    whole = plan_recipe(recipe)
    layers = whole.model_config["num_hidden_layers"]
    recipe["models"][0]["layer_range"] = [0, layers]
    assert plan_recipe(recipe).plan == whole.plan
    recipe["models"][0]["layer_range"] = [0, layers - 1]
    with pytest.raises(MergeError, match="an entry of `models` is a whole model; write `slices` to choose layers"):
        plan_recipe(recipe)
    recipe["models"][0]["layer_range"] = [2, 1]
    with pytest.raises(ConfigError, match="holds no layer"):
        plan_recipe(recipe)


def test_an_architecture_that_is_the_models_own_has_no_effect_and_another_is_refused(tmp_path: Path) -> None:
    a, b = make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2)
    recipe = arithmetic(str(a), str(b))
    plain = plan_recipe(recipe)
    entry = recipe["models"][0]
    entry["model"] = {"model": {"path": str(b)}, "override_architecture": "LlamaForCausalLM"}
    assert plan_recipe(recipe).plan == plain.plan
    entry["model"]["override_architecture"] = "MistralForCausalLM"
    with pytest.raises(MergeError, match=r"`override_architecture: MistralForCausalLM`, and config\.json has LlamaFor"):
        plan_recipe(recipe)
    recipe["models"].insert(0, {"model": str(b), "parameters": {"weight": 1.0}})
    with pytest.raises(ConfigError, match="belongs where the model is named first"):
        plan_recipe(recipe)
