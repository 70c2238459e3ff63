from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from mol.errors import CheckpointError
from mol.io.checkpoint import Checkpoint, Known, TensorInfo, read_shard
from tests.tiny import gpt2, gpt2_config, llama, llama_config, write_checkpoint, write_file

if TYPE_CHECKING:
    from pathlib import Path

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "org" / "model", llama(), llama_config(), shards=3)


def change_index(directory: Path, **weights: Any) -> None:  # noqa: ANN401
    path = directory / INDEX
    index = json.loads(path.read_text())
    index["weight_map"] |= weights
    path.write_text(
        json.dumps({**index, "weight_map": {k: v for k, v in index["weight_map"].items() if v is not None}})
    )


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    return str(caught.value)


def test_one_file_and_many_hold_the_same_tensors(tmp_path: Path, sharded: Path) -> None:
    single = Checkpoint.open(write_checkpoint(tmp_path / "single", llama(), llama_config()), name="org/model")
    many = Checkpoint.open(sharded, revision="abc")
    assert (single.name, many.name, many.revision) == ("org/model", str(sharded), "abc")
    assert {n: (i.dtype, i.shape) for n, i in single.tensors.items()} == {n: ("BF16", s) for n, s in llama().items()}
    assert {n: i[:3] for n, i in many.tensors.items()} == {n: i[:3] for n, i in single.tensors.items()}
    assert single.tensors["model.norm.weight"] == TensorInfo("BF16", (8,), 16, 0)
    assert {info.file for info in many.tensors.values()} == {0, 1, 2}
    assert [file.path.name for file in many.files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert all(file.size == file.path.stat().st_size and file.path.is_absolute() for file in many.files)
    assert many.config == llama_config()


@pytest.mark.parametrize("name", ["a+b", "a@b", "with space", "größe-模型"])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    directory = write_checkpoint(tmp_path / name, gpt2(2), gpt2_config(2))
    assert len(Checkpoint.open(directory).tensors) == len(gpt2(2))


def test_links_as_the_hub_cache_has_them_are_followed(tmp_path: Path, sharded: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in sharded.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert len(Checkpoint.open(snapshot).tensors) == len(llama())


def test_a_single_file_wins_over_a_left_over_index(sharded: Path) -> None:
    write_file(sharded / "model.safetensors", llama(1), 0)
    assert set(Checkpoint.open(sharded).tensors) == set(llama(1))


def test_what_is_not_there_is_said(tmp_path: Path, sharded: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file"):
        Checkpoint.open(sharded / INDEX)
    (sharded / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Checkpoint.open(sharded)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Checkpoint.open(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        Checkpoint.open(tmp_path / "empty")


def test_a_loop_of_links_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        Checkpoint.open(tmp_path / "a")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, '"text"'])
def test_a_config_that_is_no_object_is_refused(sharded: Path, content: str) -> None:
    (sharded / "config.json").write_text(content)
    assert "config.json" in refusal(sharded)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "a\\b.safetensors", "x.bin", "", 7])
def test_an_index_that_names_a_file_outside_the_directory_is_refused(sharded: Path, file: object) -> None:
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded.parent / "outside.safetensors")
    change_index(sharded, **{"lm_head.weight": file})
    assert "not the name of a .safetensors file inside the directory" in refusal(sharded)


def test_an_index_that_names_a_missing_shard_is_refused(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    text = refusal(sharded)
    assert "model-00002-of-00003.safetensors is not there" in text
    assert "tensors, e.g. `model.layers." in text


def test_a_shard_and_an_index_that_contradict_each_other_are_refused(sharded: Path) -> None:
    change_index(sharded, ghost="model-00001-of-00003.safetensors")
    assert "`ghost` is listed for model-00001-of-00003.safetensors, which lacks it" in refusal(sharded)
    change_index(sharded, ghost=None, **{"lm_head.weight": None})
    assert "`lm_head.weight` is in model-00003-of-00003.safetensors, but listed nowhere" in refusal(sharded)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "nonsense"])
def test_an_index_without_a_weight_map_is_refused(sharded: Path, content: str) -> None:
    (sharded / INDEX).write_text(content)
    assert INDEX in refusal(sharded)


@pytest.mark.parametrize(
    ("file", "word"),
    [
        ("pytorch_model.bin", "pickled"),
        ("model.Q4_K_M.gguf", "GGUF"),
        ("adapter_model.safetensors", "adapter"),
        ("tf_model.h5", "TensorFlow"),
        ("diffusion_pytorch_model.safetensors", "another name"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path: Path, file: str, word: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(b"")
    text = refusal(tmp_path)
    assert file in text
    assert word in text


def test_quantized_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    config = llama_config() | {"text_config": {"quantization_config": {"quant_method": "gptq"}}}
    scales = {"model.layers.0.mlp.up_proj.weight_scale_inv": (1, 1)}
    text = refusal(write_checkpoint(tmp_path / "m", llama() | scales, config))
    assert "'gptq'" in text
    assert "weight_scale_inv" in text
    assert "unquantized" in text


def test_plain_weights_whose_config_says_quantized_have_a_way_out(tmp_path: Path) -> None:
    config = llama_config() | {"quantization_config": {"quant_method": "bitsandbytes"}}
    text = refusal(write_checkpoint(tmp_path / "m", llama(), config))
    assert "if its weights were dequantized, take this key out of config.json" in text


def test_complex_weights_are_called_that(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "m", llama(), llama_config())
    header = json.dumps({"freqs": {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]}}).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    text = refusal(directory)
    assert "holds complex numbers (C64), e.g. `freqs`" in text
    assert "quantized" not in text


def test_fp8_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "m", llama(), llama_config())
    table = {"model.layers.0.q.weight": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}
    header = json.dumps(table).encode()
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    text = refusal(directory)
    assert "F8_E4M3" in text
    assert "model.safetensors" in text or "`model.layers.0.q.weight`" in text


def test_models_with_equal_headers_share_their_tensors(tmp_path: Path) -> None:
    base, tuned = (write_checkpoint(tmp_path / name, llama(), llama_config(), seed=i) for i, name in enumerate("ab"))
    known: Known = {}
    first, second = Checkpoint.open(base, known=known), Checkpoint.open(tuned, known=known)
    assert first.tensors == second.tensors == Checkpoint.open(tuned).tensors
    assert all(second.tensors[name] is info for name, info in first.tensors.items())
    _, elsewhere = read_shard(tuned / "model.safetensors", 1, known)
    assert elsewhere == {name: info._replace(file=1) for name, info in first.tensors.items()}


def test_a_truncated_file_is_refused_though_its_header_is_known(tmp_path: Path) -> None:
    base, tuned = (write_checkpoint(tmp_path / name, llama(), llama_config()) for name in "ab")
    known: Known = {}
    Checkpoint.open(base, known=known)
    file = tuned / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"b/model\.safetensors: .*truncated"):
        Checkpoint.open(tuned, known=known)
