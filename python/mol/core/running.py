"""ExpertRuns: runs the blocks of experts in one forward, in their models' contexts and with their caches."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from mol.core.blocks.inputs import Tokens
from mol.core.cache import Compacted
from mol.core.selection import Picked, Rows, Whole
from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.core.blocks.calls import Arguments
    from mol.core.blocks.prelude import Carries
    from mol.core.blocks.source import Source
    from mol.core.cache import ExpertCache, FusedCache
    from mol.core.mol_layer import ExpertSpec
    from mol.core.selection import Selection

    ExpertKey = tuple[int, int]
    """Position of a layer, and number of an expert in it."""


class ExpertRuns:
    """Runs the blocks of all models on the tokens of one forward."""

    def __init__(
        self, sources: Mapping[str, Source], mask: torch.Tensor, length: int, cache: FusedCache | None
    ) -> None:
        """Prepare a forward.

        Args:
            sources: every model by name.
            mask: (B, P + T) over all tokens so far, 0 for padding.
            length: T, the number of new tokens.
            cache: from earlier forwards.
        """
        self._sources = sources
        self._mask = mask
        self._length = length
        self._cache = cache
        self._contexts: dict[tuple[str, bool, tuple[int, ...] | None], list[Arguments]] = {}
        self._live: dict[tuple[str, tuple[int, ...] | None, bool], Carries] = {}
        self._positions: torch.Tensor | None = None

    def run_expert(self, key: ExpertKey, spec: ExpertSpec, chosen: Selection, hidden: torch.Tensor) -> torch.Tensor:
        """Run an expert's blocks on the hidden states (..., D) of what it sees, and return theirs in the same dtype."""
        source = self._sources[spec.model]
        given = hidden.to(source.dtype)
        if not isinstance(chosen, Picked):
            result = self._run_rows(source, key, spec, chosen, given)
        elif self._cache is not None and all(
            source.has_native_cache(block) and source.keeps_gaps(block) for block in spec.blocks
        ):
            result = self._run_with_gaps(source, key, spec, chosen, given, self._cache)
        else:
            result = self._run_compacted(source, key, spec, chosen, given)
        return result.to(hidden.dtype)

    def carries(self) -> dict[Any, Carries]:
        """Return a copy of what blocks have handed on so far, for `use_carries`."""
        return {key: dict(live) for key, live in self._live.items()}

    def use_carries(self, carries: Mapping[Any, Carries]) -> None:
        """Restore what blocks had handed on when `carries` returned it, to run blocks again."""
        self._live = {key: dict(live) for key, live in carries.items()}

    @staticmethod
    def _is_native(source: Source, spec: ExpertSpec) -> bool:
        return all(source.has_native_cache(block) for block in spec.blocks)

    def _run_rows(
        self, source: Source, key: ExpertKey, spec: ExpertSpec, chosen: Whole | Rows, hidden: torch.Tensor
    ) -> torch.Tensor:
        self._refuse_padding(source, spec, **self._padding)
        numbers = chosen.numbers if isinstance(chosen, Rows) else None
        # Carries are as long as the text that blocks run on: all tokens, or the new ones.
        whole = self._cache is None or not self._is_native(source, spec)
        live = self._live.setdefault((spec.model, numbers, whole), {})
        if self._cache is None:
            return run_expert_blocks(source, spec, hidden, self._context(spec.model, chosen, whole=True), None, live)
        if numbers is not None:
            self._cache.rows[key] = list(numbers)
        if not whole:
            cache = self._cache.experts.get(key)
            if cache is None:
                cache = self._cache.experts[key] = source.new_cache()
            cache.seen = self._cache.seen
            return run_expert_blocks(source, spec, hidden, self._context(spec.model, chosen, whole=False), cache, live)
        # Without a cache of its own a block runs on all of its input so far; only its new outputs count.
        before = self._cache.histories.get(key)
        hidden = hidden if before is None else torch.cat([before, hidden], 1)
        self._cache.histories[key] = hidden
        context = self._context(spec.model, chosen, whole=True)
        return run_expert_blocks(source, spec, hidden, context, None, live)[:, -self._length :]

    def _context(self, name: str, chosen: Whole | Rows, *, whole: bool) -> list[Arguments]:
        """Return the context of a model for all tokens, or for the new ones after those in a cache."""
        key = name, whole, chosen.numbers if isinstance(chosen, Rows) else None
        context = self._contexts.get(key)
        if context is None:
            source = self._sources[name]
            cache: ExpertCache | None = None
            if not whole and self._cache is not None:
                cache = source.new_cache()
                cache.seen = self._cache.seen
            length = self._mask.shape[1] if whole else self._length
            tokens = Tokens.of(chosen.take(self._mask), length, source.dtype)
            context = self._contexts[key] = source.context(tokens, cache)
        return context

    @cached_property
    def _padding(self) -> dict[str, bool]:
        """Whether any row has padding before a token, and whether any has padding behind one."""
        shown = self._mask.ne(0)
        first, second = shown[:, :-1], shown[:, 1:]
        found = torch.stack([(~first & second).any(), (first & ~second).any()]).tolist()
        return dict(zip(("before", "behind"), found, strict=True))

    @staticmethod
    def _refuse_padding(source: Source, spec: ExpertSpec, *, before: bool, behind: bool) -> None:
        """Refuse padding, before or behind tokens, that would change the outputs of blocks."""
        minding = [
            str(block)
            for block in spec.blocks
            if (before and source.minds_padding(block, before=True))
            or (behind and not source.is_causal(block) and source.minds_padding(block, before=False))
        ]
        if minding:
            other = "pad on the right" if all(map(source.is_causal, spec.blocks)) else "give texts of one length"
            blocks = f"block {', '.join(minding)} of {source.name} ({type(source.model).__name__})"
            raise FusionError(
                f"padding changes what {blocks} computes for the text next to it; {other}, or run them one by one"
            )

    def _positions_of(self, chosen: Picked) -> torch.Tensor:
        """Return the positions (N,) of tokens in their whole row."""
        if self._positions is None:
            self._positions = Tokens.of(self._mask, self._length, torch.float32).positions
        return chosen.take(self._positions)

    def _run_compacted(
        self, source: Source, key: ExpertKey, spec: ExpertSpec, chosen: Picked, hidden: torch.Tensor
    ) -> torch.Tensor:
        """Run on all tokens of an expert so far, the tokens of each row side by side and padded on the right."""
        before = None if self._cache is None else self._cache.compacted.get(key)
        if before is None:
            batch = self._mask.shape[0]
            before = Compacted(
                hidden.new_zeros(batch, 0, hidden.shape[-1]), chosen.rows.new_zeros(batch, 0), [0] * batch
            )
        counts = [old + new for old, new in zip(before.counts, chosen.counts, strict=True)]
        width = max(counts)
        ranks = chosen.ranks + chosen.rows.new_tensor(before.counts)[chosen.rows]
        more = width - before.positions.shape[1]
        put = chosen.rows, ranks
        whole = functional.pad(before.hidden, (0, 0, 0, more)).index_put(put, hidden)
        positions = functional.pad(before.positions, (0, more)).index_put(put, self._positions_of(chosen))
        if self._cache is not None:
            self._cache.compacted[key] = Compacted(whole, positions, counts)
        # Rows without a new token need no output, and a row without any token could not even be masked.
        running = Rows.of([row for row, count in enumerate(chosen.counts) if count], hidden.device)
        mask = torch.arange(width, device=hidden.device) < chosen.rows.new_tensor(counts)[:, None]
        self._refuse_padding(source, spec, before=False, behind=any(counts[row] < width for row in running.numbers))
        tokens = Tokens(running.take(mask.long()), running.take(positions), width, hidden.device, source.dtype)
        result = run_expert_blocks(source, spec, running.take(whole), source.context(tokens), None, {})
        number = chosen.rows.new_zeros(len(counts))
        number[running.index] = torch.arange(len(running.numbers), device=hidden.device)
        return result[number[chosen.rows], ranks]

    def _run_with_gaps(
        self,
        source: Source,
        key: ExpertKey,
        spec: ExpertSpec,
        chosen: Picked,
        hidden: torch.Tensor,
        fused: FusedCache,
    ) -> torch.Tensor:
        """Run on the new tokens of an expert with its cache, whose rows have gaps that its mask hides."""
        batch, length = self._mask.shape[0], max(chosen.counts)
        put = chosen.rows, chosen.ranks
        padded = hidden.new_zeros(batch, length, hidden.shape[-1]).index_put(put, hidden)
        positions = chosen.rows.new_zeros(batch, length).index_put(put, self._positions_of(chosen))
        new = torch.arange(length, device=hidden.device) < chosen.rows.new_tensor(chosen.counts)[:, None]
        before = fused.valid.get(key)
        valid = new if before is None else torch.cat([before, new], 1)
        fused.valid[key] = valid
        cache = fused.experts.get(key)
        if cache is None:
            cache = fused.experts[key] = source.new_cache()
        measure = source.new_cache()
        cache.seen = measure.seen = valid.shape[1] - length
        # A row without any token attends to its padding, whose output nobody reads: attending to nothing gives NaN.
        shown = valid.clone()
        shown[:, -length:] |= ~valid.any(1, keepdim=True)
        tokens = Tokens(shown.long(), positions, length, hidden.device, source.dtype)
        return run_expert_blocks(source, spec, padded, source.context(tokens, measure), cache, {})[put]


def run_expert_blocks(
    source: Source,
    spec: ExpertSpec,
    hidden: torch.Tensor,
    context: list[Arguments],
    cache: ExpertCache | None,
    live: Carries,
) -> torch.Tensor:
    """Run an expert's blocks one after another on hidden states (B, T, D); see `BlockRunner.run_block`."""
    for block in spec.blocks:
        hidden = source.run_block(block, hidden, context, cache=cache, live=live)
    return hidden
