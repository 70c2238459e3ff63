"""A run from the recipe to the directory that appears, or does not."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import mol
from mol import _rust
from mol.errors import ConfigError, MergeCancelled, MergeError
from mol.merge import MergeOptions, plan_recipe, resolve_checkpoints, run_merge
from tests.merge.models import contents_of, llama_tensors, make_llama, weights_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return make_llama(tmp_path / "a", 1), make_llama(tmp_path / "b", 2)


def linear(*models: Path, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "merge_method": "linear",
        "models": [{"model": str(model), "parameters": {"weight": 1.0}} for model in models],
        **more,
    }


def test_a_merge_from_a_file_is_complete_and_right(models: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yml"
    text = (
        f"# mean of two\nmerge_method: linear\nmodels:\n"
        f"- {{model: {models[0]}, parameters: {{weight: 1}}}}\n- {{model: {models[1]}, parameters: {{weight: 3}}}}\n"
    )
    recipe.write_text(text)
    report = mol.run_merge(recipe, tmp_path / "out")
    out = tmp_path / "out"
    assert report.out == out
    assert sorted(contents_of(out)) == [
        "README.md", "config.json", "mergekit_config.yml", "model.safetensors", "mol_manifest.json", "tokenizer.json",
    ]  # fmt: skip
    assert (out / "mergekit_config.yml").read_text() == text.replace(f"{tmp_path}/", "")
    a, b, merged = llama_tensors(1), llama_tensors(2), weights_of(out)
    assert merged.keys() == a.keys()
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor, (a[name].astype("f8") + 3 * b[name].astype("f8")) / 4, rtol=1e-6, atol=1e-7)
    assert not (tmp_path / "out.partial").exists()
    assert report.bytes_written == sum(tensor.nbytes for tensor in merged.values())
    assert report.bytes_read >= 2 * report.bytes_written
    assert report.resumed == 0


def test_shards_have_an_index_and_no_stale_ones_are_left(models: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_merge(linear(*models), out, out_shard_size=1500)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        with safe_open(out / file, "np") as shard:
            assert name in shard.keys()  # noqa: SIM118 - safe_open is no dict
            assert shard.metadata() == {"format": "pt"}
    sharded = weights_of(out)
    run_merge(linear(*models), out, overwrite=True)
    assert [path.name for path in out.glob("model*")] == ["model.safetensors"]
    whole = weights_of(out)
    assert all(np.array_equal(whole[name], sharded[name]) for name in whole)


def test_the_manifest_holds_what_verify_needs(models: tuple[Path, Path], tmp_path: Path) -> None:
    report = run_merge(linear(*models), tmp_path / "out", digest="sha256")
    manifest = json.loads((tmp_path / "out" / "mol_manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["mol"] == mol.__version__
    assert manifest["plan"] == report.plan_digest
    assert [source["name"] for source in manifest["sources"]] == ["a", "b"]
    assert manifest["files"] == [dict(file) for file in report.files]
    found = json.loads(_rust.checksum(str(tmp_path / "out" / "model.safetensors"), digest="sha256"))
    assert manifest["files"][0]["crc64nvme"] == found["crc64nvme"]
    by_name = {tensor["name"]: tensor for tensor in manifest["tensors"]}
    for tensor in found["tensors"]:
        entry = by_name.pop(tensor["name"])
        assert (entry["crc64nvme"], entry["sha256"]) == (tensor["crc64nvme"], tensor["sha256"])
        assert entry["dtype"] == "F32"
    assert by_name == {}


def test_files_say_nothing_of_this_machine_and_are_the_same_elsewhere(tmp_path: Path) -> None:
    results = []
    for folder in ("here", "quite/anöther folder, it's far away and has a name longer than a line of eighty"):
        models = [make_llama(tmp_path / folder / name, seed) for name, seed in (("a", 1), ("b", 2))]
        out = tmp_path / folder / "out"
        run_merge(linear(*models, output_path=str(out)), threads=len(folder) % 3 + 1)
        files = contents_of(out)
        files.pop("mergekit_config.yml")  # the recipe as the user wrote it
        assert not any(str(tmp_path).encode() in content for content in files.values())
        results.append(files)
    assert results[0] == results[1]


def test_a_cancelled_run_is_resumed_to_the_same_bytes(models: tuple[Path, Path], tmp_path: Path) -> None:
    big = [tmp_path / "big0", tmp_path / "big1"]
    for seed, directory in enumerate(big):
        make_llama(directory, seed)
        tensors = llama_tensors(seed)
        random = np.random.default_rng(seed)
        tensors |= {f"extra.{i}.weight": random.standard_normal((512, 1024), "f4") for i in range(20)}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    out, cancel = tmp_path / "out", threading.Event()

    def stop(_read: int, _total: int, written: int, _written_total: int) -> None:
        if written:
            cancel.set()

    options = {"threads": 1, "tile": 65536, "out_shard_size": 10_000_000}
    seen_partial = False
    try:
        run_merge(linear(*big), out, cancel=cancel, on_progress=stop, **options)
    except MergeCancelled as error:
        seen_partial = True
        assert f"{tmp_path / 'out.partial'}: run the same merge again to resume" in str(error)  # noqa: PT017
        assert not out.exists()
        assert (tmp_path / "out.partial").is_dir()
    assert seen_partial, "the run was too fast to be cancelled"
    run_merge(linear(*big), out, **options)
    run_merge(linear(*big), tmp_path / "straight", **options)
    assert contents_of(out) == contents_of(tmp_path / "straight")


def test_a_run_cancelled_before_it_begins_writes_nothing(models: tuple[Path, Path], tmp_path: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(MergeCancelled):
        run_merge(linear(*models), tmp_path / "out", cancel=cancel)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_progress_comes_on_the_calling_thread_and_its_errors_cancel(models: tuple[Path, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []
    callers = set()

    def note(*numbers: int) -> None:
        seen.append(numbers)
        callers.add(threading.get_ident())

    report = run_merge(linear(*models), tmp_path / "out", on_progress=note)
    assert callers == {threading.get_ident()}
    assert seen[-1] == (report.bytes_read, report.bytes_read, report.bytes_written, report.bytes_written)

    def fail(*_: int) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run_merge(linear(*models), tmp_path / "other", on_progress=fail)
    assert not (tmp_path / "other").exists()


def test_nan_stops_the_run_and_keeps_what_is_finished(models: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = llama_tensors(2)
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, models[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"model\.norm\.weight"):
        run_merge(linear(*models), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out.partial"]
    report = run_merge(linear(*models), tmp_path / "out", allow_nonfinite=True)
    assert report.resumed == len(weights_of(tmp_path / "out")) - 1  # it is the last
    assert np.isnan(weights_of(tmp_path / "out")["model.norm.weight"][3])


def test_a_disk_that_fails_leaves_a_state_to_resume_from(models: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = json.dumps(linear(*models))
    code = (
        "import json, mol, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))\n"
        f"mol.run_merge(json.loads({recipe!r}), {str(tmp_path / 'out')!r}, out_shard_size=2000, threads=1)"
    )
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "OSError: [Errno 27] File too large; what is done is kept in" in failed.stderr
    assert "run the same merge again to resume" in failed.stderr
    assert not (tmp_path / "out").exists()
    run_merge(linear(*models), tmp_path / "out", out_shard_size=2000)
    assert weights_of(tmp_path / "out").keys() == llama_tensors(1).keys()


def test_a_failed_overwrite_leaves_the_old_model(models: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_merge(linear(*models), out)
    before = contents_of(out)
    tensors = llama_tensors(2)
    tensors["model.norm.weight"][3] = np.inf
    save_file(tensors, models[1] / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MergeError):
        run_merge(linear(*models), out, overwrite=True)
    assert contents_of(out) == before


def test_every_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(MergeError) as caught:
        run_merge(linear(tmp_path / "one", tmp_path / "two"), tmp_path / "out")
    assert len(caught.value.problems) == 2
    assert "one: no such directory" in caught.value.problems[0]


def test_one_missing_model_raises_the_builtin(models: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="two: no such directory"):
        run_merge(linear(models[0], tmp_path / "two"), tmp_path / "out")


def test_models_next_to_the_recipe_alone_are_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    make_llama(tmp_path / "recipes" / "a", 1)
    text = "merge_method: linear\nmodels:\n- model: ./a\n- model: a\nparameters: {weight: 1}\n"
    (tmp_path / "recipes" / "recipe.yml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MergeError) as caught:
        run_merge("recipes/recipe.yml", "out")
    for problem, line in zip(caught.value.problems, (3, 4), strict=True):
        assert problem.startswith(f"recipes/recipe.yml:{line}: ")
        assert "recipes/a is there: paths start from the working directory, not from the recipe's" in problem


def test_a_merge_needs_an_output_directory(models: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="give `out`, or `output_path`"):
        run_merge(linear(*models))


def test_the_recipes_output_path_is_used(models: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_merge(linear(*models, output_path=str(tmp_path / "there"))).out == tmp_path / "there"


def test_planning_writes_nothing_and_takes_opened_checkpoints(models: tuple[Path, Path], tmp_path: Path) -> None:
    config = mol.MergeConfig(method="linear", models=[str(model) for model in models])
    checkpoints = resolve_checkpoints(config)
    planned = plan_recipe(config, MergeOptions(), checkpoints=checkpoints)
    assert planned.donor is checkpoints[config.model_references()[0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_warnings_are_logged(models: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep = make_llama(tmp_path / "deep", 3, layers=4)
    config = mol.MergeConfig(method="linear", models=[str(deep), str(models[0])])
    with caplog.at_level(logging.INFO, "mol"):
        report = run_merge(config, tmp_path / "out")
    assert report.planned.warnings
    for line in report.planned.warnings:
        assert ("mol", logging.WARNING, line) in caplog.record_tuples
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    assert "## Notes" in (tmp_path / "out" / "README.md").read_text()


def test_a_merge_imports_no_framework(models: tuple[Path, Path], tmp_path: Path) -> None:
    code = (
        "import sys, json, mol\n"
        f"mol.run_merge(json.loads({json.dumps(json.dumps(linear(*models)))}), {str(tmp_path / 'out')!r})\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_unknown_options_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="overwritee"):
        run_merge(linear(*models), tmp_path / "out", overwritee=True)
