"""MoLRuntime and its settings: what is taken, in which forms, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError, replace
from typing import TYPE_CHECKING

import pytest
import torch

from mol.config.mol_config import MoLConfig
from mol.core.cache import CACHE_NAME
from mol.errors import ConfigError, FusionError, MolError
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from tests.core.conftest import Fuse


@pytest.mark.parametrize(
    ("specs", "layer", "says"),
    [
        ([("gpt2", 3)], 0, "gpt2 has blocks 0 to 2, not 3"),
        ([("gpt2", -1)], 0, "gpt2 has blocks 0 to 2, not -1"),
        ([("llama", range(2, 4))], 0, r"llama has blocks 0 to 2, not range\(2, 4\)"),
        ([("gpt2", 0)], 3, "the host gpt2 has layers 0 to 2"),
        ([("gpt2", 0)], 1, "layer_idx 1 was added before"),
        ([], 0, "no block is named"),
        ([("llama", "0")], 0, r"\('llama', '0'\) is not \(model, number of a block\)"),
        (["llama"], 0, r"'llama' is not \(model, number of a block\) or \(model, numbers of several\)"),
        ([("opt", 0)], 0, "'opt' is not one of the models of this fusion: gpt2, llama"),
    ],
)
def test_layers_that_cannot_be_are_refused(specs: list, layer: int, says: str, fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=(1,))
    with pytest.raises(ConfigError, match=says):
        runtime.add_layer(specs, layer)
    assert runtime.positions == [1]


def test_blocks_in_a_row_are_named_as_they_were_given(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=())
    runtime.add_layer([("llama", 1), ("llama", range(3)), ("llama", [0, 2]), ("llama", range(2, -1, -1))], 1)
    assert [str(spec) for spec in runtime.fusion().layers[1].specs] == [
        "llama[1]", "llama[0-2]", "llama[0,2]", "llama[2,1,0]",
    ]  # fmt: skip


def test_max_layers_is_a_limit(fuse: Fuse) -> None:
    with pytest.raises(ConfigError, match="max_layers is 1"):
        fuse("gpt2", layers=(0, 1), max_layers=1)


def test_blocks_that_attend_to_later_tokens_are_refused_unless_allowed(fuse: Fuse) -> None:
    with pytest.raises(MolError, match=r"(?s)attend to later tokens.*allow_bidirectional=True.*convbert\[0\]"):
        fuse("gpt2", "convbert")
    runtime = fuse("gpt2", "convbert", allow_bidirectional=True)
    assert runtime.as_causal_lm()(tokens_of(1, 5)).logits.isfinite().all()


def test_a_host_of_two_stacks_is_refused(fuse: Fuse) -> None:
    with pytest.raises(MolError, match=r"t5.*encoder and a decoder.*cannot be the host"):
        fuse("t5")


def test_a_host_without_head_is_refused(fuse: Fuse) -> None:
    with pytest.raises(MolError, match=r"vit.*no (language model )?head"):
        fuse("vit")


def test_the_width_is_the_hosts(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", target_hidden_dim=64)
    with pytest.raises(MolError, match=r"target_hidden_dim is 64.*gpt2: 32"):
        runtime.setup_embeddings()


def test_the_host_can_be_chosen_before_layers_are_added(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=())
    runtime.setup_embeddings("llama")
    assert runtime.host_name == "llama"
    runtime.add_layer([("llama", 0), ("gpt2", 0)])
    with pytest.raises(ConfigError, match="call setup_embeddings before"):
        runtime.setup_embeddings("gpt2")
    with pytest.raises(ConfigError, match="make 'gpt2' the host"):
        runtime.setup_lm_head("gpt2")


def test_settings_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        MoLConfig(models=["a"], adapter_type="cubic", temperature=0.0, top_k_experts=0, stacks={"b": "x"})  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4


def test_settings_are_changed_in_a_copy_that_is_checked_too() -> None:
    config = MoLConfig(models=["a"], dtype=torch.bfloat16)
    with pytest.raises(FrozenInstanceError):
        config.dispatch = "token"  # type: ignore[misc]
    assert replace(config, dispatch="token") == MoLConfig(models=["a"], dtype="bfloat16", dispatch="token")
    with pytest.raises(ConfigError, match="dispatch is 'row', wanted one of dense, sequence, token"):
        replace(config, dispatch="row")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"device_map": "auto"}, 'give one device, "cpu" say'),
        ({"quantization_config": {"load_in_4bit": True}}, "does not run quantized blocks: leave it out"),
        ({"revisions": "main"}, "revisions is 'main', wanted a dictionary by model name"),
        ({"models": "gpt2"}, "models is 'gpt2', wanted a list of model names"),
    ],
)
def test_settings_that_are_not_honoured_are_refused(setting: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MoLConfig(**{"models": ["gpt2"], **setting})


def test_settings_in_the_ways_that_transformers_takes_them(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", device_map="cpu", dtype=torch.bfloat16)
    assert runtime.host.dtype == runtime.source("llama").dtype == torch.bfloat16
    assert (runtime.config.dtype, runtime.config.dtype_of("llama")) == ("bfloat16", "bfloat16")
    assert runtime.config.devices == dict.fromkeys(runtime.config.models, "cpu")
    assert MoLConfig(["a"], device_map=None).devices == {}
    assert MoLConfig(["a", "b"], device_map={"": 0}).devices == {"a": "cuda:0", "b": "cuda:0"}
    assert MoLConfig(["a", "b"], device_map={"b": torch.device("cpu"), "a": 1}).devices == {"b": "cpu", "a": "cuda:1"}
    assert MoLConfig(["a", "b"], dtype={"b": torch.float16}).dtype_of("b") == "float16"


def test_a_runtime_without_layers_is_the_host(fuse: Fuse) -> None:
    runtime = fuse("gpt2", layers=())
    ids = tokens_of(2, 6)
    with torch.no_grad():
        assert torch.equal(runtime.as_causal_lm()(ids).logits, runtime.host.model(ids).logits)


def test_tracing_is_refused_in_words(fuse: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fuse("gpt2", "llama").as_causal_lm()
    monkeypatch.setattr("torch.jit.is_tracing", lambda: True)  # a trace that ends early may crash the next one
    for traced in (model.runtime, model, model.base_model):
        with pytest.raises(MolError, match=r"cannot be traced \(torch\.jit\.trace\).*torch\.compile\(model\) runs it"):
            traced(tokens_of(2, 6))


def test_a_text_longer_than_an_experts_positions_is_refused(fuse: Fuse) -> None:
    model = fuse("llama", "bert").as_causal_lm()
    with torch.no_grad(), pytest.raises(MolError, match="bert has positions for 64 tokens, and 65 were given"):
        model(tokens_of(1, 65))


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"position_ids": torch.arange(6)[None]}, "does not take position_ids: every model computes its own from att"),
        ({"inputs_embeds": torch.zeros(1, 6, 32)}, "does not take inputs_embeds: give input_ids"),
        ({"output_attentions": True}, "does not take output_attentions: experts do not return theirs"),
        ({"colour": "red"}, "does not take colour, nor does its host gpt2"),
        (
            {"attention_mask": torch.ones(1, 5)},
            r"attention_mask is \(1, 5\) for 6 tokens in 1 rows, wanted \(1, 6\)",
        ),
        ({"input_ids": torch.arange(6)}, r"input_ids are \(6,\), wanted \(batch, tokens\)"),
        ({"input_ids": torch.zeros(2, 0).long()}, r"input_ids are \(2, 0\), wanted .*, at least one of each"),
    ],
)
def test_inputs_that_would_be_ignored_or_do_not_fit_are_refused(inputs: dict, says: str, fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama")
    for model in (runtime, runtime.as_causal_lm()):
        with pytest.raises(MolError, match=says):
            model(**{"input_ids": tokens_of(1, 6), **inputs})


def test_a_mask_covers_what_is_in_the_cache_too(fuse: Fuse) -> None:
    model, ids = fuse("gpt2", "llama").as_causal_lm(), tokens_of(2, 6)
    cache = model(ids, use_cache=True)[CACHE_NAME]
    with pytest.raises(MolError, match=r"\(2, 1\) for 1 tokens after 6 in the cache in 2 rows, wanted \(2, 7\)"):
        model(ids[:, :1], attention_mask=torch.ones(2, 1), cache=cache)


def test_hidden_states_are_the_streams_between_layers(fuse: Fuse) -> None:
    runtime, ids = fuse("gpt2", "llama", layers=(1,)), tokens_of(2, 6)
    with torch.no_grad():
        states = runtime.as_causal_lm()(ids, output_hidden_states=True).hidden_states
        alone = runtime.host.model(ids, output_hidden_states=True).hidden_states
        stream, _ = runtime(ids)
        assert torch.equal(states[-1], runtime.host.model.transformer.ln_f(stream))
    assert [torch.equal(one, other) for one, other in zip(states, alone, strict=True)] == [True, True, False, False]
    written = runtime.as_causal_lm().generate(
        ids, max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True, pad_token_id=0
    )
    assert [len(step) for step in written.hidden_states] == [4, 4]


def test_what_was_first_run_in_inference_mode_can_be_trained(fuse: Fuse) -> None:
    runtime, ids = fuse("gpt2", "llama"), tokens_of(2, 6)
    with torch.inference_mode():
        runtime(ids)
    runtime.as_causal_lm()(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in runtime.parameters())


def test_a_fusion_is_not_copied_and_its_embeddings_are_the_hosts(fuse: Fuse) -> None:
    model = fuse("gpt2", "llama").as_causal_lm()
    with pytest.raises(MolError, match="cannot be copied or pickled; as_model"):
        copy.deepcopy(model)
    with pytest.raises(MolError, match="the embeddings are those of the host, gpt2"):
        model.resize_token_embeddings(200)


def test_a_host_without_tokenizer_is_reported(fuse: Fuse) -> None:
    with pytest.raises(FileNotFoundError, match=r"gpt2: no tokenizer next to its config\.json"):
        _ = fuse("gpt2").tokenizer


def test_blocks_that_may_attend_to_later_tokens_do_so_with_a_cache_too(fuse: Fuse) -> None:
    """What `generate` has to know of them changes no mask."""
    runtime, ids = fuse("gpt2", "bert", layers=(1,), allow_bidirectional=True), tokens_of(2, 6)
    model = runtime.as_causal_lm()
    with torch.no_grad():
        before = model(ids).logits
        model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=None)
        assert torch.equal(model(ids).logits, before)
    assert not runtime.source("bert").made_causal


def test_the_host_is_opened_by_methods_and_not_by_properties(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=())
    with pytest.raises(FusionError, match=r"the host gpt2 is not open yet: setup_embeddings.*source\('gpt2'\)"):
        _ = runtime.host
    runtime.setup_lm_head()
    assert (runtime.host.name, runtime.target_hidden_dim, runtime.is_causal) == ("gpt2", 32, True)
    runtime.setup_embeddings("llama")
    hidden, _ = runtime(tokens_of(1, 4))
    assert runtime.lm_head is not None
    with torch.no_grad():
        torch.testing.assert_close(runtime.lm_head(hidden), runtime.host.model(tokens_of(1, 4)).logits)
