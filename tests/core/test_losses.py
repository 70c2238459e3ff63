"""What routers are trained by: against float64 numpy, at known values, with gradients that pull the right way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mol.core.losses import (
    compute_load_balancing_loss,
    compute_mutual_information,
    compute_router_entropy,
    compute_router_z_loss,
    compute_routing_loss,
)
from mol.core.routers import top_k_weights
from mol.errors import ConfigError
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.core.conftest import Fuse

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "entropy": compute_router_entropy,
    "information": compute_mutual_information,
    "z": compute_router_z_loss,
    "balance": lambda logits, mask=None: compute_load_balancing_loss(logits.softmax(-1), mask),
    "balance-2": lambda logits, mask=None: compute_load_balancing_loss(top_k_weights(logits, 2), mask),
    "balance-1": lambda logits, mask=None: compute_load_balancing_loss(top_k_weights(logits, 1), mask),
    "switch": lambda logits, mask=None: compute_load_balancing_loss(
        top_k_weights(logits, 1), mask, probabilities=logits.softmax(-1)
    ),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def logits_of(batch: int = 3, tokens: int = 7, experts: int = 4, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, tokens, experts, generator=generator) * scale


def mask_of(batch: int = 3, tokens: int = 7) -> torch.Tensor:
    return (torch.arange(tokens) >= torch.tensor([0, 2, 5])[:batch, None]).long()


def reference(name: str, logits: torch.Tensor, mask: torch.Tensor) -> float:
    z = logits.double().numpy()[mask.bool().numpy()]
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    experts = z.shape[-1]
    if name == "entropy":
        return float(-(p * np.log(p)).sum(-1).mean())
    if name == "information":
        q = p.mean(0)
        return float(-(q * np.log(q)).sum() + (p * np.log(p)).sum(-1).mean())
    if name == "z":
        return float((np.log(np.exp(z).sum(-1)) ** 2).mean())
    k = {"balance": 1, "balance-1": 1, "balance-2": 2, "switch": 1}[name]
    order = np.argsort(-z, axis=-1)[:, :k]
    chosen = np.zeros_like(z)
    np.put_along_axis(chosen, order, 1.0, -1)
    share = chosen.mean(0) / k
    if name in ("balance-1", "balance-2"):
        p = p * chosen / (p * chosen).sum(-1, keepdims=True)
    return float(experts * (share * p.mean(0)).sum())


@every_loss
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_values_are_the_papers(name: str, scale: float) -> None:
    logits = logits_of(scale=scale)
    for mask in (torch.ones(3, 7), mask_of()):
        assert float(LOSSES[name](logits, mask)) == pytest.approx(reference(name, logits, mask), rel=1e-5, abs=1e-6)
    assert float(LOSSES[name](logits)) == pytest.approx(float(LOSSES[name](logits, torch.ones(3, 7))), rel=1e-6)


@every_loss
def test_gradients_reach_every_token_that_counts(name: str) -> None:
    logits = logits_of().requires_grad_()
    loss = LOSSES[name](logits, mask_of())
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    loss.backward()
    assert logits.grad is not None
    assert bool(logits.grad[mask_of() == 1].ne(0).any(-1).all())
    assert not logits.grad[mask_of() == 0].any()


@every_loss
def test_padding_may_hold_anything(name: str) -> None:
    logits, mask = logits_of(), mask_of()
    expected = LOSSES[name](logits, mask)
    for filler in (100.0, float("nan"), float("-inf")):
        other = logits.masked_fill(mask[..., None] == 0, filler).requires_grad_()
        result = LOSSES[name](other, mask)
        result.backward()
        torch.testing.assert_close(result, expected)
        assert other.grad is not None
        # The softmax before the balance loss is the test's own, and has no number to give there.
        assert bool(other.grad[mask == 1].isfinite().all())


@every_loss
def test_a_batch_of_padding_alone_costs_nothing(name: str) -> None:
    logits = logits_of().requires_grad_()
    loss = LOSSES[name](logits, torch.zeros(3, 7))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert logits.grad is not None
    assert not logits.grad.any()


@every_loss
def test_half_precision_goes_in_and_float32_comes_out(name: str) -> None:
    logits = logits_of().bfloat16()
    loss = LOSSES[name](logits.float())
    assert loss.dtype == torch.float32
    if "balance" not in name and name != "switch":
        assert torch.equal(LOSSES[name](logits), loss)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "balance-2"])
def test_one_expert(name: str) -> None:
    loss = LOSSES[name](logits_of(experts=1), mask_of())
    expected = {"entropy": 0.0, "information": 0.0}.get(name, 1.0)
    if name == "z":
        assert float(loss) == pytest.approx(float(logits_of(experts=1)[mask_of() == 1].square().mean()))
    else:
        assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_entropy_and_information_at_their_ends() -> None:
    even, sure = torch.zeros(2, 4, 4), torch.eye(4).repeat(2, 1, 1) * 60.0
    assert float(compute_router_entropy(even)) == pytest.approx(math.log(4))
    assert float(compute_router_entropy(sure)) == pytest.approx(0.0, abs=1e-6)
    assert float(compute_mutual_information(even)) == pytest.approx(0.0, abs=1e-6)
    assert float(compute_mutual_information(sure)) == pytest.approx(math.log(4))
    assert float(compute_mutual_information(sure[:, :1])) == pytest.approx(0.0, abs=1e-6)
    assert float(compute_router_entropy(even[0, 0][None])) == pytest.approx(math.log(4))  # (B, E) does as well


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_balance_is_one_at_best_and_e_over_k_at_worst(k: int) -> None:
    turns = torch.stack([torch.arange(4.0).roll(n) for n in range(4)])[None]
    assert float(compute_load_balancing_loss(top_k_weights(turns * 1e-4, k))) == pytest.approx(1.0, rel=1e-3)
    same = (-torch.arange(4.0) * 30.0).expand(1, 8, 4)
    worst = float(compute_load_balancing_loss(top_k_weights(same, k)))
    # Of a choice so sure, the first expert has all the weight; the others share the count.
    assert worst == pytest.approx(4.0 if k == 4 else 4.0 / k, rel=1e-3)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("given", [False, True])
def test_descending_the_balance_loss_balances(k: int, given: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(1, 400, 4, generator=generator) + torch.tensor([1.5, 0.5, 0.0, -0.5])).detach()
    offset = torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.Adam([offset], lr=0.03)

    def shares() -> torch.Tensor:
        if k == 4:
            return (logits + offset).softmax(-1).mean((0, 1)).detach()
        return (top_k_weights(logits + offset, k) > 0).float().mean((0, 1)).detach() / k

    before = shares()
    for _ in range(100):
        optimiser.zero_grad()
        z = logits + offset
        probabilities = z.softmax(-1) if given else None
        compute_load_balancing_loss(top_k_weights(z, k), probabilities=probabilities).backward()
        optimiser.step()
    after = shares()
    assert float((after - 0.25).abs().max()) < 0.5 * float((before - 0.25).abs().max())


def test_tokens_that_the_router_masked_do_not_count() -> None:
    weights = top_k_weights(logits_of(), 2) * mask_of()[..., None]
    torch.testing.assert_close(compute_load_balancing_loss(weights), compute_load_balancing_loss(weights, mask_of()))


def test_transformers_reports_k_times_as_much() -> None:
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral", reason="needs transformers")
    logits = logits_of(batch=1, tokens=50)
    theirs = mixtral.load_balancing_loss_func((logits[0],), num_experts=4, top_k=2)
    ours = compute_load_balancing_loss(top_k_weights(logits, 2), probabilities=logits.softmax(-1))
    torch.testing.assert_close(ours * 2, theirs)


def test_shapes_are_checked() -> None:
    logits = logits_of()
    for name in LOSSES:
        with pytest.raises(ConfigError, match=r"attention_mask is \(3, 6\), wanted \(3, 7\)"):
            LOSSES[name](logits, torch.ones(3, 6))
    with pytest.raises(ConfigError, match=r"probabilities are \(3, 7, 3\) and weights \(3, 7, 4\)"):
        compute_load_balancing_loss(logits.softmax(-1), probabilities=logits[..., :3])


@pytest.mark.parametrize("dispatch", ["dense", "sequence", "token"])
@pytest.mark.parametrize("top_k", [1, 2, None])
def test_the_balance_that_is_reported_is_the_one_that_training_adds(
    top_k: int | None, dispatch: str, fuse: Fuse
) -> None:
    settings = {"router_type": "token", "top_k_experts": top_k, "dispatch": dispatch}
    runtime = fuse("gpt2", "llama", "bert", layers=(1,), **settings)
    with torch.no_grad():
        runtime.layers[0].router.classifier.weight.mul_(8)
    ids, mask = tokens_of(4, 12), torch.ones(4, 12, dtype=torch.long)
    mask[1, :3] = 0
    with torch.no_grad():
        _, stats = runtime(ids, mask, return_router_stats=True)
        model = runtime.as_causal_lm()
        model(ids, mask)
    added = compute_routing_loss(
        list(model.routings.values()), mask, load_balancing_coeff=1.0, entropy_penalty_coeff=0.0
    ).item()
    assert stats["layer_1"]["load_balancing_loss"] == pytest.approx(added, abs=1e-6)
