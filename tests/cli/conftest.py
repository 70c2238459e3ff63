"""A tiny family of checkpoints: a base and two fine-tunes of it, F32, two layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mol.cli import main
from tests import tiny

WIDTH, VOCABULARY, LAYERS = 8, 16, 2

Maker = Callable[..., Path]


def tensors_of(seed: int, *, base: int = 7, spread: float = 0.1) -> dict[str, np.ndarray]:
    """A base drawn from one seed, plus a small change drawn from another; seed 0 is the base itself."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (WIDTH, WIDTH)
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (2 * WIDTH, WIDTH)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (WIDTH,)
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}
    start, change = np.random.default_rng(base), np.random.default_rng(seed)
    return {
        name: (start.standard_normal(shape) + bool(seed) * spread * change.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_checkpoint(directory: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(tiny.llama_config(LAYERS)))
    save_file(dict(tensors), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the checkpoints `base`, `chat` and `code`, made the working directory."""
    for seed, name in enumerate(("base", "chat", "code")):
        write_checkpoint(tmp_path / name, tensors_of(seed))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def recipe(family: Path) -> Path:
    """A TIES recipe of the family."""
    path = family / "ties.yml"
    path.write_text(
        "merge_method: ties\nbase_model: ./base\nmodels:\n"
        "  - {model: ./chat, parameters: {weight: 0.5, density: 0.5}}\n"
        "  - {model: ./code, parameters: {weight: 0.5, density: 0.5}}\n"
    )
    return path


@pytest.fixture
def merged(recipe: Path) -> Path:
    """What the recipe gives."""
    assert main([str(recipe), "merged", "--quiet"]) == 0
    return recipe.parent / "merged"
