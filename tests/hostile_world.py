"""A small world for hostile tests: two models, the result of an earlier merge, and an eye on every file."""

from __future__ import annotations

import json
import os
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mol
from mol.errors import MolError
from tests.engine.toolkit import Stored, encode, write_shard

if TYPE_CHECKING:
    from collections.abc import Iterator

WEIGHT = "model.layers.1.mlp.up_proj.weight"


def tensors(seed: int, dtype: str = "BF16") -> dict[str, Stored]:
    random = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": (16, 8),
        "model.layers.0.mlp.up_proj.weight": (12, 8),
        WEIGHT: (12, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (16, 8),
    }
    return {name: encode(random.normal(0, 0.02, shape), dtype) for name, shape in shapes.items()}


def make_model(directory: Path, weights: dict[str, Stored] | None) -> Path:
    """A model directory with a config and, unless None, one weight file."""
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 12,
        "vocab_size": 16,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))
    if weights is not None:
        write_shard(directory / "model.safetensors", weights)
    return directory


def shard(directory: Path, weights: dict[str, Stored]) -> None:
    """Spread a model's weights over two files and an index."""
    names = list(weights)
    halves = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, mine in halves.items():
        write_shard(directory / file, {name: weights[name] for name in mine})
    write_index(directory, {name: file for file, mine in halves.items() for name in mine})


def write_index(directory: Path, weight_map: Any) -> None:  # noqa: ANN401 - whatever a hostile index holds
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def snapshot(directory: Path) -> dict[str, object]:
    """Everything below a directory: content of files (size of large ones), targets of links, times."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(directory):
        for path in (Path(folder) / name for name in (*folders, *files)):
            status = path.lstat()
            content: object = None
            if path.is_symlink():
                content = path.readlink()
            elif path.is_file():
                content = path.read_bytes() if status.st_size < 1 << 20 else status.st_size
            found[str(path)] = (status.st_mode, status.st_mtime_ns if path.is_file() else None, content)
    return found


@dataclass(frozen=True)
class World:
    """Two models, of which the second will be tampered with, and the result of an earlier merge."""

    root: Path
    a: Path
    b: Path
    out: Path

    def recipe(self, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
        models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in (self.a, self.b)]
        return {"merge_method": "linear", "models": models, **changes}

    def merge(self, out: Path | None = None, **changes: Any) -> None:  # noqa: ANN401
        mol.run_merge(self.recipe(**changes), out or self.out, overwrite=True)

    @contextmanager
    def refuses(
        self, *words: str, error: type[Exception] | tuple[type[Exception], ...] = MolError, keeps: Path | None = None
    ) -> Iterator[None]:
        """The block raises an error that says the words, and leaves every file as it was and where it was.

        Unfinished work in `keeps` is all that may be new.
        """
        before = snapshot(self.root)
        with pytest.raises(error) as caught:
            yield
        after = snapshot(self.root)
        if keeps is not None:
            assert str(keeps / "journal") in after
            after = {path: what for path, what in after.items() if not Path(path).is_relative_to(keeps)}
        assert after == before
        message = str(caught.value)
        missing = [word for word in words if word not in message]
        assert not missing, f"{missing} not in: {message}"


def make_world(root: Path) -> World:
    a, b = make_model(root / "a", tensors(1)), make_model(root / "b", tensors(2))
    world = World(root, a, b, root / "out")
    mol.run_merge(world.recipe(), world.out)
    return world


def raw(header: Any, data: int = 64, *, length: int | None = None) -> bytes:  # noqa: ANN401
    """A file with a header as given: a mapping, or bytes that need be no JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
