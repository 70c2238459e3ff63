"""What a block does without in a host is said once: when it is added, and by `print`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.core.conftest import Fuse


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "mol")
    return caplog


@pytest.mark.parametrize(
    ("host", "kind", "words", "fact"),
    [
        ("gpt2", "bert", ["bert (BertModel)", "host's tokens", "causal masks"], "on the host's tokens"),
        ("gpt2", "t5", ["t5 (T5Model)", "`encoder.block`", "among `decoder.block`"], "blocks of `encoder.block`"),
        ("gpt2", "vit", ["vit (ViTModel)", "not on its own patches of images"], "on the host's tokens"),
        ("gpt2", "gemma3n_text", ["gemma3n_text", "embeddings of its own for each layer"], "blank content"),
    ],
)
def test_what_a_block_does_without_is_warned_of(
    host: str, kind: str, words: list[str], fact: str, fuse: Fuse, said: pytest.LogCaptureFixture
) -> None:
    runtime = fuse(host, kind, layers=(0, 1))
    lines = [line for line in said.messages if line.startswith(f"{kind} (")]
    assert len(lines) == len(set(lines)), "each once, whatever the number of layers"
    assert any(all(word in line for word in words) for line in lines), lines
    assert fact in " ".join(str(runtime).split())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_a_block_that_gets_what_it_was_trained_on_is_not_noted(
    kind: str, fuse: Fuse, said: pytest.LogCaptureFixture
) -> None:
    runtime = fuse("gpt2", kind)
    assert said.messages == []
    assert "host's tokens" not in str(runtime)


def test_a_stack_that_was_chosen_is_not_noted(fuse: Fuse, said: pytest.LogCaptureFixture) -> None:
    fuse("gpt2", "t5-decoder")
    assert not any("chooses among" in line for line in said.messages)


def test_another_vocabulary_is_reported(fuse: Fuse, said: pytest.LogCaptureFixture) -> None:
    runtime = fuse("gpt2", "llama", layers=())
    runtime.source("llama").model.config.vocab_size = 500
    runtime.add_layer([("llama", 0)], 0)
    (line,) = said.messages
    assert "run on the host's tokens (vocabulary 128)" in line
    assert "own tokens (vocabulary 500)" in line
