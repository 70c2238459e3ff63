"""MoLMixture: its probabilities against references in float64, and the laws of a causal model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorWithFlattening, PreTrainedTokenizerFast

from mol import MoLMixture
from mol.core.pretrained.mixture_config import MoLMixtureConfig
from mol.errors import ConfigError, MolError
from tests.core.zoo import language_model_of, tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from tests.core.conftest import Fuse

KINDS = ("gpt2", "llama", "mamba")
WEIGHTS = ("uniform", "posterior", "router")


@pytest.fixture(scope="module")
def parts() -> list[PreTrainedModel]:
    return [language_model_of(kind, seed=number) for number, kind in enumerate(KINDS)]


def mixture_of(parts: list[PreTrainedModel], weights: str) -> MoLMixture:
    torch.manual_seed(0)
    mixture = MoLMixture.from_models(parts, weights)  # type: ignore[arg-type]
    if mixture.router is not None:
        with torch.no_grad():
            mixture.router.classifier.weight.normal_(std=0.5)
    return mixture


def log_p_of(mixture: MoLMixture, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return mixture(ids, attention_mask=mask).logits


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("number", range(3))
def test_one_model_alone_is_itself(weights: str, number: int, parts: list[PreTrainedModel]) -> None:
    ids = tokens_of(2, 7)
    with torch.no_grad():
        wanted = parts[number](ids).logits.log_softmax(-1)
    torch.testing.assert_close(log_p_of(mixture_of(parts[number : number + 1], weights), ids), wanted)


def test_uniform_weights_average_probabilities(parts: list[PreTrainedModel]) -> None:
    ids = tokens_of(2, 7)
    with torch.no_grad():
        wanted = torch.stack([model(ids).logits.double().softmax(-1) for model in parts]).mean(0)
    found = log_p_of(mixture_of(parts, "uniform"), ids)
    torch.testing.assert_close(found.double().exp(), wanted, rtol=1e-5, atol=1e-8)


def test_posterior_weights_are_bayes(parts: list[PreTrainedModel]) -> None:
    """Token by token, in float64: each model counts by the product of what it gave to the tokens before."""
    ids = tokens_of(2, 9)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    found = log_p_of(mixture_of(parts, "posterior"), ids, mask)
    for row, first in ((0, 0), (1, 3)):
        tokens = ids[row : row + 1, first:]
        with torch.no_grad():
            p = [model(tokens).logits[0].double().softmax(-1) for model in parts]
        weight = [1.0 / 3] * 3
        for t in range(tokens.shape[1]):
            if t:
                weight = [w * each[t - 1, tokens[0, t]].item() for w, each in zip(weight, p, strict=True)]
            wanted = sum(w * each[t] for w, each in zip(weight, p, strict=True)) / sum(weight)
            torch.testing.assert_close(found[row, first + t].double().exp(), wanted, rtol=1e-4, atol=1e-8)


def test_the_posterior_stands_a_long_text(parts: list[PreTrainedModel]) -> None:
    """Where the product of probabilities is far below what a float64 holds."""
    ids = tokens_of(1, 60).repeat(1, 6)
    found = log_p_of(mixture_of([language_model_of("bloom", seed=n) for n in range(2)], "posterior"), ids)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(1, 360))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_are_log_probabilities_and_causal(weights: str, parts: list[PreTrainedModel]) -> None:
    mixture = mixture_of(parts, weights)
    ids = tokens_of(2, 9)
    before = log_p_of(mixture, ids)
    torch.testing.assert_close(before.exp().sum(-1), torch.ones(2, 9))
    other = torch.cat([ids[:, :5], tokens_of(2, 4, seed=9)], 1)
    torch.testing.assert_close(log_p_of(mixture, other)[:, :5], before[:, :5], rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_padding_and_batch_mates_never_change_a_row(weights: str, parts: list[PreTrainedModel]) -> None:
    mixture = mixture_of(parts, weights)
    short, long = tokens_of(1, 5), tokens_of(1, 8, seed=3)
    alone = log_p_of(mixture, short)[0]
    gap, ones = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 5, dtype=torch.long)
    for order, start in (((gap, short), 3), ((short, gap), 0)):
        ids = torch.cat([torch.cat(order, 1), long])
        mask = torch.cat([torch.cat([ones if part is short else gap for part in order], 1), torch.ones_like(long)])
        found = log_p_of(mixture, ids, mask)[0, start : start + 5]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_cache_changes_nothing(weights: str, options: dict[str, int], parts: list[PreTrainedModel]) -> None:
    mixture = mixture_of(parts, weights)
    ids = tokens_of(2, 6)
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}
    cached = mixture.generate(ids, eos_token_id=None, **settings)
    again = mixture.generate(ids, eos_token_id=None, use_cache=False, **settings)
    assert cached.shape == (2, 12)
    assert torch.equal(cached, again)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_chunks_with_a_cache_give_the_whole(weights: str, parts: list[PreTrainedModel]) -> None:
    mixture = mixture_of(parts[:2], weights)
    ids = tokens_of(3, 10)
    mask = torch.ones_like(ids)
    ids[1, :5], mask[1, :5] = 0, 0  # nothing but padding in the first chunk
    cache, chunks = mixture.new_cache(), []
    with torch.no_grad():
        for start, end in ((0, 4), (4, 5), (5, 6), (6, 10)):
            chunks.append(mixture(ids[:, start:end], attention_mask=mask[:, :end], cache=cache).logits)
    seen = mask.bool()
    whole = log_p_of(mixture, ids, mask)
    torch.testing.assert_close(torch.cat(chunks, 1)[seen], whole[seen], rtol=0, atol=1e-4)


def test_the_loss_is_that_of_the_labels_and_trains_the_router_alone(parts: list[PreTrainedModel]) -> None:
    mixture = mixture_of(parts, "router").train()
    ids = tokens_of(4, 9)
    labels = ids.clone()
    labels[:, :3] = -100
    assert mixture.router is not None
    mixture.router.dropout.p = 0.0
    output = mixture(ids, labels=labels)
    wanted = -output.logits[:, 2:-1].gather(-1, ids[:, 3:, None]).mean()
    torch.testing.assert_close(output.loss, wanted)
    output.loss.backward()
    assert {name for name, _ in mixture.named_parameters()} == {"router.classifier.weight", "router.classifier.bias"}
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in mixture.parameters())
    assert all(parameter.grad is None for model in parts for parameter in model.parameters())
    assert not any(model.training for model in parts)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    signs = {sign: number for number, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(signs, [])), eos_token="<|endoftext|>")


def named(path: Path, kind: str, **changes: int) -> str:
    language_model_of(kind, **changes).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_was_saved_is_loaded_exactly(weights: str, tmp_path: Path) -> None:
    names = [named(tmp_path / kind, kind, vocab_size=257) for kind in ("gpt2", "llama")]
    mixture = MoLMixture.from_models(names, weights)  # type: ignore[arg-type]
    mixture.save_pretrained(tmp_path / "mixture")
    again = MoLMixture.from_pretrained(tmp_path / "mixture")
    ids = tokens_of(2, 7)
    assert torch.equal(log_p_of(again, ids), log_p_of(mixture, ids))
    assert MoLMixtureConfig.from_pretrained(tmp_path / "mixture").mixture_weights == weights
    with pytest.raises(MolError, match="vocab_size is 12, and was saved as 257"):
        MoLMixture.from_pretrained(tmp_path / "mixture", vocab_size=12)


def test_different_vocabularies_are_refused(tmp_path: Path, parts: list[PreTrainedModel]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)different vocabularies.*model 1 has 128 tokens, model 2 .* has 130"):
        MoLMixture.from_models([parts[0], language_model_of("llama", vocab_size=130)])
    names = [named(tmp_path / kind, kind, vocab_size=257) for kind in ("gpt2", "llama")]
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<other>"])
    tokenizer.save_pretrained(names[1])
    with pytest.raises(ConfigError, match=r"(?s)gpt2 and .*llama number 1 tokens differently, such as '<other>'"):
        MoLMixture.from_models(names)


def test_what_cannot_be_mixed_is_refused(fuse: Fuse, parts: list[PreTrainedModel]) -> None:
    with pytest.raises(ConfigError, match="at least one model"):
        MoLMixture.from_models([])
    with pytest.raises(ConfigError, match="weights is 'best', wanted one of uniform, posterior, router"):
        MoLMixture.from_models(parts, "best")  # type: ignore[arg-type]
    with pytest.raises(MolError, match=r"BertLMHeadModel.*outputs depend on later tokens"):
        MoLMixture.from_models([language_model_of("bert")])
    with pytest.raises(MolError, match=r"MoLForCausalLM.*no single language model"):
        MoLMixture.from_models([fuse("gpt2").as_causal_lm()])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_bf16_models_mix_in_float32(weights: str) -> None:
    parts = [language_model_of(kind).to(torch.bfloat16) for kind in ("gpt2", "llama")]
    mixture = mixture_of(parts, weights)
    log_p = log_p_of(mixture, tokens_of(2, 6))
    assert log_p.dtype == torch.float32
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, 6))
    assert mixture.generate(tokens_of(2, 6), max_new_tokens=3, do_sample=False, pad_token_id=0).shape[1] <= 9


def test_models_of_several_dtypes_keep_them_in_from_config(tmp_path: Path) -> None:
    names = [named(tmp_path / kind, kind) for kind in ("gpt2", "llama")]
    language_model_of("gpt2").bfloat16().save_pretrained(names[0])
    MoLMixture.from_models(names).save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "saved"))
    assert [model.dtype for model in again.models] == [torch.bfloat16, torch.float32]


def test_flattened_texts_are_refused_with_the_way_out() -> None:
    mixture = MoLMixture.from_models([language_model_of("gpt2"), language_model_of("llama")])
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    batch = DataCollatorWithFlattening(return_tensors="pt")(rows)
    with pytest.raises(MolError, match=r"a mixture does not take position_ids: .* pad them \(DataCollatorWithPadding"):
        mixture(**batch)
