"""Tiny seeded models under the names that the README uses, each like the real one but in size.

Classes, tokenizer kinds, special tokens, layer counts, ratios of widths and the names in the checkpoints are those of
the models on the Hub; widths are a sixteenth, positions an eighth, vocabularies what a page of text gives.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertTokenizer,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHAT: Final = (
    "Hello, how are you today? I am fine, thanks, and you?",
    "What did you do this weekend? We went to the lake and swam until it was dark.",
    "Can you tell me a story about a fox? Once there was a fox who could not sleep.",
)
CODE: Final = (
    "def fibonacci(n): return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
    "for index in range(len(values)): total += values[index]",
    "class Stack: def __init__(self): self.items = []",
)
SCIENCE: Final = (
    "The photosynthesis process involves chlorophyll, which absorbs light in the chloroplast.",
    "Protein expression was measured in cells after incubation; the results were significant.",
    "The enzyme binds its substrate, and the reaction rate depends on temperature.",
)
WIDE: Final = (*CHAT, *CODE, *SCIENCE)


def _byte_level(texts: tuple[str, ...], size: int, special: list[str]) -> dict[str, Any]:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    learned = json.loads(inner.to_str())["model"]
    return {"vocab": learned["vocab"], "merges": [tuple(pair) for pair in learned["merges"]]}


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE whose one special token ends texts; there is none to pad with."""
    return GPT2Tokenizer(**_byte_level(WIDE, 400, ["<|endoftext|>"]), model_max_length=128)


def codet5_tokenizer() -> PreTrainedTokenizerBase:
    """RoBERTa's byte-level BPE, learned from code."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
    return RobertaTokenizer(**_byte_level(CODE, 350, special), model_max_length=64)


def _word_piece(texts: tuple[str, ...], size: int) -> PreTrainedTokenizerBase:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    inner.train_from_iterator(texts, trainer)
    return BertTokenizer(vocab=inner.get_vocab(), model_max_length=64)


def t5_tokenizer() -> PreTrainedTokenizerBase:
    """SentencePiece's unigram model."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(WIDE, trainer)
    pieces = [tuple(piece) for piece in json.loads(inner.to_str())["model"]["vocab"]]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in reversed(range(100))]
    return T5Tokenizer(vocab=[*pieces, *sentinels], model_max_length=64)


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 128,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


_BERT: Final = {
    "model_type": "bert", "hidden_size": 48, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 192, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_T5: Final = {
    "model_type": "t5", "d_model": 32, "d_ff": 128, "d_kv": 4, "num_heads": 8, "num_layers": 6,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip

MODELS: Final[dict[str, tuple[type, dict[str, Any], Callable[[], PreTrainedTokenizerBase]]]] = {
    "gpt2": (GPT2LMHeadModel, _gpt2(48, 12, 12), gpt2_tokenizer),
    "distilgpt2": (GPT2LMHeadModel, _gpt2(48, 6, 12), gpt2_tokenizer),
    "microsoft/DialoGPT-small": (GPT2LMHeadModel, _gpt2(48, 12, 12), gpt2_tokenizer),
    "microsoft/DialoGPT-medium": (GPT2LMHeadModel, _gpt2(64, 24, 16), gpt2_tokenizer),
    "bert-base-uncased": (BertForPreTraining, _BERT, lambda: _word_piece(WIDE, 300)),
    "allenai/scibert_scivocab_uncased": (BertForPreTraining, _BERT, lambda: _word_piece(SCIENCE, 250)),
    "t5-small": (T5ForConditionalGeneration, {**_T5, "eos_token_id": 1}, t5_tokenizer),
    "Salesforce/codet5-small": (
        T5ForConditionalGeneration, {**_T5, "bos_token_id": 1, "eos_token_id": 2}, codet5_tokenizer,
    ),
    "microsoft/DialoGPT-large": (GPT2LMHeadModel, _gpt2(80, 36, 20), gpt2_tokenizer),
    **{
        f"gpt2-finetuned-{subject}": (GPT2LMHeadModel, _gpt2(48, 12, 12), gpt2_tokenizer)
        for subject in ("poetry", "science", "code")
    },
}  # fmt: skip


def write_seed_models(root: Path) -> Path:
    """Write all of them below `root`, so that their names are paths from there."""
    for seed, (name, (kind, settings, make_tokenizer)) in enumerate(MODELS.items()):
        tokenizer = make_tokenizer()
        torch.manual_seed(seed)
        model = kind(AutoConfig.for_model(**settings, vocab_size=len(tokenizer)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
        model.tie_weights()
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        _name_as_on_the_hub(root / name, name)
    return root


def _name_as_on_the_hub(directory: Path, name: str) -> None:
    """Write a checkpoint with the names and leftovers of the real one, which is older than save_pretrained is today."""
    file, settings = directory / "model.safetensors", directory / "config.json"
    weights, config = load_file(file), json.loads(settings.read_text())
    if name == "gpt2":  # a body without prefix, and masks that were buffers once
        weights = {key.removeprefix("transformer."): value for key, value in weights.items()}
        triangle = torch.ones(128, 128).tril()[None, None]
        weights |= {f"h.{layer}.attn.bias": triangle.clone() for layer in range(12)}
    elif config["model_type"] == "bert":
        for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            weights = {key.replace(new, old): value for key, value in weights.items()}
        if name == "bert-base-uncased":
            config["architectures"] = [BertForMaskedLM.__name__]
        else:
            del config["architectures"]
    save_file(weights, file, metadata={"format": "pt"})
    settings.write_text(json.dumps(config, indent=2))
