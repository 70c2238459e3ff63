"""Warns in training of experts that a router hardly uses any more: they learn nothing, and may never come back."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.config.mol_config import MoLConfig
    from mol.core.mol_layer import ExpertSpec, Routing

_log: Final = logging.getLogger("mol")
_STEPS: Final = 50
"""Forwards between two looks: each waits for the device."""
_LEAST: Final = 0.05
"""Of an even share."""


class ShareWatch:
    """The weight that each expert got over the last forwards of training."""

    def __init__(self, settings: MoLConfig) -> None:
        """Start with none; the settings are what a warning names."""
        self._settings = settings
        self._sums: dict[int, torch.Tensor] = {}
        self._count = 0
        self._said: set[tuple[int, int]] = set()

    def see(self, routings: Mapping[int, Routing], specs: Mapping[int, Sequence[ExpertSpec]]) -> None:
        """Take in one forward, and warn once of each expert whose share has come near 0.

        Args:
            routings: by position, what the routers said; weights are 0 for padding.
            specs: by position, the experts.
        """
        for position, routing in routings.items():
            if routing.logits is not None:
                weights = routing.weights.detach().flatten(0, 1).sum(0)
                before = self._sums.get(position)
                self._sums[position] = weights if before is None else before + weights
        self._count += 1
        if self._count % _STEPS:
            return
        for position, total in self._sums.items():
            shares = (total / total.sum().clamp(min=torch.finfo(torch.float32).tiny)).tolist()
            for number, share in enumerate(shares):
                if share < _LEAST / len(shares) and (position, number) not in self._said:
                    self._said.add((position, number))
                    _log.warning(
                        "layer %d: over the last %d training steps the router gave %.1f%% to %s, one of %d experts, so "
                        "it learns nothing; a larger load_balancing_coeff (%g) or a smaller entropy_penalty_coeff (%g) "
                        "keeps it in use",
                        position, _STEPS, 100 * share, specs[position][number], len(shares),
                        self._settings.load_balancing_coeff, self._settings.entropy_penalty_coeff,
                    )  # fmt: skip
        self._sums.clear()
