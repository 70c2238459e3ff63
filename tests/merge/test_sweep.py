"""A sweep writes what its values give one by one, file for file, and appears as a whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
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
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate("abc"):
        make_llama(tmp_path / name, seed)
    return tmp_path


def recipe(folder: Path, method: str, *names: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"merge_method": method, "models": [{"model": str(folder / name)} for name in names], **more}


def sweeps(folder: Path) -> dict[str, dict[str, Any]]:
    base = {"base_model": str(folder / "a")}
    return {
        "t, with both ends": recipe(folder, "slerp", "a", "b", sweep={"t": [0, 0.5, 1]}, **base),
        "gradients": recipe(folder, "slerp", "a", "b", sweep={"t": [[0, 1], [1, 0.25, 0]]}, **base),
        "a factor": recipe(folder, "task_arithmetic", "b", "c", parameters={"weight": 0.5},
                           sweep={"scaling_factor": [0.5, 1.0]}, **base),
        "a grid": recipe(folder, "ties", "b", "c", parameters={"weight": 1.0},
                         sweep={"density": [0.2, 0.6], "lambda": [0.5, 1.0]}, **base),
        "random": recipe(folder, "dare_ties", "b", "c", parameters={"weight": 0.5},
                         sweep={"density": [0.3, 0.7]}, **base),
        "weights, one of them zero": recipe(folder, "linear", "a", "b", "c", sweep={"weights": [[1, 2, 3], [1, 0, 1]]}),
    }  # fmt: skip


CASES = ("t, with both ends", "gradients", "a factor", "a grid", "random", "weights, one of them zero")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sweep_is_its_recipes_one_by_one(case: str, dtype: str, folder: Path) -> None:
    config = MergeConfig.from_dict(sweeps(folder)[case] | {"dtype": dtype})
    report = run_merge(config, folder / "out", out_shard_size=3000)
    listed = json.loads((folder / "out" / "mol_sweep.json").read_text())
    assert [entry["directory"] for entry in listed["results"]] == list(config.sweep)
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(["mol_sweep.json", *config.sweep])
    written = 0
    for entry in listed["results"]:
        name = entry["directory"]
        alone = run_merge(config.sweep[name].config, folder / "alone" / name, out_shard_size=3000)
        assert contents_of(folder / "out" / name) == contents_of(folder / "alone" / name)
        assert entry["plan"] == alone.plan_digest
        assert entry["values"] == config.sweep[name].values
        # The recipe in it makes it again.
        again = (folder / "out" / name / "mergekit_config.yml").read_text()
        assert "sweep" not in again
        written += alone.bytes_written
    assert report.bytes_written == written
    assert report.bytes_read == report.planned.bytes_read


@pytest.mark.parametrize("step", ["the first", "the second", "the first, of other models"])
def test_a_sweep_of_one_step_is_its_recipes_one_by_one(step: str, folder: Path) -> None:
    base = str(folder / "a")
    first = recipe(folder, "ties", "b", "c", base_model=base, parameters={"weight": 0.5, "density": 0.6})
    second = {"merge_method": "slerp", "base_model": base, "models": [{"model": "merged"}], "parameters": {"t": 0.3}}
    if step == "the first":
        first["sweep"] = {"density": [0.2, 0.6]}
    elif step == "the second":
        second["sweep"] = {"t": [0.3, 0.6]}
    else:
        names = [str(folder / name) for name in "abc"]
        first = {"merge_method": "average", "checkpoints": names, "sweep": {"last": [1, 2]}}
    config = MergeConfig.from_dict(first | {"then": second})
    run_merge(config, folder / "out")
    assert len(config.sweep) == 2
    for name, swept in config.sweep.items():
        run_merge(swept.config, folder / "alone" / name)
        assert contents_of(folder / "out" / name) == contents_of(folder / "alone" / name)
        again = (folder / "out" / name / "mergekit_config.yml").read_text()
        assert "sweep" not in again
        assert list(MergeConfig.from_yaml(again).stages) == ["merged"]


def test_a_sweep_resumes_and_appears_at_once(folder: Path) -> None:
    for seed, name in enumerate("ab"):
        tensors = llama_tensors(seed)
        random = np.random.default_rng(seed)
        tensors |= {f"extra.{i}.weight": random.standard_normal((512, 1024), "f4") for i in range(8)}
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    wanted = recipe(folder, "slerp", "a", "b", base_model=str(folder / "a"), sweep={"t": [0.3, 0.6]})
    run_merge(wanted, folder / "whole")
    out, cancel = folder / "out", threading.Event()

    def stop(read: int, *_: int) -> None:
        if read > 20_000_000:
            cancel.set()

    with pytest.raises(MergeCancelled, match="run the same merge again to resume"):
        run_merge(wanted, out, cancel=cancel, on_progress=stop, threads=1)
    assert not out.exists()
    report = run_merge(wanted, out)
    assert report.resumed > 0
    assert contents_of(out) == contents_of(folder / "whole")


FEW_FILES = """
import json, resource, sys
from mol import MergeError, run_merge
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[1])))
try:
    run_merge(json.loads(sys.argv[2]), sys.argv[3])
except MergeError as error:
    sys.exit(f"refused: {error}")
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (64, int(sys.argv[1]))
"""


@pytest.mark.parametrize("most", [64, 4096])
def test_a_sweep_of_more_results_than_open_files(most: int, folder: Path) -> None:
    """The soft limit is raised for the run; where it cannot be, the sweep is refused before its first byte."""
    wanted = recipe(folder, "linear", "a", "b", sweep={"weights": [[i, 100 - i] for i in range(1, 81)]})
    line = [sys.executable, "-c", FEW_FILES, str(most), json.dumps(wanted), str(folder / "out")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (folder / "out").exists() == (most > 64)
    assert not (folder / "out.partial").exists()
    if most > 64:
        assert done.returncode == 0, done.stderr
    else:
        assert "refused: the sweep writes 80 results at once" in done.stderr
        assert "`ulimit -n`" in done.stderr


def test_a_value_that_is_not_finite_leaves_no_result_at_all(folder: Path) -> None:
    tensors = llama_tensors(1)
    tensors["model.norm.weight"][3] = np.inf
    save_file(tensors, folder / "b" / "model.safetensors", metadata={"format": "pt"})
    wanted = recipe(folder, "slerp", "a", "b", base_model=str(folder / "a"), sweep={"t": [0, 0.5]})
    with pytest.raises(MergeError, match=r"`model.norm.weight` holds inf at element 3"):
        run_merge(wanted, folder / "out")
    assert not (folder / "out").exists()


def test_a_sweep_replaces_a_sweep_and_a_model_if_allowed(folder: Path) -> None:
    wanted = recipe(folder, "slerp", "a", "b", base_model=str(folder / "a"), parameters={"t": 0.4})
    out = folder / "out"
    run_merge(wanted, out)
    run_merge(wanted | {"sweep": {"t": [0.1, 0.2]}}, out, overwrite=True)
    with pytest.raises(MergeError, match="is not empty"):
        run_merge(wanted | {"sweep": {"t": [0.3, 0.4]}}, out)
    (out / "t-0.1" / "notes.txt").write_text("mine")
    with pytest.raises(MergeError, match=r"notes.txt"):
        run_merge(wanted, out, overwrite=True)
    (out / "t-0.1" / "notes.txt").rename(out / "notes.txt")
    with pytest.raises(MergeError, match=r"notes.txt"):
        run_merge(wanted, out, overwrite=True)
    (out / "notes.txt").unlink()
    run_merge(wanted | {"sweep": {"t": [0.3, 0.4]}}, out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["mol_sweep.json", "t-0.3", "t-0.4"]
    run_merge(wanted, out, overwrite=True)
    assert (out / "model.safetensors").is_file()


def test_results_that_are_alike_are_refused(folder: Path) -> None:
    models = [{"model": str(folder / name), "parameters": {"density": 0.5, "weight": 1.0}} for name in "bc"]
    models.append({"model": str(folder / "a")})
    wanted = {
        "merge_method": "ties",
        "models": models,
        "base_model": str(folder / "a"),
        "sweep": {"density": [0.2, 0.4]},
    }
    with pytest.raises(MergeError, match="are the same model") as caught:
        plan_recipe(wanted)
    assert list(caught.value.problems) == ["density-0.2 and density-0.4"]


def test_the_command_plans_merges_and_verifies_a_sweep(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps(
        recipe(folder, "slerp", "a", "b", base_model=str(folder / "a"), sweep={"t": [0.25, 0.75]}), indent=1
    )
    (folder / "recipe.yml").write_text(text)
    assert main(["plan", str(folder / "recipe.yml")]) == 0
    assert "t-0.25" in capsys.readouterr().out
    assert main([str(folder / "recipe.yml"), str(folder / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"] == ["t-0.25", "t-0.75"]
    assert main(["verify", str(folder / "out"), "--json"]) == 0
    assert [one["ok"] for one in json.loads(capsys.readouterr().out)] == [True, True]
    weights = folder / "out" / "t-0.75" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert main(["verify", str(folder / "out")]) == 1
    assert "t-0.75 is damaged" in capsys.readouterr().err
