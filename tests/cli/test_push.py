"""mol-merge push: a merge is verified, and arrives on a Hub on this machine as it is; nothing else goes there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mol.cli import main
from tests.fenced import fenced
from tests.io.hub_server import WRITER, Fault, Hub, serving, use

if TYPE_CHECKING:
    from collections.abc import Iterator


# huggingface_hub's own.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that is the one in use, with the token of a user, in a process whose output is no terminal."""
    with serving({}) as server:
        use(server, monkeypatch)
        yield server


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_merge_arrives_whole_with_card_recipe_and_manifest(
    hub: Hub, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "merged", "user/ties", "--commit-message", "Merge chat and code"]) == 0
    assert {n: c for n, c in hub.repositories["user/ties"].items() if n != ".gitattributes"} == contents(merged)
    assert {"README.md", "mergekit_config.yml", "mol_manifest.json"} < contents(merged).keys()
    assert hub.messages == ["Merge chat and code"]
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("uploaded  5 files, ")
    assert lines[0].endswith(" kB, to user/ties")
    assert lines[1] == f"url       {hub.url}/user/ties/commit/{hub.commits['user/ties']}"
    assert said.err == ""


def test_a_damaged_merge_is_not_uploaded(hub: Hub, merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (merged / "config.json").write_text("{}")
    data = bytearray((merged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (merged / "model.safetensors").write_bytes(data)
    assert main(["push", "merged", "user/ties"]) == 1
    said = capsys.readouterr().err
    assert "merged is damaged:" in said
    assert "config.json: has 2 bytes" in said
    assert "model.safetensors: tensor `" in said
    assert hub.requests == []


def test_a_card_that_was_edited_goes_along_and_files_that_were_added_stay(
    hub: Hub, merged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (merged / "README.md").write_text("# My merge\n")
    (merged / "notes.txt").write_text("mine")
    assert main(["push", "merged", "user/ties"]) == 0
    assert hub.repositories["user/ties"]["README.md"] == b"# My merge\n"
    assert "notes.txt" not in hub.repositories["user/ties"]
    assert capsys.readouterr().err.splitlines() == [
        "note: README.md was edited since the merge, and is uploaded as it is",
        "note: not uploaded, since they are no files of the model: notes.txt",
    ]
    (merged / "added_tokens.json").write_text("{}")
    assert main(["push", "merged", "user/ties"]) == 1
    assert "added_tokens.json: is not in mol_manifest.json, but loaders read it" in capsys.readouterr().err


def test_a_directory_of_another_program_goes_too(hub: Hub, merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (merged / "mol_manifest.json").unlink()
    (merged / "README.md").unlink()
    (merged / "optimizer.pt").write_bytes(b"pickle")
    assert main(["push", "merged", "user/ties"]) == 0
    assert set(hub.repositories["user/ties"]) == {
        ".gitattributes", "config.json", "mergekit_config.yml", "model.safetensors",
    }  # fmt: skip
    said = capsys.readouterr().err
    assert "not uploaded, since they are no files of the model: optimizer.pt" in said
    assert "merged has no README.md: the repository will have no model card" in said


def test_a_dry_run_writes_what_would_be_uploaded_and_needs_neither_token_nor_network(
    hub: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (merged / "notes.txt").write_text("mine")
    assert main(["push", "merged", "user/ties", "--private", "--dry-run", "dry"]) == 0
    assert contents(merged.parent / "dry") == {n: c for n, c in contents(merged).items() if n != "notes.txt"}
    assert capsys.readouterr().out.endswith("to dry: what would be uploaded to user/ties\n")
    assert main(["push", "merged", "user/ties", "--dry-run", "dry"]) == 1
    assert "dry is not empty; name a new directory" in capsys.readouterr().err
    assert hub.requests == []


def test_without_a_token_the_command_ends_before_it_reads_anything(
    hub: Hub, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    (merged / "config.json").write_text("{}")
    assert main(["push", "merged", "user/ties"]) == 1
    assert capsys.readouterr().err == (
        "error: an upload needs a token of the Hub that may write: log in (`hf auth login`), set HF_TOKEN or give "
        "--token\n"
    )
    assert hub.requests == []


def test_one_document_for_programs_and_the_token_is_in_nothing_that_is_written(
    hub: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    line = ["push", "merged", "user/ties", "--token", WRITER, "--json", "-vv"]
    assert main(line) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["repo"] == "user/ties"
    assert document["commit"] == hub.commits["user/ties"]
    assert {file["name"] for file in document["files"]} == contents(merged).keys()
    (merged / "README.md").write_text("# New\n")
    hub.faults = [Fault("POST", "/commit/", 500, body=WRITER.encode())]
    assert main(line) == 1
    failed = capsys.readouterr()
    assert json.loads(failed.out)["error"]["type"] == "ConnectionError"
    assert "user/ties: the Hub failed" in failed.err
    assert WRITER not in said.out + said.err + failed.out + failed.err
    assert not any(WRITER.encode() in content for content in hub.repositories["user/ties"].values())


def test_arguments_in_the_wrong_order(hub: Hub, merged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "user/ties", "merged"]) == 2
    assert "DIR comes first, then REPO: `mol-merge push merged user/ties`" in capsys.readouterr().err
    assert main(["push", "merged"]) == 2
    assert hub.requests == []


def test_the_page_about_sharing_shows_what_its_commands_print(
    hub: Hub, merged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    def shape(text: str) -> str:
        text = re.sub(r"https?://[^/]*/", "URL/", re.sub(r"[0-9a-f]{40}", "HASH", text))
        # Models with a tokenizer, as those of the page, have more files.
        return re.sub(r"\d+(\.\d+)? ([kM]B|files)", "N", text)

    page = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text(encoding="utf-8")
    for block in fenced(page, "console"):
        line, *shown = block.splitlines()
        assert main(shlex.split(line.removeprefix("$ mol-merge "))) == 0
        assert shape(capsys.readouterr().out).splitlines() == [shape(text) for text in shown]
