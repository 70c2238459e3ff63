"""What is read next to weights: regular files of bounded size, and JSON that a model could have."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path

import pytest

from mol.errors import CheckpointError
from mol.io import json_file
from mol.io.checkpoint import Checkpoint
from mol.io.json_file import read_object
from mol.io.vocabulary import Vocabulary
from tests.tiny import llama, llama_config, write_checkpoint

INDEX = "model.safetensors.index.json"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError, match=str(path)) as caught:
        read_object(path)
    return str(caught.value)


def test_a_pipe_a_socket_and_a_device_are_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "socket"):
            assert refusal(Path(name)) == f"{name} is a {name}, wanted a regular file"
    assert refusal(tmp_path / "device").endswith("is a device, wanted a regular file")
    with pytest.raises(IsADirectoryError, match="is a directory, wanted a file"):
        read_object(tmp_path)


@pytest.mark.parametrize("file", ["config.json", INDEX, "model-00001-of-00002.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_so_they_are_wherever_a_model_has_a_file(tmp_path: Path, file: str, kind: str) -> None:
    directory = write_checkpoint(tmp_path / "m", llama(), llama_config(), shards=2)
    (directory / file).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(directory / file)
    else:
        (directory / file).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=str(directory / file)):
        _ = Checkpoint.open(directory), Vocabulary(directory).ids


def test_a_key_with_two_values_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": {"hidden_size": 8, "hidden_size": 16}}')
    assert "gives `hidden_size` twice, as '8' and '16'" in refusal(path)
    path.write_text('{"tie": 1, "tie": true}')
    assert "gives `tie` twice" in refusal(path)
    path.write_text('{"a": [1], "b": 2, "a": [1]}')
    assert read_object(path) == {"a": [1], "b": 2}


def test_a_token_with_two_ids_is_named(tmp_path: Path) -> None:
    text = '{"model": {"type": "BPE", "vocab": {"x": 0, "y": 1, "x": 2}, "merges": []}}'
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json gives `x` twice, as '0' and '2'"):
        _ = Vocabulary(tmp_path).ids


def test_a_file_beyond_all_bounds_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(10**12)  # sparse
    assert "holds more than 536,870,912 bytes" in refusal(tmp_path / "config.json")


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tracemalloc.start()
    try:
        assert read_object(tmp_path / "config.json") == {}
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_number_without_end_is_no_number_of_a_models(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for digits in (41, 4300, 5000):
        path.write_text('{"vocab_size": ' + "9" * digits + "}")
        assert f"holds an integer of {digits:,} digits; no model's does" in refusal(path)
    path.write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert read_object(path) == {"model_max_length": 1000000000000000019884624838656}


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, '{"a":' * 65 + "{}" + "}" * 65])
def test_nesting_without_end_is_named_as_such(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert "is nested more than 64 levels deep" in refusal(tmp_path / "config.json")


def test_the_size_of_a_pointer_is_in_the_unit_that_fits(tmp_path: Path) -> None:
    start = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"
    assert json_file.found_instead(start + b"size 999\n") == json_file.found_instead(start + b"size 999\nx y\n")
    for size, words in ((999, "999 bytes"), (17209920, "17.2 MB"), (10**16, "10000 TB")):
        assert f"for a file of {words}," in str(json_file.found_instead(start + b"size %d\n" % size))
    assert json_file.found_instead(b"{}") is None
