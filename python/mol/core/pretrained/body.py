"""MoLModel: a fused model without its host's head, as `base_model` of those with it and as AutoModel loads it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from mol.core.host import host_inputs
from mol.core.pretrained.fused_model import FusedModel, MoLModelConfig
from mol.errors import MolError

if TYPE_CHECKING:
    import torch

    from mol.core.mol_runtime import MoLRuntime

_log = logging.getLogger("mol")


class MoLModel(FusedModel):
    """A fused model without its host's head: hidden states as the head reads them, after the final norm.

    It keeps no cache and has no loss: a trainer that makes its own of hidden states, as those of TRL do, trains routers
    without the losses that `MoLForCausalLM` adds where it is given labels.
    """

    @classmethod
    def from_model(cls, model: FusedModel) -> MoLModel:
        """Return the body of a model; both share everything."""
        return cls._around(model.runtime, model.config)

    def _adopt(self, runtime: MoLRuntime) -> None:
        self.runtime = runtime
        self._has_said = False
        self.train(runtime.training)

    @property
    def base_model(self) -> FusedModel:
        """The model itself."""
        return self

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,  # noqa: ANN401 - what the host's forward takes besides
    ) -> BaseModelOutputWithPast:
        """Run the host's forward, all but its head, with the fused layers in it.

        Args:
            input_ids: (B, T), of a host that reads tokens.
            attention_mask: (B, T), 0 for padding.
            use_cache: no cache is kept.
            return_dict: must not be False.
            others: `output_hidden_states`, and inputs that only the host knows.

        Returns:
            `last_hidden_state` (B, T, H).

        Raises:
            MolError: an input is not known or of another shape, or the host's body gives no hidden states.
        """
        if return_dict is False:
            raise MolError("a fused model returns its outputs by name: return_dict=False is not supported")
        host = self.runtime.host
        body = host.model.base_model
        inputs, mask = host_inputs(host, body, input_ids, attention_mask, others)
        output, run = self.runtime.run_host(lambda: body(**inputs), mask, mask.shape[1])
        self.routings = run.routings
        last = output.get("last_hidden_state")
        if last is None:
            raise MolError(f"the host {host.name} ({type(body).__name__}) gives no hidden states without its head")
        if self.runtime.training:
            self._say_what_is_not_trained()
        return BaseModelOutputWithPast(last_hidden_state=last, hidden_states=output.get("hidden_states"))

    def _say_what_is_not_trained(self) -> None:
        settings = self.runtime.config
        chosen = any(logits is not None for _, logits in self.routings.values())
        if chosen and (settings.load_balancing_coeff or settings.entropy_penalty_coeff) and not self._has_said:
            self._has_said = True
            _log.warning(
                "the loss is made outside of the model, so routers are trained without load_balancing_coeff and "
                "entropy_penalty_coeff, which count only where the model is given labels"
            )


AutoModel.register(MoLModelConfig, MoLModel)
