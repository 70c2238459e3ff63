"""Caches of a fused model: one for each expert of each layer, and the one around them that `generate` passes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mol.core.selection import where_from
from mol.errors import FusionError

CACHE_NAME: Final = "cache" if "cache" in CausalLMOutputWithPast.__annotations__ else "past_key_values"
"""The models' name for their cache: `past_key_values` before transformers 5.24."""

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class ExpertCache(DynamicCache):
    """The cache of one expert in one layer, of the class that its model uses.

    Only the slot of the expert's own block fills, while the model sizes its masks by another slot, so lengths are
    those of the fused sequence.

    Attributes:
        seen: tokens of the fused sequence before this forward.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        """Make the empty cache of a model with this config."""
        super().__init__(config=config)
        self.seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the fused length before this forward."""
        return self.seen

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the position of the first new token."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the length and offset of the keys that a mask covers."""
        layer: Any = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if layer is None or not getattr(layer, "is_sliding", False):
            return self.seen + query_length, 0
        before, layer.cumulative_length = layer.cumulative_length, self.seen
        try:
            sizes: tuple[int, int] = layer.get_mask_sizes(query_length)
        finally:
            layer.cumulative_length = before
        return sizes

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Return whether tokens have been seen."""
        return self.seen > 0

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        for layer in self.layers:
            for name, value in vars(layer).items():
                if isinstance(value, torch.Tensor) and value.dim() > 1 and value.numel():
                    setattr(layer, name, value.index_select(0, rows.to(value.device)))
                elif isinstance(value, (list, dict)):  # states of linear attention, by their number
                    for key, state in list(value.items() if isinstance(value, dict) else enumerate(value)):
                        if isinstance(state, torch.Tensor) and state.dim() > 1:
                            value[key] = state.index_select(0, rows.to(state.device))


@dataclass
class Compacted:
    """The input so far of a block without a cache of its own, of the tokens that were routed to it.

    Attributes:
        hidden: (B, P, D), the tokens of a row side by side and padding behind them.
        positions: (B, P), in the whole sequence.
        counts: tokens of each row.
    """

    hidden: torch.Tensor
    positions: torch.Tensor
    counts: list[int]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self.hidden = self.hidden.index_select(0, rows.to(self.hidden.device))
        self.positions = self.positions.index_select(0, rows.to(self.positions.device))
        self.counts = [self.counts[row] for row in rows.tolist()]


class FusedCache(Cache):
    """The state of a fused model between forwards.

    Attributes:
        seen: tokens so far.
        batch: rows; 0 before the first forward.
        ids: (B, seen), the tokens so far, None before the first forward; enough to run all of them again.
        stale: whether the next forward must do that, because the rest of the cache does not fit it or was never made.
        prompt: with "sequence" dispatch, the number of first columns by which rows choose; `router_prefix` tokens if
            None.
        host: the host's own cache.
        experts: by (layer, expert), of those whose blocks have a native cache.
        histories: by (layer, expert), hidden states (B, T, D) that went into a block without one.
        rows: by (layer, expert), the rows of the batch that its cache or history holds; all if it is missing.
        valid: by (layer, expert), which keys (B, P) of its cache are tokens that were routed to it; all if missing.
        compacted: by (layer, expert), the input of a block without a cache when only some tokens were routed to it.
        routes: by layer, the state of its router, or the choice that was pinned.
    """

    def __init__(self, host: ExpertCache | None) -> None:
        """Start with no token."""
        # Not Cache.__init__: it requires the layers of one model.
        self.layers: list[Any] = []
        self.offloading = False
        self.layer_class_to_replicate = None
        self.seen = 0
        self.batch = 0
        self.ids: torch.Tensor | None = None
        self.stale = False
        self.prompt: int | None = None
        self.host = host
        self.experts: dict[tuple[int, int], ExpertCache] = {}
        self.histories: dict[tuple[int, int], torch.Tensor] = {}
        self.rows: dict[tuple[int, int], list[int]] = {}
        self.valid: dict[tuple[int, int], torch.Tensor] = {}
        self.compacted: dict[tuple[int, int], Compacted] = {}
        self.routes: dict[int, Any] = {}

    def __len__(self) -> int:
        """Count the experts with a cache."""
        return len(self.experts)

    def __bool__(self) -> bool:
        """Return True: there is a cache, even if it is empty."""
        return True

    def extend(self, ids: torch.Tensor) -> None:
        """Add the new tokens (B, T) of a forward that has run.

        Raises:
            FusionError: they are of another number of rows.
        """
        self.ids = ids if self.ids is None else torch.cat([self.ids, ids.to(self.ids.device)], 1)
        self.batch, self.seen = self.ids.shape

    def restart(self, fresh: FusedCache) -> None:
        """Empty the cache, except for the number of columns by which rows choose: all tokens are run again."""
        self.__dict__.update({**vars(fresh), "prompt": self.prompt})

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens so far."""
        return self.seen

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the position of the next token."""
        return self.seen

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the length and offset of the keys that a mask covers."""
        return self.seen + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Return -1: it grows."""
        return -1

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be given several times, as beams do."""
        chosen = {key: where_from(kept, beam_idx) for key, kept in self.rows.items()}
        held = {key: torch.tensor(old) for key, (_, old) in chosen.items()}
        for key, (new, _) in chosen.items():
            if new:
                self.rows[key] = new
            else:  # no row of this expert is left
                for kind in (self.rows, self.experts, self.histories):
                    kind.pop(key, None)
        for key, cache in self.experts.items():
            cache.select(held.get(key, beam_idx))
        for tensors in (self.histories, self.valid):
            for key, tensor in tensors.items():
                tensors[key] = tensor.index_select(0, held.get(key, beam_idx).to(tensor.device))
        for others in (*self.compacted.values(), *self.routes.values()):
            others.select(beam_idx)
        if self.host is not None:
            self.host.select(beam_idx)
        if self.ids is not None:
            self.ids = self.ids.index_select(0, beam_idx.to(self.ids.device))
        self.batch = len(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, for beams.

        Raises:
            FusionError: nothing was cached yet, so the number of rows is not known.
        """
        if not self.batch:
            raise FusionError("rows of an empty cache cannot be repeated")
        self.reorder_cache(torch.arange(self.batch).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; the next forward runs those that are left again, for a state cannot undo tokens.

        Args:
            tokens_to_remove: their number, negative. A positive number is that of the tokens which stay, as it was in
                transformers before 5.24.
        """
        left = tokens_to_remove if tokens_to_remove > 0 else max(self.seen + tokens_to_remove, 0)
        if self.ids is not None and left < self.seen:
            self.ids, self.seen, self.stale = self.ids[:, :left], left, True

    @property
    def is_compileable(self) -> bool:
        """Whether its shapes stay the same: they grow."""
        return False

    @property
    def is_croppable(self) -> bool:
        """Whether tokens can be removed without running the others again: they cannot."""
        return False

    @property
    def is_sliding(self) -> list[bool]:
        """Whether it has a sliding window, by layer; each expert's own cache knows."""
        return [False]

    @property
    def is_linear(self) -> list[bool]:
        """Whether it has no length, by layer: it has one, whatever its experts are."""
        return [False]

    @property
    def is_initialized(self) -> bool:
        """Whether tokens have been seen."""
        return self.seen > 0
