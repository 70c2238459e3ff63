"""MoLRuntime: what it refuses, what it writes and reads again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from mol.auto import MoLForCausalLM
from mol.config.mol_config import MoLConfig
from mol.errors import ConfigError, MolError
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core.conftest import Fuse


def test_what_was_saved_is_loaded_exactly(fuse: Fuse, tmp_path: Path) -> None:
    runtime = fuse("gpt2", "llama", "bert", layers=(0, 2))
    runtime.add_layer([("gpt2", 0), ("llama", range(1, 3))], 1)
    model = runtime.as_causal_lm()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ids = tokens_of(2, 8)
    wanted = model(ids).logits
    model.save_pretrained(tmp_path / "fused")
    assert sorted(file.name for file in (tmp_path / "fused").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "fused")
    assert torch.equal(again(ids).logits, wanted)
    written = [m.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0) for m in (model, again)]
    assert torch.equal(*written)


def test_weights_that_do_not_fit_the_config_are_refused(fuse: Fuse, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = sorted(weights)[0]
    weights["other"] = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MolError, match=r"(?s)not those that its config describes.*is missing.*other is not wanted"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_fused_model_is_not_looked_for_elsewhere() -> None:
    with pytest.raises(MolError, match="some/model: no such directory"):
        MoLForCausalLM.from_pretrained("some/model")


@pytest.mark.parametrize(
    ("specs", "place", "says"),
    [
        ([("gpt2", 3)], 0, "gpt2 has blocks 0 to 2, not 3"),
        ([("gpt2", -1)], 0, "gpt2 has blocks 0 to 2, not -1"),
        ([("llama", range(2, 4))], 0, r"llama has blocks 0 to 2, not range\(2, 4\)"),
        ([("gpt2", 0)], 3, "the host gpt2 has layers 0 to 2"),
        ([("gpt2", 0)], 1, "layer_idx 1 was added before"),
        ([], 0, "no block is named"),
        ([("opt", 0)], 0, "'opt' is not one of the models of this fusion: gpt2, llama"),
    ],
)
def test_layers_that_cannot_be_are_refused(specs: list, place: int, says: str, fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=(1,))
    with pytest.raises(ConfigError, match=says):
        runtime.add_layer(specs, place)
    assert runtime.positions == [1]


def test_max_layers_is_a_limit(fuse: Fuse) -> None:
    with pytest.raises(ConfigError, match="max_layers is 1"):
        fuse("gpt2", layers=(0, 1), max_layers=1)


def test_blocks_that_look_ahead_are_refused_unless_allowed(fuse: Fuse) -> None:
    with pytest.raises(MolError, match=r"(?s)look ahead.*allow_bidirectional=True.*convbert\[0\]"):
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


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"device_map": "auto"}, 'give one device, "cpu" say'),
        ({"quantization_config": {"load_in_4bit": True}}, "does not run quantized blocks: leave it out"),
        ({"use_gradient_checkpointing": True}, "is not there yet: leave it out"),
        ({"revisions": "main"}, "revisions is 'main', wanted a dictionary by model name"),
    ],
)
def test_settings_that_are_not_honoured_are_refused(setting: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        MoLConfig(["gpt2"], **setting)


def test_settings_in_the_ways_that_transformers_takes_them(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", device_map="cpu", dtype=torch.bfloat16)
    assert runtime.host.dtype == runtime.source("llama").dtype == torch.bfloat16
    assert (runtime.config.dtype, runtime.config.dtype_of("llama")) == ("bfloat16", "bfloat16")
    assert runtime.config.devices == dict.fromkeys(runtime.config.models, "cpu")
    assert MoLConfig(["a"], device_map=None).devices == {}
    assert MoLConfig(["a", "b"], dtype={"b": torch.float16}).dtype_of("b") == "float16"


def test_a_runtime_without_layers_is_the_host(fuse: Fuse) -> None:
    runtime = fuse("gpt2", layers=())
    ids = tokens_of(2, 6)
    with torch.no_grad():
        assert torch.equal(runtime.as_causal_lm()(ids).logits, runtime.host.model(ids).logits)


def test_a_text_longer_than_an_experts_positions_is_refused(fuse: Fuse) -> None:
    model = fuse("llama", "bert").as_causal_lm()
    with torch.no_grad(), pytest.raises(MolError, match="bert has positions for 64 tokens, and 65 were given"):
        model(tokens_of(1, 65))
