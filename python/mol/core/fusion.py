"""Runs the host's own forward with fused layers in the place of its blocks.

The host drives: embeddings, positions, masks, final norm, head and loss are its own code. Where a layer was added, the
host's call of its block becomes the layer's; every other block runs as it is.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from mol.core.calls import Arguments, argument, part, ports, with_argument
from mol.core.dispatch import intercepted, run_block
from mol.core.mol_layer import ExpertSpec, MoLLayer, Routing, RunBlocks
from mol.core.source import Source, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mol.core.cache import ExpertCache, FusedCache
    from mol.core.prelude import Carries


class Fusion(NamedTuple):
    """What a fused model is made of.

    Attributes:
        host: the source that drives.
        sources: every model by name, the host among them.
        host_name: the host's name.
        layers: by position in the host.
        keep_host_layers: run blocks of the host without a layer, instead of passing the stream on.
    """

    host: Source
    sources: Mapping[str, Source]
    host_name: str
    layers: Mapping[int, MoLLayer]
    keep_host_layers: bool


class Pass:
    """One forward of a fused model.

    Attributes:
        routings: by position, what the routers said.
        hidden: the stream after the last block (B, T, H), in the host's width and before its final norm.
    """

    def __init__(self, fusion: Fusion, mask: torch.Tensor, length: int, cache: FusedCache | None) -> None:
        """Prepare a forward.

        Args:
            fusion: the model.
            mask: (B, P + T) over all tokens so far, 0 for padding.
            length: T, the number of new tokens.
            cache: what earlier forwards left; it grows by this one.
        """
        self._fusion = fusion
        self._mask = mask
        self._length = length
        self._cache = cache
        self._next = 0
        self._contexts: dict[tuple[str, bool], list[Arguments]] = {}
        self._live: dict[str, Carries] = {}
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
        own = layer.specs.index(mine) if (mine := ExpertSpec(self._fusion.host_name, (index,))) in layer.specs else None
        runs = [
            self._own(index, call, carried) if number == own else partial(self._run_foreign, (index, number), spec)
            for number, spec in enumerate(layer.specs)
        ]
        state = None if self._cache is None else self._cache.routes.get(index)
        mixed, routing, state = layer(hidden, self._mask[:, -self._length :], runs, state, skip=self._cache is None)
        self.routings[index] = routing
        if self._cache is not None and state is not None:
            self._cache.routes[index] = state
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
            result = run_block(form.block, with_argument(call, form.hidden_in, host.layout.to_block(hidden)))
            carried.update(ports(result))
            return host.layout.from_block(part(result, form.result.port), hidden.shape[0])

        return run

    def _run_foreign(self, place: tuple[int, int], spec: ExpertSpec, hidden: torch.Tensor) -> torch.Tensor:
        source = self._fusion.sources[spec.model]
        return self._run_in(source, place, spec, hidden.to(source.dtype)).to(hidden.dtype)

    def _run_in(self, source: Source, place: tuple[int, int], spec: ExpertSpec, hidden: torch.Tensor) -> torch.Tensor:
        live = self._live.setdefault(spec.model, {})
        if self._cache is None:
            context = self._context(spec.model, whole=True)
            for block in spec.blocks:
                hidden = source.run(block, hidden, context, live=live)
            return hidden
        if all(source.has_native_cache(block) for block in spec.blocks):
            cache = self._cache.experts.setdefault(place, source.new_cache())
            cache.seen = self._cache.seen
            context = self._context(spec.model, whole=False)
            for block in spec.blocks:
                hidden = source.run(block, hidden, context, cache=cache, live=live)
            return hidden
        # Without a cache of its own a block runs on all that has gone into it; only its new outputs count.
        before = self._cache.histories.get(place)
        hidden = hidden if before is None else torch.cat([before, hidden], 1)
        self._cache.histories[place] = hidden
        context = self._context(spec.model, whole=True)
        live = {}
        for block in spec.blocks:
            hidden = source.run(block, hidden, context, live=live)
        return hidden[:, -self._length :]

    def _context(self, name: str, *, whole: bool) -> list[Arguments]:
        """Give the context of a model for all tokens, or for the new ones after those in a cache."""
        context = self._contexts.get((name, whole))
        if context is None:
            source = self._fusion.sources[name]
            length = self._mask.shape[1] if whole else self._length
            cache: ExpertCache | None = None
            if not whole and self._cache is not None:
                cache = source.new_cache()
                cache.seen = self._cache.seen
            tokens = Tokens.of(self._mask, length, source.dtype)
            context = self._contexts[name, whole] = source.context(tokens, cache)
        return context
