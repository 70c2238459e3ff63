"""An average of checkpoints as a training run leaves them: the reference, what goes along, memory and open files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mol import run_merge
from mol.cli import main
from mol.config.average import checkpoint_weights
from tests.io.hub_server import serving, use
from tests.merge.models import contents_of, llama_tensors, make_llama

if TYPE_CHECKING:
    from collections.abc import Sequence

BESIDE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt")
STEPS = (5, 10, 20, 100, 1000)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints as transformers' Trainer saves them; unpickling the files next to the weights would fail."""
    for step in STEPS:
        saved = make_llama(
            tmp_path / "run" / f"checkpoint-{step}", step, trainer_state__json={"global_step": step},
            tokenizer_config__json={"model_max_length": step}, generation_config__json={"max_length": step},
        )  # fmt: skip
        for name in BESIDE:
            (saved / name).write_bytes(b"\x80\x02cposix\nsystem\n")
    return tmp_path / "run"


def reference(steps: Sequence[int], weights: Sequence[float], name: str) -> np.ndarray[Any, Any]:
    of = [llama_tensors(step)[name].astype("f8") for step in steps]
    total: np.ndarray[Any, Any] = np.tensordot(np.array(weights), np.array(of), axes=1)
    return total / np.sum(weights)


@pytest.mark.parametrize("rule", ["mean", "ema:0.7", "minus-sqrt", "wsm:cosine"])
def test_an_average_is_its_reference_rounded_once(rule: str, run: Path, tmp_path: Path) -> None:
    assert main(["average", str(run), str(tmp_path / "out"), "--last", "4", "--weights", rule]) == 0
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in merged.items():
        exact = reference(STEPS[1:], checkpoint_weights(rule, 4), name)
        # f32 results are computed in f64 and rounded once: at most one step away where the reference is at a tie.
        assert np.all(np.abs(tensor.view("i4") - exact.astype("f4").view("i4")) <= 1)
        assert np.mean(tensor == exact.astype("f4")) > 0.99


def test_files_come_from_the_last_checkpoint_and_nothing_of_the_training_goes_along(run: Path, tmp_path: Path) -> None:
    assert main(["average", str(run), str(tmp_path / "out")]) == 0
    found = contents_of(tmp_path / "out")
    assert sorted(found) == [
        "README.md", "config.json", "generation_config.json", "mergekit_config.yml", "model.safetensors",
        "mol_manifest.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert json.loads(found["tokenizer_config.json"])["model_max_length"] == STEPS[-1]
    assert [source["name"].rpartition("/")[2] for source in json.loads(found["mol_manifest.json"])["sources"]] == [
        f"checkpoint-{step}" for step in STEPS
    ]
    # The recipe in it names its checkpoints, and makes it again when the run has more.
    assert "checkpoint-1000" in found["mergekit_config.yml"].decode()


def test_windows_are_averages_one_by_one(run: Path, tmp_path: Path) -> None:
    rule = ["--weights", "ema:0.5"]
    assert main(["average", str(run), str(tmp_path / "out"), "--windows", "1,2,5", *rule]) == 0
    for last in (1, 2, 5):
        assert main(["average", str(run), str(tmp_path / f"{last}"), "--last", str(last), *rule]) == 0
        assert contents_of(tmp_path / "out" / f"last-{last}") == contents_of(tmp_path / f"{last}")


def test_a_recipe_averages_as_the_command_does(run: Path, tmp_path: Path) -> None:
    assert main(["average", f"{run}/checkpoint-*", str(tmp_path / "a"), "--last", "2", "--weights", "minus-sqrt"]) == 0
    recipe = f"merge_method: average\ncheckpoints: {run}\nlast: 2\nweights: minus-sqrt\n"
    run_merge(recipe, tmp_path / "b")
    assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")


def test_checkpoints_that_are_incomplete_are_all_named(run: Path, tmp_path: Path, capsys: Any) -> None:  # noqa: ANN401
    for step in (10, 100):
        (run / f"checkpoint-{step}" / "model.safetensors").unlink()
    assert main(["average", str(run), str(tmp_path / "out")]) == 1
    problems = capsys.readouterr().err
    assert "checkpoint-10" in problems
    assert "checkpoint-100" in problems
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("RUN", "name the checkpoints, then OUT"),
        ("RUN OUT --last 2 --windows 1,2", "--last takes one number and --windows several"),
        ("RUN OUT --windows 3", "is not a list of two numbers or more, such as 5,10,20"),
        ("RUN OUT --last 0", "--last"),
    ],
)
def test_lines_that_cannot_be_understood(line: str, problem: str, capsys: Any) -> None:  # noqa: ANN401
    assert main(["average", *line.split()]) == 2
    assert problem in capsys.readouterr().err


CHILD = """
import json, resource, sys
from mol import run_merge

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
seen = []
report = run_merge(json.loads(sys.argv[1]), sys.argv[2], threads=2, on_progress=lambda *_: seen.append(anonymous()))
print(max(seen) - seen[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report it")
def test_fifty_checkpoints_take_few_open_files_and_little_memory(tmp_path: Path) -> None:
    """What is read at a time does not grow with the number of inputs: 50 x 4 MiB here, in less than 16 MiB."""
    run = tmp_path / "run"
    first = make_llama(run / "step_1", 1, dtype="float32")
    weights = llama_tensors(1) | {"extra.weight": np.random.default_rng(0).normal(size=(1024, 1024)).astype("f4")}
    from safetensors.numpy import save_file

    save_file(weights, first / "model.safetensors", metadata={"format": "pt"})
    for step in range(2, 51):
        saved = run / f"step_{step}"
        saved.mkdir()
        for file in first.iterdir():
            (saved / file.name).write_bytes(file.read_bytes())
    recipe = {"merge_method": "average", "checkpoints": str(run), "sweep": {"last": [5, 50]}}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(recipe), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 << 10
    for last in (5, 50):
        # The mean of equal checkpoints is each of them.
        assert np.array_equal(
            load_file(tmp_path / "out" / f"last-{last}" / "model.safetensors")["extra.weight"], weights["extra.weight"]
        )


def test_revisions_of_a_repository_are_averaged_by_a_pattern(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (5, 10, 100)
    contents = {f"org/run@step{step}": contents_of(run / f"checkpoint-{step}") for step in steps}
    with serving({"org/run": {}, **contents}) as hub:
        hub.commits = {key: f"{number:040x}" for number, key in enumerate(contents, 1)}
        use(hub, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        assert main(["average", "org/run@step*", str(tmp_path / "out"), "--last", "2"]) == 0
    assert main(["average", *(str(run / f"checkpoint-{step}") for step in steps[1:]), str(tmp_path / "local")]) == 0
    for name in ("model.safetensors", "generation_config.json"):
        assert contents_of(tmp_path / "out")[name] == contents_of(tmp_path / "local")[name]
