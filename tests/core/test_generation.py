"""Laws of a cache in the ways that users of transformers have of it: by hand, kept between calls, copied, in chunks."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig

from mol import MoLMixture
from mol.core.cache import CACHE_NAME
from mol.errors import MolError
from tests.core.zoo import language_model_of, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mol.core.cache import FusedCache
    from mol.core.mol_runtime import MoLRuntime
    from tests.core.conftest import Fuse

MODELS = ("gpt2+llama", "llama+bert", "mamba+gpt2", "gpt2+mamba", "jamba+t5", "mixture", "mixture of states")
"""Hosts and experts that continue from a cache, that have none and that continue from a state token by token."""
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, fuse: Fuse) -> Any:  # noqa: ANN401 - both classes
    if request.param.startswith("mixture"):
        kinds = ("llama", "mamba") if "states" in request.param else ("gpt2", "llama")
        return MoLMixture.from_models([language_model_of(kind) for kind in kinds], "posterior")
    return fuse(*request.param.split("+")).as_causal_lm()


def written(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:  # noqa: ANN401
    """Continue without any cache."""
    result: torch.Tensor = model.generate(ids, use_cache=False, **GREEDY, **options)
    return result


@torch.no_grad()
def by_hand(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:  # noqa: ANN401
    """Decode as the documentation of transformers shows it."""
    output = model(ids, **options)
    for _ in range(GREEDY["max_new_tokens"]):
        new = output.logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, new], 1)
        output = model(new, past_key_values=output[CACHE_NAME])
    return ids


@pytest.mark.parametrize("options", [{}, {"use_cache": True}], ids=["as it is", "requested"])
def test_a_loop_by_hand_yields_what_generate_does(options: dict[str, bool], model: Any) -> None:  # noqa: ANN401
    ids = tokens_of(2, 6)
    assert torch.equal(by_hand(model, ids, **options), written(model, ids))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_loop_by_hand_is_that_of_the_host(kind: str, fuse: Fuse) -> None:
    model, ids = fuse(kind).as_causal_lm(), tokens_of(2, 6)
    assert torch.equal(by_hand(model, ids), by_hand(AutoModelForCausalLM.from_pretrained(kind), ids))


def test_a_forward_returns_a_cache_as_the_config_says(model: Any) -> None:  # noqa: ANN401
    ids = tokens_of(2, 6)
    assert model.config.use_cache is True
    with torch.no_grad():
        assert model(ids)[CACHE_NAME].get_seq_length() == 6
        assert CACHE_NAME not in model(ids, use_cache=False)
        model.config.use_cache = False
        assert CACHE_NAME not in model(ids)
        assert model(ids, use_cache=True)[CACHE_NAME].get_seq_length() == 6
        model.config.use_cache = True
    model.train()
    assert CACHE_NAME not in model(ids)


def test_a_cache_that_is_not_used_costs_nothing(fuse: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fuse("gpt2", "llama")
    monkeypatch.setattr(type(runtime.source("llama")), "new_cache", lambda _source: pytest.fail("a cache was made"))
    with torch.no_grad():
        assert runtime.as_causal_lm()(tokens_of(2, 6))[CACHE_NAME].experts == {}


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_turns_of_a_talk_share_a_cache(name: str, model: Any) -> None:  # noqa: ANN401
    cache, said = model.new_cache(), tokens_of(1, 6)
    for turn in range(3):
        said = torch.cat([said, tokens_of(1, 4, seed=turn)], 1)
        answer = model.generate(said, **{name: cache}, **GREEDY)
        assert torch.equal(answer, written(model, said)), f"turn {turn}"
        said = answer
    assert cache.get_seq_length() == said.shape[1] - 1


def test_generation_continues_from_copies_of_the_cache_of_a_prefix(model: Any) -> None:  # noqa: ANN401
    prefix = tokens_of(1, 6)
    with torch.no_grad():
        caches = [model(prefix, use_cache=True)[CACHE_NAME], model(prefix)[CACHE_NAME]]
    for seed in (1, 2):
        text = torch.cat([prefix, tokens_of(1, 3, seed=seed)], 1)
        for cache in caches:
            found = model.generate(text, past_key_values=copy.deepcopy(cache), **GREEDY)
            assert torch.equal(found, written(model, text))
        mask = torch.ones_like(text)
        found = model.generate(text[:, 6:], past_key_values=copy.deepcopy(caches[0]), attention_mask=mask, **GREEDY)
        assert torch.equal(found[:, 3:], written(model, text)[:, 9:])


def test_a_prefix_is_shared_by_many_texts(model: Any) -> None:  # noqa: ANN401
    prefix = tokens_of(1, 6)
    with torch.no_grad():
        cache = model(prefix, use_cache=True)[CACHE_NAME]
    cache.batch_repeat_interleave(3)
    texts = torch.cat([prefix.expand(3, -1), tokens_of(3, 3, seed=1)], 1)
    assert torch.equal(model.generate(texts, past_key_values=cache, **GREEDY), written(model, texts))


@pytest.mark.parametrize("size", [1, 3, 20])
def test_a_prompt_can_be_taken_in_chunks(size: int, model: Any) -> None:  # noqa: ANN401
    ids = tokens_of(2, 7)
    mask = torch.ones_like(ids)
    if not isinstance(model, MoLMixture):
        ids[1, :2], mask[1, :2] = 0, 0
    found = model.generate(ids, attention_mask=mask, prefill_chunk_size=size, **GREEDY)
    assert torch.equal(found, written(model, ids, attention_mask=mask))


@pytest.mark.parametrize("host", ["mamba", "jamba"])
def test_a_host_with_a_state_continues_with_several_tokens_at_a_time(host: str, fuse: Fuse) -> None:
    model, ids = fuse(host, "gpt2").as_causal_lm(), tokens_of(2, 12)
    cache, chunks = model.new_cache(), []
    with torch.no_grad():
        for start, end in ((0, 4), (4, 5), (5, 9), (9, 12)):
            output = model(ids[:, start:end], cache=cache, output_hidden_states=True, logits_to_keep=2)
            assert output.logits.shape[1] == min(2, end - start)
            assert {hidden.shape[1] for hidden in output.hidden_states} == {end - start}
            chunks.append(output.logits[:, -1])
        whole = model(ids).logits[:, [3, 4, 8, 11]]
    torch.testing.assert_close(torch.stack(chunks, 1), whole, rtol=0, atol=1e-4)


def test_labels_of_tokens_that_run_again_do_not_count(fuse: Fuse) -> None:
    ids = tokens_of(2, 9)
    losses = []
    for host in ("gpt2", "mamba"):  # which runs the first tokens again, and which does not
        model = fuse(host, "llama").as_causal_lm()
        with torch.no_grad():
            cache = model(ids[:, :4], use_cache=True)[CACHE_NAME]
            found = model(ids[:, 4:], labels=ids[:, 4:], cache=cache).loss
            logits = model(ids).logits[:, 4:-1]
        losses.append(found - torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 5:].flatten()))
    torch.testing.assert_close(torch.stack(losses), torch.zeros(2), rtol=0, atol=1e-4)


@pytest.fixture
def without_cache(fuse: Fuse, tmp_path: Path) -> MoLRuntime:
    """A fusion whose host's own code has no cache."""
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 64}
    language_model_of("openai-gpt", **sizes).save_pretrained(tmp_path / "openai")
    return fuse(str(tmp_path / "openai"), "llama")


def test_a_host_without_a_cache_runs_all_tokens_again_and_warns_of_it(
    without_cache: MoLRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    model, ids = without_cache.as_causal_lm(), tokens_of(2, 6)
    wanted = written(model, ids)
    with caplog.at_level(logging.WARNING, "mol"):
        assert torch.equal(by_hand(model, ids), wanted)
        assert torch.equal(model.generate(ids, **GREEDY), wanted)
        assert torch.equal(model.generate(ids, prefill_chunk_size=2, **GREEDY), wanted)
        assert torch.equal(model.generate(ids, num_beams=3, **GREEDY), written(model, ids, num_beams=3))
    said = [record.message for record in caplog.records if "does not continue from a cache" in record.message]
    assert len(said) == 1
    assert "(OpenAIGPTLMHeadModel)" in said[0]


def test_a_host_with_output_router_logits_has_its_cache_and_its_head(fuse: Fuse, tmp_path: Path) -> None:
    language_model_of("mixtral", **MIXTRAL, output_router_logits=True).save_pretrained(tmp_path / "mixtral")
    runtime = fuse(str(tmp_path / "mixtral"), "llama", layers=(0, 1, 2), dispatch="sequence", router_prefix=2)
    runtime.setup_lm_head()
    assert runtime.host.cache_mask() == runtime.host.cache_way == "whole"
    model, ids = runtime.as_causal_lm(), tokens_of(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    found = model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(found, written(model, ids, attention_mask=mask))
    with torch.no_grad():
        assert runtime.lm_head is not None
        assert torch.equal(runtime.lm_head(runtime(ids)[0]), model(ids).logits)
        assert model(ids, labels=ids).loss.isfinite()
    with pytest.raises(MolError, match="does not take output_router_logits: the host's own routers are frozen"):
        model(ids, output_router_logits=True)
    alone = MoLMixture.from_models([AutoModelForCausalLM.from_pretrained(tmp_path / "mixtral")])
    assert torch.equal(alone.generate(ids, attention_mask=mask, **GREEDY), written(alone, ids, attention_mask=mask))


MIXTRAL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 4,
}  # fmt: skip


def filled(model: Any) -> FusedCache:  # noqa: ANN401
    with torch.no_grad():
        cache: FusedCache = model(tokens_of(1, 6), use_cache=True)[CACHE_NAME]
    return cache


ONE_OF_EACH = r"keeps a cache for each of its models, and a DynamicCache is that of one: pass one from new_cache\(\)"
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "cache of one model": (lambda m: m(tokens_of(1, 4), past_key_values=DynamicCache()), ONE_OF_EACH),
    "the same to generate": (lambda m: m.generate(tokens_of(1, 4), past_key_values=DynamicCache()), ONE_OF_EACH),
    "tuple": (lambda m: m(tokens_of(1, 4), past_key_values=((1, 2),)), "and a tuple is that of one"),
    "static": (lambda m: m.generate(tokens_of(1, 4), cache_implementation="static"), "leave out cache_impl.*'static'"),
    "static by config": (
        lambda m: m.generate(
            tokens_of(1, 4), generation_config=GenerationConfig(cache_implementation="static", **GREEDY)
        ),
        "leave out cache_implementation='static'",
    ),
    "paged": (lambda m: m.generate(tokens_of(1, 4), cache_implementation="paged"), "leave out cache_impl.*'paged'"),
    "embeddings": (lambda m: m(inputs_embeds=torch.zeros(1, 4, 32)), "does not take inputs_embeds"),
    "embeddings to generate": (
        lambda m: m.generate(inputs_embeds=torch.zeros(1, 4, 32)),
        "does not take inputs_embeds: give input_ids",
    ),
    "nothing": (lambda m: m(), r"input_ids are missing; wanted a tensor \(batch, tokens\) of integers"),
    "list": (lambda m: m([[5, 6]]), 'input_ids are a list, wanted a tensor .* return_tensors="pt"'),
    "list to generate": (lambda m: m.generate([[5, 6]]), "input_ids are a list, wanted a tensor"),
    "floats": (lambda m: m(torch.zeros(1, 4)), r"input_ids are torch\.float32, wanted a tensor .* of integers"),
    "one axis": (lambda m: m(tokens_of(1, 4)[0]), r"input_ids are \(4,\), wanted \(batch, tokens\)"),
    "mask": (lambda m: m(tokens_of(1, 4), attention_mask=[[1] * 4]), r"attention_mask is a list, wanted .*\(1, 4\)"),
    "labels": (lambda m: m(tokens_of(1, 4), labels=[[1] * 4]), r"labels are a list, wanted a tensor \(1, 4\)"),
    "labels of others": (
        lambda m: m(tokens_of(1, 4), labels=tokens_of(1, 3)),
        r"labels are \(1, 3\), wanted .*\(1, 4\)",
    ),
    "other rows": (
        lambda m: m(tokens_of(3, 2), cache=filled(m)),
        "the cache holds 1 rows, and 3 were given; its batch_repeat_interleave repeats rows",
    ),
    "nothing new": (
        lambda m: m.generate(tokens_of(1, 6), past_key_values=filled(m), **GREEDY),
        "the cache holds 6 tokens, and input_ids are 6: give the whole text with at least one new token",
    ),
    "chunks without a cache": (
        lambda m: m.generate(tokens_of(1, 6), prefill_chunk_size=2, use_cache=False, **GREEDY),
        "takes a prompt in chunks only with a cache: leave out use_cache=False",
    ),
}


@pytest.mark.parametrize("name", ["gpt2+llama", "mixture"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_input_is_refused_with_a_message(name: str, case: str, fuse: Fuse) -> None:
    model: Any = (
        fuse("gpt2", "llama").as_causal_lm()
        if name != "mixture"
        else MoLMixture.from_models([language_model_of("gpt2")])
    )
    call, words = REFUSED[case]
    with pytest.raises(MolError, match=words):
        call(model)


def test_assisted_generation_says_why_it_is_refused(model: Any) -> None:  # noqa: ANN401
    for options in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": language_model_of("gpt2")}):
        with pytest.raises(ValueError, match="assisted generation is not supported with stateful models, such as MoL"):
            model.generate(tokens_of(1, 6), **options, **GREEDY)


def test_a_fusion_or_a_mixture_assists_another_model(model: Any) -> None:  # noqa: ANN401
    main, ids = language_model_of("opt", seed=3), tokens_of(1, 6)
    options = {**GREEDY, "max_new_tokens": 12}
    assert torch.equal(main.generate(ids, assistant_model=model, **options), main.generate(ids, **options))


@pytest.mark.parametrize("removed", [-1, -99, 4])
def test_a_cache_that_was_cut_is_that_of_the_tokens_that_are_left(removed: int, model: Any) -> None:  # noqa: ANN401
    ids, cache = tokens_of(2, 6), model.new_cache()
    said = model.generate(ids, past_key_values=cache, **GREEDY)[:, :10]
    cache.crop(removed)
    left = {-1: 9, -99: 0, 4: 4}[removed]
    assert cache.get_seq_length() == left
    text = torch.cat([said[:, :left], tokens_of(2, 5, seed=9)], 1)
    copied = copy.deepcopy(cache)
    assert torch.equal(model.generate(text, past_key_values=cache, **GREEDY), written(model, text))
    if not left:  # other rows may follow, too
        text = tokens_of(3, 4, seed=1)
        assert torch.equal(model.generate(text, past_key_values=copied, **GREEDY), written(model, text))


@pytest.mark.parametrize("router_type", ["simple", "token"])
@pytest.mark.parametrize("negative", [0, 4])
def test_guidance_chooses_experts_by_the_prompt_of_its_own_text(negative: int, router_type: str, fuse: Fuse) -> None:
    settings: Any = {"dispatch": "sequence", "top_k_experts": 1, "router_prefix": 3, "router_type": router_type}
    model, ids = fuse("gpt2", "llama", **settings).as_causal_lm(), tokens_of(2, 6)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    options: dict[str, Any] = {"guidance_scale": 1.5}
    if negative:
        options["negative_prompt_ids"] = tokens_of(2, negative, seed=3)
    assert torch.equal(model.generate(ids, **GREEDY, **options), written(model, ids, **options))


def test_rows_that_choose_by_the_whole_prompt_take_it_whole(fuse: Fuse) -> None:
    model = fuse("gpt2", "llama", dispatch="sequence").as_causal_lm()
    with pytest.raises(MolError, match="rows choose their experts by the whole prompt, so a fused model does not take"):
        model.generate(tokens_of(1, 6), prefill_chunk_size=2, **GREEDY)


def test_what_only_the_host_knows_reaches_it_from_generate(fuse: Fuse) -> None:
    """GPT-2 adds an embedding for each token's type, which the text grows by."""
    ids = tokens_of(2, 6)
    types = tokens_of(2, 6, seed=4)
    model = fuse("gpt2").as_causal_lm()
    wanted = AutoModelForCausalLM.from_pretrained("gpt2").generate(ids, token_type_ids=types, **GREEDY)
    assert torch.equal(model.generate(ids, token_type_ids=types, **GREEDY), wanted)
    assert not torch.equal(model.generate(ids, **GREEDY), wanted)
    assert torch.equal(written(model, ids, token_type_ids=types), wanted)
    with pytest.raises(ValueError, match=r"not used by the model: \['token_types'\]"):
        model.generate(ids, token_types=types, **GREEDY)


def test_settings_of_generate_come_before_defaults(fuse: Fuse) -> None:
    runtime, ids = fuse("gpt2", "llama"), tokens_of(1, 6)
    greedy = runtime.as_causal_lm().generate(ids, **GREEDY)
    config = GenerationConfig(**GREEDY)
    before = config.to_dict()
    assert torch.equal(runtime.generate(ids, generation_config=config), greedy)
    assert config.to_dict() == before
    assert torch.equal(runtime.generate(ids, temperature=0, max_new_tokens=5, eos_token_id=None), greedy)
    free = {"eos_token_id": None, "pad_token_id": 0}
    assert runtime.generate(ids, generation_config=GenerationConfig(**free)).shape == (1, 56)
    assert runtime.generate(ids, max_length=9, **free).shape == (1, 9)
    assert runtime.generate(ids, generation_config=GenerationConfig(max_length=9, **free)).shape == (1, 9)


def test_settings_of_the_host_come_before_defaults(fuse: Fuse, tmp_path: Path) -> None:
    host = language_model_of("gpt2", n_embd=32, n_head=4, n_layer=3, n_positions=64)
    host.generation_config.update(do_sample=False, max_new_tokens=3, eos_token_id=None, pad_token_id=0)
    host.save_pretrained(tmp_path / "host")
    runtime, ids = fuse(str(tmp_path / "host"), "llama"), tokens_of(1, 6)
    greedy = runtime.as_causal_lm().generate(ids)
    assert greedy.shape == (1, 9)
    assert torch.equal(runtime.generate(ids), greedy)
    assert runtime.generate(ids, max_new_tokens=4).shape == (1, 10)
    torch.manual_seed(0)
    drawn = {tuple(runtime.generate(ids, do_sample=True)[0].tolist()) for _ in range(4)}
    assert len(drawn) > 1
