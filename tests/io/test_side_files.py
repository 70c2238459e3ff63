"""What counts as part of a model beside its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mol.io.side_files import list_files, sort_side_files

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
    assert side.left_out == (
        "onnx/", "original/", "model.onnx.data", "model.safetensors", "model.safetensors.index.json",
        "pytorch_model.bin.index.json", "training_args.bin",
    )  # fmt: skip


def test_linked_files_are_listed_linked_folders_and_hidden_ones_are_not(tmp_path: Path) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    for folder in (model / "sub", model / ".hidden", elsewhere):
        folder.mkdir(parents=True)
        (folder / "file.json").touch()
    (model / "linked.json").symlink_to(elsewhere / "file.json")
    (model / "folder").symlink_to(elsewhere)
    (model / "loop").symlink_to(model)
    assert list_files(model) == ["linked.json", "sub/file.json"]


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"vocab\.json"):
        list_files(tmp_path)
