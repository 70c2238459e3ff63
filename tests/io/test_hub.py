"""The Hub as a local server: what is fetched, what is not, and what is said when it cannot be."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mol.config.model_reference import ModelReference
from mol.errors import CheckpointError
from mol.io.hub import resolve, revisions_like
from mol.io.hub_cache import hub_origin
from tests.io.hub_server import COMMIT, Hub, serving, use

if TYPE_CHECKING:
    from collections.abc import Iterator

INDEX = {
    "metadata": {},
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
}
FILES = {
    "config.json": b"{}",
    "README.md": b"---\nlicense: mit\n---\n",
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
    "1_Pooling/config.json": b"{}",
    "modeling_own.py": b"raise SystemExit",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "consolidated-00001-of-00001.safetensors": b"again",
    "pytorch_model.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "original/consolidated.00.pth": b"pickle",
    "original/params.json": b"{}",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
    ".gitattributes": b"",
}
WANTED = {
    "config.json",
    "README.md",
    "generation_config.json",
    "tokenizer.json",
    "merges.txt",
    "chat_template.jinja",
    "1_Pooling/config.json",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving({"org/model": dict(FILES)}) as server:
        yield server


def present(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}


def test_branches_and_tags_are_found_by_a_pattern(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    use(hub, monkeypatch)
    hub.repositories |= {f"org/model@{branch}": {} for branch in ("step10", "step9", "refs/pr/1", "other")}
    assert revisions_like("org/model", "step*") == ["step10", "step9"]
    assert revisions_like("org/model", "*") == ["main", "other", "step10", "step9", "v1"]
    with pytest.raises(CheckpointError, match=r"org/model@epoch\*: none of the repository's branches and tags"):
        revisions_like("org/model", "epoch*")
    with pytest.raises(FileNotFoundError, match="no such repository"):
        revisions_like("org/none", "step*")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="write them out, as in org/model@step1,step2"):
        revisions_like("org/model", "step*")


@pytest.mark.parametrize("name", ["m\u00ff", "org/na--me", "org/name.git", "a" * 200, "org/\u6a21"])
def test_what_can_be_no_id_of_the_hub_is_said_to_be_no_directory(name: str, hub: Hub) -> None:
    with pytest.raises(FileNotFoundError, match="no such directory"):
        resolve(ModelReference(name), endpoint=hub.url)
    assert hub.fetched == []


def test_a_local_directory_wins_over_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve(ModelReference("org/model"), endpoint=hub.url) == (Path("org/model"), None)
    assert hub.fetched == []


def test_only_what_a_merge_needs_is_downloaded_and_the_commit_is_recorded(hub: Hub, tmp_path: Path) -> None:
    directory, commit = resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)
    assert commit == COMMIT
    assert present(directory) == WANTED
    assert sorted(hub.fetched) == sorted(WANTED)
    assert hub_origin(directory, tmp_path) == ("org/model", COMMIT)


def test_a_directory_that_is_only_named_like_a_snapshot_has_no_origin(hub: Hub, tmp_path: Path) -> None:
    directory, _ = resolve(ModelReference("org/model"), cache_dir=tmp_path / "cache", endpoint=hub.url)
    alike = tmp_path / "download" / "models--meta-llama--Llama" / "snapshots" / COMMIT
    shutil.copytree(directory, alike)
    assert hub_origin(alike, tmp_path / "cache") is None
    assert hub_origin(alike) is None
    assert resolve(ModelReference(str(alike)), cache_dir=tmp_path / "cache") == (alike, None)
    assert resolve(ModelReference(str(directory)), cache_dir=tmp_path / "cache") == (directory, COMMIT)


def test_a_single_file_is_preferred_to_shards(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/model"]["model.safetensors"] = b"all"
    directory, _ = resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)
    assert {name for name in present(directory) if "safetensors" in name} == {"model.safetensors"}


def test_code_is_downloaded_only_when_requested(hub: Hub, tmp_path: Path) -> None:
    directory, _ = resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url, code=True)
    assert present(directory) == WANTED | {"modeling_own.py"}


def test_side_files_alone(hub: Hub, tmp_path: Path) -> None:
    directory, _ = resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url, weights=False)
    assert present(directory) == {name for name in WANTED if "safetensors" not in name}


def test_files_in_the_cache_are_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    first = resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)
    hub.fetched.clear()
    assert resolve(ModelReference("org/model", "v1"), cache_dir=tmp_path, endpoint=hub.url) == first
    assert hub.fetched == []


def test_the_token_is_sent(hub: Hub, tmp_path: Path) -> None:
    resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url, token="hf_secret")
    assert hub.tokens == {"Bearer hf_secret"}


def test_the_cache_is_used_with_a_note_when_the_hub_is_down(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)
    hub.broken = True
    for revision in (None, "main", COMMIT):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mol"):
            assert resolve(ModelReference("org/model", revision), cache_dir=tmp_path, endpoint=hub.url) == first
        assert f"offline: using the cached commit {COMMIT} of org/model" in caplog.text


def test_a_cache_of_another_commit_is_named(hub: Hub, tmp_path: Path) -> None:
    resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)
    hub.broken = True
    with pytest.raises(CheckpointError, match=rf"lacks config\.json, .* \(of other commits it has {COMMIT}\); connect"):
        resolve(ModelReference("org/model", COMMIT[:7]), cache_dir=tmp_path, endpoint=hub.url)


def test_an_incomplete_cache_is_not_used(hub: Hub, tmp_path: Path) -> None:
    directory, _ = resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)
    (directory / "model-00002-of-00002.safetensors").unlink()
    hub.broken = True
    with pytest.raises(CheckpointError, match=r"its cache lacks model-00002-of-00002\.safetensors"):
        resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)


@pytest.mark.parametrize(
    ("name", "revision", "error", "says"),
    [
        ("org/none", None, FileNotFoundError, "no such directory, and no such repository"),
        ("org/model", "nowhere", CheckpointError, "no revision 'nowhere'"),
        ("not a model", None, FileNotFoundError, "no such directory"),
        ("/no/such/place", None, FileNotFoundError, "no such directory"),
        ("./org/none", None, FileNotFoundError, "no such directory"),
    ],
)
def test_a_model_that_is_not_there(
    hub: Hub, tmp_path: Path, name: str, revision: str | None, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        resolve(ModelReference(name, revision), cache_dir=tmp_path, endpoint=hub.url)


def test_a_gated_repository(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("org/model")
    with pytest.raises(PermissionError, match=r"org/model: the repository is gated; ask for access .* HF_TOKEN"):
        resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)


def test_a_repository_without_safetensors(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/model"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(CheckpointError, match=r"it has pytorch_model\.bin\); convert the model to SafeTensors"):
        resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)
    assert hub.fetched == []


def test_safetensors_that_the_hubs_converter_made_are_used(
    hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub.repositories["org/model"] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    title = "Adding `safetensors` variant of this model"
    hub.pulls["org/model"] = [("somebody", title), ("SFconvertbot", title)]
    hub.repositories["org/model@refs/pr/2"] = {"config.json": b"{}", "model.safetensors": b"numbers"}
    with caplog.at_level(logging.WARNING, "mol"):
        directory, commit = resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)
    assert (directory / "model.safetensors").read_bytes() == b"numbers"
    assert commit == COMMIT
    assert "org/model holds no SafeTensors" in caplog.text
    assert "refs/pr/2" in caplog.text
    with pytest.raises(CheckpointError, match="convert the model to SafeTensors"):
        resolve(ModelReference("org/model", "main"), cache_dir=tmp_path / "other", endpoint=hub.url)


def test_an_index_that_names_a_shard_the_repository_lacks(hub: Hub, tmp_path: Path) -> None:
    del hub.repositories["org/model"]["model-00002-of-00002.safetensors"]
    with pytest.raises(CheckpointError, match="names model-00002-of-00002"):
        resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        resolve(ModelReference(str(file)))


def test_a_local_directory_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="local directory, which has no revision 'v1'"):
        resolve(ModelReference(str(tmp_path), "v1"))


def test_the_environment_is_obeyed(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE are read when huggingface_hub is imported: a process each."""
    code = (
        "from mol.config.model_reference import ModelReference; from mol.io.hub import resolve\n"
        "print(resolve(ModelReference('org/model'))[0])"
    )

    def run(**extra: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_env", **extra}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )

    offline = run(HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "CheckpointError: org/model: no such directory, the Hub is unreachable" in offline.stderr
    assert hub.tokens == set()
    online = run()
    assert online.returncode == 0, online.stderr
    assert hub.tokens == {"Bearer hf_env"}
    hub.tokens.clear()
    assert run(HF_HUB_OFFLINE="1").stdout == online.stdout
    assert hub.tokens == set()


def test_shards_whose_names_count_them_are_downloaded_without_an_index(hub: Hub, tmp_path: Path) -> None:
    for name in ("model.safetensors.index.json", "consolidated-00001-of-00001.safetensors"):
        del hub.repositories["org/model"][name]
    directory, _ = resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)
    assert present(directory) == WANTED - {"model.safetensors.index.json"}
    hub.broken = True
    assert resolve(ModelReference("org/model"), cache_dir=tmp_path, endpoint=hub.url)[0] == directory
