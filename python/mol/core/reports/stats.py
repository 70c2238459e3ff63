"""RouterStats: the output of the routers in one forward, dictionaries that print as a few lines."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import torch

from mol.core.losses import compute_load_balancing_loss, compute_router_entropy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.core.mol_layer import ExpertSpec, Routing

_WIDTH = 80


class LayerStats(dict[str, Any]):
    """One fused layer.

    Keys: `expert_weights` (B, T, E) float32 on the CPU, 0 for padding; `router_entropy`, the mean over tokens in nats;
    `load_balancing_loss`, the term of training before its coefficient, 1 is balanced; `num_experts`, E; `experts`,
    their names in the order of the weights.
    """

    @classmethod
    def of(cls, routing: Routing, mask: torch.Tensor, specs: Sequence[ExpertSpec]) -> LayerStats:
        """Summarise the output of a router for tokens under a mask (B, T)."""
        weights = routing.weights.detach()
        # If there is nothing to choose, the one expert has all of the weight.
        logits = torch.zeros_like(weights) if routing.logits is None else routing.logits.detach()
        probabilities = logits.float().softmax(-1)  # as in the loss of training
        return cls(
            expert_weights=weights.cpu(),
            router_entropy=compute_router_entropy(logits, mask).item(),
            load_balancing_loss=compute_load_balancing_loss(weights, mask, probabilities=probabilities).item(),
            num_experts=weights.shape[-1],
            experts=[str(spec) for spec in specs],
        )

    def __repr__(self) -> str:
        """Return each expert with its share of the weight, without the directory or the owner of its model."""
        total = self["expert_weights"].flatten(0, 1).sum(0)
        shares = (total / total.sum().clamp(min=1e-9)).tolist()
        short = [name.rsplit("/", 1)[-1] for name in self["experts"]]
        names = short if len(set(short)) == len(short) else self["experts"]
        listed = ", ".join(f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True))
        entropy = f"{self['router_entropy']:.2f} of {math.log(self['num_experts']):.2f}"
        return f"{listed}; entropy {entropy}, balance {self['load_balancing_loss']:.2f}"


class RouterStats(dict[str, LayerStats]):
    """The fused layers of one forward, `layer_{position}` each; see `LayerStats`."""

    def __repr__(self) -> str:
        """Return each layer on its own lines."""
        layers = (
            textwrap.fill(f"{name}: {layer!r}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
            for name, layer in self.items()
        )
        return "\n".join(["share of each expert", *layers])
