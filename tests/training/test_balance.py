"""Training balances experts by the loads of whole steps, with a loss or with the biases of routers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from mol.errors import ConfigError
from mol.training.objective import NAMES
from tests.training.test_resume import NOISY, ROWS, RUN, SaveAt, left_by
from tests.training.toolkit import assert_same, batch_of, rows_of, weights_of

if TYPE_CHECKING:
    from pathlib import Path

    from mol.training import MoLTrainer
    from tests.training.conftest import Train

BIAS: dict[str, Any] = {"balance": "bias", "top_k_experts": 1, "router_type": "token"}


def starve(made: MoLTrainer) -> None:
    """Let the first expert have all tokens."""
    for layer in made.mol.fused:
        assert layer.router is not None
        with torch.no_grad():
            layer.router.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))


def shares_of(made: MoLTrainer, ids: torch.Tensor) -> torch.Tensor:
    """The share of each expert in the tokens, of each layer (L, E)."""
    with torch.no_grad():
        _, stats = made.mol.eval()(ids, return_router_stats=True)
    assert stats is not None
    return torch.stack([layer["expert_weights"].gt(0).float().mean((0, 1)) for layer in stats.values()])


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_biases_give_every_expert_its_share_where_one_had_all(balance: str, trainer: Train) -> None:
    made = trainer(
        "gpt2", "llama", "qwen3", fusion={**BIAS, "balance": balance, "load_balancing_coeff": 0.0}, noise=False,
        bias_update_rate=0.02, learning_rate=0.0, router_learning_rate=0.0, max_steps=60, max_epochs=60, batch_size=8,
    )  # fmt: skip
    starve(made)
    rows = rows_of(*[12] * 8)
    ids = batch_of(rows)["input_ids"]
    assert shares_of(made, ids)[:, 0].min() == 1.0
    made.train(rows)
    shares = shares_of(made, ids)
    if balance == "bias":
        assert 0.2 < shares.min() < shares.max() < 0.5
    else:
        assert shares[:, 0].min() == 1.0


@pytest.mark.parametrize("recompute", [False, True])
def test_the_loads_are_those_of_all_batches_of_a_step(recompute: bool, trainer: Train) -> None:
    rows, found = rows_of(4, 24, 9, 16, 5, 7), []
    for size in (6, 1):
        made = trainer(
            "gpt2", "llama", "qwen3", fusion=BIAS, noise=False, max_steps=2, max_epochs=2, batch_size=size,
            gradient_accumulation_steps=6 // size, learning_rate=0.0, router_learning_rate=0.0,
            use_gradient_checkpointing=recompute,
        )  # fmt: skip
        made.train(rows)
        found.append({name: value for name, value in weights_of(made.mol).items() if name.endswith("expert_bias")})
    assert len(found[0]) == 2
    assert all(value.any() for value in found[0].values())
    assert_same(*found)


def test_a_run_with_biases_goes_on_bit_for_bit(trainer: Train, tmp_path: Path) -> None:
    settings = {**RUN, "max_steps": 8, "bias_update_rate": 0.05}
    fusion = {**NOISY, "balance": "bias", "top_k_experts": 1}
    whole = trainer(fusion=fusion, **settings, options={"callbacks": [SaveAt(1, 5)]})
    whole.train(ROWS, rows_of(6))
    assert any(value.any() for name, value in left_by(whole).items() if name.endswith("expert_bias"))
    for steps in (1, 5):
        again = trainer(fusion={**fusion, "seed": 9}, **settings)
        again.load_checkpoint(tmp_path / "out" / f"checkpoint_step_{steps}")
        again.train(ROWS, rows_of(6))
        assert_same(left_by(again), left_by(whole))


def test_evaluating_moves_no_bias_and_a_step_that_was_not_made_counts_no_load(trainer: Train) -> None:
    made = trainer(fusion=BIAS)
    made.evaluate(rows_of(6, 7))
    made.compute_loss(**batch_of(rows_of(9)))
    plain = trainer(fusion=BIAS)
    for one in (made, plain):
        torch.manual_seed(0)
        one.train_step(batch_of(rows_of(5)))
    assert_same(weights_of(made.mol), weights_of(plain.mol))


def test_biases_take_routers_that_choose(trainer: Train) -> None:
    with pytest.raises(ConfigError, match="no router has a bias to balance experts by"):
        trainer(fusion={**BIAS, "top_k_experts": 2})


def test_the_loss_of_balance_counts_the_batches_of_the_step_so_far(trainer: Train) -> None:
    # The last batch of a step is held against the choices of all of them, as one batch of the whole step would be.
    rows = rows_of(7, 7, 7)
    made = trainer(fusion={"router_type": "token", "top_k_experts": 1}, noise=False)
    objective, gradients, term = made._objective, [], NAMES.index("load_balance_loss")
    parts = [objective.prepared(batch_of([row])) for row in rows]
    whole = objective.prepared(batch_of(rows))
    router = made.mol.fused[0].router
    assert router is not None
    objective.coefficients = {name: float(name == "load_balance_loss") for name in objective.coefficients}

    def gradient_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss, terms = objective(batch, 1e30, 21.0)  # so many labels that only the term is left
        assert terms[term] > 0.0
        (found,) = torch.autograd.grad(loss, router.classifier.weight)
        return found

    objective.start_step()
    of_whole = gradient_of(whole)
    objective.start_step()
    for part in (parts[0], parts[1], parts[2]):
        gradients.append(gradient_of(part))
    # The same batches once more, each held against all of the step.
    exact = []
    for last in range(3):
        objective.start_step()
        for number in (*[other for other in range(3) if other != last], last):
            found = gradient_of(parts[number])
        exact.append(found)
    torch.testing.assert_close(sum(exact), of_whole)
    assert torch.equal(exact[2], gradients[2])
    assert not torch.allclose(gradients[0], exact[0])
