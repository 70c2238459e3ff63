"""Tiny models on disk for tests of a run: Llama's names, seeded weights, the files that stand next to them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests import tiny

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 12
TOKENIZER = {"model": {"vocab": {f"token{i}": i for i in range(ROWS)}}, "added_tokens": []}


def llama_tensors(seed: int, *, layers: int = 2, dtype: str = "float32") -> dict[str, np.ndarray[Any, Any]]:
    """Weights of a Llama with an untied head."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in tiny.llama(layers, vocab=ROWS).items()}


def llama_config(layers: int = 2) -> dict[str, Any]:
    """The config.json that goes with them."""
    return tiny.llama_config(layers, vocab=ROWS) | {"num_key_value_heads": 2, "torch_dtype": "float32"}


def make_llama(directory: Path, seed: int, *, layers: int = 2, dtype: str = "float32", **files: object) -> Path:
    """Write a model; `files` are further JSON files (or texts), `__` in their names standing for the dot."""
    directory.mkdir(parents=True)
    tensors = llama_tensors(seed, layers=layers, dtype=dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    contents = {"config__json": llama_config(layers), "tokenizer__json": TOKENIZER, **files}
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return directory


def weights_of(directory: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a directory of SafeTensors."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def contents_of(directory: Path) -> dict[str, bytes]:
    """Every file of a directory by its relative path."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
