"""Each method of the handler on models of many types: what it finds is what the loaded model itself says."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra: pip install 'mol-merge[fusion]'")

from mol.architecture import UniversalArchitectureHandler  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

pytestmark = pytest.mark.fusion

_LLAMA = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 20,
    "max_position_embeddings": 32,
}  # fmt: skip
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2, "vocab_size": 20}
_BART = {
    "d_model": 16, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 20, "max_position_embeddings": 32,
}  # fmt: skip
# type, auto class, config, family, whether it has rotary positions
TYPES: list[tuple[str, str, dict[str, Any], str, bool]] = [
    ("gpt2", "CausalLM", {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 20}, "decoder_only", False),
    ("llama", "CausalLM", _LLAMA, "decoder_only", True),
    ("gpt_neox", "CausalLM", _LLAMA, "decoder_only", True),
    ("opt", "CausalLM", {**_LLAMA, "ffn_dim": 24, "word_embed_proj_dim": 16}, "decoder_only", False),
    ("bloom", "CausalLM", {"hidden_size": 16, "n_layer": 3, "n_head": 2, "vocab_size": 20}, "decoder_only", False),
    ("mixtral", "CausalLM", {**_LLAMA, "num_local_experts": 2, "num_key_value_heads": 2}, "decoder_only", True),
    ("mamba", "CausalLM", {"hidden_size": 16, "num_hidden_layers": 3, "vocab_size": 20}, "decoder_only", False),
    ("bert", "MaskedLM", _LLAMA, "encoder_only", False),
    ("distilbert", "MaskedLM", {"dim": 16, "hidden_dim": 24, "n_layers": 3, "n_heads": 2, "vocab_size": 20},
     "encoder_only", False),
    ("deberta-v2", "MaskedLM", _LLAMA, "encoder_only", False),
    ("t5", "Seq2SeqLM", _T5, "encoder_decoder", False),
    ("bart", "Seq2SeqLM", _BART, "encoder_decoder", False),
    ("vit", "", {**_LLAMA, "image_size": 8, "patch_size": 4}, "vision", False),
]  # fmt: skip


def build(model_type: str, auto: str, config: dict[str, Any]) -> PreTrainedModel:
    import transformers

    made = transformers.AutoConfig.for_model(model_type, **config)
    chosen = getattr(transformers, f"AutoModelFor{auto}" if auto else "AutoModel")
    model: PreTrainedModel = chosen.from_config(made).eval()
    return model


@pytest.mark.parametrize(("model_type", "auto", "config", "family", "rotary"), TYPES, ids=[row[0] for row in TYPES])
def test_what_is_found_is_what_the_model_has(
    model_type: str, auto: str, config: dict[str, Any], family: str, rotary: bool, tmp_path: Path
) -> None:
    model = build(model_type, auto, config)
    model.save_pretrained(tmp_path / "m")
    name = str(tmp_path / "m")
    handler = UniversalArchitectureHandler(cache_dir=tmp_path / "kept")
    info = handler.detect_architecture(name)
    assert (info.architecture_type, info.architecture_family) == (model_type, family)

    blocks = handler.get_layers(model, info)
    assert len(blocks) == info.num_layers == 3
    called: list[torch.nn.Module] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda module, _: called.append(module))
    width: set[int] = set()
    blocks[-1].register_forward_hook(lambda _, __, result: width.add(_first(result).shape[-1]))
    with torch.no_grad():
        model(**_inputs(model, auto))
    assert called == list(blocks)
    assert width == {info.hidden_dim}

    assert handler.get_embeddings(model, info) is model.get_input_embeddings()
    head = handler.get_lm_head(model, info)
    assert head is model.get_output_embeddings()
    assert (head is None) == (info.lm_head_path is None) == (auto == "")
    if auto:
        assert model.get_input_embeddings().weight.shape == (info.vocab_size, info.hidden_dim)

    signature = handler.get_parameter_signature(name)
    assert signature is not None
    parameters = inspect.signature(type(blocks[0]).forward).parameters
    assert {key: parameters[key].default is inspect.Parameter.empty for key in signature} == signature
    assert next(iter(signature)) == list(parameters)[1]
    rope = handler.get_rope_info(name)
    assert (rope is not None) == rotary
    if rope is not None:
        assert rope == model.config.rope_parameters

    message = handler.analyze_model_capabilities(model, name)
    assert message["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert message["block_parameters"] == sum(parameter.numel() for parameter in blocks.parameters())
    assert message["block_class"] == type(blocks[0]).__name__
    assert message["has_lm_head"] == (head is not None)
    assert message["supports_causal_lm"] == (auto == "CausalLM") == info.supports_causal_lm
    assert message["supports_masked_lm"] == info.supports_masked_lm
    assert not info.supports_masked_lm or auto in ("MaskedLM", "Seq2SeqLM", "")
    assert message["requires_remote_code"] is False


def _first(result: Any) -> torch.Tensor:  # noqa: ANN401 - whatever a block returns
    found: torch.Tensor = result if isinstance(result, torch.Tensor) else result[0]
    return found


def _inputs(model: PreTrainedModel, auto: str) -> dict[str, torch.Tensor]:
    if not auto:
        return {"pixel_values": torch.zeros(1, 3, 8, 8)}
    ids = torch.arange(3, 8)[None]
    return {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}
