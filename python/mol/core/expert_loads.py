"""ExpertLoads: balances the experts of a layer without a loss, by a bias of the choice that follows their loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.core.mol_layer import MoLLayer, Routing
    from mol.core.routers import BaseRouter


class ExpertLoads:
    """Counts the tokens of each expert over the training forwards of an optimiser step, padding left out."""

    def __init__(self) -> None:
        """Start with no token."""
        self._counts: dict[int, torch.Tensor] = {}

    def clear(self) -> None:
        """Start anew."""
        self._counts.clear()

    def see(self, routings: Mapping[int, Routing], layers: Mapping[int, MoLLayer]) -> None:
        """Add one forward.

        Args:
            routings: by position, the output of the routers; an expert that a token did not choose has the weight 0.
            layers: by position.
        """
        for position in biased_routers(layers):
            found = routings[position].weights.detach().gt(0).flatten(0, 1).sum(0)
            before = self._counts.get(position)
            self._counts[position] = found if before is None else before + found

    def update(self, layers: Mapping[int, MoLLayer], rate: float) -> None:
        """Move the biases by the loads so far, b_e += rate * sign(mean load - load_e), and start anew.

        The loads are those of all processes, which all call this.

        Args:
            layers: by position.
            rate: how far a bias moves, in logits.

        Raises:
            ConfigError: no router has a bias.
        """
        check_biased(layers)
        routers = biased_routers(layers)
        device = next(iter(routers.values())).classifier.weight.device
        counts = [
            self._counts.get(position, torch.zeros(router.num_experts, dtype=torch.int64, device=device))
            for position, router in routers.items()
        ]
        loads = torch.cat([one.to(device) for one in counts])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(loads)
        self.clear()
        for router, load in zip(routers.values(), torch.split(loads, [len(one) for one in counts]), strict=True):
            # Whole numbers, so that the sign is exact: E times the mean load, less E times that of each expert.
            error = (load.sum() - len(load) * load).sign()
            if router.expert_bias is not None:
                bias = router.expert_bias.float()  # of a model that was cast, too: small moves are lost to 8 bits
                router.expert_bias = bias + rate * error.to(bias)


def biased_routers(layers: Mapping[int, MoLLayer]) -> dict[int, BaseRouter]:
    """Return the routers that choose with a bias, by position."""
    return {
        position: layer.router
        for position, layer in layers.items()
        if layer.router is not None and layer.router.expert_bias is not None
    }


def check_biased(layers: Mapping[int, MoLLayer]) -> None:
    """Check that a router chooses with a bias.

    Raises:
        ConfigError: none does.
    """
    if not biased_routers(layers):
        raise ConfigError(
            'no router has a bias to balance experts by: that takes MoLConfig(balance="bias", top_k_experts=...) and a '
            "layer of more experts than top_k_experts"
        )
