"""Options of training: supervised routers, distillation, annealing, recomputation, warnings."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from mol.errors import ConfigError
from mol.training import TrainingCallback
from tests.core.zoo import language_model_of
from tests.training.toolkit import batch_of, gradients_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.training import MoLTrainer
    from tests.training.conftest import Train

NO_ROUTING: dict[str, Any] = {"load_balancing_coeff": 0.0, "entropy_penalty_coeff": 0.0}


def domains_of(*domains: int) -> list[dict[str, torch.Tensor]]:
    """Rows whose tokens say which expert they belong to: low ones the first, high ones the second."""
    return [
        {"input_ids": row["input_ids"] % 4 + 5 + 60 * max(domain, 0), "domains": torch.tensor(domain)}
        for row, domain in zip(rows_of(*[8] * len(domains)), domains, strict=True)
    ]


def test_routers_learn_the_domains_of_their_labels(trainer: Train) -> None:
    made = trainer(
        **NO_ROUTING, domain_loss_coeff=1.0, router_learning_rate=3e-2, max_steps=40, max_epochs=40, batch_size=8,
        lr_scheduler_type="constant", fusion={"router_type": "token"},
    )  # fmt: skip
    rows = domains_of(*[0, 1] * 8)
    made.train(rows)
    ids = torch.stack([row["input_ids"] for row in rows])
    _, stats = made.mol(ids, return_router_stats=True)
    assert stats is not None
    for layer in stats.values():
        first = layer["expert_weights"][..., 0].mean(-1)
        assert first[0::2].min() > 0.6 > 0.4 > first[1::2].max()


def test_rows_without_a_domain_supervise_nothing(trainer: Train) -> None:
    settings = {**NO_ROUTING, "noise": False, "domain_loss_coeff": 1.0}
    batch = batch_of(domains_of(0, 1))
    plain = trainer(**settings).train_step(batch)
    none = trainer(**settings).train_step({**batch, "domains": torch.tensor([-100, -100])})
    beyond = trainer(**settings).train_step({**batch, "domains": torch.tensor([7, 7])})  # no layer has so many experts
    says = trainer(**settings).train_step({**batch, "domains": torch.tensor([0, 1])})
    assert plain["domain_loss"] == none["domain_loss"] == beyond["domain_loss"] == 0.0
    assert says["domain_loss"] == pytest.approx(math.log(2), rel=0.2)
    assert says["total_loss"] == pytest.approx(says["lm_loss"] + says["domain_loss"], rel=1e-5)


def test_a_row_learns_from_the_teacher_of_its_domain(trainer: Train) -> None:
    teacher = language_model_of("gpt2", seed=7)
    batch = {**batch_of(rows_of(8, 8, 5)), "domains": torch.tensor([1, -100, 0])}
    made = trainer(
        **NO_ROUTING, noise=False, distillation_coeff=1.0, options={"teachers": {1: teacher}}, learning_rate=1e-2,
        lr_scheduler_type="constant",
    )  # fmt: skip
    with torch.no_grad():
        row = batch["input_ids"][:1]
        own = made.mol.as_causal_lm()(row).logits[:, :-1].log_softmax(-1)
        taught = teacher(row).logits[:, :-1].log_softmax(-1)
    wanted = (taught.exp() * (taught - own)).sum().item() / (7 + 7 + 4)  # over all labels of the batch
    found = [made.train_step(batch)["distillation_loss"] for _ in range(12)]
    assert found[0] == pytest.approx(wanted, rel=1e-3)
    assert found[-1] < found[0]
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_teachers_and_their_coefficient_go_together(trainer: Train) -> None:
    with pytest.raises(ConfigError, match="distillation takes both, teachers"):
        trainer(distillation_coeff=1.0)
    with pytest.raises(ConfigError, match="distillation takes both, teachers"):
        trainer(options={"teachers": {0: language_model_of("gpt2")}})
    other = language_model_of("gpt2", vocab_size=99)
    with pytest.raises(ConfigError, match=r"the teacher of domain 0 \(GPT2LMHeadModel\) has 99 tokens, the host 128"):
        trainer(distillation_coeff=1.0, options={"teachers": {0: other}})


def test_mutual_information_is_subtracted(trainer: Train) -> None:
    made = trainer(**NO_ROUTING, noise=False, mutual_information_coeff=2.0)
    metrics = made.train_step(batch_of(rows_of(9, 9)))
    assert metrics["mutual_information"] > 0.0
    assert metrics["total_loss"] == pytest.approx(metrics["lm_loss"] - 2.0 * metrics["mutual_information"], rel=1e-5)


class Counts(TrainingCallback):
    """Keeps the number of experts of a token in each step."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, trainer: MoLTrainer, metrics: Mapping[str, float]) -> None:
        router = trainer.mol.fused[0].router
        assert router is not None
        self.seen.append(router.top_k)


def test_the_number_of_experts_falls_from_all_to_that_of_the_fusion(trainer: Train) -> None:
    counts = Counts()
    made = trainer(
        "gpt2", "llama", "qwen3", fusion={"top_k_experts": 1}, dense_steps=4, max_steps=6, batch_size=2,
        options={"callbacks": [counts]},
    )  # fmt: skip
    made.train(rows_of(*[5] * 12))
    assert counts.seen == [3, 3, 2, 2, 1, 1]
    short = trainer("gpt2", "llama", "qwen3", fusion={"top_k_experts": 1}, dense_steps=4, max_steps=1)
    short.train(rows_of(5))
    assert [layer.router.top_k for layer in short.mol.fused] == [1, 1]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"dense_steps is set, and MoLConfig\(top_k_experts=\.\.\.\) is not"):
        trainer(dense_steps=4)


def test_layers_run_again_in_the_backward_pass_of_a_step_and_give_the_same_gradients(trainer: Train) -> None:
    batch, found, kept = batch_of(rows_of(9, 9)), [], []
    for recompute in (False, True):
        made = trainer(use_gradient_checkpointing=recompute, gradient_clip_norm=None)
        torch.manual_seed(3)
        kept.append(0)

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made.train_step(batch)
        found.append(gradients_of(made))
        assert not made.mol.gradient_checkpointing
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert kept[1] < kept[0] / 2


def test_one_expert_with_nearly_all_tokens_is_warned_of_with_the_coefficients_in_force(
    trainer: Train, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer("gpt2", "llama", "qwen3", load_balancing_coeff=0.25, entropy_penalty_coeff=0.125, batch_size=1,
                   max_steps=50, max_epochs=50, learning_rate=0.0, router_learning_rate=0.0)  # fmt: skip
    for layer in made.mol.fused:
        assert layer.router is not None
        with torch.no_grad():
            layer.router.classifier.weight.zero_()
            layer.router.classifier.bias.copy_(torch.tensor([4.0, 0.0, 0.0]))  # 96, 2 and 2 in a hundred
    with caplog.at_level(logging.WARNING, "mol"):
        made.train(rows_of(5))
    says = [message for message in caplog.messages if message.startswith("layer ")]
    assert [message.split(",")[0] for message in says] == [
        f"layer {number}: over the last 50 training steps the router gave 96.5% to gpt2[{number}]" for number in (0, 2)
    ]
    assert (
        "a larger load_balancing_coeff (0.25) or a smaller entropy_penalty_coeff (0.125) spreads the tokens" in says[0]
    )
