"""Blocks run alone do what they do in their model, whatever the architecture."""

from __future__ import annotations

import pytest
import torch

from mol.core.blocks.inputs import Tokens
from mol.core.blocks.source import Source
from mol.errors import MolError
from tests.core.zoo import BIDIRECTIONAL, TYPES, body_of, tokens_of


def inputs_of(kind: str, source: Source) -> dict[str, torch.Tensor]:
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))}
    return {"input_ids": tokens_of(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.long)}


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_replayed_one_by_one_give_the_models_own_hidden_states_bit_for_bit(kind: str) -> None:
    model = body_of(kind)
    source = Source(model, kind)
    driver = source.owner
    inputs = inputs_of(kind, source)
    with torch.no_grad():
        handed, wanted = source.calls.capture(lambda: driver(**inputs))
        hidden = source.layout.from_block(handed[0][0][0] if handed[0][0] else handed[0][1]["hidden_states"], 2)
        tokens = Tokens.of(torch.ones(2, hidden.shape[1], dtype=torch.long), hidden.shape[1], torch.float32)
        context, live = handed if source.sees_content() else source.context(tokens), {}
        for index in range(len(source)):
            hidden = source.run_block(index, hidden, context, live=live)
        _, replayed = source.calls.capture(lambda: driver(**inputs), last=source.layout.to_block(hidden))
        wanted = driver(**inputs)
    assert torch.equal(replayed.last_hidden_state, wanted.last_hidden_state)


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_are_made_causal_where_that_can_be_done(kind: str) -> None:
    source = Source(body_of(kind), kind)
    assert source.make_causal() is (kind not in BIDIRECTIONAL)
    assert source.is_causal() is (kind not in BIDIRECTIONAL)


@pytest.mark.parametrize("kind", ["bert", "t5", "vit"])
def test_a_question_changes_nothing(kind: str) -> None:
    source = Source(body_of(kind), kind)
    hidden, tokens = source.driver.random_hidden(5)
    with torch.no_grad():
        before = source.run_block(1, hidden, source.context(tokens))
        assert not source.is_causal(1)
        assert not source.has_native_cache(1)
        source.minds_padding(1, before=False)
        assert torch.equal(source.run_block(1, hidden, source.context(tokens)), before)
        assert (source.made_causal, source.make_causal(1), source.made_causal) == (False, True, True)
        assert not torch.equal(source.run_block(1, hidden, source.context(tokens)), before)


def test_a_twin_leaves_the_model_alone() -> None:
    """Making a source causal does not reach the model, nor another source of it."""
    model = body_of("bert")
    ids = tokens_of(2, 7)
    before = model(ids).last_hidden_state
    causal, free = Source(model, "bert"), Source(model, "bert")
    assert causal.make_causal()
    assert (causal.is_causal(), causal.made_causal, free.is_causal(), free.made_causal) == (True, True, False, False)
    assert torch.equal(model(ids).last_hidden_state, before)
    assert causal.model.get_input_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "gemma2", "bloom", "mixtral", "opt"])
def test_decoders_have_a_native_cache(kind: str) -> None:
    source = Source(body_of(kind), kind)
    assert all(source.has_native_cache(index) for index in range(len(source)))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_answers_under_autocast_are_those_without(kind: str) -> None:
    def answers(source: Source) -> list[object]:
        padding = [source.minds_padding(0, before=before) for before in (True, False)]
        block = [source.is_causal(), source.has_native_cache(0), source.block_takes_chunks(0), source.keeps_gaps(0)]
        return [*padding, *block, source.sees_content()]

    wanted = answers(Source(body_of(kind), kind))
    with torch.autocast("cpu", torch.bfloat16):
        assert answers(Source(body_of(kind), kind)) == wanted


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_rounding_is_that_of_the_weights_where_results_are_wider(stack: str) -> None:
    """A T5 in float16 keeps its last weights in float32, so float32 results hold the rounding of float16."""
    model = body_of("t5", d_model=256, d_ff=512, d_kv=64).half()
    for name, parameter in model.named_parameters():
        if name.endswith("wo.weight"):
            parameter.data = parameter.data.float()
    source = Source(model, "t5", stack=stack)
    assert source.make_causal()
    assert not any(source.minds_padding(index, before=True) for index in range(len(source)))


def test_gradients_flow_through_a_block_and_not_into_it() -> None:
    source = Source(body_of("llama"), "llama")
    hidden = torch.randn(2, 5, 32, requires_grad=True)
    tokens = Tokens.of(torch.ones(2, 5, dtype=torch.long), 5, torch.float32)
    source.run_block(1, hidden, source.context(tokens)).square().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in source.model.parameters())


def test_the_encoder_of_t5_is_taken_unless_the_decoder_is_named() -> None:
    model = body_of("t5")
    assert Source(model, "t5").stack == "encoder.block"
    decoder = Source(model, "t5", stack="decoder")
    assert (decoder.stack, decoder.make_causal(), decoder.made_causal) == ("decoder.block", True, False)


def test_a_stack_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        MolError, match=r"`middle` names 0 of its stacks.*`encoder\.block` \(3\), `decoder\.block` \(3\)"
    ):
        Source(body_of("t5"), "t5", stack="middle")


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(MolError, match="no list of blocks"):
        Source(torch.nn.Linear(2, 2), "linear")  # type: ignore[arg-type]
