"""The host's side of a fused forward: what goes into it, and its head on a stream that it did not make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mol.core.blocks.calls import argument
from mol.core.blocks.inputs import Inputs, Tokens
from mol.errors import MolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.core.blocks.source import Source
    from mol.core.mol_runtime import MoLRuntime


def reads_images(host: Source) -> bool:
    """Tell whether a host takes `pixel_values` instead of tokens."""
    return not host.takes(host.model, "input_ids") and host.takes(host.model, "pixel_values")


def host_inputs(
    host: Source,
    model: nn.Module,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    others: Mapping[str, Any],
) -> tuple[dict[str, Any], torch.Tensor]:
    """Give the inputs of a forward of the host without a cache, and the mask of the stream (B, T) that they make.

    Args:
        host: the host.
        model: its model, or the part of it that drives the blocks.
        input_ids: (B, T), of a host that reads tokens.
        attention_mask: (B, T), 0 for padding.
        others: inputs of the model's own, `pixel_values` or `token_type_ids` say; those that are None are left out.

    Raises:
        MolError: the host reads tokens and gets none, or reads images and gets tokens, or the other way round.
    """
    given = {name: value for name, value in others.items() if value is not None}
    reads = "pixel_values" if reads_images(host) else "input_ids"
    found = [
        name
        for name in ("input_ids", "pixel_values")
        if name in given or (name == "input_ids" and input_ids is not None)
    ]
    if found != [reads]:
        raise MolError(
            f"the host {host.name} ({type(host.model).__name__}) reads {reads} alone, and was given "
            f"{' and '.join(found) or 'neither tokens nor images'}"
        )
    if input_ids is not None:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        return {**host.token_inputs(model, input_ids, mask), **given}, mask
    # How many patches an image of this size has, only its embeddings know.
    with torch.no_grad():
        handed, _ = host.calls.capture(lambda: model(**given))
    hidden = argument(handed[0], host.calls.forms[0].hidden_in)
    batch, patches, _ = host.layout.from_block(hidden, given["pixel_values"].shape[0]).shape
    return given, torch.ones(batch, patches, dtype=torch.long, device=hidden.device)


class HostHead(nn.Module):
    """The host's final norm and head, as its own forward applies them."""

    def __init__(self, runtime: MoLRuntime) -> None:
        """Belong to a runtime, without being part of its modules twice."""
        super().__init__()
        self.__dict__["_runtime"] = runtime

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Turn the stream after the last layer (B, T, H) into logits: (B, T, V), or (B, C) of C classes.

        Args:
            hidden_states: the stream.
            attention_mask: (B, T), 0 for padding; only heads that sum up a text look at it.
        """
        host: Source = self.__dict__["_runtime"].host
        batch, length, _ = hidden_states.shape
        mask = torch.ones(batch, length, dtype=torch.long, device=hidden_states.device)
        if attention_mask is not None:
            mask = attention_mask.long()
        if reads_images(host):
            inputs = Inputs(host.model, "pixel_values").make(Tokens.of(mask, length, host.dtype))
        else:
            # Some heads find the end of a text by the padding token instead of the mask.
            padding = host.model.config.get_text_config().pad_token_id
            token = 1 if padding == 0 else 0
            ids = torch.full_like(mask, token).masked_fill(mask == 0, token if padding is None else padding)
            inputs = {"input_ids": ids, "attention_mask": mask}
        last = host.layout.to_block(hidden_states)
        _, result = host.calls.capture(lambda: host.model(**inputs), last=last)
        logits: torch.Tensor = result.logits
        return logits
