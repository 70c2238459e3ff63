"""What the rules of tiny_configs.py do not get right, type by type, with the reason for each."""

from __future__ import annotations

from typing import Any, Final

_ROPE: Final = {"rope_type": "default", "rope_theta": 10000.0}
_SWIN: Final = {  # widths double from stage to stage, and windows must divide what is left of the image
    "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "image_size": 32, "patch_size": 2,
}  # fmt: skip
_GROUPS: Final = {f"{name}_groups": 4 for name in ("q", "k", "v", "intermediate", "output")}
_BLT_PART: Final = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 128,
}  # fmt: skip
_BLT_HALF: Final = {**_BLT_PART, "hidden_size_global": 64, "cross_attn_k": 2}

_MROPE: Final = {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}}  # half a head of 8
_HALF_MROPE: Final = {  # half of the half that is rotated
    "rope_parameters": {**_ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5},
}
_HYBRID: Final = {
    "layer_types": ["linear_attention", "full_attention"] * 2
}  # few layers by default are all of one kind
_QWEN4: Final = {
    "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 2, "hc_lowrank": 8, "ngram_vocab_size_base": 64, "heads_per_ngram": 2,
    "split_ngram_parts": 2, "ple_embed_dim": 8,
}  # fmt: skip
_HUNYUAN: Final = {"head_dim": 8, "rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}}
_GLM5: Final = {"index_kpool": 2, "qk_rope_head_dim": 0}
_WINDOWS: Final = {"window_size": 32, "patch_size": 8}  # windows of whole merged patches

DROPPED: Final[dict[str, tuple[str, ...]]] = {
    "bailing_hybrid": ("qk_head_dim",),  # computed from its two parts
    "dbrx": ("attn_config", "ffn_config"),  # given whole below
    "funnel": ("num_hidden_layers",),  # the sum of its block sizes
    "swin": ("num_layers",), "swinv2": ("num_layers",), "donut-swin": ("num_layers",),  # the number of its depths
    "maskformer-swin": ("num_layers",),
}  # fmt: skip

CONFIGS: Final[dict[str, dict[str, Any]]] = {
    # A list or pattern with an entry for each layer.
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "gemma3n_text": {
        "num_kv_shared_layers": 1,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention"],
        "laurel_rank": 8,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "num_dense_layers": 1},
    "zamba": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_dt_rank": 4, "attention_head_dim": 16, "attention_hidden_size": 64, "use_mamba_kernels": False,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_key_value_heads": 4, "chunk_size": 8,
        "n_mamba_heads": 8, "mamba_ngroups": 1, "use_mamba_kernels": False, "num_mem_blocks": 1, "adapter_rank": 8,
    },
    "reformer": {  # axial positions and chunks that multiply to the length
        "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [4, 4], "attn_layers": ["local", "lsh", "local", "lsh"],
        "num_buckets": 4, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "attention_head_size": 8,
        "is_decoder": True,
    },
    "funnel": {"block_sizes": [2, 2], "block_repeats": [1, 1], "num_decoder_layers": 2, "d_head": 8},
    # Widths that must be products of others.
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "ministral": {"head_dim": 8},
    "dots1": {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
    },
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "bailing_hybrid": {
        "head_dim": 8, "num_key_value_heads": 4, "n_group": 2, "topk_group": 1, "layer_group_size": 2,
        "num_mtp_layers": 0,
    },
    "kimi_linear": {"linear_head_dim": 8, "linear_num_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 16},
    "esmc": {"num_key_value_heads": 4},
    "squeezebert": {"embedding_size": 32, "post_attention_groups": 1, **_GROUPS},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
    "albert": {"num_hidden_groups": 1, "inner_group_num": 1},
    "swin": _SWIN, "swinv2": _SWIN, "donut-swin": _SWIN, "maskformer-swin": _SWIN,
    "qwen4_exp_text": _QWEN4,
    "qwen4_exp": {"text_config": _QWEN4},
    # Sizes in dicts that are no configs.
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "blt": {  # its parts know each other's widths
        "hidden_size": 32, "encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3],
        "patch_in_forward": False, "patcher_config": _BLT_PART, "encoder_config": _BLT_HALF,
        "decoder_config": _BLT_HALF,
        "global_config": {
            "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        },
    },
    "bridgetower": {  # one head for each 64 of width
        "hidden_size": 64, "num_attention_heads": 4, "text_config": {"hidden_size": 64},
        "vision_config": {"hidden_size": 64},
    },
    "dia": {"num_channels": 9, "decoder_config": {"num_channels": 9}},  # one delay for each channel
    "efficientloftr": {"hidden_size": 256},  # the last of its stages
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "lw_detr": {"backbone_config": {"image_size": 64}}, "maskformer": {"backbone_config": _SWIN},
    "glm5_next": {"text_config": _GLM5}, "glm5_next_text": _GLM5,
    "apertus1p5": {"text_config": {"vocab_size": 1 << 19}},  # the numbers of its sounds are fixed
    "molmo2": {"adapter_config": {"vision_feature_layer": [3, 1]}},
    "neomme": {"head_dim": 16}, "mistral4": {"head_dim": 16},
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}}},
    "swin2sr": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    "xlstm": {"num_heads": 4, "qk_dim_factor": 1.0},
    "qwen2_5_vl_vision": _WINDOWS, "exaone4_5_vision": _WINDOWS,
    "convnext": {"image_size": 64, "patch_size": 4}, "convnextv2": {"image_size": 64, "patch_size": 4},
    # Layers of both kinds.
    "bamba": {"attn_layer_indices": [1, 3]}, "granitemoehybrid": _HYBRID,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    # Rotary positions in three sections, where the default is in the code and not in the config.
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm_ocr_text", "glm_image_text"), _MROPE),
    **{key: {"text_config": _MROPE} for key in ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "glm4v", "glm46v",
                      "glm_ocr", "glm_image", "glmga", "paddleocr_vl")},
    "glm4v_moe_text": _HALF_MROPE, "glm4v_moe": {"text_config": _HALF_MROPE},
    # What has no usable default.
    "hunyuan_vl_text": _HUNYUAN, "hunyuan_vl": {"text_config": _HUNYUAN},
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": dict(_ROPE)}}},
    "chameleon": {"vocabulary_map": {"<image>": 5, **{f"IMGIMG{name}Z": 10 + i for i, name in enumerate("ABCDE")}}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"] * 2}},
    "granite4_vision": {
        "deepstack_layer_map": [[1, 1]], "text_config": {"hidden_size": 64}, "vision_config": {"hidden_size": 64},
    },
    "informer": {"prediction_length": 4},
    "esm": {"vocab_size": 128, "pad_token_id": 1, "mask_token_id": 4, "position_embedding_type": "rotary"},
    "xmod": {"default_language": "en_XX"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": dict(_ROPE)}},
    "emu3": {"vocabulary_map": {"<image>": 5, **{f"<|visual token {i:06d}|>": 10 + i for i in range(20)}}},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "autoformer": {"prediction_length": 4},
    "time_series_transformer": {"prediction_length": 4},
}  # fmt: skip
