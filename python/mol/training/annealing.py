"""Annealing: the number of experts that a token is given to falls from all to the one that a fusion is for."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mol.errors import ConfigError

if TYPE_CHECKING:
    from mol.core.runtime import Runtime


class Annealing:
    """Sets `top_k` of the routers of a fusion; training that starts sparse often never leaves the first choice."""

    def __init__(self, runtime: Runtime, steps: int) -> None:
        """Anneal over so many steps; with 0 nothing is set.

        Raises:
            ConfigError: the fusion has no number of experts to end at.
        """
        if steps and runtime.config.top_k_experts is None:
            raise ConfigError(
                "dense_steps is set, and MoLConfig(top_k_experts=...) is not, so every token is given to all experts "
                "in any case: set that, or leave dense_steps out"
            )
        self._last = runtime.config.top_k_experts
        self._runtime = runtime
        self._steps = steps

    def set_for(self, step: int) -> None:
        """Set the number of experts for a step, counted from 0."""
        if not self._steps or self._last is None:
            return
        for layer in self._runtime.fused:
            if layer.router is not None:
                experts = len(layer.built)
                last = min(self._last, experts)
                gone = min(1.0, step / self._steps)
                layer.router.top_k = experts - math.floor((experts - last) * gone)

    def end(self) -> None:
        """Set the number that the fusion is for."""
        self.set_for(self._steps)
