"""Merges of single modules load with transformers, every name and shape; models are made by transformers itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mol import run_merge

torch = pytest.importorskip("torch", reason="needs the extra: pip install 'mol-merge[fusion]'")
transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'mol-merge[fusion]'")

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fusion

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
SIDES = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 32, "decoder_start_token_id": 1}
SIDES |= {f"{side}_{key}": n for side in ("encoder", "decoder") for key, n in (("ffn_dim", 32), ("attention_heads", 2))}
SIDES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llava() -> Any:  # noqa: ANN401
    vision = transformers.CLIPVisionConfig(**TEXT, image_size=8, patch_size=4)
    return transformers.LlavaConfig(
        vision_config=vision, text_config=transformers.LlamaConfig(**TEXT), image_token_index=31
    )


def whisper() -> Any:  # noqa: ANN401
    return transformers.WhisperConfig(**SIDES, num_mel_bins=8, max_source_positions=16, max_target_positions=16)


@pytest.mark.parametrize(
    ("config", "module", "count"),
    [
        (llava, "text_decoder", "text_config.num_hidden_layers"),
        (llava, "vision_tower", "vision_config.num_hidden_layers"),
        (whisper, "encoder", "encoder_layers"),
        (whisper, "decoder", "decoder_layers"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_module_of_more_layers_loads(tmp_path: Path, config: Any, module: str, count: str) -> None:  # noqa: ANN401
    kind = transformers.AutoModelForImageTextToText if config is llava else transformers.AutoModelForSpeechSeq2Seq
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        kind.from_config(config()).save_pretrained(tmp_path / name)
    parts = [("a", 0, 2), ("b", 0, 1), ("b", 1, 2)]
    slices = [{"sources": [{"model": str(tmp_path / name), "layer_range": [i, j]}]} for name, i, j in parts]
    recipe = {"merge_method": "passthrough", "base_model": str(tmp_path / "a"), "modules": {module: {"slices": slices}}}
    run_merge(recipe, tmp_path / "out")
    model, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = model.config.to_dict()
    for key in count.split("."):
        found = found[key]
    assert found == 4
