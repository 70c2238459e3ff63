"""Tiny checkpoints for all tests: on disk with seeded weights, in one or many shards, or as headers in memory only."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mol.io.checkpoint import Checkpoint, CheckpointFile, TensorInfo
from tests.engine.toolkit import STORAGE, encode, write_shard

if TYPE_CHECKING:
    from collections.abc import Mapping

Shapes = dict[str, tuple[int, ...]]


def llama(layers: int = 4, *, hidden: int = 8, vocab: int = 16, prefix: str = "model.", head: bool = True) -> Shapes:
    """Names and shapes of a Llama; without a head it ties."""
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (vocab, hidden)}
    for i in range(layers):
        at = f"{prefix}layers.{i}."
        shapes |= {f"{at}self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        shapes |= {f"{at}mlp.{p}_proj.weight": (2 * hidden, hidden) for p in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (hidden, 2 * hidden)}
        shapes |= {f"{at}{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
    shapes[f"{prefix}norm.weight"] = (hidden,)
    if head:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def llama_config(layers: int = 4, *, hidden: int = 8, vocab: int = 16, tied: bool = False) -> dict[str, Any]:
    """The config.json that goes with it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    }


def gpt2(layers: int = 12, *, hidden: int = 8, vocab: int = 16, prefix: str = "") -> Shapes:
    """Names and shapes of a GPT-2, which ties and has causal masks on disk."""
    shapes: Shapes = {f"{prefix}wte.weight": (vocab, hidden), f"{prefix}wpe.weight": (6, hidden)}
    for i in range(layers):
        at = f"{prefix}h.{i}."
        shapes[f"{at}attn.bias"] = (1, 1, 6, 6)
        for module, width_in, width_out in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden),
            ("mlp.c_proj", 4 * hidden, hidden),
        ):
            shapes |= {f"{at}{module}.weight": (width_in, width_out), f"{at}{module}.bias": (width_out,)}
        shapes |= {f"{at}ln_{n}.{kind}": (hidden,) for n in (1, 2) for kind in ("weight", "bias")}
    return shapes | {f"{prefix}ln_f.{kind}": (hidden,) for kind in ("weight", "bias")}


def gpt2_config(layers: int = 12, *, hidden: int = 8, vocab: int = 16) -> dict[str, Any]:
    """The config.json that goes with it."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": hidden,
        "n_head": 2,
        "n_layer": layers,
        "n_positions": 6,
        "vocab_size": vocab,
    }


def bert(layers: int = 3, *, hidden: int = 8, prefix: str = "bert.", head: str | None = None) -> Shapes:
    """Names and shapes of a BERT with a pooler, and with a head `head` of two outputs."""
    shapes: Shapes = {f"{prefix}embeddings.{w}_embeddings.weight": (16, hidden) for w in ("word", "position")}
    shapes |= {f"{prefix}embeddings.LayerNorm.{kind}": (hidden,) for kind in ("weight", "bias")}
    for i in range(layers):
        at = f"{prefix}encoder.layer.{i}."
        for module in ("attention.self.query", "attention.self.key", "attention.output.dense", "output.dense"):
            shapes |= {f"{at}{module}.weight": (hidden, hidden), f"{at}{module}.bias": (hidden,)}
        shapes |= {f"{at}output.LayerNorm.{kind}": (hidden,) for kind in ("weight", "bias")}
    shapes |= {f"{prefix}pooler.dense.weight": (hidden, hidden), f"{prefix}pooler.dense.bias": (hidden,)}
    if head is not None:
        shapes |= {f"{head}.weight": (2, hidden), f"{head}.bias": (2,)}
    return shapes


def bert_config(layers: int = 3, *, hidden: int = 8) -> dict[str, Any]:
    """The config.json that goes with it."""
    return {"model_type": "bert", "hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": 16}


def headers(
    name: str, shapes: Mapping[str, tuple[int, ...]], config: dict[str, Any], dtype: str | Mapping[str, str] = "BF16"
) -> Checkpoint:
    """A checkpoint that is nowhere on disk.

    Args:
        name: what to call it.
        shapes: its tensors.
        config: its config.json.
        dtype: of all tensors, or by name ("" for the rest).
    """
    by_name = {"": dtype} if isinstance(dtype, str) else dtype
    tensors = {}
    for tensor, shape in shapes.items():
        kind = by_name.get(tensor, by_name[""])
        tensors[tensor] = TensorInfo(kind, shape, math.prod(shape) * np.dtype(STORAGE[kind]).itemsize, 0)
    directory = Path("/models") / name
    file = CheckpointFile(directory / "model.safetensors", 1, 1, "00")
    return Checkpoint(name, directory, None, (file,), tensors, config)


def write_file(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: str = "BF16") -> None:
    """Write one file of normal deviates."""
    random = np.random.default_rng(seed)
    tensors = {name: encode(random.normal(0, 1, shape), dtype) for name, shape in shapes.items()}
    write_shard(path, tensors, metadata={"format": "pt"})


def write_checkpoint(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], config: dict[str, Any], *, seed: int = 0, shards: int = 1
) -> Path:
    """Write a model directory in one file, or in `shards` files and an index."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if shards == 1:
        write_file(directory / "model.safetensors", shapes, seed)
        return directory
    names = list(shapes)
    weight_map = {}
    for shard in range(shards):
        mine = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        write_file(directory / file, {name: shapes[name] for name in mine}, seed + shard)
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return directory
