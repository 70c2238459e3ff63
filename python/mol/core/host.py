"""The host's side of a fused forward: its inputs, and its head on a stream that it did not compute."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from mol.core.blocks.calls import argument
from mol.core.blocks.inputs import CACHE_NAMES, Inputs, Tokens, takes, token_inputs
from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.core.blocks.lengths import Limit
    from mol.core.blocks.source import Source

_log: Final = logging.getLogger("mol")
_FROM_MASK: Final = "every model computes its own from attention_mask"
UNKNOWN_TO_EXPERTS: Final = {
    "inputs_embeds": "give input_ids",
    "position_ids": f"{_FROM_MASK}; texts packed into a row are not kept apart, so pad them "
    "(DataCollatorWithPadding, not DataCollatorWithFlattening; in TRL leave out packing and padding_free, or pack with "
    'packing_strategy="wrapped")',
    "cache_position": _FROM_MASK,
    "output_attentions": "experts do not return theirs",
    "output_router_logits": "the host's own routers are frozen, and fused layers run other blocks than theirs",
    **dict.fromkeys(CACHE_NAMES, "MoLForCausalLM keeps a cache for each expert"),
}


def reads_images(host: Source) -> bool:
    """Return whether a host takes `pixel_values` instead of tokens."""
    return not takes(host.model, "input_ids") and takes(host.model, "pixel_values")


def checked_tokens(input_ids: Any) -> torch.Tensor:  # noqa: ANN401 - any argument
    """Return `input_ids` (B, T) after a check.

    Raises:
        FusionError: they are None, no tensor, not integers or of another shape.
    """
    wanted = "wanted a tensor (batch, tokens) of integers"
    if input_ids is None:
        raise FusionError(f"input_ids are missing; {wanted}")
    if not isinstance(input_ids, torch.Tensor):
        raise FusionError(
            f'input_ids are a {type(input_ids).__name__}, {wanted}, as tokenizer(..., return_tensors="pt")'
        )
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise FusionError(f"input_ids are {input_ids.dtype}, {wanted}")
    if input_ids.dim() != 2 or not input_ids.numel():
        raise FusionError(f"input_ids are {tuple(input_ids.shape)}, wanted (batch, tokens), at least one of each")
    return input_ids


def checked_mask(input_ids: torch.Tensor, mask: torch.Tensor | None, seen: int = 0) -> torch.Tensor:
    """Return the mask (B, P + T) of all tokens as integers, all ones if None.

    Args:
        input_ids: (B, T).
        mask: of them and of those before.
        seen: P, the number of those before.

    Raises:
        FusionError: it is no tensor or of another shape.
    """
    batch, length = input_ids.shape
    if mask is None:
        return torch.ones(batch, seen + length, dtype=torch.long, device=input_ids.device)
    if not isinstance(mask, torch.Tensor):
        raise FusionError(f"attention_mask is a {type(mask).__name__}, wanted a tensor {(batch, seen + length)}")
    if mask.shape != (batch, seen + length):
        after = f" after {seen} in the cache" if seen else ""
        raise FusionError(
            f"attention_mask is {tuple(mask.shape)} for {length} tokens{after} in {batch} rows, wanted "
            f"{(batch, seen + length)}"
        )
    return mask.long()


def checked_labels(labels: Any, input_ids: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - any argument
    """Return the labels of these tokens (B, T) after a check.

    Raises:
        FusionError: it is no tensor or of another shape.
    """
    if not isinstance(labels, torch.Tensor) or labels.shape != input_ids.shape:
        found = tuple(labels.shape) if isinstance(labels, torch.Tensor) else f"a {type(labels).__name__}"
        raise FusionError(f"labels are {found}, wanted a tensor {tuple(input_ids.shape)}: one for each token")
    return labels


def set_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Drop options that are None or False: they were not set."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def host_options(host: Source, model: nn.Module, others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the further options to call the host's model, or a part of it, with; None and False are dropped.

    Raises:
        FusionError: the host does not take one, or experts would ignore it.
    """
    given = set_options(others)
    for name in given:
        if name in UNKNOWN_TO_EXPERTS:
            raise FusionError(f"a fused model does not take {name}: {UNKNOWN_TO_EXPERTS[name]}")
        if not takes(model, name) and name != "output_hidden_states":
            raise FusionError(f"a fused model does not take {name}, nor does its host {host.name}")
    return given


def host_inputs(
    host: Source,
    model: nn.Module,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    others: Mapping[str, Any],
) -> tuple[dict[str, Any], torch.Tensor]:
    """Return the inputs of a forward of the host without a cache, and the mask (B, T) of its stream.

    Args:
        host: the host.
        model: its model, or the part of it that calls the blocks.
        input_ids: (B, T), of a host that reads tokens.
        attention_mask: (B, T), 0 for padding.
        others: inputs of the model's own, `pixel_values` or `token_type_ids` say; see `host_options`.

    Raises:
        FusionError: the host reads tokens and is given images or nothing, or the other way round; or an input is
            unknown or of another shape.
    """
    reads = "pixel_values" if reads_images(host) else "input_ids"
    both = {"input_ids": input_ids, "pixel_values": others.get("pixel_values")}
    found = [name for name, value in both.items() if value is not None]
    if found != [reads]:
        raise FusionError(
            f"the host {host.name} ({type(host.model).__name__}) reads {reads} alone, and was given "
            f"{' and '.join(found) or 'neither tokens nor images'}"
        )
    given = host_options(host, model, others)
    if input_ids is not None:
        input_ids = checked_tokens(input_ids)
        mask = checked_mask(input_ids, attention_mask)
        return {**token_inputs(model, input_ids, mask, positions=host.is_causal()), **given}, mask
    # Only the embeddings know how many patches an image of this size has.
    with torch.no_grad():
        handed, _ = host.calls.capture(lambda: model(**given))
    hidden = argument(handed[0], host.calls.forms[0].hidden_in)
    batch, patches, _ = host.layout.from_block(hidden, given["pixel_values"].shape[0]).shape
    return given, torch.ones(batch, patches, dtype=torch.long, device=hidden.device)


def check_longest(limits: Mapping[str, Limit], length: int, *, generated: bool = True) -> None:
    """Check that models have positions for so many tokens, and warn of those that were not made for so many.

    A table of positions ends, so a longer text cannot be run. Rotary positions and the like do not end: transformers
    runs such models on longer texts, and so does a fusion.

    Args:
        limits: of each model, by name.
        length: of the text.
        generated: it is still to be generated.

    Raises:
        FusionError: lists the models that have none.
    """
    short = [f"{name} has positions for {limit.table} tokens" for name, limit in limits.items() if limit.ends(length)]
    if short:
        said = f"the text would take {length}" if generated else f"{length} were given"
        raise FusionError(f"{'; '.join(short)}, and {said}; shorten the text, or leave its blocks out")
    for name, (_, announced) in limits.items():
        if announced and announced < length:
            warn_once(
                f"{name}: its config is for {announced} tokens (max_position_embeddings), and longer texts are run: it "
                "computes positions for them, as in transformers, which it may not have been trained on"
            )


def check_noise(host: Source) -> None:
    """Refuse Trainer's `neftune_noise_alpha`: a module of a frozen model never adds that noise.

    Raises:
        FusionError: it was set.
    """
    with suppress(NotImplementedError):  # some hosts of images have no such method
        if hasattr(host.model.get_input_embeddings(), "neftune_noise_alpha"):
            raise FusionError(
                "neftune_noise_alpha adds noise to embeddings in training mode alone, and those of a fusion are its "
                "host's, frozen and in eval mode: leave it out"
            )


@cache
def warn_once(line: str) -> None:
    """Warn with this line, the first time that it is given."""
    _log.warning(line)


def most_positions(sources: Mapping[str, Source]) -> int | None:
    """Return the shortest of the longest texts in the configs of models; None if no config has one."""
    return min((source.limit.announced for source in sources.values() if source.limit.announced), default=None)


class HostHead(nn.Module):
    """The host's final norm and head, as its own forward applies them."""

    def __init__(self, host: Source) -> None:
        """Use the head of this host; its weights do not belong to this module."""
        super().__init__()
        self._host = host

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits for the stream after the last layer (B, T, H): (B, T, V), or (B, C) of C classes.

        Args:
            hidden_states: the stream.
            attention_mask: (B, T), 0 for padding; only heads that pool a text read it.
        """
        host = self._host
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


class OutputEmbeddings(nn.Module):
    """The host's last linear map as a module of the fusion, without parameters of its own; PEFT looks for it there."""

    def __init__(self, host: Source) -> None:
        """Use the output embeddings of this host, which keeps the weights."""
        super().__init__()
        self._host = host

    @property
    def inner(self) -> nn.Module:
        """The host's own module."""
        module: nn.Module = self._host.model.get_output_embeddings()
        return module

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - weight, bias, widths
        """Return attributes of the host's module that this one does not have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the logits (..., V) of the host's last linear map for normalised hidden states (..., H)."""
        logits: torch.Tensor = self.inner(hidden_states)
        return logits
