"""Whether a model predicts each token from those before it alone, by running it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attends_to_later_tokens(model: PreTrainedModel) -> bool:
    """Return whether logits at a token change with the token behind it; the model is in eval mode afterwards.

    Args:
        model: with logits (B, T, V) of at least five tokens.
    """
    ids = torch.arange(4, device=model.device)[None]
    with torch.no_grad():
        first, other = (model.eval()(input_ids=tokens).logits[:, :-1].float() for tokens in (ids, ids + ids.eq(3)))
    # In 16 bits, experts of a mixture that get another number of tokens may round otherwise.
    noise = 0.0 if model.dtype in (torch.float32, torch.float64) else 4 * torch.finfo(model.dtype).eps
    return bool(((first - other).abs() > 1e-5 + noise * first.abs().max()).any())  # NaN shows nothing
