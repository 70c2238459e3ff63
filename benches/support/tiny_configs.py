"""Makes a tiny config of any model type: every size that a config class has by a common name is made small."""

from __future__ import annotations

import inspect
from typing import Any, Final

from exceptions import CONFIGS, DROPPED
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

LAYERS: Final = 4
WIDTH: Final = 32
VOCABULARY: Final = 128


def _sizes(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SIZES: Final[dict[str, int]] = {
    **_sizes(
        LAYERS,
        "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers num_decoder_layers "
        "num_encoder_layers depth encoder_num_hidden_layers decoder_num_hidden_layers num_encoder_blocks",
    ),
    **_sizes(
        WIDTH,
        "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size encoder_hidden_size decoder_hidden_size "
        "hidden_dim width word_embed_proj_dim model_dim dim_model moe_intermediate_size "
        "shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size image_size projection_dim "
        "out_hidden_size text_hidden_size upsample_groups codebook_dim condition_dim audio_hidden_size",
    ),
    **_sizes(
        64,
        "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner ffn_hidden_size d_inner dim_ff "
        "mlp_hidden_size ff_dim dff encoder_intermediate_size intermediate_size_mlp mlp_dim entity_vocab_size "
        "audio_vocab_size",
    ),
    **_sizes(
        VOCABULARY,
        "vocab_size decoder_vocab_size encoder_vocab_size src_vocab_size tgt_vocab_size vocab_size_per_layer_input "
        "text_vocab_size max_position_embeddings n_positions max_seq_len max_sequence_length max_source_positions "
        "max_target_positions n_ctx max_encoder_position_embeddings max_decoder_position_embeddings",
    ),
    **_sizes(
        16,
        "kv_lora_rank q_lora_rank qk_head_dim index_head_dim index_topk attention_chunk_size num_mel_bins",
    ),
    **_sizes(
        8,
        "head_dim d_kv attention_head_dim dim_head global_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim "
        "mamba_d_state mamba_n_heads mamba_d_head mamba_num_heads mamba_head_dim ssm_state_size state_size "
        "linear_key_head_dim linear_value_head_dim patch_size hidden_size_per_layer_input",
    ),
    **_sizes(
        4,
        "num_attention_heads n_head num_heads n_heads encoder_attention_heads decoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads attention_heads encoder_num_attention_heads "
        "decoder_num_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts index_n_heads "
        "sliding_window linear_num_value_heads window_size attention_window",
    ),
    "num_channels": 3,
    **_sizes(
        2,
        "num_key_value_heads num_kv_heads n_head_kv encoder_num_key_value_heads decoder_num_key_value_heads "
        "num_global_key_value_heads num_experts_per_tok moe_topk moe_k num_experts_per_token linear_num_key_heads",
    ),
    **_sizes(1, "n_group topk_group"),
}
# Where the default is None, the class decides by that: no window, no compression.
_NONE_MATTERS: Final = frozenset({"q_lora_rank", "sliding_window", "attention_chunk_size", "head_dim"})
# Lists with a word for each layer.
_PATTERNS: Final = frozenset({"layer_types", "mlp_layer_types"})
_SPECIAL: Final = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_FIRST_FREE, _LAST_TOKEN = 3, 60
"""Special tokens get numbers below those that inputs are drawn from."""


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Return a tiny config of a model type.

    Raises:
        ValueError: and other errors of the config class, if it does not accept the sizes.
    """
    kind = CONFIG_MAPPING[model_type]
    settings = _shrunk(kind, _default(kind))
    for name in DROPPED.get(model_type, ()):
        settings.pop(name, None)
    _update(settings, CONFIGS.get(model_type, {}))
    return kind(**settings)


def _default(kind: type[PreTrainedConfig]) -> PreTrainedConfig | None:
    try:
        return kind()
    except (StrictDataclassError, ValueError, TypeError, AttributeError, KeyError, ImportError):  # it has no default
        return None


def _shrunk(kind: type[PreTrainedConfig], default: PreTrainedConfig | None) -> dict[str, Any]:
    names = {*getattr(kind, "__dataclass_fields__", {}), *inspect.signature(kind.__init__).parameters}
    if default is not None:
        names |= set(vars(default))
    settings: dict[str, Any] = {}
    number = _FIRST_FREE
    for name in sorted(names - set(kind.attribute_map)):
        value = None if default is None else vars(default).get(name, getattr(kind, name, None))
        if name.endswith("token_id"):
            if isinstance(value, int) and value >= _LAST_TOKEN:
                settings[name] = _SPECIAL.get(name, number)
                number += name not in _SPECIAL
            elif isinstance(value, (list, tuple)):
                settings[name] = _SPECIAL["eos_token_id"]
        elif name in _PATTERNS and isinstance(value, list) and len(set(value)) > len(set(value[:LAYERS])):
            # The first few layers would be all of one kind.
            settings[name] = (list(dict.fromkeys(value)) * LAYERS)[:LAYERS]
        elif name in SIZES and _is_size(name, value):
            settings[name] = SIZES[name]
    _keep_ratios(settings, default)
    for name, declared in kind.sub_configs.items():
        part = None if default is None else vars(default).get(name)
        part_kind = type(part) if isinstance(part, PreTrainedConfig) else declared
        if not inspect.isclass(part_kind) or not issubclass(part_kind, PreTrainedConfig):
            continue
        settings[name] = _shrunk(part_kind, part if isinstance(part, PreTrainedConfig) else _default(part_kind))
        if part is not None and part_kind.model_type:
            settings[name]["model_type"] = part_kind.model_type
    return settings


def _is_size(name: str, value: object) -> bool:
    if value is None:
        return name not in _NONE_MATTERS
    return not isinstance(value, (bool, list, tuple, dict))


def _keep_ratios(settings: dict[str, Any], default: PreTrainedConfig | None) -> None:
    """Let sizes that must agree agree: key heads with heads where they are as many, sections of rotary positions."""
    given = {} if default is None else vars(default)
    heads, keys = (given.get(name) for name in ("num_attention_heads", "num_key_value_heads"))
    if heads is not None and heads == keys:
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    rope = given.get("rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope:
        width = settings.get("qk_rope_head_dim", settings.get("head_dim", WIDTH // settings["num_attention_heads"]))
        half = int(width * rope.get("partial_rotary_factor", 1.0)) // 2
        settings["rope_parameters"] = {**rope, "mrope_section": [half - half // 4 * 2, half // 4, half // 4]}


def _update(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(settings.get(name), dict):
            _update(settings[name], value)
        else:
            settings[name] = value
