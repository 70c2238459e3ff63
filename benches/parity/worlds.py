"""Tiny seeded models that mol and mergekit both read: a base and three fine-tunes of it in each architecture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tests.engine.toolkit import encode, write_shard
from tests.tiny import Shapes, gpt2, gpt2_config, llama, llama_config

if TYPE_CHECKING:
    from pathlib import Path

LAYERS: Final = 3
HIDDEN: Final = 16
VOCAB: Final = 48
EXPERTS: Final = 3
TUNED: Final = ("a", "b", "c")
DTYPES: Final = {"bf16": ("BF16", "bfloat16"), "f32": ("F32", "float32")}
# What each model of the world `union` has behind the tokens that all have.
OWN_TOKENS: Final = {
    "base": (),
    "a": ("<|im_start|>", "<|im_end|>"),
    "b": ("<|im_end|>",),
    "c": ("<|tool|>", "<|im_end|>"),
}


def t5() -> Shapes:
    """Names and shapes of a gated T5 with a head of its own."""
    shapes: Shapes = {"shared.weight": (VOCAB, HIDDEN)}
    for stack in ("encoder", "decoder"):
        attention = ("SelfAttention",) if stack == "encoder" else ("SelfAttention", "EncDecAttention")
        for i in range(LAYERS):
            at = f"{stack}.block.{i}.layer."
            for n, kind in enumerate(attention):
                shapes |= {f"{at}{n}.{kind}.{p}.weight": (HIDDEN, HIDDEN) for p in "qkvo"}
            if i == 0:
                shapes[f"{at}0.SelfAttention.relative_attention_bias.weight"] = (4, 2)
            last = len(attention)
            shapes |= {f"{at}{last}.DenseReluDense.{w}.weight": (2 * HIDDEN, HIDDEN) for w in ("wi_0", "wi_1")}
            shapes[f"{at}{last}.DenseReluDense.wo.weight"] = (HIDDEN, 2 * HIDDEN)
            shapes |= {f"{at}{n}.layer_norm.weight": (HIDDEN,) for n in range(last + 1)}
        shapes[f"{stack}.final_layer_norm.weight"] = (HIDDEN,)
    return shapes | {"lm_head.weight": (VOCAB, HIDDEN)}


def t5_config() -> dict[str, Any]:
    """The config.json that goes with it."""
    return {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": HIDDEN, "d_kv": HIDDEN // 2,
        "d_ff": 2 * HIDDEN, "num_heads": 2, "num_layers": LAYERS, "num_decoder_layers": LAYERS, "vocab_size": VOCAB,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "relative_attention_num_buckets": 4,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip


def moe() -> Shapes:
    """Names and shapes of a Mixtral, one tensor an expert."""
    shapes = {name: shape for name, shape in llama(LAYERS, hidden=HIDDEN, vocab=VOCAB).items() if ".mlp." not in name}
    for i in range(LAYERS):
        at = f"model.layers.{i}.block_sparse_moe."
        shapes[f"{at}gate.weight"] = (EXPERTS, HIDDEN)
        for e in range(EXPERTS):
            shapes |= {f"{at}experts.{e}.{w}.weight": (2 * HIDDEN, HIDDEN) for w in ("w1", "w3")}
            shapes[f"{at}experts.{e}.w2.weight"] = (HIDDEN, 2 * HIDDEN)
    return shapes


def moe_config() -> dict[str, Any]:
    """The config.json that goes with it."""
    own = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    config = llama_config(LAYERS, hidden=HIDDEN, vocab=VOCAB)
    return config | own | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}


def _llama(vocab: int = VOCAB, *, tied: bool = False) -> tuple[Shapes, dict[str, Any]]:
    shapes = llama(LAYERS, hidden=HIDDEN, vocab=vocab, head=not tied)
    return shapes, llama_config(LAYERS, hidden=HIDDEN, vocab=vocab, tied=tied) | {"num_key_value_heads": 2}


def shapes_of(world: str, model: str) -> tuple[Shapes, dict[str, Any]]:
    """Return names and shapes of a model, and its config.json."""
    if world == "gpt2":
        shapes = {name: shape for name, shape in gpt2(LAYERS, hidden=HIDDEN, vocab=VOCAB).items()}
        kept = {name: shape for name, shape in shapes.items() if not name.endswith(".attn.bias")}
        return kept, gpt2_config(LAYERS, hidden=HIDDEN, vocab=VOCAB)
    if world == "union":
        return _llama(VOCAB + len(OWN_TOKENS[model]))
    return {"t5": (t5(), t5_config()), "moe": (moe(), moe_config()), "tied": _llama(tied=True)}.get(world, _llama())


def tokenizer(model: str) -> dict[str, Any]:
    """Return a tokenizer.json of `VOCAB` byte-level tokens, and those that the model alone has."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": VOCAB + i, "content": t, **flags} for i, t in enumerate(OWN_TOKENS[model])],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {chr(ord("A") + i): i for i in range(VOCAB)}, "merges": [],
        },
    }  # fmt: skip


def make(directory: Path, world: str, dtype: str) -> None:
    """Write the base and its fine-tunes: weights of .02, differences of a tenth of that on two elements of three."""
    random = np.random.default_rng(sum(world.encode()))
    widest = shapes_of(world, "a")[0]
    base = {name: 0.02 * random.standard_normal(shape) for name, shape in widest.items()}
    for model in ("base", *TUNED):
        shapes, config = shapes_of(world, model)
        random = np.random.default_rng(sum(f"{world} {model}".encode()))
        tensors = {}
        for name, shape in shapes.items():
            delta = 0.002 * random.standard_normal(shape) * (random.random(shape) < 0.67) * (model != "base")
            tensors[name] = encode(base[name][: shape[0]] + delta, DTYPES[dtype][0])
        where = directory / model
        where.mkdir(parents=True, exist_ok=True)
        write_shard(where / "model.safetensors", tensors, metadata={"format": "pt"})
        files: dict[str, Any] = {"config.json": config | {"torch_dtype": DTYPES[dtype][1]}}
        if world == "union":
            files["tokenizer.json"] = tokenizer(model)
            files["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        for name, content in files.items():
            (where / name).write_text(json.dumps(content), encoding="utf-8")
