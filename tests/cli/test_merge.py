"""The verbs that carry a recipe out or say what it would do: merge, plan, validate, examples."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mol.cli import main

LINEAR = "merge_method: linear\nmodels:\n  - {model: ./chat, parameters: {weight: 1}}\n"
LINEAR += "  - {model: ./code, parameters: {weight: 1}}\n"


def weights(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model.safetensors")


def test_a_command_without_a_verb_merges_and_reports_what_it_did(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--threads", "2", str(recipe), "out"]) == 0
    said = capsys.readouterr()
    assert re.match(r"merged    9 tensors: 9 by ties\n", said.out)
    assert re.search(r"^bytes     read [\d.]+ kB, wrote [\d.]+ kB in [\d.]+ m?s", said.out, re.MULTILINE)
    assert said.out.splitlines()[-1] == "output    out", "as it was typed"
    assert max(map(len, said.out.splitlines()[:-1])) <= 80
    assert set(weights(Path("out"))) == set(weights(Path("base")))


def test_linear_is_the_mean(family: Path) -> None:
    Path("mean.yml").write_text(LINEAR)
    assert main(["merge", "mean.yml", "out", "-q"]) == 0
    chat, code, out = (weights(Path(name)) for name in ("chat", "code", "out"))
    for name, tensor in out.items():
        np.testing.assert_allclose(tensor, (chat[name] + code[name]) / 2, rtol=1e-6, atol=1e-7)


def test_the_seeds_own_command_works(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "./merged_model", "--device", "cuda", "--verbose"]) == 0
    assert "note: --device cuda has no effect: merges run on the CPU" in capsys.readouterr().err


def test_sync_is_what_happens_anyway(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "out", "--sync"]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "--sync" in line] == [
        "note: --sync has no effect: a merge waits for the disk unless --no-sync is given"
    ]
    assert main([str(recipe), "out", "--no-sync", "--overwrite"]) == 0
    assert "sync" not in capsys.readouterr().err


def test_quiet_is_silent(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "out", "--quiet", "--cuda"]) == 0
    assert capsys.readouterr() == ("", "")


def test_json_is_one_document_on_stdout(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "out", "--json", "--low-cpu-memory"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["methods"] == {"ties": 9}
    assert document["tensors"] == 9
    assert document["out"] == str(Path("out").resolve())
    assert document["bytes_written"] == document["files"][0]["size"] or document["bytes_written"] > 0
    assert "--low-cpu-memory has no effect" in said.err


def test_out_may_come_from_the_recipe(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "output_path: ./from-recipe\n")
    assert main([str(recipe), "-q"]) == 0
    assert Path("from-recipe/model.safetensors").is_file()


def test_without_any_out_the_command_is_wrong(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe)]) == 2
    assert "OUT is missing" in capsys.readouterr().err


def test_several_recipes_go_into_one_directory(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mean.yml").write_text(LINEAR)
    assert main(["merge", str(recipe), "mean.yml", "--out-dir", "results", "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [document["method"] for document in documents] == ["ties", "linear"]
    assert sorted(path.name for path in Path("results").iterdir()) == ["mean", "ties"]


def test_a_recipe_that_is_wrong_stops_all_before_the_first(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yml").write_text(LINEAR.replace("weight", "weigth", 1))
    assert main(["merge", str(recipe), "wrong.yml", "--out-dir", "results"]) == 1
    assert "weigth" in capsys.readouterr().err
    assert not Path("results").exists()


def test_a_merge_that_fails_does_not_keep_the_next_from_running(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("gone.yml").write_text(LINEAR.replace("./chat", "./gone"))
    assert main(["merge", "gone.yml", str(recipe), "--out-dir", "results"]) == 1
    said = capsys.readouterr()
    assert "./gone" in said.err
    assert "1 of 2 recipes failed: gone.yml" in said.err
    assert Path("results/ties/model.safetensors").is_file()


def test_shards_of_the_requested_size(recipe: Path) -> None:
    assert main([str(recipe), "out", "-q", "--out-shard-size", "1_000"]) == 0
    index = json.loads(Path("out/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["ties.yml", "base"], "/base is an input"),
        (["ties.yml", "full"], "full"),
        (["ties.yml", "out", "--dtype", "float13"], "float13"),
        (["unknown.yml", "out"], "slurp"),
    ],
)
def test_a_refusal_ends_with_1_and_writes_nothing(
    line: list[str], says: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full/keep.txt").write_text("mine")
    Path("unknown.yml").write_text("merge_method: slurp\nmodels: [./chat, ./code]\n")
    before = {path: path.read_bytes() for path in recipe.parent.rglob("*") if path.is_file()}
    assert main(line) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert says in said.err
    assert "Traceback" not in said.err
    assert {path: path.read_bytes() for path in recipe.parent.rglob("*") if path.is_file()} == before


def test_a_no_that_the_recipe_overrules_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(recipe.read_text() + "trust_remote_code: true\n")
    assert main([str(recipe), "out", "--no-trust-remote-code"]) == 2
    assert "contradicts `trust_remote_code: true`" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["merge", "plan", "validate"])
def test_a_recipe_may_come_from_standard_input(
    verb: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, code in ((recipe.read_bytes(), 0), (b"merge_method: slurp\n", 1)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        assert main([verb, "-", *(["out"] if verb == "merge" else [])]) == code
    assert "standard input:1: unknown merge method `slurp`" in capsys.readouterr().err
    assert Path("out").exists() == (verb == "merge")


def test_what_is_wrong_with_each_of_several_models_keeps_its_shape(
    family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mol.errors import CheckpointError, MergeError

    inner = CheckpointError.listing("b is damaged", ["one", "two"])
    outer = MergeError.listing("models cannot be used", ["a is missing", str(inner)])
    assert str(outer).splitlines() == [
        "models cannot be used:", "  - a is missing", "  - b is damaged:", "      - one", "      - two",
    ]  # fmt: skip


def test_plan_reports_everything_and_writes_nothing(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(recipe.parent.rglob("*"))
    assert main(["plan", str(recipe), "out"]) == 0
    said = capsys.readouterr().out
    assert sorted(recipe.parent.rglob("*")) == before
    for part in ("(ties)", "./base", "(gives config and tokenizer)", "./chat", "out: F32 in 1 file", "9 by ties",
                 "cost      read", "(more than once by ties), write"):  # fmt: skip
        assert part in said
    assert said.count("(gives config and tokenizer)") == 1


def test_plan_warns_of_an_out_that_a_merge_would_refuse(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(recipe), "base"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "warning the output would touch an input; name another directory:" in said
    assert f"{recipe.parent / 'base'} is an input" in said
    assert "overwrite" not in said
    Path("full").mkdir()
    Path("full/config.json").touch()
    assert main(["plan", str(recipe), "full"]) == 0
    assert "warning   full is not empty" in capsys.readouterr().out


def test_plan_as_json_is_what_the_engine_is_handed(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mol import _rust

    assert main(["plan", "--json", str(recipe)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"]["plan"] == 2
    assert document["digest"] == _rust.plan_digest(json.dumps(document["plan"]))
    assert len(document["plan"]["tasks"]) == document["tensors"] == 9
    assert document["bytes_needed"] > document["bytes_written"]
    assert document["bytes_of_memory"] > 1 << 20


def test_plan_says_what_a_merge_takes(recipe: Path) -> None:
    """In a process of its own, whose memory is not that of the one which started it."""
    grown = b"x" * 500_000_000
    command = [sys.executable, "-m", "mol.cli", "plan", str(recipe)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    del grown
    memory = re.search(r"^memory    about (\S+) MB, whatever the sizes of the tensors$", said, re.MULTILINE)
    assert memory
    assert float(memory[1]) < 300
    assert re.search(r"^disk      \S+ \S+ needed, \S+ GB free$", said, re.MULTILINE)


def test_plan_warns_of_a_filter_that_fits_no_tensor(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = "weight: [{filter: atn, value: 0.2}, {filter: mlp, value: 0.4}, {value: 0.5}]"
    Path("filters.yml").write_text(re.sub("weight: [0-9.]+", value, LINEAR, count=1))
    assert main(["plan", "filters.yml"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the filter `atn` of `weight` fits no tensor and has no effect" in said
    assert "`mlp`" not in said


def test_plan_names_what_is_copied_and_dropped(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    base, chat = weights(Path("base")), weights(Path("chat"))
    save_file({**base, "pooler.weight": np.ones((2, 2), np.float32)}, "base/model.safetensors")
    save_file({**chat, "value_head.weight": np.ones((2, 2), np.float32)}, "chat/model.safetensors")
    assert main(["plan", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^copied    .*pooler\.weight", said, re.MULTILINE)
    assert re.search(r"^dropped   .*value_head\.weight", said, re.MULTILINE)
    assert "9 by ties, 1 copied; 1 dropped" in said


def test_validate_checks_shapes_where_models_are_on_disk(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(recipe)]) == 0
    assert capsys.readouterr().out == (
        f"{recipe}: valid\n  checked: the recipe, and names, shapes and dtypes of 9 tensors to write\n"
    )


def test_validate_prints_what_the_planner_warns_of(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = "weight: [{filter: self_atn, value: 0.2}, {value: 0.5}]"
    Path("filters.yml").write_text(re.sub("weight: [0-9.]+", value, LINEAR, count=1))
    assert main(["validate", "filters.yml"]) == 0
    said = capsys.readouterr()
    line = "the filter `self_atn` of `weight` fits no tensor and has no effect; did you mean `self_attn`?"
    assert f"warning: filters.yml: {line}" in " ".join(said.err.split())
    assert main(["validate", "filters.yml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["warnings"] == [line]
    assert main(["plan", "filters.yml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == [line]


def test_validate_reports_what_it_could_not_check(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hub.yml").write_text(LINEAR.replace("./chat", "some-org/some-model"))
    assert main(["validate", "hub.yml", "--cache-dir", "cache"]) == 0
    said = capsys.readouterr()
    assert "hub.yml: valid, as far as can be checked here\n  checked: the recipe\n  not checked: tensors" in said.out
    assert "nor in the cache: some-org/some-model" in said.out
    assert main(["validate", "hub.yml", "--cache-dir", "cache", "--strict", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["not_at_hand"] == ["some-org/some-model"]
    assert main(["validate", "hub.yml", "--cache-dir", "cache", "--strict", "--quiet"]) == 1
    assert capsys.readouterr() == (
        "",
        "error: hub.yml: models are not at hand, and --strict requires them: some-org/some-model\n",
    )


def test_validate_finds_models_in_the_cache(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = Path("cache/models--some-org--some-model")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots").mkdir()
    Path("chat").rename(repository / "snapshots" / commit)
    Path("hub.yml").write_text(LINEAR.replace("./chat", "some-org/some-model"))
    assert main(["validate", "hub.yml", "--cache-dir", "cache"]) == 0
    assert "hub.yml: valid\n" in capsys.readouterr().out


def test_validate_reports_every_problem_of_every_file(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yml").write_text(LINEAR.replace("weight", "weigth", 1) + "dtipe: float16\n")
    Path("b.yml").write_text(LINEAR.replace("./chat", "./gone"))
    assert main(["validate", "a.yml", str(recipe), "b.yml", "--json"]) == 1
    said = capsys.readouterr()
    first, second, third = json.loads(said.out)
    assert len(first["problems"]) == 2
    assert second["valid"]
    assert not third["valid"]
    assert "./gone" in third["problems"][0]
    assert "dtipe" in said.err
    assert "Traceback" not in said.err


def test_validate_sees_shapes_that_differ(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    chat = weights(Path("chat"))
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**chat, name: chat[name][:-1]}, "chat/model.safetensors")
    assert main(["validate", str(recipe)]) == 1
    said = capsys.readouterr().err
    assert "mlp.up_proj.weight" in said
    assert "[15, 8] in ./chat, wanted [16, 8] as in ./base" in said


def test_examples_are_written_and_valid(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examples", "configs", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["recipes"]
    assert "slerp_example.yml" in names
    paths = [str(Path("configs", name)) for name in names]
    assert all(Path(path).is_file() for path in paths)
    assert main(["validate", *paths, "--cache-dir", "empty"]) == 0
    assert main(["examples", "configs"]) == 0, "the same files again are no conflict"


def test_examples_do_not_overwrite_what_was_changed(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["examples"]) == 0
    Path("examples/slerp_example.yml").write_text("mine")
    assert main(["examples"]) == 1
    assert "examples/slerp_example.yml" in capsys.readouterr().err
    assert Path("examples/slerp_example.yml").read_text() == "mine"
    assert main(["examples", "--overwrite"]) == 0
