"""The merge methods as classes: the seed's snippets, lazily."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import save_file

from mol import LinearMerge, SlerpMerge, TaskArithmeticMerge, TiesMerge
from mol.config import MergeConfig
from mol.errors import ConfigError, MergeError
from mol.io.checkpoint import Checkpoint
from mol.merge_methods import BaseMergeMethod, PendingMerge
from tests.merge.models import llama_tensors, make_llama, weights_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with models of the names that the seed's examples use."""
    for seed, name in enumerate(("gpt2", "gpt2-finetuned-poetry", "gpt2-finetuned-science", "gpt2-finetuned-code")):
        make_llama(tmp_path / name, seed)
    make_llama(tmp_path / "distilgpt2", 7, layers=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_seeds_first_snippet(here: Path) -> None:
    config = MergeConfig(
        method="slerp",
        models=["gpt2", "distilgpt2"],
        parameters={"t": 0.5},
        output_path="./merged_model",
    )

    slerp = SlerpMerge(config)
    models = slerp.load_models()
    merged = slerp.merge(models)
    assert not (here / "merged_model").exists()
    slerp.save_merged_model(merged)

    assert list(models) == ["gpt2", "distilgpt2"]
    assert all(isinstance(model, Checkpoint) for model in models.values())
    assert isinstance(merged, PendingMerge)
    assert merged.planned.warnings, "unequal depths are said loudly"
    weights = weights_of(here / "merged_model")
    assert merged.shapes == {name: tensor.shape for name, tensor in weights.items()}
    first = llama_tensors(0)
    assert all(not np.array_equal(weights[name], first[name]) for name in weights), "never a copy of model one"


def test_the_seeds_ties_snippet(here: Path) -> None:
    config = MergeConfig(
        method="ties",
        base_model="gpt2",
        models=["gpt2-finetuned-poetry", "gpt2-finetuned-science", "gpt2-finetuned-code"],
        parameters={"density": 0.8, "normalize": True},
        output_path="./enhanced_gpt2",
    )
    ties = TiesMerge(config)
    ties.save_merged_model(ties.merge(ties.load_models()))
    assert (here / "enhanced_gpt2" / "config.json").is_file()


def test_task_vectors_may_be_taken_away(here: Path) -> None:
    config = MergeConfig(
        method="task_arithmetic",
        base_model="gpt2",
        models=["gpt2-finetuned-poetry"],
        parameters={"weights": {"gpt2-finetuned-poetry": -1.0}},
    )
    task = TaskArithmeticMerge(config)
    merged = task.merge(task.load_models()).state_dict()
    base, tuned = llama_tensors(0), llama_tensors(1)
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor, 2 * base[name].astype("f8") - tuned[name], rtol=1e-5, atol=1e-6)


def test_a_state_dict_is_numpy_and_leaves_nothing_behind(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    config = MergeConfig(
        method="linear", models=["gpt2", "gpt2-finetuned-code"], parameters={"weights": [1, 0]}, dtype="bfloat16"
    )
    state = LinearMerge(config).merge().state_dict()
    for name, tensor in llama_tensors(0).items():
        assert state[name].dtype == np.float32
        np.testing.assert_allclose(state[name], tensor, rtol=2**-8)
        assert not (state[name].view("u4") & 0xFFFF).any(), "values are bfloat16's"
    assert list(scratch.iterdir()) == []


def test_a_state_dict_without_numpy_says_what_to_install_before_it_merges(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    merged = LinearMerge(MergeConfig(method="linear", models=["gpt2", "gpt2-finetuned-code"])).merge()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("scratch") / "missing"))  # any use would fail
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ImportError, match="pip install numpy"):
        merged.state_dict()


def test_models_that_do_not_fit_are_refused_when_merged(here: Path) -> None:
    wide = llama_tensors(3)
    wide["model.norm.weight"] = np.ones(9, "f4")
    save_file(wide, here / "gpt2-finetuned-code" / "model.safetensors")
    slerp = SlerpMerge(MergeConfig(method="slerp", models=["gpt2", "gpt2-finetuned-code"]))
    models = slerp.load_models()
    with pytest.raises(MergeError, match=r"model\.norm\.weight"):
        slerp.merge(models)


def test_a_recipe_of_another_method_is_refused(here: Path) -> None:
    with pytest.raises(ConfigError, match="SlerpMerge merges by slerp, but the recipe says linear"):
        SlerpMerge(MergeConfig(method="linear", models=["gpt2", "distilgpt2"]))


def test_models_must_be_those_of_the_recipe(here: Path) -> None:
    linear = LinearMerge(MergeConfig(method="linear", models=["gpt2", "gpt2-finetuned-code"]))
    models = linear.load_models()
    del models["gpt2"]
    with pytest.raises(MergeError) as caught:
        linear.merge(models)
    assert caught.value.problems == ("gpt2",)


def test_saving_takes_a_directory_and_options(here: Path) -> None:
    linear = LinearMerge(MergeConfig(method="linear", models=["gpt2", "gpt2-finetuned-code"]))
    report = linear.save_merged_model(linear.merge(), here / "elsewhere", out_shard_size=1000)
    assert len(report.files) > 1
    assert report.out == here / "elsewhere"


def test_every_class_is_a_method_of_the_table() -> None:
    from mol.config.methods import METHODS

    assert {kind.method for kind in BaseMergeMethod.__subclasses__()} <= set(METHODS)
