"""`weight: {auto: ...}`: weights from the norms of the differences of models from the base, said wherever it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mol.cli import main
from mol.config import MergeConfig
from mol.errors import ConfigError, MergeError
from mol.merge import plan_recipe, run_merge
from tests.engine.toolkit import decode, encode, read_shard, write_shard
from tests.merge.models import make_llama
from tests.merge.toolkit import based, llamas, problems, tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base, and two models whose differences from it have other sizes; the second in another dtype."""
    folder = tmp_path_factory.mktemp("models")
    made = [make_llama(folder / name, 0) for name in "abc"]
    for path, size, dtype in zip(made[1:], (0.01, 0.03), ("F32", "BF16"), strict=True):
        draw = np.random.default_rng(7)
        shard = read_shard(path / "model.safetensors")
        moved = {name: decode(t) + size * draw.standard_normal(t.data.size) for name, t in shard.items()}
        shaped = {name: encode(moved[name].reshape(t.data.shape), dtype) for name, t in shard.items()}
        write_shard(path / "model.safetensors", shaped, metadata={"format": "pt"})
    return [str(path) for path in made]


def recipe(models: list[str], form: str = "norm", method: str = "task_arithmetic", **more: Any) -> dict[str, Any]:  # noqa: ANN401
    listed = [{"model": model} for model in models[1:]]
    return {
        "merge_method": method,
        "base_model": models[0],
        "models": listed,
        "parameters": {"weight": {"auto": form}, **more},
    }


def norms(models: list[str]) -> list[float]:
    base, *tuned = (read_shard(Path(model) / "model.safetensors") for model in models)
    return [
        float(np.sqrt(sum(((decode(one[name]) - decode(base[name])) ** 2).sum() for name in base))) for one in tuned
    ]


@pytest.mark.parametrize("form", ["norm", "metagpt", "inverse_norm", "nan"])
def test_weights_are_the_shares_of_the_norms(form: str, models: list[str]) -> None:
    small, large = norms(models)
    wanted = {
        "norm": [small**2 / (small**2 + large**2), large**2 / (small**2 + large**2)],
        "inverse_norm": [large / (small + large), small / (small + large)],
    }[{"metagpt": "norm", "nan": "inverse_norm"}.get(form, form)]
    planned = plan_recipe(MergeConfig.from_dict(recipe(models, form)))
    found = {tuple(made.method["task_arithmetic"]["weights"]) for made in tensors(planned)}
    assert len(found) == 1
    assert np.allclose(found.pop(), wanted, rtol=1e-12)


def test_what_was_found_is_in_plan_report_card_and_manifest(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "recipe.yml"
    source.write_text(MergeConfig.from_dict(recipe(models, "inverse_norm", "ties")).to_yaml())
    small, large = norms(models)
    line = f"{large / (small + large):.6g} (norm {small:.6g}); "
    assert main(["plan", str(source)]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    report = run_merge(source, tmp_path / "out")
    assert any(line in note for note in report.planned.notes)
    assert [entry.parameters["weight"][0].value for entry in report.planned.config.models or ()] == pytest.approx(
        [large / (small + large), small / (small + large)]
    )
    assert line in (tmp_path / "out" / "README.md").read_text()
    manifest = json.loads((tmp_path / "out" / "mol_manifest.json").read_text())
    assert any(line in note for note in manifest["notes"])


def test_the_result_is_that_of_the_weights_found_whatever_threads(models: list[str], tmp_path: Path) -> None:
    report = run_merge(recipe(models), tmp_path / "auto", threads=3)
    given = report.planned.config.to_dict()
    run_merge(given, tmp_path / "given", threads=1)
    assert (tmp_path / "auto" / "model.safetensors").read_bytes() == (
        tmp_path / "given" / "model.safetensors"
    ).read_bytes()


def test_a_recipe_keeps_the_word(models: list[str]) -> None:
    config = MergeConfig.from_dict(recipe(models, "nan"))
    assert config.to_dict()["parameters"]["weight"] == {"auto": "inverse_norm"}
    assert MergeConfig.from_yaml(config.to_yaml()) == config


def test_validate_reads_no_weights(models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A NaN, which has no norm, is seen by the plan and not by validate."""
    broken = make_llama(tmp_path / "broken", 1)
    shard = read_shard(broken / "model.safetensors")
    shard["model.norm.weight"] = encode(np.full(shard["model.norm.weight"].data.shape, np.nan), "F32")
    write_shard(broken / "model.safetensors", shard, metadata={"format": "pt"})
    source = tmp_path / "recipe.yml"
    source.write_text(MergeConfig.from_dict(recipe([*models[:2], str(broken)])).to_yaml())
    assert main(["validate", str(source)]) == 0
    assert "the weights are found when models are read" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(MergeError, match="is not finite"):
        plan_recipe(source)


def test_a_model_that_equals_the_base_has_no_norm(models: list[str], tmp_path: Path) -> None:
    copy = str(make_llama(tmp_path / "copy", 0))
    with pytest.raises(MergeError, match=r"copy equals the base, .*; leave it out"):
        plan_recipe(recipe([*models[:2], copy]))


def test_planning_from_headers_alone_says_what_it_lacks() -> None:
    planned = based("task_arithmetic", {}, "b", "c", parameters={"weight": {"auto": "norm"}})
    assert "the weights are found from the norms of the models, which were not read yet" in problems(
        planned, *llamas(*"abc")
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"parameters": {"weight": {"auto": "size"}}}, "`auto` is `norm` or `inverse_norm`, not 'size'"),
        ({"merge_method": "linear"}, "it weighs models by their differences from a base, and linear starts from none"),
        (
            {"models": [{"model": "b", "parameters": {"weight": 1}}, {"model": "c"}]},
            "it gives all models their weights: write it once, in `parameters` of the recipe, and no other `weight`",
        ),
        (
            {"models": [{"model": "b", "parameters": {"weight": {"auto": "norm"}}}]},
            "it gives all models their weights: write it once, in `parameters` of the recipe, and no other `weight`",
        ),
        (
            {
                "models": None,
                "slices": [{"sources": [{"model": m, "layer_range": [0, 2]} for m in "abc"]}],
            },
            "it weighs whole models, and the recipe cuts them into `slices`: give each source a `weight`",
        ),
    ],
)
def test_where_it_means_nothing_it_is_refused(changes: dict[str, Any], problem: str) -> None:
    given = {**based("task_arithmetic", {}, "b", "c", parameters={"weight": {"auto": "norm"}}), **changes}
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_dict({key: value for key, value in given.items() if value is not None})
    assert problem in str(caught.value)
