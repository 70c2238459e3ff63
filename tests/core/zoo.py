"""Tiny seeded models of the kinds of blocks there are, one or two of each kind."""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

VOCABULARY: Final = 128
_COMMON: Final = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GPT: Final = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64}
_LLAMA: Final = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_BERT: Final = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_FOURTHS: Final = ("q", "k", "v", "intermediate", "output")

TYPES: Final[dict[str, dict[str, Any]]] = {
    "gpt2": _GPT,  # learned positions
    "opt": {**_BERT, "ffn_dim": 64, "word_embed_proj_dim": 32},  # learned positions with an offset
    "llama": _LLAMA,  # rotary
    "qwen3": {**_LLAMA, "hidden_size": 24, "head_dim": 8},  # rotary, norms on queries and keys
    "mistral": {**_LLAMA, "sliding_window": 4},
    "gemma2": {**_LLAMA, "head_dim": 8, "num_hidden_layers": 4, "sliding_window": 4},  # sliding and full, softcapping
    "gpt_neox": _BERT,  # parallel residual
    "phi": _BERT,  # parallel residual, partial rotary
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4},  # ALiBi
    "falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "mixtral": {**_LLAMA, "num_local_experts": 4},  # MoE
    "mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},  # state space
    "jamba": {  # attention between state spaces, MoE
        **_LLAMA,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 4,
        "mamba_d_state": 8,
    },
    "gemma3n_text": {  # an input for each layer from each token; the last layer reads keys of the one before
        **_LLAMA,
        "head_dim": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "num_kv_shared_layers": 1,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0] * 3,
    },
    "bert": {**_BERT, "hidden_size": 48},  # post-norm encoder
    "albert": {**_BERT, "embedding_size": 16},  # one block called by all layers
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 64},
    "squeezebert": {  # (B, D, T)
        **_BERT,
        "embedding_size": 32,
        "post_attention_groups": 1,
        **{f"{name}_groups": 4 for name in _FOURTHS},
    },
    "deberta-v2": _BERT,  # masks itself: made causal where its blocks are handed the mask
    "convbert": {**_BERT, "embedding_size": 32},  # convolutions see later tokens whatever the mask
    "t5": {  # relative bias, carried
        "d_model": 32, "d_ff": 64, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 8,
    },
    "bart": {
        "d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    },
    "vit": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    },
}  # fmt: skip
T5_DECODER: Final = "t5-decoder"
"""The name under which the decoder's blocks of t5 are taken, not the encoder's."""
BIDIRECTIONAL: Final = {"convbert"}
HOSTS: Final = (
    "gpt2",
    "llama",
    "mistral",
    "gemma2",
    "gpt_neox",
    "bloom",
    "opt",
    "mixtral",
    "phi",
    "falcon",
    "mamba",
    "jamba",
)
LANGUAGE_MODELS: Final = {*HOSTS, "qwen3", "gemma3n_text"}
SOURCES: Final = tuple(kind for kind in TYPES if kind not in BIDIRECTIONAL)


def config_of(kind: str, **changes: Any) -> Any:  # noqa: ANN401 - a transformers config
    """Return a tiny config of a model type; of one that is not in TYPES, `changes` say all of it."""
    return AutoConfig.for_model(kind, **{**_COMMON, **TYPES.get(kind, {}), **changes})


def body_of(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:  # noqa: ANN401
    """Make a model without head, its weights drawn from a seed and large enough to matter."""
    return randomised(AutoModel.from_config(config_of(kind, **changes)), seed)


def language_model_of(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:  # noqa: ANN401
    """Make a causal language model in the same way."""
    return randomised(AutoModelForCausalLM.from_config(config_of(kind, **changes)), seed)


def tokens_of(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Draw tokens (B, T), none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, VOCABULARY, (batch, length), generator=generator)


def randomised(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Draw a model's weights from a seed, large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() > 1 else 0.1)
            parameter.add_(noise) if parameter.dim() < 2 else parameter.copy_(noise / parameter.shape[-1] ** 0.5 * 4)
    model.tie_weights()
    return model.eval()
