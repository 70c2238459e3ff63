"""Settings of a run that no other file tries: clipping, the threshold of an early stop, the seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.training.toolkit import assert_same, batch_of, counting_rows, gradients_of, rows_of, weights_of

if TYPE_CHECKING:
    from tests.training.conftest import Train


def test_gradients_are_clipped_to_a_norm(trainer: Train) -> None:
    batch, found = batch_of(rows_of(9, 5)), []
    for norm in (None, 1e-3, 1e3):
        made = trainer(noise=False, gradient_clip_norm=norm)
        metrics = made.train_step(batch)
        whole = torch.cat([gradient.flatten() for gradient in gradients_of(made).values()]).norm().item()
        found.append((metrics["grad_norm"], whole))
    reported, plain = found[0]
    assert reported == pytest.approx(plain, rel=1e-3)
    assert plain > 1e-2
    assert found[1] == pytest.approx((reported, 1e-3), rel=1e-3)  # before it was clipped, and after
    assert found[2] == pytest.approx((reported, plain), rel=1e-3)


@pytest.mark.parametrize(("threshold", "steps"), [(0.0, 6), (100.0, 3)])
def test_a_loss_that_falls_by_less_than_the_threshold_ends_a_run(threshold: float, steps: int, trainer: Train) -> None:
    made = trainer(
        learning_rate=1e-2, eval_steps=1, max_steps=6, batch_size=4, early_stopping_patience=2,
        early_stopping_threshold=threshold, lr_scheduler_type="constant",
    )  # fmt: skip
    rows = counting_rows(24)
    made.train(rows, rows[:4])
    assert made.global_step == steps
    assert made.best_loss == pytest.approx(made.evaluate(rows[:4])["eval_loss"], rel=1e-6)  # the last one, all the same


def test_the_seed_decides_the_order_of_the_data_and_the_noise(trainer: Train) -> None:
    found = []
    for seed in (1, 1, 2):
        made = trainer(seed=seed, batch_size=2, max_steps=2, learning_rate=1e-3)
        torch.manual_seed(len(found))  # whatever was drawn before
        made.train(rows_of(*[5] * 8))
        found.append(weights_of(made.mol))
    assert_same(found[0], found[1])
    assert not all(torch.equal(value, found[2][name]) for name, value in found[0].items())
