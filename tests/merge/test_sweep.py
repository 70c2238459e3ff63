"""A sweep writes what its values give one by one, file for file, and appears as a whole or not at all."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mol import run_merge
from mol.cli import main
from mol.config import MergeConfig
from mol.errors import MergeCancelled, MergeError
from mol.merge import plan_recipe
from tests.merge.models import contents_of, llama_tensors, make_llama

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("abc"):
        make_llama(tmp_path / name, seed)
    return tmp_path


def recipe(place: Path, method: str, *names: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"merge_method": method, "models": [{"model": str(place / name)} for name in names], **more}


def sweeps(place: Path) -> dict[str, dict[str, Any]]:
    base = {"base_model": str(place / "a")}
    return {
        "t, with both ends": recipe(place, "slerp", "a", "b", sweep={"t": [0, 0.5, 1]}, **base),
        "gradients": recipe(place, "slerp", "a", "b", sweep={"t": [[0, 1], [1, 0.25, 0]]}, **base),
        "a factor": recipe(place, "task_arithmetic", "b", "c", parameters={"weight": 0.5},
                           sweep={"scaling_factor": [0.5, 1.0]}, **base),
        "a grid": recipe(place, "ties", "b", "c", parameters={"weight": 1.0},
                         sweep={"density": [0.2, 0.6], "lambda": [0.5, 1.0]}, **base),
        "random": recipe(place, "dare_ties", "b", "c", parameters={"weight": 0.5},
                         sweep={"density": [0.3, 0.7]}, **base),
        "weights, one of them zero": recipe(place, "linear", "a", "b", "c", sweep={"weights": [[1, 2, 3], [1, 0, 1]]}),
    }  # fmt: skip


CASES = ("t, with both ends", "gradients", "a factor", "a grid", "random", "weights, one of them zero")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sweep_is_its_recipes_one_by_one(case: str, dtype: str, place: Path) -> None:
    config = MergeConfig.from_dict(sweeps(place)[case] | {"dtype": dtype})
    report = run_merge(config, place / "out", out_shard_size=3000)
    listed = json.loads((place / "out" / "mol_sweep.json").read_text())
    assert [entry["directory"] for entry in listed["results"]] == list(config.sweep)
    assert sorted(path.name for path in (place / "out").iterdir()) == sorted(["mol_sweep.json", *config.sweep])
    written = 0
    for entry in listed["results"]:
        name = entry["directory"]
        alone = run_merge(config.sweep[name].config, place / "alone" / name, out_shard_size=3000)
        assert contents_of(place / "out" / name) == contents_of(place / "alone" / name)
        assert entry["plan"] == alone.plan_digest
        assert entry["values"] == config.sweep[name].values
        # The recipe in it makes it again.
        again = (place / "out" / name / "mergekit_config.yml").read_text()
        assert "sweep" not in again
        written += alone.bytes_written
    assert report.bytes_written == written
    assert report.bytes_read == report.planned.bytes_read


def test_a_sweep_resumes_and_appears_at_once(place: Path) -> None:
    for seed, name in enumerate("ab"):
        tensors = llama_tensors(seed)
        random = np.random.default_rng(seed)
        tensors |= {f"extra.{i}.weight": random.standard_normal((512, 1024), "f4") for i in range(8)}
        save_file(tensors, place / name / "model.safetensors", metadata={"format": "pt"})
    asked = recipe(place, "slerp", "a", "b", base_model=str(place / "a"), sweep={"t": [0.3, 0.6]})
    run_merge(asked, place / "whole")
    out, cancel = place / "out", threading.Event()

    def stop(read: int, *_: int) -> None:
        if read > 20_000_000:
            cancel.set()

    with pytest.raises(MergeCancelled, match="run the same merge again to resume"):
        run_merge(asked, out, cancel=cancel, on_progress=stop, threads=1)
    assert not out.exists()
    report = run_merge(asked, out)
    assert report.resumed > 0
    assert contents_of(out) == contents_of(place / "whole")


def test_a_value_that_is_not_finite_leaves_no_result_at_all(place: Path) -> None:
    tensors = llama_tensors(1)
    tensors["model.norm.weight"][3] = np.inf
    save_file(tensors, place / "b" / "model.safetensors", metadata={"format": "pt"})
    asked = recipe(place, "slerp", "a", "b", base_model=str(place / "a"), sweep={"t": [0, 0.5]})
    with pytest.raises(MergeError, match=r"`model.norm.weight` holds inf at element 3"):
        run_merge(asked, place / "out")
    assert not (place / "out").exists()


def test_a_sweep_replaces_a_sweep_and_a_model_when_asked(place: Path) -> None:
    asked = recipe(place, "slerp", "a", "b", base_model=str(place / "a"), parameters={"t": 0.4})
    out = place / "out"
    run_merge(asked, out)
    run_merge(asked | {"sweep": {"t": [0.1, 0.2]}}, out, overwrite=True)
    with pytest.raises(MergeError, match="is not empty"):
        run_merge(asked | {"sweep": {"t": [0.3, 0.4]}}, out)
    (out / "t-0.1" / "notes.txt").write_text("mine")
    with pytest.raises(MergeError, match=r"notes.txt"):
        run_merge(asked, out, overwrite=True)
    (out / "t-0.1" / "notes.txt").rename(out / "notes.txt")
    with pytest.raises(MergeError, match=r"notes.txt"):
        run_merge(asked, out, overwrite=True)
    (out / "notes.txt").unlink()
    run_merge(asked | {"sweep": {"t": [0.3, 0.4]}}, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["mol_sweep.json", "t-0.3", "t-0.4"]
    run_merge(asked, out, overwrite=True)
    assert (out / "model.safetensors").is_file()


def test_results_that_are_alike_are_refused(place: Path) -> None:
    models = [{"model": str(place / name), "parameters": {"density": 0.5, "weight": 1.0}} for name in "bc"]
    models.append({"model": str(place / "a")})
    asked = {"merge_method": "ties", "models": models, "base_model": str(place / "a"), "sweep": {"density": [0.2, 0.4]}}
    with pytest.raises(MergeError, match="are the same model") as caught:
        plan_recipe(asked)
    assert list(caught.value.problems) == ["density-0.2 and density-0.4"]


def test_the_command_plans_merges_and_verifies_a_sweep(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(
        recipe(place, "slerp", "a", "b", base_model=str(place / "a"), sweep={"t": [0.25, 0.75]}), indent=1
    )
    (place / "recipe.yml").write_text(text)
    assert main(["plan", str(place / "recipe.yml")]) == 0
    assert "t-0.25" in capsys.readouterr().out
    assert main([str(place / "recipe.yml"), str(place / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == ["t-0.25", "t-0.75"]
    assert main(["verify", str(place / "out"), "--json"]) == 0
    assert [one["ok"] for one in json.loads(capsys.readouterr().out)] == [True, True]
    weights = place / "out" / "t-0.75" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert main(["verify", str(place / "out")]) == 1
    assert "t-0.75 is damaged" in capsys.readouterr().err
