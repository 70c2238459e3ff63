"""What a step of training does and what it must not do."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from mol.errors import ConfigError, FusionError
from mol.training import MoLTrainer, TrainingCallback, TrainingConfig
from mol.training.state import optimizer_state
from tests.core.zoo import language_model_of, tokens_of
from tests.training.toolkit import apart, assert_same, batch_of, counting_rows, gradients_of, rows_of, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.core.conftest import Fuse
    from tests.training.conftest import Train

NO_ROUTING: dict[str, Any] = {"load_balancing_coeff": 0.0, "entropy_penalty_coeff": 0.0}


def test_the_loss_falls_where_there_is_something_to_learn(trainer: Train) -> None:
    rows = counting_rows(16)
    made = trainer(learning_rate=1e-2, router_learning_rate=1e-3, max_steps=60, max_epochs=100, batch_size=8)
    before = made.evaluate(rows)["eval_lm_loss"]
    made.train(rows)
    assert made.global_step == 60
    assert made.evaluate(rows)["eval_lm_loss"] < before - 1.0


def test_adapters_and_routers_change_and_no_model_does(trainer: Train) -> None:
    made = trainer("gpt2", "llama", "qwen3", max_steps=3, learning_rate=1e-2, router_learning_rate=1e-2)
    made.mol(tokens_of(1, 4))  # blocks are read when they first run
    sources = made.mol.fusion().sources
    frozen = {name: {k: v.clone() for k, v in s.model.state_dict().items()} for name, s in sources.items()}
    trained = weights_of(made.mol)
    made.train(rows_of(*[9] * 8))
    for name, source in sources.items():
        assert_same(source.model.state_dict(), frozen[name])
        assert not any(module.training for module in source.model.modules())
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in source.model.parameters())
    after = made.mol.state_dict()
    assert not [name for name, value in trained.items() if torch.equal(value, after[name])]
    assert not made.mol.training


@pytest.mark.parametrize("adapter", ["linear", "bottleneck"])
@pytest.mark.parametrize("router", ["simple", "token"])
def test_the_first_step_at_the_default_rates_moves_outputs_by_less_than_a_hundredth(
    adapter: str, router: str, trainer: Train
) -> None:
    made = trainer(fusion={"adapter_type": adapter, "router_type": router}, lr_scheduler_type="constant")
    ids = tokens_of(4, 16)
    with torch.no_grad():
        before, _ = made.mol(ids)
    made.train_step({"input_ids": ids})
    with torch.no_grad():
        after, _ = made.mol.eval()(ids)
    assert made.config.learning_rate == 1e-4
    assert 0.0 < (after - before).norm() / before.norm() < 0.01


def test_padding_neither_trains_nor_counts(trainer: Train) -> None:
    rows, found = rows_of(4, 9, 6), []
    batches = [
        batch_of(rows),
        batch_of(rows, left=True),
        batch_of(rows, length=14),
        batch_of(rows, left=True, length=14),
    ]
    wrong = batch_of(rows, length=14)
    wrong["labels"] = wrong["input_ids"].masked_fill(wrong["attention_mask"] == 0, 7)  # as a tokenizer's padding is
    for batch in (*batches, wrong):
        made = trainer("gpt2", "llama", noise=False, gradient_clip_norm=None, load_balancing_coeff=0.5,
                       entropy_penalty_coeff=0.5, z_loss_coeff=0.5)  # fmt: skip
        metrics = made.train_step(batch)
        found.append((metrics, gradients_of(made)))
    for metrics, gradients in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-4)
        assert apart(gradients, found[0][1]) < 1e-3


def test_the_loss_is_the_mean_over_the_tokens_that_something_predicts(trainer: Train) -> None:
    made, rows = trainer(noise=False), rows_of(4, 9, 6)
    model = made.mol.as_causal_lm()
    with torch.no_grad():
        logits = [model(row["input_ids"][None]).logits[0, :-1] for row in rows]
    losses = [
        torch.nn.functional.cross_entropy(one, row["input_ids"][1:], reduction="none")
        for one, row in zip(logits, rows, strict=True)
    ]
    wanted = torch.cat(losses).mean().item()
    loss, terms = made.compute_loss(**batch_of(rows))
    assert terms["lm_loss"] == pytest.approx(wanted, rel=1e-4)
    assert terms["total_loss"] == pytest.approx(loss.item())
    assert set(terms) == {"total_loss", "lm_loss", "load_balance_loss", "router_entropy", "entropy_penalty"}
    settings = made.mol.config
    added = settings.load_balancing_coeff * terms["load_balance_loss"] + terms["entropy_penalty"]
    assert loss.item() == pytest.approx(wanted + added, rel=1e-4)
    assert terms["entropy_penalty"] == pytest.approx(settings.entropy_penalty_coeff * terms["router_entropy"])
    assert 0.9 <= terms["load_balance_loss"] <= 2.0
    assert 0.0 < terms["router_entropy"] <= math.log(2)
    evaluated = made.evaluate(DataLoader(rows, batch_size=None, collate_fn=lambda row: batch_of([row])))
    assert evaluated["eval_lm_loss"] == pytest.approx(wanted, rel=1e-4)
    assert evaluated["eval_loss"] == pytest.approx(loss.item(), rel=1e-2)


@pytest.mark.parametrize("settings", [NO_ROUTING, {"load_balancing_coeff": 0.0, "entropy_penalty_coeff": 5.0}])
def test_accumulated_batches_train_like_one(settings: dict[str, float], trainer: Train) -> None:
    rows = rows_of(4, 24, 9, 16, 5, 7)
    found = []
    for size in (6, 1, 4):  # of which the last leaves a short batch
        made = trainer(
            noise=False, gradient_clip_norm=None, max_steps=1, batch_size=size,
            gradient_accumulation_steps=math.ceil(6 / size), **settings,
        )  # fmt: skip
        made.train(rows)
        assert made.global_step == 1
        found.append(gradients_of(made))
    for gradients in found[1:]:
        assert apart(gradients, found[0]) < 1e-4


def test_the_terms_of_routing_pull_on_the_routers(trainer: Train) -> None:
    batch = batch_of(rows_of(9, 9))
    plain = trainer(noise=False, **NO_ROUTING)
    for name in ("load_balancing_coeff", "entropy_penalty_coeff", "z_loss_coeff"):
        loss, _ = plain.compute_loss(**batch)
        other = trainer(noise=False, **{**NO_ROUTING, name: 1.0})
        total, terms = other.compute_loss(**batch)
        total.backward()
        router = other.mol.fused[0].router
        assert router is not None
        assert router.classifier.weight.grad is not None
        assert total.item() != pytest.approx(loss.item(), abs=1e-3)
        assert terms["lm_loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_groups_have_their_rates_and_only_matrices_of_adapters_decay(trainer: Train) -> None:
    made = trainer(learning_rate=3e-4, router_learning_rate=2e-5, weight_decay=0.1)
    made.setup_optimization()
    groups = {group["name"]: group for group in made.optimizer.param_groups}
    assert {name: (group["initial_lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "adapters": (3e-4, 0.1), "adapters_no_decay": (3e-4, 0.0), "routers": (2e-5, 0.0),
    }  # fmt: skip
    assert {parameter.dim() for parameter in groups["adapters"]["params"]} == {2}
    assert all(".router." in name for name in groups["routers"]["names"])
    listed = [name for group in groups.values() for name in group["names"]]
    assert sorted(listed) == sorted(name for name, _ in made.model.named_parameters())


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.0, 0.5, 1.0, 0.8536, 0.5, 0.1464]),
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_rates_follow_the_schedule(schedule: str, wanted: list[float], trainer: Train) -> None:
    rates: list[tuple[float, float]] = []

    class Watch(TrainingCallback):
        def on_step_end(self, trainer: MoLTrainer, metrics: Mapping[str, float]) -> None:
            rates.append((metrics["learning_rate"], metrics["router_learning_rate"]))

    made = trainer(
        lr_scheduler_type=schedule, warmup_steps=2, max_steps=6, batch_size=2, options={"callbacks": [Watch()]}
    )
    made.train(rows_of(*[5] * 12))
    assert [rate / 1e-4 for rate, _ in rates] == pytest.approx(wanted, abs=1e-3)
    assert [rate / 1e-5 for _, rate in rates] == pytest.approx(wanted, abs=1e-3)


def test_a_warm_up_longer_than_the_run_is_a_tenth_of_it(trainer: Train, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mol"):
        trainer(warmup_steps=100).setup_optimization(20)
        trainer(warmup_steps=100).setup_optimization(9)
    assert caplog.messages == [
        "warmup_steps is 100, and the run has 20 steps: the learning rates rise over the first 2 instead",
        "warmup_steps is 100, and the run has 9 steps: there is no warm-up",
    ]


@pytest.mark.parametrize(
    ("settings", "steps", "epoch"),
    [
        ({"max_epochs": 3, "batch_size": 4}, 9, 2),
        ({"max_epochs": 3, "batch_size": 4, "gradient_accumulation_steps": 2}, 6, 2),
        ({"max_epochs": 3, "batch_size": 4, "max_steps": 4}, 4, 1),
        ({"max_epochs": 1, "batch_size": 4, "max_steps": 40}, 3, 0),
    ],
)
def test_steps_are_counted_truly(settings: dict[str, int], steps: int, epoch: int, trainer: Train) -> None:
    made = trainer(**settings)
    made.train(rows_of(*[5] * 10))
    assert made.global_step == steps
    assert made.current_epoch == epoch


def test_data_without_a_length_take_a_number_of_steps_or_a_constant_rate(trainer: Train) -> None:
    class Endless(IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Any:  # noqa: ANN401
            while True:
                yield {"input_ids": tokens_of(1, 6)[0]}

    with pytest.raises(ConfigError, match="ends at the last step, and data without a length do not say which that is"):
        trainer().train(DataLoader(Endless(), batch_size=2))
    made = trainer(max_steps=3)
    made.train(DataLoader(Endless(), batch_size=2))
    assert made.global_step == 3


def test_gradients_that_are_not_finite_make_no_step(trainer: Train) -> None:
    made = trainer()
    router = made.mol.fused[0].router
    assert router is not None
    with torch.no_grad():
        router.classifier.bias[0] = math.nan
    before = weights_of(made.mol)
    with pytest.raises(
        FusionError, match=r"step 1: the gradients are not finite \(loss nan\), so the step was not made"
    ):
        made.train_step(batch_of(rows_of(5)))
    after = weights_of(made.mol)
    assert all(torch.equal(value.nan_to_num(), after[name].nan_to_num()) for name, value in before.items())
    assert made.global_step == 0


def test_evaluating_changes_no_training(trainer: Train) -> None:
    rows, found = rows_of(*[7] * 8), []
    for every in (None, 1):
        made = trainer(eval_steps=every, max_steps=4, batch_size=2)
        made.train(rows, rows_of(5, 6))
        found.append(weights_of(made.mol))
    assert_same(*found)


def test_training_ends_early_where_the_loss_does_not_fall(trainer: Train, tmp_path: Path) -> None:
    made = trainer(learning_rate=0.0, router_learning_rate=0.0, eval_steps=1, early_stopping_patience=2, max_steps=9,
                   batch_size=1)  # fmt: skip
    made.train(rows_of(*[5] * 9), rows_of(5))
    assert made.global_step == 3  # the first evaluation is the best, and two more are not better
    assert (tmp_path / "out" / "final_checkpoint.safetensors").is_file()
    with pytest.raises(ConfigError, match="early_stopping_patience is set, and there are no data to evaluate on"):
        made.train(rows_of(5))


def test_callbacks_are_called_and_may_end_training(trainer: Train) -> None:
    calls: list[str] = []

    class Record(TrainingCallback):
        def on_train_begin(self, trainer: MoLTrainer) -> None:
            calls.append("begin")

        def on_step_end(self, trainer: MoLTrainer, metrics: Mapping[str, float]) -> None:
            calls.append(f"step {trainer.global_step}")
            trainer.should_stop = trainer.global_step == 2

        def on_evaluate(self, trainer: MoLTrainer, metrics: Mapping[str, float]) -> None:
            calls.append(f"evaluate {sorted(metrics)[0]}")

        def on_save(self, trainer: MoLTrainer, path: Path) -> None:
            calls.append(path.name)

        def on_train_end(self, trainer: MoLTrainer) -> None:
            calls.append("end")

    trainer(batch_size=2, options={"callbacks": [Record()]}).train(rows_of(*[5] * 10), rows_of(6))
    assert calls == [
        "begin", "step 1", "step 2", "best_checkpoint", "evaluate eval_lm_loss", "final_checkpoint", "end",
    ]  # fmt: skip


def test_a_log_has_lines_and_no_bar(
    trainer: Train, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "mol"):
        trainer(batch_size=2, max_epochs=1, logging_steps=2).train(rows_of(*[5] * 8), rows_of(6))
    lines = [message for message in caplog.messages if message.startswith("step ")]
    assert [line.split(":")[0] for line in lines] == ["step 2 of 4", "step 4 of 4", "step 4"]
    assert all(word in lines[0] for word in ("loss ", " tokens/s, ", " left"))
    assert capsys.readouterr().err == ""


def test_what_cannot_be_trained_is_refused(fuse: Fuse, trainer: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is nothing to train: add layers with add_layer"):
        MoLTrainer(fuse("gpt2", layers=()), TrainingConfig())
    with pytest.raises(ConfigError, match="MoLTrainer trains a MoLRuntime, not a GPT2LMHeadModel"):
        MoLTrainer(language_model_of("gpt2"), TrainingConfig())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="wandb is not installed: `pip install wandb`"):
        trainer(use_wandb=True)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ((torch.ones(1, 2),), "a batch is a tuple, wanted a dictionary with `input_ids`"),
        ({"input_ids": [[1, 2]]}, "input_ids of a batch: no tensor; a tokenizer takes return_tensors='pt'"),
        ({"attention_mask": torch.ones(1, 2)}, "a batch has attention_mask, wanted `input_ids` or `labels`"),
    ],
)
def test_other_batches_are_refused(batch: Any, says: str, trainer: Train) -> None:  # noqa: ANN401
    with pytest.raises(ConfigError, match=says):
        trainer().train_step(batch)


def test_texts_are_tokenised_and_trained_on(fuse: Fuse, tmp_path: Path) -> None:
    from tests.seed_models import CHAT, gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    language_model_of("gpt2", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "host")
    mol = fuse(str(tmp_path / "host"), "llama")
    config = TrainingConfig(max_epochs=1, batch_size=2, output_dir=str(tmp_path / "out"), warmup_steps=0)
    made = MoLTrainer(mol, config, tokenizer)
    made.train(list(CHAT), list(CHAT[:1]))
    assert made.global_step == 2
    assert math.isfinite(made.best_loss)


def test_bfloat16_computes_near_float32_and_what_is_trained_stays_float32(trainer: Train) -> None:
    batch, found = batch_of(rows_of(9, 9)), []
    for precision in ("no", "bf16"):
        made = trainer(mixed_precision=precision, noise=False, lr_scheduler_type="constant")
        found.append(made.train_step(batch)["lm_loss"])
        assert {parameter.dtype for parameter in made.model.parameters()} == {torch.float32}
        assert {
            value.dtype for kept in optimizer_state(made.optimizer.optimizer).values() for value in kept.values()
        } == {torch.float32}
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[1] != found[0]


def test_a_trainer_leaves_its_precision_to_no_other(trainer: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    first, second = trainer(mixed_precision="bf16"), trainer()
    assert (first.accelerator.mixed_precision, second.accelerator.mixed_precision) == ("bf16", "no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch` says it
    assert trainer().accelerator.mixed_precision == "bf16"
    assert trainer(mixed_precision="no").accelerator.mixed_precision == "no"


def test_bfloat16_models_train_in_float32_masters(fuse: Fuse, tmp_path: Path) -> None:
    mol = fuse("gpt2", "llama", dtype="bfloat16")
    mol.layers.to(torch.bfloat16)
    config = TrainingConfig(warmup_steps=0, lr_scheduler_type="constant", output_dir=str(tmp_path))
    before = weights_of(mol)
    made = MoLTrainer(mol, config)
    made.train_step(batch_of(rows_of(9)))
    after = weights_of(mol)
    assert {value.dtype for value in after.values()} == {torch.float32}
    moved = [name for name, value in before.items() if not torch.equal(value.float(), after[name])]
    assert len(moved) > len(before) / 2
