"""Warns in training of experts that a router hardly uses any more, and of one that gets nearly all tokens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.config.mol_config import Balance
    from mol.core.mol_layer import ExpertSpec, Routing

_log: Final = logging.getLogger("mol")
_STEPS: Final = 50
"""Forwards between two checks: each is a device sync."""
_LEAST: Final = 0.05
"""The least share, relative to an even one."""
_MOST: Final = 0.95
"""The largest share."""


class ShareWatch:
    """Sums the weight of each expert over the last forwards of training."""

    def __init__(self, load_balancing_coeff: float, entropy_penalty_coeff: float, balance: Balance = "loss") -> None:
        """Start with no forward; a warning names these coefficients, or what balances without a loss."""
        larger = f"load_balancing_coeff ({load_balancing_coeff:g})"
        if balance == "bias":
            larger = "rate of update_expert_biases (bias_update_rate of TrainingConfig) after each step"
        self._remedy = f"a larger {larger} or a smaller entropy_penalty_coeff ({entropy_penalty_coeff:g})"
        self._sums: dict[int, torch.Tensor] = {}
        self._count = 0
        self._said: set[tuple[int, int]] = set()

    def see(self, routings: Mapping[int, Routing], specs: Mapping[int, Sequence[ExpertSpec]]) -> None:
        """Add one forward, and warn once of each expert whose share is near 0, or else of one whose share is near 1.

        Args:
            routings: by position, the output of the routers; weights are 0 for padding.
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
                        "it learns nothing; %s keeps it in use",
                        position, _STEPS, 100 * share, specs[position][number], len(shares), self._remedy,
                    )  # fmt: skip
            first = max(range(len(shares)), key=shares.__getitem__)
            told = any(layer == position for layer, _ in self._said)
            if shares[first] > _MOST and not told:
                self._said.add((position, -1))
                _log.warning(
                    "layer %d: over the last %d training steps the router gave %.1f%% to %s, one of %d experts, so the "
                    "others hardly learn; %s spreads the tokens",
                    position, _STEPS, 100 * shares[first], specs[position][first], len(shares), self._remedy,
                )  # fmt: skip
        self._sums.clear()
