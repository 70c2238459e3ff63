"""A notebook written for mergekit: its lines, its names for options, and what comes out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import yaml

import mol
from mol.errors import ConfigError
from mol.mergekit import MergeConfiguration, MergeOptions, run_merge
from tests.config.test_ignored_words import ANCHORS
from tests.merge.models import make_llama, weights_of

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: 3}}\n"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models in the working directory, the recipe, and what it gives."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        make_llama(tmp_path / name, seed)
    (tmp_path / "config.yml").write_text(RECIPE)


def is_the_merge(out: Path, tmp_path: Path) -> bool:
    mol.run_merge(tmp_path / "config.yml", tmp_path / "expected")
    expected = {name: array.tobytes() for name, array in weights_of(tmp_path / "expected").items()}
    return {name: array.tobytes() for name, array in weights_of(out).items()} == expected


def test_the_lines_of_a_notebook(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (tmp_path / "config.yml").open(encoding="utf-8") as fp:
        merge_config = MergeConfiguration.model_validate(yaml.safe_load(fp))
    with caplog.at_level(logging.INFO, "mol"):
        run_merge(
            merge_config,
            out_path="./merged",
            options=MergeOptions(
                lora_merge_cache="/tmp", cuda=True, copy_tokenizer=True, lazy_unpickle=False, low_cpu_memory=True
            ),
        )
    assert is_the_merge(tmp_path / "merged", tmp_path)
    lines = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert [line.split("`")[1] for line in lines] == ["lora_merge_cache", "cuda", "low_cpu_memory"]


def test_the_options_may_be_the_third_argument(tmp_path: Path) -> None:
    config = MergeConfiguration(**yaml.safe_load(RECIPE))
    run_merge(
        config, str(tmp_path / "one"), MergeOptions(random_seed=None, transformers_cache=None), config_source=RECIPE
    )
    assert (tmp_path / "one" / "mergekit_config.yml").read_text() == RECIPE
    mol.run_merge(config, tmp_path / "two", mol.MergeOptions(write_model_card=False))
    assert not (tmp_path / "two" / "README.md").exists()
    assert is_the_merge(tmp_path / "one", tmp_path)


def test_run_merge_takes_mergekits_names_as_the_command_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mol"):
        report = mol.run_merge(
            yaml.safe_load(RECIPE), out_path=tmp_path / "out", random_seed=7, num_threads=1, out_shard_size="1k",
            clone_tensors=True, device="cuda:0", safe_serialization=True, trust_remote_code=False, gpu_rich=False,
        )  # fmt: skip
    assert report.planned.plan.seed == 7
    assert len(report.files) > 1
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "`clone_tensors` has no effect: each tensor" in said
    assert "`device` 'cuda:0' has no effect: merges run on the CPU" in said
    assert "gpu_rich" not in said


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"safe_serialization": False}, ConfigError, "pickle files can run code"),
        ({"cuad": True}, TypeError, "a merge has no option `cuad`; did you mean `cuda`?"),
        ({"random_seed": 1, "seed": 2}, TypeError, "`seed` is `seed` again"),
        ({"num_threads": 0}, ConfigError, "a run needs at least one thread"),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], kind: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=says.replace("?", r"\\?")):
        MergeOptions(**given)
    with pytest.raises(kind, match=says.replace("?", r"\\?")):
        mol.run_merge(RECIPE, tmp_path / "out", **given)


@pytest.mark.parametrize("out", ["", " ", "a\0b"])
def test_an_output_path_that_is_none(out: str, tmp_path: Path) -> None:
    for target in ({"out": out}, {"out_path": out}):
        with pytest.raises(ConfigError, match="is no path; name a directory"):
            mol.run_merge(tmp_path / "config.yml", **target)
    with pytest.raises(ConfigError, match="give one of them"):
        mol.run_merge(tmp_path / "config.yml", "x", out_path="y")


def test_mergekits_defaults_hold_and_a_checked_recipe_stays_one() -> None:
    recipe = yaml.safe_load(RECIPE.replace("linear", "ties")) | {"base_model": "a"}
    config = MergeConfiguration.model_validate(recipe)
    assert (config.layer_alignment, config.notes) == ("strict", ())
    again = MergeConfiguration.model_validate(config)
    assert isinstance(again, mol.MergeConfig)
    assert again == config
    with pytest.raises(ConfigError, match="a recipe is a map of keys"):
        MergeConfiguration.model_validate([recipe])


def test_holders_of_anchors_are_seen_in_loaded_yaml_too() -> None:
    config = MergeConfiguration.model_validate(yaml.safe_load(ANCHORS))
    assert "`scale-env` holds YAML anchors for other keys and has no effect of its own" in config.notes
    with pytest.raises(ConfigError, match="unknown key `tokenizer_sorce`"):
        MergeConfiguration.model_validate(yaml.safe_load(RECIPE) | {"tokenizer_sorce": [1.5]})
