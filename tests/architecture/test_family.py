"""Families of model types: a table written by hand, and every type that transformers can configure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from mol.architecture import ArchitectureFamily, UniversalArchitectureHandler
from mol.architecture.classes import find_kind
from mol.architecture.family import find_family
from mol.architecture.sizes import read_rope, read_sizes
from tests.architecture.toolkit import write_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fusion

# From the papers and model cards, not from the code.
FAMILIES = {
    "decoder_only": """
        gpt2 gpt_neo gpt_neox gptj gpt_bigcode openai-gpt codegen ctrl llama mistral mixtral falcon opt bloom mpt phi
        phi3 qwen2 qwen2_moe qwen3 qwen3_moe gemma gemma2 gemma3_text olmo2 stablelm starcoder2 cohere granite
        deepseek_v3 persimmon biogpt xglm rwkv mamba jamba recurrent_gemma gpt_oss smollm3
    """,
    "encoder_only": """
        bert roberta distilbert electra deberta deberta-v2 albert xlm-roberta camembert mobilebert mpnet squeezebert
        longformer big_bird funnel convbert nystromformer fnet modernbert roformer canine luke tapas rembert
        bert-generation megatron-bert data2vec-text ibert clip_text_model
    """,
    "encoder_decoder": """
        t5 mt5 umt5 longt5 bart mbart pegasus marian blenderbot m2m_100 led prophetnet bigbird_pegasus plbart mvp
        switch_transformers t5gemma nllb-moe encoder-decoder whisper speech_to_text
    """,
    "vision": """
        vit deit beit swin swinv2 convnext convnextv2 resnet dinov2 segformer mobilevit poolformer regnet levit cvt
        focalnet vit_mae videomae timesformer yolos rt_detr sam imagegpt mobilenet_v2 clip_vision_model pixtral
    """,
    "multimodal": """
        clip flava layoutlm layoutlmv3 lxmert llava llava_next blip blip-2 siglip align altclip git vilt visual_bert
        bridgetower kosmos-2 idefics idefics2 paligemma qwen2_vl qwen2_5_vl mllama gemma3 fuyu pix2struct udop owlvit
        groupvit clap qwen2_audio florence2 grounding-dino internvl vision-text-dual-encoder lilt
    """,
    "other": """
        wav2vec2 hubert wavlm audio-spectrogram-transformer encodec dac vits patchtst timesfm decision_transformer
    """,
}
TABLE = [(kind, family) for family, kinds in FAMILIES.items() for kind in kinds.split()]
NOT_DEFAULT = {
    "gemma4_assistant": "its own check refuses its default config",
    "nougat": "its default config names a type that is spelled otherwise",
}


def family_of(model_type: str, **keys: Any) -> str:  # noqa: ANN401 - whatever a config takes
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type](**keys)
    return str(find_family(config, find_kind(config), next(iter(keys.get("architectures", ())), None)))


def test_the_table_is_large() -> None:
    assert len(TABLE) == len(dict(TABLE)) >= 60


@pytest.mark.parametrize(("model_type", "family"), TABLE)
def test_well_known_types(model_type: str, family: str) -> None:
    assert family_of(model_type) == family


@pytest.mark.parametrize(
    ("model_type", "keys", "family"),
    [
        ("bert", {"is_decoder": True}, "decoder_only"),
        ("bert", {"architectures": ["BertForSequenceClassification"]}, "encoder_only"),
        ("bert-generation", {"is_decoder": True}, "decoder_only"),
        ("reformer", {"is_decoder": True}, "decoder_only"),
        ("t5", {"architectures": ["T5EncoderModel"]}, "encoder_only"),
        ("t5", {"architectures": ["T5ForConditionalGeneration"]}, "encoder_decoder"),
        ("umt5", {"architectures": ["UMT5EncoderModel"]}, "encoder_only"),
        ("bart", {"is_encoder_decoder": False, "is_decoder": True}, "decoder_only"),
        ("bart", {"architectures": ["BartForSequenceClassification"]}, "encoder_decoder"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "decoder_only"),
    ],
)
def test_what_a_checkpoint_says_of_itself_counts(model_type: str, keys: dict[str, Any], family: str) -> None:
    assert family_of(model_type, **keys) == family


@pytest.mark.filterwarnings("ignore")  # what default configs warn of is not ours
def test_every_type_that_transformers_can_configure() -> None:
    """None raises; sizes are positive; a family follows from the type, not from what was looked at before."""
    from transformers import CONFIG_MAPPING

    seen: dict[str, str] = {}
    for model_type in list(CONFIG_MAPPING):
        if model_type in NOT_DEFAULT or model_type in ("mol", "mol_mixture"):  # ours, once mol is imported
            continue
        config = CONFIG_MAPPING[model_type]()
        kind = find_kind(config)
        family = find_family(config, kind)
        seen[model_type] = str(family)
        for size in read_sizes(config):
            assert size is None or (size > 0 and math.isfinite(size)), model_type
        assert read_rope(config) != {}, model_type
        if kind.heads & {"CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM"}:
            assert family not in {ArchitectureFamily.OTHER, ArchitectureFamily.VISION}, model_type
    assert len(seen) > 500
    assert set(seen.values()) == set(FAMILIES)
    assert {kind: seen[kind] for kind, _ in TABLE} == dict(TABLE)


def test_the_family_prints_as_its_value(tmp_path: Path) -> None:
    name = write_config(tmp_path / "m", "gpt2", n_layer=1)
    family = UniversalArchitectureHandler(cache_dir=tmp_path / "kept").detect_architecture(name).architecture_family
    assert family is ArchitectureFamily.DECODER_ONLY
    assert f"{family}" == str(family) == family == "decoder_only"
