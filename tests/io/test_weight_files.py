"""Which files hold the weights of a model directory, and what is reported where something else has their name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mol.errors import CheckpointError
from mol.io.checkpoint import Checkpoint
from tests.tiny import llama, llama_config, write_checkpoint, write_file

INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 4976698672\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


def write(directory: Path, shards: int = 3) -> Path:
    return write_checkpoint(directory, llama(), llama_config(), shards=shards)


def refusal(directory: Path) -> str:
    with pytest.raises((CheckpointError, FileNotFoundError)) as caught:
        Checkpoint.open(directory)
    return str(caught.value)


# Pointers and pages


@pytest.mark.parametrize("content", [POINTER, PAGE, b"\xef\xbb\xbf" + PAGE.lower(), b"\n <html>"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", INDEX])
def test_what_was_saved_instead_of_a_file_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    directory = write(tmp_path / "m", shards=3 if file == INDEX else 1)
    (directory / file).write_bytes(content)
    text = refusal(directory)
    assert str(directory / file) in text
    wanted = ["git-lfs pointer for a file of 4.98 GB", "git lfs pull"] if content == POINTER else ["a web page"]
    for words in wanted:
        assert words in text


def test_all_pointers_among_shards_are_counted(tmp_path: Path) -> None:
    directory = write(tmp_path / "m", shards=7)
    for shard in directory.glob("*.safetensors"):
        shard.write_bytes(POINTER)
    text = refusal(directory)
    assert text.startswith(f"7 weight files of {directory} cannot be used")
    assert text.count("git-lfs pointer") == 4
    assert "and 3 more" in text


# Shards without an index


@pytest.mark.parametrize("stem", ["model", "pytorch_model"])
def test_shards_whose_names_count_them_need_no_index(tmp_path: Path, stem: str) -> None:
    whole, counted = Checkpoint.open(write(tmp_path / "whole")), write(tmp_path / "counted")
    (counted / INDEX).unlink()
    for shard in counted.glob("*.safetensors"):
        shard.rename(shard.with_name(shard.name.replace("model", stem)))
    (counted / "consolidated.safetensors").touch()
    opened = Checkpoint.open(counted, name="b")
    assert opened.tensors == whole.tensors
    (warning,) = opened.warnings
    assert warning.startswith(f"b has no {INDEX}: its shards were read, since their names count them ({stem}-00001-of-")


def test_shards_that_are_counted_from_zero_are_all_there(tmp_path: Path) -> None:
    directory = write(tmp_path / "m")
    for number in (1, 2, 3):
        file = directory / f"model-{number:05d}-of-00003.safetensors"
        file.rename(directory / f"model-{number - 1:05d}-of-00003.safetensors")
    (directory / INDEX).unlink()
    assert len(Checkpoint.open(directory).tensors) == len(llama())


def test_a_missing_shard_without_an_index_is_named(tmp_path: Path) -> None:
    directory = write(tmp_path / "m")
    (directory / INDEX).unlink()
    (directory / "model-00002-of-00003.safetensors").unlink()
    text = refusal(directory)
    assert f"holds 2 of 3 shards and no {INDEX}" in text
    assert "model-00002-of-00003.safetensors" in text


def test_two_sets_of_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "m")
    (directory / INDEX).unlink()
    write_file(directory / "model-00001-of-00001.safetensors", llama(), 1)
    assert "several sets of shards" in refusal(directory)


def test_a_tensor_in_two_shards_without_an_index_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "m", shards=2)
    (directory / INDEX).unlink()
    shutil.copy(directory / "model-00001-of-00002.safetensors", directory / "model-00002-of-00002.safetensors")
    assert "is both in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors" in refusal(directory)


def test_an_index_that_names_fewer_shards_than_they_count_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "m")
    index = json.loads((directory / INDEX).read_text())
    last = "model-00003-of-00003.safetensors"
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != last}
    (directory / INDEX).write_text(json.dumps(index))
    text = refusal(directory)
    assert "their names count 3 shards, and it names 2 of them" in text
    assert last in text


def test_many_missing_files_are_listed_in_a_few_lines(tmp_path: Path) -> None:
    directory = write(tmp_path / "m", shards=9)
    for shard in directory.glob("*.safetensors"):
        shard.unlink()
    text = refusal(directory)
    assert "model-00001-of-00009.safetensors is not there; it should hold" in text
    assert "5 more files are not there, up to model-00009-of-00009.safetensors" in text


# A second set


def test_a_second_set_of_weights_is_worth_a_warning(tmp_path: Path) -> None:
    directory = write(tmp_path / "m", shards=2)
    assert Checkpoint.open(directory).warnings == ()
    write_file(directory / "model.safetensors", llama(1), 0)
    opened = Checkpoint.open(directory, name="b")
    assert set(opened.tensors) == set(llama(1))
    assert opened.warnings == (
        "b holds more than one set of weights: model.safetensors was read, and model-00001-of-00002.safetensors, "
        "model-00002-of-00002.safetensors not",
    )


def test_shards_of_an_earlier_save_next_to_those_of_the_index_are_too(tmp_path: Path) -> None:
    directory = write(tmp_path / "m", shards=2)
    write_file(directory / "model-00003-of-00003.safetensors", {"old": (1,)}, 0)
    (warning,) = Checkpoint.open(directory, name="b").warnings
    assert warning.endswith(
        "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors were read, and "
        "model-00003-of-00003.safetensors not"
    )


@pytest.mark.parametrize("file", ["consolidated.safetensors", "adapter_model.safetensors", INDEX])
def test_what_no_loader_takes_for_the_model_is_no_second_set(tmp_path: Path, file: str) -> None:
    directory = write(tmp_path / "m", shards=1)
    (directory / file).write_bytes(b"{}")
    assert Checkpoint.open(directory).warnings == ()


# What is no model


@pytest.mark.parametrize(
    "names",
    [
        ["q_proj.base_layer.weight", "q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"],
        ["q_proj.base_layer.weight", "q_proj.lora_magnitude_vector.default.weight"],
        ["embed_tokens.lora_embedding_A.default", "embed_tokens.lora_embedding_B.default"],
        ["score.modules_to_save.default.weight", "score.original_module.weight"],
        ["q_proj.hada_w1_a.default", "q_proj.hada_w1_b.default"],
    ],
)
def test_an_adapter_that_was_not_merged_is_one_line(tmp_path: Path, names: list[str]) -> None:
    shapes = llama() | {f"model.layers.0.self_attn.{name}": (2, 2) for name in names}
    text = refusal(write_checkpoint(tmp_path / "b", shapes, llama_config()))
    assert "holds an adapter that was not merged" in text
    assert "merge_and_unload()" in text
    assert len(text.splitlines()) == 1


def test_layers_of_a_models_own_that_are_built_like_adapters_are_fine(tmp_path: Path) -> None:
    shapes = llama() | {"model.layers.0.self_attn.q_proj.lora_A.speech.weight": (2, 2)}
    assert Checkpoint.open(write_checkpoint(tmp_path / "b", shapes, llama_config() | {"speech_lora": {"r": 2}}))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    repository = tmp_path / "hub" / "models--org--a"
    for commit in ("b" * 40, "a" * 40):
        write(repository / "snapshots" / commit, shards=1)
    for folder in ("refs", "blobs"):
        (repository / folder).mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    return Path("hub/models--org--a")


@pytest.mark.parametrize("inside", [".", "snapshots", "refs", "blobs"])
def test_the_cache_of_a_model_is_known_and_its_snapshot_offered(cache: Path, inside: str) -> None:
    text = refusal(cache / inside)
    assert f"the cache of org/a: name org/a, or {cache / 'snapshots' / ('b' * 40)}" in text
    assert f"or {cache.absolute() / 'snapshots' / ('b' * 40)}" in refusal(cache.absolute() / inside)


def test_of_unfinished_downloads_the_name_of_the_model_is_offered(cache: Path) -> None:
    snapshots = cache / "snapshots"
    for file in ("config.json", "model.safetensors"):
        (snapshots / ("b" * 40) / file).unlink()
        assert "is a snapshot of org/a whose download did not finish" in refusal(snapshots / ("b" * 40))
        (snapshots / ("b" * 40) / "config.json").write_text("{}")
    shutil.rmtree(snapshots)
    assert "the cache of org/a, with no finished snapshot; name org/a" in refusal(cache)


def test_the_cache_as_a_whole_is_no_model(cache: Path) -> None:
    assert "is a cache of the Hub, not a model in it; name the model, e.g. org/a" in refusal(cache.parent)


@pytest.mark.parametrize("config", [True, False])
def test_an_unfinished_merge_is_no_model(tmp_path: Path, config: bool) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "journal").write_text("{}")
    if config:
        (partial / "config.json").write_text("{}")
    assert "is the unfinished merge of out; run that merge again" in refusal(partial)


def test_a_complete_partial_directory_is_still_no_model(tmp_path: Path) -> None:
    partial = write(tmp_path / "out.partial", shards=1)
    (partial / "journal").write_text("{}")
    assert "is the unfinished merge of out" in refusal(partial)


def test_a_checkpoint_below_is_offered(tmp_path: Path) -> None:
    write(tmp_path / "run" / "checkpoint-500")
    assert f"no config.json; a model directory has one next to its weights; there is one in {tmp_path}" in refusal(
        tmp_path / "run"
    )
