"""Text read by several models: hidden states against their own, pairs against the definition, chunks that fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mol.core.blocks.source import Source
from mol.core.fitting.reading import TextModel, TokenizedText, chunks_of, pair_tokens
from mol.errors import ConfigError
from tests.core.tokenizers import byte_pairs, word_pieces
from tests.core.zoo import body_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LICENSE = Path(__file__).parents[2].joinpath("LICENSE").read_text()
BYTES, WORDS = byte_pairs([LICENSE], 300), word_pieces([LICENSE], 300)
OTHER_BYTES = byte_pairs([LICENSE[5000:]], 400)


def text_model(kind: str, tokenizer: PreTrainedTokenizerBase, *, causal: bool = True) -> TextModel:
    source = Source(body_of(kind, vocab_size=400), kind)
    if causal:
        source.make_causal()
    return TextModel(source, tokenizer)


SMALL = text_model("gpt2", BYTES)
ENCODER = text_model("bert", WORDS)


def partner(host: TokenizedText, other: TokenizedText, index: int) -> int | None:
    """The definition, token by token."""
    start, end = host.spans[index]
    read = [there for there, (a, b) in enumerate(other.spans) if a < b <= end]
    return max(read) if read and start < end else None


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("the work é€😀 LICENSE,.\n-ing"), max_size=40))
def test_pairs_are_as_defined(text: str) -> None:
    for one, two in ((BYTES, WORDS), (WORDS, BYTES), (BYTES, OTHER_BYTES)):
        host, other = SMALL._replace(tokenizer=one).tokens(text), SMALL._replace(tokenizer=two).tokens(text)
        if host == other:
            continue
        wanted = [(index, partner(host, other, index)) for index in range(len(host.ids))]
        assert pair_tokens(host, other) == [pair for pair in wanted if pair[1] is not None]


def test_nothing_that_comes_later_is_a_partner() -> None:
    host, other = SMALL.tokens(LICENSE[:400]), ENCODER.tokens(LICENSE[:400])
    pairs = pair_tokens(host, other)
    assert len(pairs) > 100
    assert all(other.spans[there][1] <= host.spans[here][1] for here, there in pairs)
    special = {index for index, (start, end) in enumerate(other.spans) if start == end}
    assert special == {0, len(other.ids) - 1}
    assert special.isdisjoint(there for _, there in pairs)


def test_the_same_tokens_pair_one_to_one_special_ones_and_parts_of_signs_too() -> None:
    for tokenizer in (BYTES, WORDS):
        reading = SMALL._replace(tokenizer=tokenizer).tokens("the €😀 work")
        assert pair_tokens(reading, reading) == [(index, index) for index in range(len(reading.ids))]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "squeezebert", "albert"])
def test_states_are_the_models_own(kind: str) -> None:
    model = body_of(kind, vocab_size=400)
    ids = [7, 8, 9, 50, 60]
    count = 3
    read = TextModel(Source(model, kind), BYTES)
    states = read.states(ids, range(count + 1))
    given = torch.tensor([ids])
    with torch.no_grad():
        wanted = model(given, attention_mask=torch.ones_like(given), output_hidden_states=True).hidden_states
    for point in range(count):
        torch.testing.assert_close(states[point], wanted[point][0], rtol=0, atol=1e-6)
    if kind in ("bert", "squeezebert", "albert"):  # others put a norm after the last block
        torch.testing.assert_close(states[count], wanted[count][0], rtol=0, atol=1e-6)
    assert torch.equal(read.states(ids, {1})[1], states[1])
    assert torch.equal(read.states(ids, {0, 3})[3], states[3])


def test_an_encoder_that_was_made_causal_is_read_as_it_will_run() -> None:
    read = ENCODER.states([7, 8, 9, 50], {2})[2]
    other = ENCODER.states([7, 8, 9, 51], {2})[2]
    torch.testing.assert_close(read[:3], other[:3], rtol=0, atol=1e-6)
    assert not torch.allclose(
        text_model("bert", WORDS, causal=False).states([7, 8, 9, 50], {2})[2][:3], read[:3], atol=0.1
    )


def test_chunks_fit_every_model_and_lose_nothing() -> None:
    short = byte_pairs([LICENSE], 257)
    short.model_max_length = 50
    text_models = [SMALL._replace(tokenizer=short), ENCODER]
    assert [text_model.limit for text_model in text_models] == [50, 64]
    text = LICENSE[:3000]
    cut = list(chunks_of([text, "", "last one"], text_models))
    assert all(
        len(reading.ids) <= text_model.limit
        for chunk in cut
        for reading, text_model in zip(chunk, text_models, strict=True)
    )
    # Single bytes: however a text is cut, the tokens stay what they were.
    assert [token for chunk in cut for token in chunk[0].ids] == short(text + "last one", verbose=False)["input_ids"]


def test_a_sign_that_no_model_can_read_at_once_is_refused() -> None:
    tiny = byte_pairs([LICENSE], 257)
    tiny.model_max_length = 3
    with pytest.raises(ConfigError, match="one character of the calibration text, '😀'"):
        list(chunks_of(["a 😀"], [SMALL._replace(tokenizer=tiny)]))
