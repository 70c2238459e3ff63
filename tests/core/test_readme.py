"""The README's example of a fusion, as it stands there, on tiny models of the names that it uses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.core.zoo import body_of, language_model_of

if TYPE_CHECKING:
    import pytest

README = Path(__file__).parents[2] / "README.md"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind of tokenizer, of single bytes."""
    vocabulary = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")


def test_the_example_of_a_fusion_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    language_model_of("gpt2", n_layer=6, vocab_size=257).save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    body_of("bert", num_hidden_layers=6).save_pretrained(tmp_path / "bert-base-uncased")
    monkeypatch.chdir(tmp_path)
    fence = re.compile(r"^```python\n(from mol import MoLConfig.*?)^```", re.DOTALL | re.MULTILINE)
    (block,) = fence.findall(README.read_text())
    said: dict[str, torch.Tensor] = {}
    exec(compile(block, str(README), "exec"), said)
    assert said["text"].shape[1] > said["inputs"]["input_ids"].shape[1]
    again = AutoModelForCausalLM.from_pretrained("./fused")
    with torch.no_grad():
        assert torch.equal(again(**said["inputs"]).logits, said["logits"])
