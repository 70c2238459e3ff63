"""What a union leaves is loaded by transformers: each token has its id and its row, and texts are split as before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mol import run_merge

torch = pytest.importorskip("torch", reason="needs the extra: pip install 'mol-merge[fusion]'")
transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'mol-merge[fusion]'")

from tests.seed_models import CODE, WIDE, _byte_level, _word_piece, t5_tokenizer  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fusion
TEXT = "Hello <|im_start|>user: can you tell me a story<|im_end|> about a fox?"


def byte_level(texts: tuple[str, ...], size: int) -> Any:  # noqa: ANN401
    return transformers.GPT2Tokenizer(**_byte_level(texts, size, ["<|endoftext|>"]), model_max_length=128)


def llama_like(texts: tuple[str, ...], size: int) -> Any:  # noqa: ANN401
    """SentencePiece's BPE with byte fallback, as Llama 2 and Mistral have it."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Replace(" ", "▁")
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    learned = json.loads(inner.to_str())["model"]
    return transformers.LlamaTokenizer(vocab=learned["vocab"], merges=[tuple(pair) for pair in learned["merges"]])


KINDS = {
    "byte-level": (lambda: byte_level(WIDE, 400), lambda: byte_level(CODE, 320)),
    "sentencepiece": (lambda: llama_like(WIDE, 500), lambda: llama_like(CODE, 420)),
    "wordpiece": (lambda: _word_piece(WIDE, 300), lambda: _word_piece(CODE, 200)),
    "unigram": (t5_tokenizer, t5_tokenizer),
}


def save(directory: Path, tokenizer: Any, seed: int, *, tied: bool) -> Any:  # noqa: ANN401
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_union_is_loaded_with_every_token_at_its_row(tmp_path: Path, kind: str, tied: bool) -> None:
    first, second = (make() for make in KINDS[kind])
    second.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    second.add_tokens(["fox-trot"])
    models = [
        save(tmp_path / name, t, seed, tied=tied)
        for seed, (name, t) in enumerate(zip("ab", (first, second), strict=True))
    ]
    recipe = {
        "merge_method": "linear",
        "base_model": str(tmp_path / "a"),
        "models": [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in "ab"],
        "tokenizer_source": "union",
    }
    out = run_merge(recipe, tmp_path / "out").out
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    merged, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mine, theirs = first.get_vocab(), second.get_vocab()
    vocabulary = tokenizer.get_vocab()
    assert vocabulary.keys() == mine.keys() | theirs.keys()
    assert {token: vocabulary[token] for token in mine} == mine
    assert len(tokenizer) == merged.config.vocab_size == merged.get_input_embeddings().weight.shape[0]
    for ends in ("get_input_embeddings", "get_output_embeddings"):
        of_a, of_b, found = (getattr(model, ends)().weight for model in (*models, merged))
        for token, row in vocabulary.items():
            own = of_a[mine[token]] if token in mine else of_b[theirs[token]]
            other = of_b[theirs[token]] if token in theirs else own
            torch.testing.assert_close(found[row], (own + other) / 2)
    plain = "def fibonacci(n): can you tell me a story about photosynthesis?"
    if kind != "wordpiece":
        assert tokenizer(plain)["input_ids"] == first(plain)["input_ids"]
    ids = tokenizer(TEXT)["input_ids"]
    assert {vocabulary["<|im_start|>"], vocabulary["<|im_end|>"]} <= set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True).count("im_") == 0
    tokenizer.save_pretrained(tmp_path / "again")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again").get_vocab() == vocabulary
