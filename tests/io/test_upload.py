"""Uploads to a Hub on this machine, by huggingface_hub itself: what arrives, and what is said when it cannot."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mol.config.model_reference import ModelReference
from mol.errors import CheckpointError, ConfigError
from mol.io.hub import resolve
from mol.io.upload import Destination, Uploaded, model_files, upload
from tests.io.hub_server import READER, WRITER, Fault, Hub, serving
from tests.tiny import llama, llama_config, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# huggingface_hub's own.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving({}) as server:
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = write_checkpoint(tmp_path / "model", llama(1), llama_config(1))
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# Model\n")
    (directory / "tokenizer.json").write_text("{}")
    return directory


def push(hub: Hub, model: Path, repo: str = "user/model", **given: object) -> Uploaded:
    names, _ = model_files(model)
    to = replace(Destination(repo, token=WRITER, endpoint=hub.url), **given)
    return upload(model, names, to, default_message="Upload")


def contents(model: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in model.iterdir()}


def held(hub: Hub, key: str = "user/model") -> dict[str, bytes]:
    return {name: content for name, content in hub.repositories[key].items() if name != ".gitattributes"}


def test_a_directory_arrives_in_one_commit_and_is_found_again(hub: Hub, model: Path, tmp_path: Path) -> None:
    done = push(hub, model, commit_message="A first model")
    assert held(hub) == contents(model)
    assert hub.messages == ["A first model"]
    assert done == ("user/model", f"{hub.url}/user/model/commit/{done.commit}", hub.commits["user/model"], ())
    directory, commit = resolve(ModelReference("user/model"), cache_dir=tmp_path / "cache", endpoint=hub.url)
    assert commit == done.commit
    assert {name: (directory / name).read_bytes() for name in contents(model)} == contents(model)


@pytest.mark.parametrize("parts", [2, 7])
def test_a_file_that_is_larger_than_a_part_arrives_in_parts(hub: Hub, model: Path, parts: int) -> None:
    whole = (model / "model.safetensors").read_bytes()
    hub.part_size = size = -(-len(whole) // parts)
    push(hub, model)
    assert held(hub) == contents(model)
    sent = [hub.parts[key] for key in sorted(hub.parts)]
    assert [len(part) for part in sent] == [*[size] * (parts - 1), len(whole) - size * (parts - 1)]
    assert b"".join(sent) == whole
    assert not any(path.startswith("/objects/") for _, path in hub.requests)


def test_a_file_of_which_a_part_is_refused_is_in_no_commit_and_arrives_the_next_time(hub: Hub, model: Path) -> None:
    hub.part_size = 1000
    hub.faults.append(Fault("PUT", "/parts/", 400, body=b"<Code>RequestTimeout</Code>"))
    with pytest.raises(ConfigError, match="user/model: the Hub refused the upload"):
        push(hub, model)
    assert hub.messages == []
    assert hub.objects == {}
    push(hub, model)
    assert held(hub) == contents(model)


def test_a_name_alone_is_in_the_namespace_of_the_token(hub: Hub, model: Path) -> None:
    assert push(hub, model, "model").repo_id == "user/model"
    assert held(hub) == contents(model)


def test_a_private_repository_is_private_from_its_first_moment(hub: Hub, model: Path, tmp_path: Path) -> None:
    push(hub, model, private=True)
    assert hub.private == {"user/model"}
    with pytest.raises(OSError, match="user/model"):
        resolve(ModelReference("user/model"), cache_dir=tmp_path, endpoint=hub.url, token=READER + "x")
    assert resolve(ModelReference("user/model"), cache_dir=tmp_path, endpoint=hub.url, token=WRITER)


def test_nothing_private_goes_into_a_repository_that_is_public(hub: Hub, model: Path) -> None:
    hub.repositories["user/model"] = {"old.txt": b""}
    with pytest.raises(ConfigError, match=r"user/model exists and is public.*make it private in its settings"):
        push(hub, model, private=True)
    assert hub.repositories["user/model"] == {"old.txt": b""}
    assert not any("preupload" in path for _, path in hub.requests)


def test_what_loaders_would_read_of_the_model_before_is_removed_by_the_same_commit(hub: Hub, model: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    stale = [*shards, "adapter_config.json", "added_tokens.json", "generation_config.json"]
    kept = {"notes.md": b"mine", "LICENSE": b"terms", "images/plot.png": b"png"}
    hub.repositories["user/model"] = dict.fromkeys(stale, b"old") | kept
    assert push(hub, model).removed == tuple(sorted(stale))
    assert held(hub) == contents(model) | kept
    assert len(hub.messages) == 1


def test_a_pull_request_leaves_main_as_it_is(hub: Hub, model: Path) -> None:
    hub.repositories["somebody/model"] = {"model.safetensors": b"theirs"}
    done = push(hub, model, "somebody/model", create_pr=True)
    assert done.url == f"{hub.url}/somebody/model/discussions/1"
    assert hub.repositories["somebody/model"] == {"model.safetensors": b"theirs"}
    assert hub.repositories["somebody/model@refs/pr/1"] == contents(model)


def test_a_branch_is_made_where_it_is_missing(hub: Hub, model: Path) -> None:
    push(hub, model)
    (model / "tokenizer.json").write_text('{"new": 1}')
    for message in ("One", "Two"):
        (model / "README.md").write_text(message)
        push(hub, model, revision="try/1", commit_message=message)
    assert held(hub, "user/model@try/1") == contents(model)
    assert held(hub)["tokenizer.json"] == b"{}"


def test_files_that_are_there_already_are_not_sent_again(hub: Hub, model: Path) -> None:
    first = push(hub, model)
    hub.requests.clear()
    assert push(hub, model) == (first.repo_id, first.url, first.commit, ())
    assert len(hub.messages) == 1
    assert all(method != "PUT" for method, _ in hub.requests)


def test_a_request_that_fails_in_passing_is_made_again(hub: Hub, model: Path) -> None:
    hub.faults = [Fault("PUT", "/objects/", 503), Fault("POST", "/preupload/", 429, {"Retry-After": "0"})]
    push(hub, model)
    assert held(hub) == contents(model)
    assert [fault.times for fault in hub.faults] == [0, 0]


def test_a_connection_that_is_cut_while_weights_are_sent_is_opened_again(hub: Hub, model: Path) -> None:
    hub.faults = [Fault("PUT", "/objects/", 0)]
    push(hub, model)
    assert held(hub) == contents(model)


FAILURES = [
    (401, {}, b"{}", PermissionError, r"user/model: the Hub does not accept the token .*`hf auth login`"),
    (403, {"X-Error-Message": "no rights"}, b"{}", PermissionError, r"the token may not write there .*--create-pr"),
    (404, {"X-Error-Code": "RepoNotFound"}, b"{}", FileNotFoundError, "no such repository, or none that the token may"),
    (404, {"X-Error-Code": "RevisionNotFound"}, b"{}", FileNotFoundError, "the repository has no revision None"),
    (409, {}, b"{}", CheckpointError, r"the repository changed during the upload .*run the same again"),
    (412, {}, b'{"error": "A commit has happened since."}', CheckpointError, "A commit has happened since"),
    (429, {"Retry-After": "40"}, b"{}", ConnectionError, r"the Hub asks to wait for 40 seconds"),
    (429, {}, b"{}", ConnectionError, r"the Hub asks to wait \("),
    (400, {}, b'{"error": "too many files"}', ConfigError, "the Hub refused the upload: .*too many files"),
    (500, {}, b"<html>oops", ConnectionError, r"the Hub failed \(.*\); run the same again later"),
    (0, {}, b"", ConnectionError, "the connection to the Hub broke .*a commit that arrived is not made twice"),
]


@pytest.mark.parametrize(("status", "headers", "body", "error", "said"), FAILURES)
def test_a_commit_that_fails_says_what_where_and_the_way_out(
    hub: Hub, model: Path, status: int, headers: dict[str, str], body: bytes, error: type[Exception], said: str
) -> None:
    hub.faults = [Fault("POST", "/commit/", status, headers, body)]
    with pytest.raises(error, match=said) as caught:
        push(hub, model)
    assert str(caught.value).startswith("user/model: ")
    assert "\n" not in str(caught.value)
    assert held(hub) == {}
    # The same again is what most of them ask for.
    hub.requests.clear()
    push(hub, model)
    assert held(hub) == contents(model)
    assert all(method != "PUT" for method, _ in hub.requests)


def test_a_foreign_repository_is_not_written_to(hub: Hub, model: Path) -> None:
    hub.repositories["somebody/model"] = {}
    for repo, said in (("somebody/model", "the token may not write there"), ("somebody/new", "under the namespace")):
        with pytest.raises(PermissionError, match=said):
            push(hub, model, repo)
    with pytest.raises(PermissionError, match="the Hub does not accept the token"):
        push(hub, model, token="hf_unknown")
    assert hub.messages == []


def test_a_repository_that_changes_during_the_upload_is_not_overwritten(hub: Hub, model: Path) -> None:
    push(hub, model)
    (model / "README.md").write_text("# Another\n")

    class Changing(dict[str, bytes]):
        """Another user's upload arrives while the commit of this one is on its way."""

        def get(self, *given: object) -> object:
            hub.commits["user/model"] = "1" * 40
            return super().get(*given)

    hub.repositories["user/model"] = Changing(hub.repositories["user/model"])
    with pytest.raises(CheckpointError, match="changed during the upload"):
        push(hub, model)
    assert held(hub)["README.md"] != b"# Another\n"


def test_a_card_that_the_hub_refuses_costs_no_upload_of_weights(hub: Hub, model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: wrong\n---\n")
    with pytest.raises(
        ConfigError, match=r'Invalid metadata in README\.md\. - "license" must be one of the known ones'
    ):
        push(hub, model)
    assert hub.objects == {}


@pytest.mark.parametrize("name", ["a/b/c", "user/na--me", "user/name.git", "user/\u6a21"])
def test_what_cannot_be_a_repository_is_refused(hub: Hub, model: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a repository"):
        push(hub, model, name)
    assert hub.requests == []


def test_a_pull_request_against_a_branch_is_refused(hub: Hub, model: Path) -> None:
    with pytest.raises(ConfigError, match="opened against main, not against 'dev'"):
        push(hub, model, create_pr=True, revision="dev")
    assert hub.requests == []


def test_no_message_holds_the_token(hub: Hub, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not even where the server sends it back."""
    caplog.set_level(logging.DEBUG)
    says = []
    for status in (400, 401, 403, 404, 409, 429, 500, 0):
        hub.faults = [Fault("POST", "/commit/", status, {}, f'{{"error": "{WRITER}"}}'.encode())]
        with pytest.raises((OSError, ConfigError, CheckpointError)) as caught:
            push(hub, model)
        says.append(str(caught.value))
    for token in ("hf_two\nlines" + WRITER, "hf_\u00e9" + WRITER):
        with pytest.raises(ConfigError, match="characters that no token has") as caught:
            push(hub, model, token=token)
        says.append(repr(caught.value))
        with pytest.raises(ConfigError, match="characters that no token has") as caught:
            resolve(ModelReference("user/model"), endpoint=hub.url, token=token)
        says.append(repr(caught.value))
    says.append(repr(Destination("user/model", token=WRITER)))
    assert "[token]" in says[0]
    assert WRITER not in "".join(says)
    assert WRITER not in caplog.text


def test_only_files_of_a_model_leave_a_directory(model: Path) -> None:
    for name in ("optimizer.pt", "trainer_state.json", "train.py", "run.log", ".env", "id_rsa"):
        (model / name).write_text("secret")
    names, left = model_files(model)
    assert names == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert left == ["id_rsa", "optimizer.pt", "run.log", "train.py", "trainer_state.json"]


def test_a_link_out_of_the_directory_is_not_followed(hub: Hub, model: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    (model / "generation_config.json").symlink_to(tmp_path / "key")
    with pytest.raises(CheckpointError, match=r"is a link to .*key, outside of the model's directory"):
        push(hub, model)
    assert hub.requests == []


def test_what_is_no_finished_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        model_files(tmp_path)
    (model / "model.safetensors").rename(model / "model.bin")
    with pytest.raises(CheckpointError, match=r"pickled PyTorch weights \(model\.bin\)"):
        model_files(model)


def test_offline_and_without_a_token_nothing_is_sent(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PermissionError, match=r"an upload needs a token of the Hub that may write: log in"):
        push(hub, model, token=None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="user/model: HF_HUB_OFFLINE is set, so nothing is uploaded; unset it"):
        push(hub, model)
    assert hub.requests == []


def test_a_server_without_xet_and_a_client_that_has_it(hub: Hub, model: Path, tmp_path: Path) -> None:
    """The switch is read when huggingface_hub is imported: a process of its own."""
    code = (
        "from pathlib import Path; from mol.io.upload import *\n"
        f"model = Path({str(model)!r})\n"
        "upload(model, model_files(model)[0], Destination('user/model'), default_message='Upload')"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": WRITER}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()[-1]
    assert said.startswith("ConnectionError: user/model: the upload broke off")
    assert "404" in said
    assert "set HF_HUB_DISABLE_XET=1 for a server that has no Xet" in said
    assert held(hub) == {}
