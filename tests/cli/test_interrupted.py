"""Commands that are interrupted: messages, exit codes and documents, and how the same command resumes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mol.cli import main

LINEAR = "merge_method: linear\nmodels:\n  - {model: ./chat, parameters: {weight: 1}}\n"
LINEAR += "  - {model: ./code, parameters: {weight: 1}}\n"

INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored,
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and one under nohup with this
from mol.cli import main, progress
shown = progress.Progress.__call__
def interrupt(self, *numbers):
    shown(self, *numbers)
    os.kill(os.getpid(), signal.SIGINT)
progress.Progress.__call__ = interrupt
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupted_merge_says_how_to_go_on_and_does(recipe: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(recipe), "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("out").exists()
    assert main([str(recipe), "out", "-q"]) == 0
    assert main([str(recipe), "again", "-q"]) == 0
    assert Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    assert signal.getsignal(signal.SIGINT) is before


TERMINATED = INTERRUPTED.replace("os.kill(os.getpid(), signal.SIGINT)", "os.kill(os.getpid(), signal.{0})")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_merge_that_is_terminated_says_how_to_go_on_and_does(name: str, code: int, recipe: Path) -> None:
    program = TERMINATED.replace("{0}", name)
    done = subprocess.run(
        [sys.executable, "-c", program, str(recipe), "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    said = " ".join(done.stderr.split())
    assert f"error: terminated ({name}); " in said
    assert "out.partial keeps what is done: run the same command again to resume, or delete it to give up" in said
    assert not Path("out").exists()
    assert main([str(recipe), "out", "-q"]) == 0


def test_a_resumed_run_reports_its_own_bytes_and_a_plan_those_of_a_run_from_the_start(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def figures(*line: str) -> tuple[int, int]:
        assert main([*line, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        return document["bytes_read"], document["bytes_written"]

    whole = figures("plan", str(recipe))
    assert figures(str(recipe), "again") == whole
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(recipe), "out", "-j", "1"], capture_output=True, check=False
    )
    assert done.returncode == 130
    rest = figures(str(recipe), "out")
    assert rest[0] < whole[0]
    assert rest[1] < whole[1]
    assert Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_with_json_an_interrupted_merge_prints_one_document(number: str, recipe: Path) -> None:
    program = TERMINATED.replace("{0}", number)
    done = subprocess.run(
        [sys.executable, "-c", program, str(recipe), "out", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 128 + getattr(signal, number)
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "Interrupted"
    assert "out.partial keeps what is done: run the same command again" in error["message"]


@pytest.mark.parametrize(("raised", "kind"), [("KeyboardInterrupt", "Interrupted"), ("ZeroDivisionError", None)])
def test_with_json_every_end_prints_one_document(raised: str, kind: str | None, recipe: Path) -> None:
    """Where a verb has no words of its own for it: an interruption, and a bug."""
    program = f"import sys, mol.cli, mol.cli.plan\ndef stop(*_):\n    raise {raised}\n"
    program += "mol.cli.plan.read_recipe = stop\nsys.exit(mol.cli.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", str(recipe), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == (130 if kind else 1)
    assert json.loads(done.stdout)["error"]["type"] == (kind or raised)
    assert "Traceback" not in done.stderr


SLOW_READER = """
import os, signal, sys
from mol.cli import console, main
write, signals = console.Console._write, iter(sys.argv[1].split(","))
def interrupt(self, text, stream):
    if stream is sys.stdout:
        for name in signals:
            os.kill(os.getpid(), getattr(signal, name))
    write(self, text, stream)
console.Console._write = interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("signals", "whole"), [("SIGINT", True), ("SIGTERM", True), ("SIGTERM,SIGTERM", False)])
def test_a_document_that_is_being_written_is_finished(signals: str, whole: bool, recipe: Path) -> None:
    """A second signal ends the command at once: the reader may never read on."""
    done = subprocess.run(
        [sys.executable, "-c", SLOW_READER, signals, "plan", str(recipe), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + getattr(signal, signals.partition(",")[0])
    assert done.stdout.endswith("\n}\n") == whole
    if whole:
        assert json.loads(done.stdout)["method"] == "ties"


STOPPED_AT_THE_SECOND = """
import os, signal, sys
from mol.cli import main, progress
shown, runs = progress.Progress.__call__, []
def interrupt(self, *numbers):
    if self not in runs:
        runs.append(self)
    if len(runs) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    shown(self, *numbers)
progress.Progress.__call__ = interrupt
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupted_series_of_merges_keeps_what_is_finished(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mean.yml").write_text(LINEAR)
    line = ["merge", "mean.yml", str(recipe), "--out-dir", "results", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AT_THE_SECOND, *line], capture_output=True, text=True, check=False
    )
    assert done.returncode == 143, done.stderr
    first, second = json.loads(done.stdout)
    assert first["method"] == "linear"
    assert second["recipe"] == str(recipe)
    assert "run the same command again to resume" in second["error"]["message"]
    before = Path("results/mean/mol_manifest.json").stat()

    assert main(line) == 0
    kept, resumed = json.loads(capsys.readouterr().out)
    assert (kept["resumed"], kept["bytes_read"], kept["bytes_written"]) == (kept["tensors"], 0, 0)
    assert {key: kept[key] for key in ("digest", "files", "methods", "out")} == {
        key: first[key] for key in ("digest", "files", "methods", "out")
    }
    assert resumed["method"] == "ties"
    assert Path("results/mean/mol_manifest.json").stat() == before


@pytest.mark.parametrize("other", ["recipe", "input", "tokenizer", "option", "damage", "sweep"])
def test_a_result_that_the_same_command_would_not_give_is_not_kept(
    other: str, family: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mean.yml").write_text(LINEAR)
    Path("soup.yml").write_text(LINEAR.replace("weight: 1", "weight: 2", 1))
    line = ["merge", "mean.yml", "soup.yml", "--out-dir", "results"]
    assert main(line) == 0
    assert main(line) == 0
    if other == "recipe":
        Path("mean.yml").write_text(LINEAR.replace("weight: 1", "weight: 3", 1))
    elif other == "input":
        weights = Path("chat/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    elif other == "tokenizer":
        Path("chat/vocab.txt").write_text("a\nb\n")
    elif other == "option":
        line += ["--digest", "sha256"]
    elif other == "damage":
        Path("results/mean/config.json").write_text("{}")
    else:
        Path("mean.yml").write_text(LINEAR + "sweep: {weights: [[1, 2], [2, 1]]}\n")
    assert main(line) == 1
    assert "results/mean is not empty" in " ".join(capsys.readouterr().err.split())


def test_a_finished_sweep_of_a_series_is_kept(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mean.yml").write_text(LINEAR)
    Path("several.yml").write_text(LINEAR + "sweep: {weights: [[1, 2], [2, 1]]}\n")
    line = ["merge", "several.yml", "mean.yml", "--out-dir", "results", "--json"]
    assert main(line) == 0
    made = json.loads(capsys.readouterr().out)
    assert main(line) == 0
    kept = json.loads(capsys.readouterr().out)
    assert [one["files"] for one in kept] == [one["files"] for one in made]
    assert [one["bytes_written"] for one in kept] == [0, 0]
