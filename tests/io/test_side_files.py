"""What counts as part of a model next to its weights."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from mol.errors import CheckpointError
from mol.io.side_files import find_file, is_settings, is_tokenizer_file, list_files, sort_side_files

if TYPE_CHECKING:
    from pathlib import Path


def test_files_are_sorted_into_kinds() -> None:
    side = sort_side_files([
        "config.json", "README.md", "mol_manifest.json", "mergekit_config.yml", ".gitattributes", ".cache/x.json",
        "generation_config.json", "preprocessor_config.json", "LICENSE", "1_Pooling/config.json",
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "merges.txt", "qwen.tiktoken",
        "chat_template.jinja", "additional_chat_templates/tools.jinja", "tekken.json",
        "modeling_own.py", "kernels/fast.so", "__pycache__/modeling_own.cpython-311.pyc",
        "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json", "model.onnx.data",
        "training_args.bin", "original/consolidated.00.pth", "original/params.json", "onnx/a/model.onnx", "onnx/c.json",
    ])  # fmt: skip
    assert side.tokenizer == (
        "additional_chat_templates/tools.jinja", "chat_template.jinja", "merges.txt", "qwen.tiktoken", "tekken.json",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.txt",
    )  # fmt: skip
    assert side.code == ("kernels/fast.so", "modeling_own.py")
    assert side.other == ("1_Pooling/config.json", "LICENSE", "generation_config.json", "preprocessor_config.json")
    assert side.weights == (
        "model.onnx.data", "model.safetensors", "model.safetensors.index.json", "onnx/", "original/",
        "pytorch_model.bin.index.json", "training_args.bin",
    )  # fmt: skip
    assert side.left_out == ("__pycache__/",)


# After the directories that Trainer, axolotl, unsloth, LLaMA-Factory, DeepSpeed and people leave.
PRIVATE = [
    "trainer_state.json", "all_results.json", "train_results.json", "training_loss.png", "nohup.out", "train.log",
    "trainer_log.jsonl", "data/train.jsonl", "data/deeper/", "dataset.parquet", "id_rsa", "server.pem", "hf_token",
    "credentials.json", "notebook.ipynb", "wandb/run-1/", "wandb/debug.log", "runs/events.out.tfevents.1", "latest",
    "axolotl_config.yml", "adapter_config.json", "llama_board_config.yaml", "Modelfile", "quantize_config.json",
    "own_config.json", "config.json.bak", "tokenizer.json.bak", "tokenizer_secrets.json", "my.model", "LICENSE_KEY",
    "license_key.txt", "License Key.txt", "LICENSE_X_KEY.txt", "license_server_password.txt",
    "LICENSE.py.txt.exe", "vocab.pkl.txt", "VOCAB.TXT", "TOKENIZER.JSON", "assets/figure.svg",
    "run.sh", "tokenizer.exe", "install.PY", "lib.SO", "a.pyc", "x.dll", "additional_chat_templates/notes.txt",
    "1_Pooling/notes.txt", "wandb/run-1/files/code/train.py", "sentence_notes.txt",
]  # fmt: skip


@pytest.mark.parametrize("name", PRIVATE)
def test_what_no_model_has_is_left_out(name: str) -> None:
    side = sort_side_files([name])
    assert not side.tokenizer + side.code + side.other
    assert len(side.left_out) == 1


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        "rng_state_0.pth",
        "X.PKL",
        "Model.BIN",
        "a.PiCkLe",
        "LICENSE.PKL",
        "LICENSE X.PKL",
        "tokenizer.PT",
        "x.npz",
    ],
)
def test_what_may_be_a_pickle_is_left_out_in_any_spelling(name: str) -> None:
    assert sort_side_files([name]).weights == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE", "LICENSE.txt", "license.md", "LICENCE", "NOTICE", "Notice.txt", "USE_POLICY.md", "LICENSE-CODE",
        "LICENSE-MODEL", "LICENSE_APACHE_2.0.txt", "MODEL_LICENSE", "Tongyi Qianwen LICENSE AGREEMENT.txt",
        "GEMMA_TERMS_OF_USE.md", "LLAMA_3.2_LICENSE.pdf", "COPYING", "USAGE_POLICY",
        "Community License for Baichuan2 Model.pdf",
        "video_preprocessor_config.json", "processor_config.json", "configuration.json", "modules.json",
        "sentence_bert_config.json", "sentence_xlm-roberta_config.json", "config_sentence_transformers.json",
    ],
)  # fmt: skip
def test_what_a_model_has_is_kept(name: str) -> None:
    assert sort_side_files([name]).other == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.model", "tokenizer.model.v3", "spiece.model", "sentencepiece.bpe.model", "spm_char.model",
        "source.spm", "target.spm", "vocab.json", "vocab.bpe", "encoder.json", "added_tokens.json",
        "special_tokens_map.json", "normalizer.json", "tiktoken.model", "rwkv_vocab_v20230424.txt", "vocab-src.json",
        "chat_template.json", "chat_template_tools.jinja", "entity_vocab.json", "prophetnet.tokenizer",
    ],
)  # fmt: skip
def test_every_kind_of_tokenizer_is_known(name: str) -> None:
    assert is_tokenizer_file(name)
    assert sort_side_files([name]).tokenizer == (name,)


def test_stages_of_a_sentence_transformer_keep_their_weights_but_no_pickles() -> None:
    files = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"]
    side = sort_side_files(
        ["modules.json", *files, "0_Transformer/model.safetensors", "checkpoint-5/model.safetensors"]
    )
    assert side.other == (*files[:3], "modules.json")
    assert side.weights == ("0_Transformer/", "2_Dense/pytorch_model.bin", "checkpoint-5/")
    assert sort_side_files(files).weights == ("2_Dense/",)


def test_tables_of_tokens_are_no_settings() -> None:
    """A token may be called `auto_map`."""
    assert [
        name for name in ("tokenizer.json", "vocab.json", "added_tokens.json", "modules.json") if is_settings(name)
    ] == []
    assert is_settings("tokenizer_config.json")
    assert is_settings("1_Pooling/config.json")


def test_everything_is_listed_two_levels_deep_and_linked_folders_are_not_entered(tmp_path: Path) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for folder in (model / "sub" / "deep", model / ".hidden", elsewhere):
        folder.mkdir(parents=True)
        (folder.parent / "file.json").touch()
        (folder / "file.json").touch()
    (model / "linked.json").symlink_to(elsewhere / "file.json")
    (model / "nowhere.json").symlink_to("gone")
    (model / "folder").symlink_to(elsewhere)
    (model / "loop").symlink_to(model)
    os.mkfifo(model / "pipe")
    assert list_files(model) == [
        "file.json", "folder", "linked.json", "loop", "nowhere.json", "pipe", "sub/deep/", "sub/file.json",
    ]  # fmt: skip


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        find_file(tmp_path, "vocab.json")


def test_links_out_of_a_model_are_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (tmp_path / "secret").write_text("private")
    (model / "own.txt").write_text("own")
    (model / "LICENSE").symlink_to("own.txt")
    (model / "NOTICE").symlink_to("../secret")
    (model / "vocab.txt").symlink_to(model / "NOTICE")
    assert find_file(model, "LICENSE").size == 3
    for name in ("NOTICE", "vocab.txt"):
        with pytest.raises(CheckpointError, match=rf"{name} is a link to .*secret, outside of the model's directory"):
            find_file(model, name)


def test_links_of_the_hub_cache_work(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--model"
    snapshot, blob = repository / "snapshots" / ("a" * 40), repository / "blobs" / ("b" * 64)
    for folder in (snapshot, blob.parent, tmp_path / "downloaded"):
        folder.mkdir(parents=True)
    blob.write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/" + blob.name)
    assert find_file(snapshot, "tokenizer.json").size == 2
    # As huggingface_hub filled a `local_dir` before 0.23.
    (tmp_path / "downloaded" / "tokenizer.json").symlink_to(blob)
    assert find_file(tmp_path / "downloaded", "tokenizer.json").size == 2
    (blob.parent / ("c" * 64)).symlink_to("/etc/passwd")
    (snapshot / "LICENSE").symlink_to("../../blobs/" + "c" * 64)
    with pytest.raises(CheckpointError, match="outside of the model's directory"):
        find_file(snapshot, "LICENSE")


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "vocab.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("NOTICE")
    (tmp_path / "LICENSE").mkdir()
    for name, error in (("vocab.txt", CheckpointError), ("NOTICE", CheckpointError), ("LICENSE", IsADirectoryError)):
        with pytest.raises(error, match=name):
            find_file(tmp_path, name)
