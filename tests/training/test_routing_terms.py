"""The terms of routing are those of mol.core.losses, however tokens are spread over processes."""

from __future__ import annotations

import pytest
import torch

from mol.core.losses import (
    compute_load_balancing_loss,
    compute_mutual_information,
    compute_router_entropy,
    compute_router_z_loss,
)
from mol.core.mol_layer import Routing
from mol.core.top_k import top_k_weights
from mol.training.routing_terms import TERMS, routing_terms


def layers_of(logits: list[torch.Tensor], mask: torch.Tensor, top_k: int) -> list[Routing]:
    return [Routing(top_k_weights(one, min(top_k, one.shape[-1])) * mask[..., None], one) for one in logits]


def wanted(logits: list[torch.Tensor], mask: torch.Tensor, top_k: int) -> torch.Tensor:
    terms = [
        torch.stack([
            compute_load_balancing_loss(weights, mask, probabilities=one.softmax(-1)),
            compute_router_entropy(one, mask),
            compute_router_z_loss(one, mask),
            compute_mutual_information(one, mask),
        ])
        for weights, one in layers_of(logits, mask, top_k)
        if one is not None
    ]  # fmt: skip
    return torch.stack(terms).mean(0)


@pytest.mark.parametrize("top_k", [1, 2, 9])
@pytest.mark.parametrize("processes", [1, 3])
def test_parts_of_processes_add_up_to_the_terms_of_the_whole_and_so_do_their_gradients(
    top_k: int, processes: int
) -> None:
    generator = torch.Generator().manual_seed(top_k)
    mask = torch.rand(6, 5, generator=generator).gt(0.3).long()
    logits = [(3 * torch.randn(6, 5, experts, generator=generator)).requires_grad_() for experts in (2, 4)]
    whole = wanted(logits, mask, top_k)
    of_whole = [torch.autograd.grad(term, logits, retain_graph=True) for term in whole]
    rows = torch.arange(6).chunk(processes)
    # What every process sends comes first, then the sum is what each gets.
    sent: list[torch.Tensor] = []

    def parts(reduce: object) -> list[torch.Tensor]:
        return [
            routing_terms(layers_of([one[part] for one in logits], mask[part], top_k), mask[part], mask.sum(), reduce)  # type: ignore[arg-type]
            for part in rows
        ]

    parts(lambda own: sent.append(own) or own)
    total = torch.stack(sent).sum(0)
    found = torch.stack(parts(lambda _: total)).sum(0)
    torch.testing.assert_close(found, whole)
    for name, term, gradients in zip(TERMS, found, of_whole, strict=True):
        for own, other in zip(torch.autograd.grad(term, logits, retain_graph=True), gradients, strict=True):
            torch.testing.assert_close(own, other, msg=name)


def test_layers_without_a_choice_add_nothing() -> None:
    mask = torch.ones(2, 3)
    alone = Routing(torch.ones(2, 3, 1), None)
    assert not routing_terms([alone], mask, mask.sum(), lambda own: own).any()
