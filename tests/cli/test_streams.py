"""Streams that are closed, full or broken, and names that would steer a terminal."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from mol.cli import main
from mol.cli.streams import json_printable, printable
from tests.cli.conftest import tensors_of, write_checkpoint

COMMANDS = (
    "ties.yml out", "plan ties.yml", "plan ties.yml --json", "validate ties.yml", "examples ex", "inspect base",
    "inspect base --json", "diff base chat", "verify merged", "--help", "--version", "help plan",
)  # fmt: skip
FULL = Path("/dev/full")


def shell(line: str, redirections: str) -> subprocess.CompletedProcess[str]:
    command = f"{shlex.quote(sys.executable)} -m mol.cli {line} {redirections}"
    return subprocess.run(command, shell=True, check=False, capture_output=True, text=True)


@pytest.fixture
def ready(merged: Path) -> Path:
    """What the recipe `ties.yml` gave."""
    return merged


@pytest.mark.parametrize("line", ["ties.yml out", "plan ties.yml --json", "", "nowhere.yml out"])
def test_a_closed_stream_changes_nothing_but_what_is_said(line: str, ready: Path) -> None:
    usual = shell(line.replace(" out", " usual"), "").returncode
    for number, redirections in enumerate((">&-", "<&- >&- 2>&-")):
        done = shell(line.replace(" out", f" out{number}"), redirections)
        assert done.returncode == usual, (redirections, done.stderr)
        assert "Traceback" not in done.stderr
        if line == "ties.yml out":
            # Neither of the streams' numbers went to a file of the merge.
            assert Path(f"out{number}/model.safetensors").read_bytes() == (ready / "model.safetensors").read_bytes()


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
@pytest.mark.parametrize("line", COMMANDS)
def test_a_full_disk_behind_stdout_is_said_and_is_a_failure(
    line: str, ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(line.split()) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "error: standard output: No space left on device; not all that was to be printed arrived" in said
    assert "Traceback" not in said
    assert Path("out").exists() == line.endswith(" out")


@pytest.mark.parametrize("line", COMMANDS)
def test_a_pipe_that_is_closed_is_no_failure(
    line: str, ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)  # before a byte is written, so that nothing depends on a buffer's size
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert main(line.split()) == 0
    assert "error" not in capsys.readouterr().err
    assert Path("out").exists() == line.endswith(" out")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_full_streams_in_a_process_of_its_own(ready: Path) -> None:
    """Where what is left in a buffer would be written once more at the end."""
    done = shell("ties.yml out", f">{FULL}")
    assert (done.returncode, "Exception ignored" in done.stderr) == (1, False)
    done = shell("ties.yml out2 --cuda -v", f"2>{FULL}")
    assert done.returncode == 0
    assert "merged    9 tensors" in done.stdout
    assert Path("out2/config.json").is_file()
    assert shell("ties.yml out3", "| true").returncode == 0


def test_what_steers_a_terminal_is_escaped_and_the_rest_is_not() -> None:
    assert printable("a\x1b[31mred\x07\r\x9b\u202eevil\u2066\u2028") == (
        "a\\x1b[31mred\\x07\\r\\x9b\\u202eevil\\u2066\\u2028"
    )
    plain = "über 模型 \U0001f600\n\tline\u200d"
    assert printable(plain) == plain
    assert printable(os.fsdecode(b"m\xff")) == "m\\xff"


def test_json_stays_json_and_holds_the_same() -> None:
    value = {"name\u202e": "a\x9b\x1b\u2066\udcff", "plain": "über"}
    text = json_printable(json.dumps(value, ensure_ascii=False), sys.stdout)
    assert json.loads(text) == value
    assert printable(text) == text
    assert "über" in text


EVIL = "\x1b]0;title\x07\u202eevil\nerror: forged"


def test_names_from_headers_cannot_steer_the_terminal(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({**tensors_of(0), f"{EVIL}.weight": tensors_of(0)["lm_head.weight"]}, family / "base/model.safetensors")
    recipe = family / "r.yml"
    recipe.write_text("merge_method: ties\nbase_model: ./base\nmodels: [{model: ./chat, parameters: {weight: 1}}]\n")
    for line in (["inspect", "base"], ["diff", "base", "chat"], ["plan", "r.yml"], ["r.yml", "out"],
                 ["plan", "r.yml", "--json"], ["r.yml", "out2", "--strict-tensors"]):  # fmt: skip
        main(line)
        said = capsys.readouterr()
        for text in (said.out, said.err):
            assert not {"\x1b", "\x07", "\u202e"} & set(text), line
            assert "\nerror: forged" not in text, line


def test_words_of_recipes_and_of_the_command_cannot_either(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (family / "r.yml").write_text('merge_method: "\\e[31m"\nmodels: ["./\\u202ea", "\\x9b"]\n"k\\e[2J": 1\n')
    for line in (["validate", "r.yml"], ["r.yml", "out"], [f"{EVIL}.yml", "out"], ["inspect", EVIL],
                 ["r.yml", "out", f"--{EVIL}"], ["r.yml", "out", "--device", EVIL]):  # fmt: skip
        assert main(line) in (1, 2)
        said = capsys.readouterr()
        assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(said.out + said.err), line


def test_names_that_are_not_utf8(family: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An OUT, a recipe and a cache of any name work; an input's name must fit into the plan, which is JSON."""
    odd = os.fsdecode(b"m\xff")
    recipe = family / f"{odd}.yml"
    recipe.write_text("merge_method: linear\nmodels: [./chat, ./code]\n")
    assert main([str(recipe), f"out{odd}"]) == 0
    assert "out/" not in capsys.readouterr().err
    assert (family / f"out{odd}" / "config.json").is_file()
    assert main(["plan", str(recipe), f"out2{odd}", "--json"]) == 0
    json.loads(capsys.readouterr().out)
    write_checkpoint(family / odd, tensors_of(3))
    assert main(["inspect", odd]) == 0
    capsys.readouterr()
    import mol

    models = [{"model": str(family / name), "parameters": {"weight": 1}} for name in ("chat", odd)]
    with pytest.raises(mol.MolError, match="is not UTF-8; rename it"):
        mol.run_merge({"merge_method": "linear", "models": models}, family / "out3")
    assert not (family / "out3.partial").exists()
