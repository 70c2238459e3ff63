"""MoLLayer: one fused layer, which routes the host's stream to experts and mixes what they add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from mol.core.adapters import AdapterOptions, BaseAdapter, IdentityAdapter, create_adapter
from mol.core.routers import BaseRouter, RouterOptions, create_router
from mol.core.selection import Picked, Pinned, Selection, Whole

if TYPE_CHECKING:
    from mol.config.mol_config import Dispatch

RunBlocks = Callable[[torch.Tensor], torch.Tensor]
"""Runs an expert's blocks on the hidden states (..., D) of its selection of a batch."""

RunSelection = Callable[[Selection, torch.Tensor], torch.Tensor]
"""The same, for a given selection."""


FirstTokens = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Returns the tokens (B, S, H) of the stream (B, T, H) by which rows choose, and their mask (B, S)."""


class ExpertSpec(NamedTuple):
    """The blocks of an expert: one of a model, or several in a row.

    Attributes:
        model: name of the model.
        blocks: their numbers.
    """

    model: str
    blocks: tuple[int, ...]

    def __str__(self) -> str:
        """Return its name in messages: `gpt2[3]`, `gpt2[3-5]`, `gpt2[0,2]`."""
        first, last = self.blocks[0], self.blocks[-1]
        if len(self.blocks) > 1 and self.blocks == tuple(range(first, last + 1)):
            return f"{self.model}[{first}-{last}]"
        return f"{self.model}[{','.join(map(str, self.blocks))}]"


class Routing(NamedTuple):
    """The output of a router for the tokens of one forward.

    Attributes:
        weights: (B, T, E), float32; 0 for padding.
        logits: (B, T, E), float32; None if there is nothing to choose.
    """

    weights: torch.Tensor
    logits: torch.Tensor | None


class Choice(NamedTuple):
    """The work of each expert of a layer in one forward.

    Attributes:
        routing: the router's output; its weights are those of the mixture.
        selections: the tokens of each expert; None for one that does not run.
        state: for the next tokens: of the router, or the pinned choice.
    """

    routing: Routing
    selections: Sequence[Selection | None]
    state: Any


class Expert(nn.Module):
    """The trained half of an expert: the adapters to its blocks and back. The blocks belong to their model.

    Attributes:
        spec: which blocks.
        down: from the host's width H to the expert's width D.
        up: from D to H.
    """

    def __init__(self, spec: ExpertSpec, down: BaseAdapter, up: BaseAdapter) -> None:
        """Store the parts."""
        super().__init__()
        self.spec = spec
        self.down = down
        self.up = up

    @classmethod
    def build(
        cls, spec: ExpertSpec, host_width: int, width: int, adapter_type: str | None, adapter_init: str = "identity"
    ) -> Expert:
        """Make an expert with fresh adapters; without a type, for a block of the host, they are identities.

        Those to be fitted, with any other `adapter_init`, are plain linear maps, which start as the identity too.
        """
        if adapter_type is None:
            return cls(spec, IdentityAdapter(host_width), IdentityAdapter(host_width))
        if adapter_type == "linear" and adapter_init != "identity":
            down = create_adapter(adapter_type, host_width, width, use_layer_norm=False, use_residual=False)
            plain: AdapterOptions = {"use_layer_norm": False, "use_residual": False, "bias": False}
            return cls(spec, down, create_adapter(adapter_type, width, host_width, **plain))
        down = create_adapter(adapter_type, host_width, width)
        return cls(spec, down, create_adapter(adapter_type, width, host_width))

    @property
    def is_exact(self) -> bool:
        """Whether the adapters return their input and have nothing to learn."""
        return self.down.is_exact_identity and self.up.is_exact_identity

    def forward(self, hidden: torch.Tensor, run: RunBlocks, *, alone: bool = True) -> torch.Tensor:
        """Return F(h) = h + U(E(Ah) - Ah): the part of h (..., H) that the expert cannot see passes through.

        Args:
            hidden: h (..., H).
            run: E.
            alone: if False, for one of several experts, return F(h) - h, which a layer weighs.
        """
        if alone and self.is_exact:
            exact: torch.Tensor = self.up(run(self.down(hidden)))  # identities, called for the hooks on them
            return exact
        inner: torch.Tensor = self.down(hidden)
        change: torch.Tensor = self.up(run(inner) - inner)
        return hidden + change if alone else change


class MoLLayer(nn.Module):
    """One fused layer: h + sum over experts of w_e (F_e(h) - h).

    Attributes:
        experts: see `Expert`.
        router: None for a single expert, whose weight is 1.
        specs: the blocks of the experts.
    """

    def __init__(self, experts: Sequence[Expert], router: BaseRouter | None) -> None:
        """Store the parts."""
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = router
        self.specs = [expert.spec for expert in experts]  # read in every step of decoding

    @classmethod
    def build(
        cls,
        experts: Sequence[Expert],
        host_width: int,
        *,
        router_type: str,
        temperature: float,
        top_k: int | None,
        biased: bool = False,
    ) -> MoLLayer:
        """Make a layer with a fresh router; see `create_router`. `top_k` above the number of experts is all of them.

        Then nothing is chosen, and the router has no `expert_bias` where others are to be `biased`.
        """
        if len(experts) == 1:
            return cls(experts, None)
        kept = None if top_k is None else min(top_k, len(experts))
        biased = biased and kept not in (None, len(experts))
        options: RouterOptions = {"temperature": temperature, "top_k": kept, "expert_bias": biased}
        return cls(experts, create_router(router_type, host_width, len(experts), **options))

    @property
    def built(self) -> list[Expert]:
        """Its experts, typed; a wrapped one passes on the attributes that are read of it."""
        return list(self.experts)  # type: ignore[arg-type]

    def mode(self, dispatch: Dispatch) -> Dispatch:
        """Return how this layer dispatches: as given, but densely if every token goes to every expert anyway."""
        if self.router is None or (dispatch == "token" and self.router.top_k in (None, len(self.experts))):
            return "dense"
        return dispatch

    def forward(
        self,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        runs: Sequence[RunSelection],
        state: Any = None,  # noqa: ANN401 - a RouterState, or the pinned choice of rows
        *,
        mode: Dispatch = "dense",
        skip: bool = True,
        first: FirstTokens | None = None,
    ) -> tuple[torch.Tensor, Routing | None, Any]:
        """Choose experts, run them and mix what they add.

        Args:
            hidden: the host's stream (B, T, H).
            mask: (B, T), 0 for padding; None if there is none.
            runs: for each expert the function that runs its blocks.
            state: from the call for the earlier tokens.
            mode: what an expert sees: all tokens, the rows that chose it or the tokens that did; see `mode`.
            skip: with "dense", skip experts that no token chose; not with a cache, which must see every token.
            first: with "sequence", returns the tokens by which rows choose, and their mask; all if None.

        Returns:
            The stream after the layer (B, T, H); the router's output, None if there is nothing to choose; and its state
            for the next tokens.
        """
        if self.router is None:
            return self.experts[0](hidden, partial(runs[0], Whole())), None, None
        choice = self._choose(self.router, hidden, mask, state, mode, skip=skip, first=first)
        return self._mix(hidden, choice, runs), choice.routing, choice.state

    def _choose(
        self,
        router: BaseRouter,
        hidden: torch.Tensor,
        mask: torch.Tensor | None,
        state: Any,  # noqa: ANN401 - see `forward`
        mode: Dispatch,
        *,
        skip: bool,
        first: FirstTokens | None,
    ) -> Choice:
        if mode == "sequence":
            shown = hidden.new_ones(hidden.shape[:2]) if mask is None else mask
            if state is None:
                state = Pinned(*router(*(first(hidden) if first else (hidden, shown)), rows=True))
            pinned: Pinned = state
            weights = pinned.weights[:, None] * shown[..., None].ne(0)
            logits = pinned.logits[:, None].repeat(1, shown.shape[1], 1)  # no view: FSDP2 adds hooks to it
            return Choice(Routing(weights, logits), pinned.selections(), pinned)
        weights, logits, state = router(hidden, mask, state=state, remember=True)
        if mode == "token":
            # This is routing by tokens, which is causal, around whole blocks as in Raposo et al. (2024,
            # "Mixture-of-Depths"), where experts choose among all tokens of a sequence.
            return Choice(Routing(weights, logits), Picked.each(weights.detach().ne(0)), state)
        count = len(self.experts)
        skip = skip and router.top_k not in (None, count)
        chosen = weights.flatten(0, 1).ne(0).any(0).tolist() if skip else [True] * count
        return Choice(Routing(weights, logits), [Whole() if wanted else None for wanted in chosen], state)

    def _mix(self, hidden: torch.Tensor, choice: Choice, runs: Sequence[RunSelection]) -> torch.Tensor:
        mixed = hidden.clone(memory_format=torch.contiguous_format)
        weights = choice.routing.weights.unbind(-1)
        for expert, run, weight, selection in zip(self.experts, runs, weights, choice.selections, strict=True):
            if selection is None:
                continue
            change = expert(selection.take(hidden), partial(run, selection), alone=False)
            selection.add_(mixed, change.to(mixed.dtype), selection.take(weight)[..., None].to(mixed.dtype))
        return mixed
