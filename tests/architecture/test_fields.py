"""Sizes and paths of well-known models, as their papers and classes have them; with and without weights at hand."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from mol.architecture import ArchitectureFamily, ArchitectureInfo, UniversalArchitectureHandler
from mol.architecture.names import guess_paths
from tests.architecture.toolkit import write_config
from tests.tiny import bert, gpt2, llama, write_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.fusion


@pytest.fixture
def detect(tmp_path: Path) -> Callable[..., ArchitectureInfo]:
    def run(model_type: str, **keys: Any) -> ArchitectureInfo:  # noqa: ANN401 - whatever JSON holds
        name = write_config(tmp_path / "model", model_type, **keys)
        return UniversalArchitectureHandler(cache_dir=tmp_path / "kept").detect_architecture(name)

    return run


SIZES = (
    "hidden_dim",
    "num_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "layer_norm_eps",
)
PATHS = ("layer_path", "embedding_path", "lm_head_path")
LLAVA = {
    "text_config": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 160,
        "vocab_size": 99,
        "max_position_embeddings": 77,
        "rms_norm_eps": 1e-5,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": 28,
        "patch_size": 14,
    },
}
QWEN_VL = {
    "text_config": {
        "model_type": "qwen2_5_vl_text",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 50,
        "max_position_embeddings": 128,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    },
    "vision_config": {"depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "out_hidden_size": 64},
}
# type, keys of config.json, sizes in the order of SIZES, paths in the order of PATHS
EXACT: list[tuple[str, dict[str, Any], tuple[Any, ...], tuple[str | None, ...]]] = [
    ("gpt2", {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 9, "vocab_size": 11},
     (16, 3, 2, 64, 11, 9, 1e-5), ("transformer.h", "transformer.wte", "lm_head")),
    ("gpt2", {"n_embd": 16, "n_inner": 40, "n_layer": 3, "n_head": 2, "vocab_size": 11},
     (16, 3, 2, 40, 11, 1024, 1e-5), ("transformer.h", "transformer.wte", "lm_head")),
    ("llama", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 88,
               "vocab_size": 21, "max_position_embeddings": 64, "rms_norm_eps": 1e-5},
     (32, 2, 4, 88, 21, 64, 1e-5), ("model.layers", "model.embed_tokens", "lm_head")),
    ("mistral", {}, (4096, 32, 32, 14336, 32000, 131072, 1e-6), ("model.layers", "model.embed_tokens", "lm_head")),
    ("bert", {}, (768, 12, 12, 3072, 30522, 512, 1e-12),
     ("bert.encoder.layer", "bert.embeddings.word_embeddings", "cls.predictions.decoder")),
    ("bert", {"architectures": ["BertModel"]}, (768, 12, 12, 3072, 30522, 512, 1e-12),
     ("encoder.layer", "embeddings.word_embeddings", None)),
    ("bert", {"architectures": ["BertForSequenceClassification"]}, (768, 12, 12, 3072, 30522, 512, 1e-12),
     ("bert.encoder.layer", "bert.embeddings.word_embeddings", None)),
    ("distilbert", {"dim": 24, "hidden_dim": 50, "n_layers": 2, "n_heads": 3, "vocab_size": 13},
     (24, 2, 3, 50, 13, 512, None),
     ("distilbert.transformer.layer", "distilbert.embeddings.word_embeddings", "vocab_projector")),
    ("albert", {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "embedding_size": 16},
     (64, 12, 4, 128, 30000, 512, 1e-12),
     ("albert.encoder.albert_layer_groups", "albert.embeddings.word_embeddings", "predictions.decoder")),
    ("t5", {"d_model": 32, "d_ff": 70, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 12},
     (32, 2, 4, 70, 12, None, 1e-6), ("encoder.block", "shared", "lm_head")),
    ("t5", {"architectures": ["T5EncoderModel"]}, (512, 6, 8, 2048, 32128, None, 1e-6),
     ("encoder.block", "shared", None)),
    ("bart", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
              "encoder_ffn_dim": 50, "decoder_ffn_dim": 60, "vocab_size": 12, "decoder_attention_heads": 2},
     (32, 2, 4, 50, 12, 1024, None), ("model.encoder.layers", "model.shared", "lm_head")),
    ("opt", {"hidden_size": 32, "ffn_dim": 100, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9,
             "word_embed_proj_dim": 32},
     (32, 2, 4, 100, 9, 2048, None), ("model.decoder.layers", "model.decoder.embed_tokens", "lm_head")),
    ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 9},
     (32, 2, 4, 128, 9, None, 1e-5), ("transformer.h", "transformer.word_embeddings", "lm_head")),
    ("vit", {}, (768, 12, 12, 3072, None, None, 1e-12), ("layers", "embeddings.patch_embeddings", None)),
    ("clip", {}, (512, 12, 8, 2048, 49408, 77, 1e-5),
     ("text_model.encoder.layers", "text_model.embeddings.token_embedding", None)),
    ("llava", LLAVA, (64, 3, 4, 160, 99, 77, 1e-5),
     ("model.language_model.layers", "model.language_model.embed_tokens", "lm_head")),
    ("qwen2_5_vl", QWEN_VL, (64, 2, 4, 96, 50, 128, 1e-5),
     ("model.language_model.layers", "model.language_model.embed_tokens", "lm_head")),
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "keys", "sizes", "paths"), EXACT, ids=lambda value: str(value)[:20])
def test_sizes_and_paths(
    detect: Callable[..., ArchitectureInfo],
    model_type: str,
    keys: dict[str, Any],
    sizes: tuple[Any, ...],
    paths: tuple[str | None, ...],
) -> None:
    info = detect(model_type, **keys)
    assert tuple(getattr(info, field) for field in SIZES) == sizes
    assert tuple(getattr(info, field) for field in PATHS) == paths
    assert info.architecture_type == model_type
    assert info.requires_remote_code is False


@pytest.mark.parametrize(
    ("model_type", "keys", "causal", "masked"),
    [
        ("gpt2", {}, True, False),
        ("llama", {}, True, False),
        ("bert", {}, False, True),
        ("bert", {"is_decoder": True}, True, True),
        ("distilbert", {}, False, True),
        ("t5", {}, False, False),
        ("bart", {}, False, True),
        ("vit", {}, False, False),
        ("clip", {}, False, False),
    ],
)
def test_what_is_supported(
    detect: Callable[..., ArchitectureInfo], model_type: str, keys: dict[str, Any], causal: bool, masked: bool
) -> None:
    info = detect(model_type, **keys)
    assert (info.supports_causal_lm, info.supports_masked_lm) == (causal, masked)


def test_rotary_positions(detect: Callable[..., ArchitectureInfo]) -> None:
    rope = detect("llama", num_hidden_layers=1, rope_theta=5000.0).rope_info
    assert rope is not None
    assert (rope["rope_theta"], rope["rope_type"]) == (5000.0, "default")
    assert detect("gpt2", n_layer=1).rope_info is None
    vision = detect("llava", **LLAVA).rope_info
    assert vision is not None
    assert vision["rope_type"] == "default"


def test_the_signature_of_a_block(detect: Callable[..., ArchitectureInfo]) -> None:
    signature = detect("llama", num_hidden_layers=1).model_signature
    assert signature is not None
    assert signature["hidden_states"] is True
    assert signature["attention_mask"] is False
    assert "self" not in signature
    assert detect("mobilenet_v2").model_signature is None


@pytest.mark.parametrize(
    ("model_type", "shapes", "architecture"),
    [
        ("gpt2", gpt2(2), "GPT2LMHeadModel"),  # its tensors are named without `transformer.`
        ("llama", llama(2), "LlamaForCausalLM"),
        ("bert", bert(2), "BertForMaskedLM"),
    ],
)
def test_weights_on_disk_change_nothing(
    tmp_path: Path, model_type: str, shapes: dict[str, tuple[int, ...]], architecture: str
) -> None:
    def detect(folder: str) -> ArchitectureInfo:
        name = write_config(tmp_path / folder, model_type, architectures=[architecture])
        handler = UniversalArchitectureHandler(cache_dir=tmp_path / f"kept-{folder}")
        return handler.detect_architecture(name).named("m")

    (tmp_path / "with").mkdir()
    write_file(tmp_path / "with" / "model.safetensors", shapes, 0)
    assert detect("with") == detect("without")


def test_no_weight_file_is_opened(tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "llama", num_hidden_layers=2)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"no header at all")
    info = UniversalArchitectureHandler(cache_dir=tmp_path / "kept").detect_architecture(name)
    assert info.layer_path == "model.layers"
    (tmp_path / "m" / "model.safetensors").unlink()
    (tmp_path / "m" / "model.safetensors").mkdir()  # opening it would raise
    handler = UniversalArchitectureHandler(cache_dir=tmp_path / "other")
    assert handler.detect_architecture(name) == info


@pytest.mark.parametrize(
    ("names", "layers", "blocks", "embeddings", "head"),
    [
        (gpt2(3), "h", 3, "wte", None),
        (llama(2), "model.layers", 2, "model.embed_tokens", "lm_head"),
        (bert(4), "bert.encoder.layer", 4, "bert.embeddings.word_embeddings", None),
        ({"classifier.weight": (2, 2)}, None, None, None, None),
        ({}, None, None, None, None),
    ],
)
def test_names_of_tensors_are_used_where_a_class_cannot_be_built(
    names: dict[str, tuple[int, ...]], layers: str | None, blocks: int | None, embeddings: str | None, head: str | None
) -> None:
    paths = guess_paths(names, {})
    assert (paths.layers, paths.blocks, paths.embeddings, paths.head) == (layers, blocks, embeddings, head)


def test_an_info_is_made_of_the_fields_that_are_promised() -> None:
    named = [item.name for item in fields(ArchitectureInfo)]
    assert named == [
        "model_name", "architecture_family", "architecture_type", *PATHS, *SIZES,
        "supports_causal_lm", "supports_masked_lm", "requires_remote_code", "model_signature", "rope_info",
    ]  # fmt: skip
    info = ArchitectureInfo(
        model_name="m",
        architecture_family=ArchitectureFamily.OTHER,
        architecture_type="x",
        layer_path=None,
        embedding_path=None,
        lm_head_path=None,
        hidden_dim=1,
        num_layers=1,
        num_attention_heads=1,
        intermediate_size=1,
        vocab_size=None,
        max_position_embeddings=None,
        layer_norm_eps=None,
        supports_causal_lm=False,
        supports_masked_lm=False,
        requires_remote_code=False,
    )
    assert (info.model_signature, info.rope_info) == (None, None)
    assert ArchitectureInfo.from_dict(info.to_dict()) == info
    assert len({info, info.named("m"), info.named("n")}) == 2
