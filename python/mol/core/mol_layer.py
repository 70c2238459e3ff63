"""MoLLayer: one fused layer, which routes the host's stream between experts and mixes what they add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from mol.core.adapters import BaseAdapter, IdentityAdapter, create_adapter
from mol.core.routers import BaseRouter, RouterState, create_router

RunBlocks = Callable[[torch.Tensor], torch.Tensor]
"""Runs an expert's blocks on hidden states (B, T, D)."""


class ExpertSpec(NamedTuple):
    """Which blocks an expert is: one of a model, or several in a row.

    Attributes:
        model: name of the model.
        blocks: their numbers.
    """

    model: str
    blocks: tuple[int, ...]

    def __str__(self) -> str:
        """Name it as messages do: `gpt2[3]`, `gpt2[3-5]`."""
        first, last = self.blocks[0], self.blocks[-1]
        return f"{self.model}[{first}]" if first == last else f"{self.model}[{first}-{last}]"


class Routing(NamedTuple):
    """What a router said of the tokens of one forward.

    Attributes:
        weights: (B, T, E), float32; 0 for padding.
        logits: (B, T, E), float32; None where there is nothing to choose.
    """

    weights: torch.Tensor
    logits: torch.Tensor | None


class Expert(nn.Module):
    """The trained half of an expert: the way to its blocks and back. The blocks belong to their model.

    Attributes:
        spec: which blocks.
        down: from the host's width H to the expert's width D.
        up: from D to H.
    """

    def __init__(self, spec: ExpertSpec, down: BaseAdapter, up: BaseAdapter) -> None:
        """Put the parts together."""
        super().__init__()
        self.spec = spec
        self.down = down
        self.up = up

    @classmethod
    def build(cls, spec: ExpertSpec, host_width: int, width: int, adapter_type: str | None) -> Expert:
        """Make an expert with fresh adapters; without a type, for a block of the host, they do nothing."""
        if adapter_type is None:
            return cls(spec, IdentityAdapter(host_width), IdentityAdapter(host_width))
        down = create_adapter(adapter_type, host_width, width)
        return cls(spec, down, create_adapter(adapter_type, width, host_width))

    @property
    def is_exact(self) -> bool:
        """Whether the adapters return their input as it is and cannot learn otherwise."""
        return self.down.is_exact_identity and self.up.is_exact_identity

    def forward(self, hidden: torch.Tensor, run: RunBlocks) -> torch.Tensor:
        """Return F(h) = h + U(E(Ah) - Ah): what the expert does not see of h (B, T, H) passes through."""
        if self.is_exact:
            return run(hidden)
        inner = self.down(hidden)
        result: torch.Tensor = hidden + self.up(run(inner) - inner)
        return result


class MoLLayer(nn.Module):
    """One fused layer: h + sum over experts of w_e (F_e(h) - h).

    Attributes:
        experts: see `Expert`.
        router: None for a single expert, whose weight is 1.
    """

    def __init__(self, experts: Sequence[Expert], router: BaseRouter | None) -> None:
        """Put the parts together."""
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = router

    @classmethod
    def build(
        cls, experts: Sequence[Expert], host_width: int, *, router_type: str, temperature: float, top_k: int | None
    ) -> MoLLayer:
        """Make a layer with a fresh router; see `create_router`. `top_k` above the number of experts is all of them."""
        if len(experts) == 1:
            return cls(experts, None)
        kept = None if top_k is None else min(top_k, len(experts))
        router = create_router(router_type, host_width, len(experts), temperature=temperature, top_k=kept)
        return cls(experts, router)

    @property
    def specs(self) -> list[ExpertSpec]:
        """Which blocks its experts are."""
        return [expert.spec for expert in self.experts if isinstance(expert, Expert)]

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor,
        runs: Sequence[RunBlocks],
        state: RouterState | None = None,
        *,
        skip: bool = True,
    ) -> tuple[torch.Tensor, Routing, RouterState | None]:
        """Run the experts and mix what they add.

        Args:
            hidden: the host's stream (B, T, H).
            mask: (B, T), 0 for padding.
            runs: for each expert what runs its blocks.
            state: what the router remembers of earlier tokens.
            skip: leave out experts that no token chose; a cache that must see every token forbids it.

        Returns:
            The stream after the layer, what the router said, and its state for the next tokens.
        """
        if self.router is None:
            weights = mask[..., None].to(torch.float32)
            return self.experts[0](hidden, runs[0]), Routing(weights, None), None
        weights, logits, state = self.router.route(hidden, mask, state)
        chosen = weights.flatten(0, 1).ne(0).any(0).tolist() if skip else [True] * len(runs)
        mixed = hidden
        for expert, run, weight, wanted in zip(self.experts, runs, weights.unbind(-1), chosen, strict=True):
            if wanted:
                mixed = mixed + weight[..., None].to(hidden.dtype) * (expert(hidden, run) - hidden)
        return mixed, Routing(weights, logits), state
