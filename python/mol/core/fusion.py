"""Runs the host's own forward with fused layers in the place of its blocks.

The host drives: embeddings, positions, masks, final norm, head and loss are its own code. Where a layer was added, the
host's call of its block becomes the layer's; every other block runs as it is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from mol.core.blocks.calls import Arguments, argument, part, ports
from mol.core.blocks.dispatch import intercepted, run_block
from mol.core.mol_layer import Choice, ExpertSpec, MoLLayer, Routing, RunBlocks
from mol.core.parts import Pinned, Whole
from mol.core.running import ExpertRuns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mol.config.mol_config import Dispatch
    from mol.core.blocks.source import Source
    from mol.core.cache import FusedCache


class Fusion(NamedTuple):
    """What a fused model is made of.

    Attributes:
        host: the source that drives.
        sources: every model by name, the host among them.
        host_name: the host's name.
        layers: by position in the host.
        keep_host_layers: run blocks of the host without a layer, instead of passing the stream on.
        dispatch: what an expert sees, see `MoLConfig`.
        router_prefix: with "sequence" dispatch, the number of first tokens of a row that its choice goes by.
    """

    host: Source
    sources: Mapping[str, Source]
    host_name: str
    layers: Mapping[int, MoLLayer]
    keep_host_layers: bool
    dispatch: Dispatch = "dense"
    router_prefix: int = 16

    @property
    def pins(self) -> bool:
        """Whether rows choose once, so that outputs within the tokens they choose by look ahead."""
        return any(layer.mode(self.dispatch) == "sequence" for layer in self.layers.values())


def choosing(mask: torch.Tensor, prefix: int, prompt: int | None) -> torch.Tensor:
    """Tell which tokens a row with "sequence" dispatch chooses its experts by.

    Args:
        mask: (B, T) over all tokens, 0 for padding.
        prefix: the first so many tokens of each row that are no padding.
        prompt: those in the first so many columns instead, if it is given.

    Returns:
        (B, T), true for these tokens.
    """
    shown = mask.ne(0)
    if prompt is None:
        return shown & (shown.cumsum(1) <= prefix)
    return shown & (torch.arange(mask.shape[1], device=mask.device) < prompt)


class Pass:
    """One forward of a fused model.

    Attributes:
        routings: by position, what the routers said.
        hidden: the stream after the last block (B, T, H), in the host's width and before its final norm.
    """

    def __init__(
        self, fusion: Fusion, mask: torch.Tensor, length: int, cache: FusedCache | None, prompt: int | None = None
    ) -> None:
        """Prepare a forward.

        Args:
            fusion: the model.
            mask: (B, P + T) over all tokens so far, 0 for padding.
            length: T, the number of new tokens.
            cache: what earlier forwards left; it grows by this one.
            prompt: with "sequence" dispatch, rows choose by this many first columns; by the first `router_prefix`
                tokens if None, and with a cache always by all tokens of the first forward.
        """
        self._fusion = fusion
        self._mask = mask
        self._length = length
        self._cache = cache
        self._prompt = prompt if cache is None else length
        self._next = 0
        self._experts = ExpertRuns(fusion.sources, mask, length, cache)
        self._shown = mask[:, -length:]
        # Routers save passes over the stream where nothing is padding.
        self._padding = None if bool(self._shown.all()) else self._shown
        self._only: Choice | None = None
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None
        self.routings: dict[int, Routing] = {}
        self.hidden: torch.Tensor | None = None

    def run(self, forward: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the host returns
        """Run the host's forward with the fused layers in it, and return what it returned."""
        host = self._fusion.host
        with intercepted(host.blocks, self._block):
            result = forward()
        host.calls.check_count(self._next)
        if self._cache is not None:
            self._cache.seen += self._length
            self._cache.batch = self._mask.shape[0]
        return result

    def _block(self, block: nn.Module, call: Arguments) -> Any:  # noqa: ANN401 - as the block returns it
        index, host = self._next, self._fusion.host
        self._next += 1
        form = host.calls.form_of(index, block)
        layer = self._fusion.layers.get(index)
        last = index == len(host) - 1
        if layer is None:
            if self._fusion.keep_host_layers:
                result = run_block(block, call)
            else:
                result = host.calls.stub(index, call, argument(call, form.hidden_in))
            if last:
                self.hidden = self._from_host(part(result, form.result.port))
            return result
        given = argument(call, form.hidden_in)
        hidden = self._from_host(given)
        carried: dict[Any, Any] = {}
        choice = self._choose(index, layer, hidden)
        specs, mine = layer.specs, ExpertSpec(self._fusion.host_name, (index,))
        own = specs.index(mine) if mine in specs else None
        runs: list[RunBlocks] = []
        for number, (spec, seen) in enumerate(zip(specs, choice.parts, strict=True)):
            if number == own and isinstance(seen, Whole):
                runs.append(self._own(index, call, carried))
            else:  # also the host's own block where the host's call and cache, which are for all, would show too much
                runs.append(partial(self._experts.run, (index, number), spec, seen or Whole()))
        mixed = layer.mix(hidden, choice, runs)
        self.routings[index] = choice.routing
        if self._cache is not None and choice.state is not None:
            self._cache.routes[index] = choice.state
        if last:
            self.hidden = mixed
        native = host.layout.to_block(mixed)
        if carried:
            return form.result.make(native, carried)
        return host.calls.stub(index, call, native)

    def _from_host(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._fusion.host.layout.from_block(hidden, self._mask.shape[0])

    def _own(self, index: int, call: Arguments, carried: dict[Any, Any]) -> RunBlocks:
        """Give what runs the host's own block in its own call and cache; what it returns besides is kept."""
        host = self._fusion.host
        form = host.calls.forms[index]

        def run(hidden: torch.Tensor) -> torch.Tensor:
            result = run_block(form.block, form.with_hidden(call, host.layout.to_block(hidden)))
            carried.update(ports(result))
            return host.layout.from_block(part(result, form.result.port), hidden.shape[0])

        return run

    def _choose(self, index: int, layer: MoLLayer, hidden: torch.Tensor) -> Choice:
        if layer.router is None:  # there is nothing to choose, so all such layers have one answer
            if self._only is None:
                self._only = layer.choose(hidden, self._padding)
            return self._only
        state = None if self._cache is None else self._cache.routes.get(index)
        mode = layer.mode(self._fusion.dispatch)
        if mode == "token":
            return layer.choose_tokens(hidden, self._padding, state)
        if mode == "sequence":
            pinned: Pinned = layer.pin(*self._first_tokens(hidden, self._shown)) if state is None else state
            return layer.choose_rows(self._shown, pinned)
        return layer.choose(hidden, self._padding, state, skip=self._cache is None)

    def _first_tokens(self, hidden: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the tokens (B, S, H) that rows choose by, in their order, and their mask (B, S)."""
        if self._prompt is not None:
            return hidden[:, : self._prompt], mask[:, : self._prompt]
        if self._length <= self._fusion.router_prefix:
            return hidden, mask
        if self._first is None:
            wanted = choosing(mask, self._fusion.router_prefix, None)
            order = wanted.byte().argsort(dim=1, descending=True, stable=True)[:, : self._fusion.router_prefix]
            self._first = order, wanted.gather(1, order)
        order, shown = self._first
        return hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1])), shown
