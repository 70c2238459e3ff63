"""What begins late in a text: positions that switch, windows and chunks, and the end of the positions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BarkSemanticConfig,
    BarkSemanticModel,
    GenerationConfig,
)

from mol import MoLMixture
from mol.core.blocks.lengths import longest, probe_lengths, thresholds
from mol.core.blocks.probes import keeps_cache
from mol.core.blocks.source import Source
from mol.core.cache import CACHE_NAME
from mol.errors import MolError
from tests.core.zoo import body_of, config_of, language_model_of, tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core.conftest import Fuse

_SIZES: Final[dict[str, Any]] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
SWITCH: Final = 10
"""Tokens after which the positions of these models are others."""
_LONG: Final = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [5.0] * 4, "rope_theta": 10000.0,
    "original_max_position_embeddings": SWITCH,
}  # fmt: skip
TURNING: Final[dict[str, dict[str, Any]]] = {
    "phi3": {
        **_SIZES, "rope_parameters": _LONG, "max_position_embeddings": 64, "original_max_position_embeddings": SWITCH,
    },
    "llama": {
        **_SIZES, "max_position_embeddings": SWITCH,
        "rope_parameters": {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0},
    },
}  # fmt: skip
GREEDY: Final[dict[str, Any]] = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}


def saved(kind: str, path: Path, seed: int = 0) -> str:
    language_model_of(kind, seed=seed, **TURNING[kind]).save_pretrained(path / kind)
    return str(path / kind)


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = tokens_of(3, 7)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    return ids, mask


@pytest.mark.parametrize("kind", TURNING)
def test_a_host_whose_positions_switch_generates_what_it_does_alone(kind: str, fuse: Fuse, tmp_path: Path) -> None:
    name, ids = saved(kind, tmp_path), tokens_of(2, 7)
    for options in ({}, {"num_beams": 3}):
        # transformers 5.16 drops Phi-3's cache there as it should, but then runs the last token alone.
        host = AutoModelForCausalLM.from_pretrained(name)
        wanted = host.generate(ids, use_cache=CACHE_NAME == "cache" or kind != "phi3", **GREEDY, **options)
        assert torch.equal(fuse(name).as_causal_lm().generate(ids, **GREEDY, **options), wanted)
        mixture = MoLMixture.from_models([AutoModelForCausalLM.from_pretrained(name)])
        assert torch.equal(mixture.generate(ids, **GREEDY, **options), wanted)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 3}], ids=["greedy", "beams", "chunks"]
)
@pytest.mark.parametrize("dispatch", ["dense", "sequence", "token"])
@pytest.mark.parametrize("kind", TURNING)
def test_a_cache_changes_nothing_with_experts_whose_positions_switch(
    kind: str, dispatch: str, options: dict[str, int], fuse: Fuse, tmp_path: Path
) -> None:
    if dispatch == "sequence" and "prefill_chunk_size" in options:
        pytest.skip("refused")
    settings = {} if dispatch == "dense" else {"top_k_experts": 1}
    model = fuse("gpt2", saved(kind, tmp_path), dispatch=dispatch, **settings).as_causal_lm()
    ids, mask = padded()
    cached = model.generate(ids, attention_mask=mask, **GREEDY, **options)
    options.pop("prefill_chunk_size", None)
    assert torch.equal(cached, model.generate(ids, attention_mask=mask, use_cache=False, **GREEDY, **options))


@pytest.mark.parametrize("kind", TURNING)
def test_steps_by_hand_give_the_logits_of_the_whole_across_a_switch(kind: str, fuse: Fuse, tmp_path: Path) -> None:
    model = fuse("gpt2", saved(kind, tmp_path)).as_causal_lm()
    assert model.runtime.source(str(tmp_path / kind)).has_native_cache(0)
    ids = tokens_of(2, SWITCH + 4)
    with torch.no_grad():
        cache = model(ids[:, : SWITCH - 2], use_cache=True)[CACHE_NAME]
        for end in range(SWITCH - 1, SWITCH + 5):
            found = model(ids[:, end - 1 : end], cache=cache).logits[:, 0]
            torch.testing.assert_close(found, model(ids[:, :end]).logits[:, -1], rtol=0, atol=1e-4)
        assert cache.get_seq_length() == SWITCH + 4


def test_a_longer_text_before_changes_nothing(fuse: Fuse, tmp_path: Path) -> None:
    model = fuse("gpt2", saved("llama", tmp_path)).as_causal_lm()
    ids = tokens_of(2, SWITCH + 2)
    with torch.no_grad():
        before = model(ids).logits
        model(tokens_of(1, 4 * SWITCH))
        assert torch.equal(model(ids).logits, before)


def test_thresholds_are_read_from_the_config() -> None:
    assert thresholds(config_of("mistral", sliding_window=9)) == [9]
    assert thresholds(config_of("llama4_text", attention_chunk_size=11)) == [11]
    assert thresholds(config_of("longformer", attention_window=[8, 12])) == [8, 12]
    assert thresholds(config_of("qwen2", max_window_layers=7, use_sliding_window=False)) == []
    assert thresholds(config_of("llama")) == []


def test_probes_go_beyond_the_thresholds_within_bounds() -> None:
    source = Source(body_of("mistral", sliding_window=9), "mistral")
    assert probe_lengths(source.driver, 0) == [14]
    assert probe_lengths(Source(body_of("mistral", sliding_window=1 << 13), "mistral").driver, 0) == []
    assert probe_lengths(Source(body_of("llama", **TURNING["llama"]), "dynamic").driver, 0) == []


def test_what_a_window_does_to_a_cache_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that keeps one token less than the window does what is right until the window is full."""
    source = Source(body_of("mistral", sliding_window=12), "mistral")
    assert source.has_native_cache(0)
    layer = type(source.new_cache().layers[0])
    init = layer.__init__
    monkeypatch.setattr(layer, "__init__", lambda self, sliding_window, **rest: init(self, sliding_window - 2, **rest))
    assert not keeps_cache(source.driver, 0)


@pytest.mark.parametrize(
    ("kind", "wanted"), [("gpt2", 64), ("opt", 64), ("bert", 64), ("llama", None), ("bloom", None), ("mamba", None)]
)
def test_for_how_many_tokens_a_model_has_positions(kind: str, wanted: int | None) -> None:
    assert longest(body_of(kind)) == wanted


def test_a_model_without_a_vocabulary_has_a_length_too() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model("canine", num_hash_buckets=64, max_position_embeddings=96, **sizes)
    assert not hasattr(config, "vocab_size")
    assert longest(AutoModel.from_config(config)) == 96


def test_a_table_of_positions_that_is_called_a_block_ends_there() -> None:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "input_vocab_size": 50, "output_vocab_size": 50}
    source = Source(BarkSemanticModel(BarkSemanticConfig(block_size=24, **sizes)), "bark")
    assert source.limit.table == 24
    assert probe_lengths(source.driver, 0) == []


def test_the_shortest_model_is_announced(fuse: Fuse) -> None:
    config = fuse("llama", "bert").as_causal_lm().config
    assert (config.max_position_embeddings, config.num_attention_heads, config.num_hidden_layers) == (64, 4, 3)
    mixture = MoLMixture.from_models([language_model_of("llama"), language_model_of("gpt2", n_positions=40)])
    assert mixture.config.max_position_embeddings == 40


@pytest.mark.parametrize("kind", ["gpt2", "bert", "mixture"])
def test_a_text_that_would_grow_too_long_is_refused_before_its_first_token(kind: str, fuse: Fuse) -> None:
    model: Any = (
        MoLMixture.from_models([language_model_of("gpt2")]) if kind == "mixture" else fuse("llama", kind).as_causal_lm()
    )
    forwards: list[int] = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with pytest.raises(MolError, match=r"has positions for 64 tokens, and the text would take 69; shorten the text"):
        model.generate(tokens_of(1, 60), max_new_tokens=10, **options)
    with pytest.raises(MolError, match="has positions for 64 tokens, and the text would take 69"):
        model.generate(tokens_of(1, 60), generation_config=GenerationConfig(max_length=70, **options))
    assert forwards == []
    assert model.generate(tokens_of(1, 60), max_new_tokens=5, **options).shape == (1, 65)
    ids, mask = tokens_of(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[:, :20] = 0
    assert model.generate(ids, attention_mask=mask, max_new_tokens=10, **options).shape == (2, 70)
    with torch.no_grad(), pytest.raises(MolError, match="has positions for 64 tokens, and 65 were given"):
        model(tokens_of(1, 65))


@pytest.mark.parametrize("way", ["generate", "forward", "mixture"])
def test_rotary_positions_continue_as_in_transformers_with_one_warning_before(
    way: str, fuse: Fuse, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = language_model_of("llama", max_position_embeddings=20)
    path = str(tmp_path / way)
    host.save_pretrained(path)
    model: Any = MoLMixture.from_models([path]) if way == "mixture" else fuse(path, "gpt2").as_causal_lm()
    assert model.config.max_position_embeddings == 20
    said: list[list[str]] = []

    def heard() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "mol"]

    model.register_forward_hook(lambda *_: said.append(heard()))
    with caplog.at_level(logging.WARNING, logger="mol"):
        if way == "forward":
            model(tokens_of(1, 20))
            assert heard() == []
        for _ in range(2):
            if way == "forward":
                model(tokens_of(1, 21))
            else:
                model.generate(tokens_of(1, 18), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    line = f"{path}: its config is for 20 tokens (max_position_embeddings), and longer texts are run"
    assert [each[: len(line)] for each in heard()] == [line]
    assert [*map(len, said)] == ([0, 1, 1] if way == "forward" else [1] * len(said))
