"""Experts are balanced without a loss: biases of the choice follow their loads (Wang et al., 2024, 2408.15664)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from mol.config.mol_config import MoLConfig
from mol.core.mol_runtime import MoLForCausalLM, MoLRuntime
from mol.core.routers import top_k_weights
from mol.errors import ConfigError
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core.conftest import Fuse

BIAS: dict[str, Any] = {"balance": "bias", "top_k_experts": 1, "router_type": "token"}


def biases_of(runtime: MoLRuntime) -> list[np.ndarray[Any, Any]]:
    """A copy of the biases, by layer."""
    return [layer.router.expert_bias.numpy().copy() for layer in runtime.fused]  # type: ignore[union-attr]


def set_biases(runtime: MoLRuntime, *values: float) -> None:
    for layer in runtime.fused:
        assert layer.router is not None
        layer.router.expert_bias = torch.tensor(values)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_bias_counts_for_the_choice_and_not_for_the_weights(k: int) -> None:
    rng = np.random.default_rng(k)
    logits, bias = rng.normal(size=(7, 5)), rng.normal(size=5)
    found = top_k_weights(torch.from_numpy(logits), k, torch.from_numpy(bias)).numpy()
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row in range(7):
        chosen = np.argsort(-(logits[row] + bias))[:k]
        wanted = np.zeros(5)
        wanted[chosen] = p[row, chosen] / (p[row, chosen].sum() if k > 1 else 1.0)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-12)


def test_the_chosen_have_weights_however_little_probability_they_have() -> None:
    logits = torch.tensor([[300.0, 0.0, 1.0]])
    weights = top_k_weights(logits, 2, torch.tensor([-1e3, 0.0, 0.0]))
    torch.testing.assert_close(weights, torch.tensor([[0.0, *torch.tensor([0.0, 1.0]).softmax(-1).tolist()]]))


@pytest.mark.parametrize("settings", [{}, {"top_k_experts": 2}, {"dispatch": "token"}, {"dispatch": "sequence"}])
def test_biases_follow_the_law_of_the_paper(settings: dict[str, Any], fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", "qwen3", **{**BIAS, **settings})
    model = runtime.as_causal_lm().train()
    wanted = biases_of(runtime)
    assert not any(bias.any() for bias in wanted)
    for step in range(4):
        loads = [np.zeros(3) for _ in wanted]
        for part in range(2):
            ids = tokens_of(3, 9, seed=2 * step + part)
            mask = torch.ones_like(ids)
            mask[0, :4] = 0
            model(ids, attention_mask=mask, labels=ids).loss.backward()
            for load, routing in zip(loads, model.routings.values(), strict=True):
                load += (routing.weights.detach().numpy() > 0).sum((0, 1))
        assert all(load.sum() == 2 * 23 * runtime.config.top_k_experts for load in loads)  # type: ignore[operator]
        rate = 0.01 * 2**step  # no sum of which is 0
        runtime.update_expert_biases(rate)
        wanted = [
            bias + np.float32(rate) * np.sign(load.mean() - load).astype(np.float32)
            for bias, load in zip(wanted, loads, strict=True)
        ]
        for bias, reference in zip(biases_of(runtime), wanted, strict=True):
            assert bias.tobytes() == reference.tobytes()
    assert all(bias.any() for bias in wanted)


def test_layers_that_run_again_in_the_backward_pass_are_counted_once(fuse: Fuse) -> None:
    found = []
    for recompute in (False, True):
        runtime = fuse("gpt2", "llama", "qwen3", use_gradient_checkpointing=recompute, **BIAS)
        model, ids = runtime.as_causal_lm().train(), tokens_of(3, 9)
        torch.manual_seed(1)
        model(ids, labels=ids).loss.backward()
        runtime.update_expert_biases()
        found.append(biases_of(runtime))
    assert np.array_equal(*found)


def test_nothing_outside_of_training_counts(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", **BIAS)
    model, ids = runtime.as_causal_lm(), tokens_of(2, 5)
    model(ids, labels=ids)
    model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        model.train()(ids, labels=ids)
    runtime.update_expert_biases()
    assert not any(bias.any() for bias in biases_of(runtime))


def test_a_fusion_is_saved_and_loaded_with_its_biases(fuse: Fuse, tmp_path: Path) -> None:
    runtime = fuse("gpt2", "llama", **BIAS)
    model, ids = runtime.as_causal_lm(), tokens_of(2, 7)
    before = model(ids).logits
    set_biases(runtime, -9.5, 0.1)
    logits = model(ids).logits
    assert not torch.equal(logits, before)
    assert all(routing.weights[..., 0].eq(0).all() for routing in model.routings.values())
    runtime.save_checkpoint(tmp_path / "one")
    model.save_pretrained(tmp_path / "two")
    loaded = MoLRuntime.load_checkpoint(tmp_path / "one")
    for again in (loaded.as_causal_lm(), MoLForCausalLM.from_pretrained(tmp_path / "two")):
        assert torch.equal(again(ids).logits, logits)
    assert np.array_equal(biases_of(loaded), biases_of(runtime))


def test_biases_of_a_cast_model_still_move(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", **BIAS)
    set_biases(runtime, 1.0, 0.0)
    runtime.layers.to(torch.bfloat16)
    model, ids = runtime.as_causal_lm().train(), tokens_of(2, 5)
    model(ids, labels=ids).loss.backward()
    runtime.update_expert_biases(1e-3)
    assert all(bias.dtype == np.float32 for bias in biases_of(runtime))
    assert not any(np.isin(bias, [1.0, 0.0]).any() for bias in biases_of(runtime))


def test_a_callback_of_transformers_trainer_moves_biases(fuse: Fuse, tmp_path: Path) -> None:
    class Balance(TrainerCallback):
        def on_optimizer_step(self, *_: Any, model: MoLForCausalLM, **others: Any) -> None:  # noqa: ANN401
            model.runtime.update_expert_biases(0.5)

    runtime = fuse("gpt2", "llama", **BIAS)
    set_biases(runtime, -9.0, 0.0)  # so that all go to the second
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no",
        per_device_train_batch_size=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in tokens_of(8, 6)]
    Trainer(runtime.as_causal_lm(), arguments, train_dataset=rows, callbacks=[Balance()]).train()
    assert [bias.tolist() for bias in biases_of(runtime)] == [[-8.0, -1.0]] * 2


def test_routing_to_all_experts_is_refused(fuse: Fuse) -> None:
    with pytest.raises(ConfigError, match=r'balance is "bias", .* without top_k_experts every token is given to all'):
        MoLConfig(["any"], balance="bias")
    with pytest.raises(ConfigError, match="balance is 'capacity', wanted one of loss, bias"):
        MoLConfig(["any"], balance="capacity")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no router has a bias to balance experts by: that takes MoLConfig"):
        fuse("gpt2", "llama", **{**BIAS, "top_k_experts": 2}).update_expert_biases()
    with pytest.raises(ConfigError, match="no router has a bias to balance experts by: that takes MoLConfig"):
        fuse("gpt2", "llama", top_k_experts=1).update_expert_biases()


def test_the_loss_has_no_term_for_what_the_bias_does(fuse: Fuse) -> None:
    found = []
    for coefficient in (0.0, 5.0):
        runtime = fuse("gpt2", "llama", load_balancing_coeff=coefficient, **BIAS)
        model, ids = runtime.as_causal_lm().train(), tokens_of(2, 5)
        torch.manual_seed(1)
        found.append(model(ids, labels=ids).loss.item())
    assert found[0] == found[1]


def test_warnings_name_the_rate_of_the_biases(fuse: Fuse, caplog: pytest.LogCaptureFixture) -> None:
    runtime = fuse("gpt2", "llama", layers=(0,), **BIAS)
    set_biases(runtime, 9.0, 0.0)
    model, ids = runtime.as_causal_lm().train(), tokens_of(1, 3)
    with caplog.at_level(logging.WARNING, "mol"):
        for _ in range(50):
            model(ids, labels=ids)
    assert "a larger rate of update_expert_biases (bias_update_rate of TrainingConfig) after each step" in caplog.text
