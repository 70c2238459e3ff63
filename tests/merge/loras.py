"""LoRA adapters as peft saves them, merges with them, and in float64 what they add."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from mol import run_merge
from tests.merge.models import ROWS, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Tensors = Mapping[str, np.ndarray[Any, Any]]

HIDDEN, RANK, ALPHA = 8, 3, 5
Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
RANDOM = np.random.default_rng(16)


def draw(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.normal(0, 0.5, shape).astype(np.float32)


def factors(module: str, rows: int, columns: int, rank: int = RANK) -> dict[str, np.ndarray[Any, Any]]:
    return {f"{module}.lora_A.weight": draw(rank, columns), f"{module}.lora_B.weight": draw(rows, rank)}


def embedding_factors(module: str = EMBEDDING) -> dict[str, np.ndarray[Any, Any]]:
    return {f"{module}.lora_embedding_A": draw(RANK, ROWS), f"{module}.lora_embedding_B": draw(HIDDEN, RANK)}


def save_adapter(directory: Path, tensors: Tensors, **config: Any) -> Path:  # noqa: ANN401
    """An adapter as peft saves it."""
    directory.mkdir(parents=True)
    save_file(
        {f"base_model.model.{name}": value for name, value in tensors.items()}, directory / "adapter_model.safetensors"
    )
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "bias": "none",
        "init_lora_weights": True,
        **config,
    }
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def merged(model: Path, adapter: Path, out: Path, **more: Any) -> Tensors:  # noqa: ANN401
    run_merge({"merge_method": "passthrough", "models": [{"model": f"{model}+{adapter}"}], **more}, out)
    return weights_of(out)


def added(w: Any, tensors: Tensors, module: str, scale: float = ALPHA / RANK) -> Any:  # noqa: ANN401
    """W + scale * B A in float64."""
    a, b = (tensors[f"{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return w.astype(np.float64) + scale * (b @ a)


def embedded(w: Any, tensors: Tensors) -> Any:  # noqa: ANN401
    a, b = (tensors[f"{EMBEDDING}.lora_embedding_{side}"].astype(np.float64) for side in "AB")
    return w.astype(np.float64) + ALPHA / RANK * (b @ a).T


def of_magnitude(whole: Any, magnitude: Any) -> Any:  # noqa: ANN401
    return whole * (magnitude.astype(np.float64) / np.linalg.norm(whole, axis=1))[:, None]


PLAIN = factors(Q0, HIDDEN, HIDDEN) | factors(DOWN, HIDDEN, 16)
