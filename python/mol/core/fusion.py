"""Runs the host's own forward with fused layers instead of its blocks.

Embeddings, positions, masks, final norm, head and loss are the host's own code. Where a layer was added, the host's
call of its block becomes a call of the layer; every other block runs as it is.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mol.core.blocks.calls import Arguments, argument, output_at, ports
from mol.core.blocks.dispatch import call_block, intercepted
from mol.core.host import check_longest
from mol.core.mol_layer import ExpertSpec, MoLLayer, Routing, RunBlocks, RunSelection
from mol.core.running import ExpertRuns
from mol.core.selection import Selection, Whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mol.config.mol_config import Dispatch
    from mol.core.blocks.source import Source
    from mol.core.cache import FusedCache


class Fusion(NamedTuple):
    """The parts of a fused model.

    Attributes:
        host: the model whose own forward runs.
        sources: every model by name, with the host.
        host_name: the host's name.
        layers: by position in the host.
        keep_host_layers: run blocks of the host without a layer, instead of skipping them.
        dispatch: what an expert sees, see `MoLConfig`.
        router_prefix: with "sequence" dispatch, the number of first tokens of a row by which it chooses.
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
        """Whether a layer pins each row's experts; outputs at the tokens of that choice then depend on later ones."""
        return any(layer.mode(self.dispatch) == "sequence" for layer in self.layers.values())

    def host_blocks(self) -> set[int]:
        """Return the host's blocks that run: those without a fused layer, and its own among the experts."""
        experts = {
            block
            for layer in self.layers.values()
            for spec in layer.specs
            if spec.model == self.host_name
            for block in spec.blocks
        }
        kept = set(range(len(self.host))) - self.layers.keys() if self.keep_host_layers else set[int]()
        return experts | kept

    def foreign(self) -> list[ExpertSpec]:
        """Return the experts that run outside of the host's own call of their block, with a cache of their own."""
        return [
            spec
            for position, layer in self.layers.items()
            for spec in layer.specs
            if spec != ExpertSpec(self.host_name, (position,)) or layer.mode(self.dispatch) != "dense"
        ]


class HostRun(NamedTuple):
    """A forward of the host with the fused layers in it.

    Attributes:
        forward: calls the host's model, or a part of it that calls the blocks.
        mask: (B, P + T) over all tokens so far.
        length: T, the number of new tokens.
        cache: from earlier forwards.
        prompt: the number of first columns by which rows choose their experts, see `Pass`.
    """

    forward: Callable[[], Any]
    mask: torch.Tensor
    length: int
    cache: FusedCache | None = None
    prompt: int | None = None


def choosing(mask: torch.Tensor, prefix: int, prompt: int | None) -> torch.Tensor:
    """Return the tokens by which a row with "sequence" dispatch chooses its experts.

    Args:
        mask: (B, T) over all tokens, 0 for padding.
        prefix: number of first tokens of each row, padding not counted.
        prompt: number of first columns instead, if it is given.

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
        routings: by position, the weights and logits of the routers.
        hidden: the stream after the last block (B, T, H), in the host's width and before its final norm.
    """

    def __init__(
        self,
        fusion: Fusion,
        mask: torch.Tensor,
        length: int,
        cache: FusedCache | None,
        prompt: int | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        """Prepare a forward.

        Args:
            fusion: the model.
            mask: (B, P + T) over all tokens so far, 0 for padding.
            length: T, the number of new tokens.
            cache: from earlier forwards; it grows by this one, whose tokens the caller adds to it.
            prompt: with "sequence" dispatch, rows choose by this many first columns; by the first `router_prefix`
                tokens if None. The choice stays in the cache.
            recompute: run layers again in the backward pass instead of keeping their activations; without a cache.

        Raises:
            FusionError: a model has no positions for so many tokens.
        """
        limits = {name: source.limit for name, source in fusion.sources.items()}
        total = mask.shape[1]
        if [1 for table, announced in limits.values() if (table or total) < total or (announced or total) < total]:
            check_longest(limits, int(mask.sum(1).max()), generated=False)
        self._fusion = fusion
        self._mask = mask
        self._length = length
        self._cache = cache
        self._prompt = prompt
        self._recompute = recompute and cache is None
        self._next = 0
        self._experts = ExpertRuns(fusion.sources, mask, length, cache)
        self._shown = mask[:, -length:]
        # Without padding routers save passes over the stream.
        self._padding = None if bool(self._shown.all()) else self._shown
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None
        self.routings: dict[int, Routing] = {}
        self.hidden: torch.Tensor | None = None

    def run_host(self, forward: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the host returns
        """Run the host's forward with the fused layers in it, and return its result."""
        host = self._fusion.host
        with intercepted(host.blocks, self._block):
            result = forward()
        host.calls.check_count(self._next)
        return result

    def _block(self, block: nn.Module, call: Arguments) -> Any:  # noqa: ANN401 - as the block returns it
        index, host = self._next, self._fusion.host
        self._next += 1
        form = host.calls.form_of(index, block)
        layer = self._fusion.layers.get(index)
        last = index == len(host.calls.forms) - 1
        if layer is None:
            if self._fusion.keep_host_layers:
                given = argument(call, form.hidden_in)
                result = self._again(lambda hidden: call_block(block, form.with_hidden(call, hidden)), given)
            else:
                result = host.calls.stub(index, call, argument(call, form.hidden_in))
            if last:
                self.hidden = self._from_host(output_at(result, form.result.port))
            return result
        given = argument(call, form.hidden_in)
        hidden = self._from_host(given)
        carried: dict[Any, Any] = {}
        specs, mine = layer.specs, ExpertSpec(self._fusion.host_name, (index,))
        first = specs.index(mine) if mine in specs else None
        own = self._own(index, call, carried)
        runs: list[RunSelection] = [
            partial(self._run_expert, own if number == first else None, (index, number), spec)
            for number, spec in enumerate(specs)
        ]
        state = None if self._cache is None else self._cache.routes.get(index)
        mode = layer.mode(self._fusion.dispatch)
        run_layer = partial(
            layer,
            mask=self._shown if mode == "sequence" else self._padding,
            runs=runs,
            state=state,
            mode=mode,
            skip=self._cache is None,
            first=self._first_tokens,
        )
        mixed, routing, state = self._again(run_layer, hidden)
        self.routings[index] = self._alone if routing is None else routing
        if self._cache is not None and state is not None:
            self._cache.routes[index] = state
        if last:
            self.hidden = mixed
        native = host.layout.to_block(mixed)
        if carried:
            return form.result.make(native, carried)
        return host.calls.stub(index, call, native)

    def _again(self, run: Callable[[torch.Tensor], Any], hidden: torch.Tensor) -> Any:  # noqa: ANN401 - what `run` returns
        """Run a layer on hidden states, and again in the backward pass if its activations are not to be kept."""
        if not self._recompute:
            return run(hidden)
        carries = self._experts.carries()

        def start(given: torch.Tensor) -> Any:  # noqa: ANN401
            # By the time of the second run, blocks of later layers have handed on more.
            self._experts.use_carries(carries)
            return run(given)

        return checkpoint(start, hidden, use_reentrant=False)

    def _from_host(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._fusion.host.layout.from_block(hidden, self._mask.shape[0])

    def _own(self, index: int, call: Arguments, carried: dict[Any, Any]) -> RunBlocks:
        """Return a function that runs the host's own block in its own call and cache; its other results are kept."""
        host = self._fusion.host
        form = host.calls.forms[index]

        def run(hidden: torch.Tensor) -> torch.Tensor:
            result = call_block(form.block, form.with_hidden(call, host.layout.to_block(hidden)))
            carried.update(ports(result))
            return host.layout.from_block(output_at(result, form.result.port), hidden.shape[0])

        return run

    def _run_expert(
        self, own: RunBlocks | None, key: tuple[int, int], spec: ExpertSpec, seen: Selection, hidden: torch.Tensor
    ) -> torch.Tensor:
        # Not for a part of the tokens: the host's call and cache are for all of them.
        if own is not None and isinstance(seen, Whole):
            return own(hidden)
        return self._experts.run_expert(key, spec, seen, hidden)

    @cached_property
    def _alone(self) -> Routing:
        """The routing of layers with nothing to choose, the same for all of them."""
        shown = self._mask.new_ones(self._shown.shape) if self._padding is None else self._padding
        return Routing(shown[..., None].to(torch.float32), None)

    def _first_tokens(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens (B, S, H) by which rows choose, in their order, and their mask (B, S)."""
        mask = self._shown
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
