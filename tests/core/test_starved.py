"""Routers between equals keep both in use, and say so where they do not."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

from mol.config.mol_config import MoLConfig
from mol.core.losses import compute_routing_loss
from mol.core.mol_layer import ExpertSpec, Routing
from mol.core.reports.starved import ShareWatch
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from tests.core.conftest import Fuse

SEED = {"load_balancing_coeff": 0.01, "entropy_penalty_coeff": 0.1}


def share_after_training(
    fuse: Fuse, router_type: str, start: float = -0.2, lr: float = 1e-2, **settings: object
) -> float:
    """Train a router of two identical experts, from 45 to 55 by itself, and return the share of the first."""
    runtime = fuse("llama", layers=(), router_type=router_type, **settings)
    runtime.add_layer([("llama", 1), ("llama", 1)], 1)
    model, router = runtime.as_causal_lm().train(), runtime.layers[0].router
    with torch.no_grad():
        router.classifier.weight.zero_()
        router.classifier.bias.copy_(torch.tensor([start, 0.0]))
    optimizer = torch.optim.Adam(router.parameters(), lr=lr)
    for step in range(150):
        ids = tokens_of(2, 6, seed=step)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model(tokens_of(4, 12))
    return float(model.routings[1].logits.detach().softmax(-1)[..., 0].mean())


@pytest.mark.parametrize("router_type", ["simple", "token"])
@pytest.mark.parametrize("top_k", [None, 1])
def test_a_router_between_two_identical_experts_keeps_both_in_use(
    router_type: str, top_k: int | None, fuse: Fuse, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mol"):
        share = share_after_training(fuse, router_type, top_k_experts=top_k)
    assert 0.25 < share < 0.75
    assert "learns nothing" not in caplog.text


def test_a_router_that_leaves_an_expert_out_is_warned_of_once(fuse: Fuse, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mol"):
        share = share_after_training(fuse, "simple", start=-1.0, lr=3e-2, **SEED)
    assert min(share, 1.0 - share) < 0.025
    said = [record.getMessage() for record in caplog.records if "learns nothing" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("layer 1: over the last 50 training steps the router gave ")
    assert "llama[1]" in said[0]
    assert "load_balancing_coeff (0.01)" in said[0]
    assert "entropy_penalty_coeff (0.1)" in said[0]


def test_by_the_defaults_no_choice_of_equals_is_worth_more_than_an_even_one() -> None:
    # What training adds is least where equals share alike, however sure the router already is.
    settings = MoLConfig(["any"])
    mask = torch.ones(1, 8, dtype=torch.long)
    for gap in (0.2, 1.0, 5.0, 15.0):
        logits = torch.tensor([gap, 0.0]).expand(1, 8, 2).clone().requires_grad_()
        added = compute_routing_loss(
            [(logits.softmax(-1), logits)],
            mask,
            load_balancing_coeff=settings.load_balancing_coeff,
            entropy_penalty_coeff=settings.entropy_penalty_coeff,
        )
        (slope,) = torch.autograd.grad(added, logits)
        assert float(slope[..., 0].sum()) > 0.0, gap


def test_experts_in_use_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    watch, specs = ShareWatch(0.02, 0.001), [ExpertSpec("any", (0,)), ExpertSpec("other", (0,))]
    shares = torch.tensor([0.06, 0.94]).expand(1, 4, 2)
    nothing = Routing(torch.ones(1, 4, 1), None)
    for _ in range(120):
        watch.see({0: Routing(shares, shares.log()), 1: nothing}, {0: specs, 1: specs[:1]})
    assert caplog.text == ""
