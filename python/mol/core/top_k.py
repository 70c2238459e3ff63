"""The weights of the experts of a token by its logits: the softmax, or the k largest of it."""

from __future__ import annotations

import torch

from mol.errors import ConfigError


def top_k_weights(logits: torch.Tensor, k: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return weights (..., E) for logits (..., E), of which the k largest are not 0; among equals, the first.

    With k = E this is the softmax. For k > 1 the weights sum to 1 (Jiang et al., 2024, "Mixtral"). For k = 1 it keeps
    its probability (Fedus et al., 2021, "Switch Transformers"): normalised it would be 1, and without a gradient.

    Args:
        logits: (..., E).
        k: the number of weights that are not 0.
        bias: (E,), added to the logits to find the k largest, and not for their weights (Wang et al., 2024, arXiv
            2408.15664).

    Raises:
        ConfigError: k is not 1 to E.
    """
    experts = logits.shape[-1]
    if not 1 <= k <= experts:
        raise ConfigError(f"top_k {k} is not 1 to {experts}, the number of experts")
    probabilities = logits.softmax(-1)
    if k == experts:
        return probabilities
    scores = logits if bias is None else logits.detach() + bias
    chosen = scores.argsort(stable=True, dim=-1, descending=True)[..., :k]
    best = probabilities.gather(-1, chosen)
    if k > 1 and bias is None:
        best = best / best.sum(-1, keepdim=True)
    elif k > 1:  # all of the chosen may have probabilities that are 0 in float32
        best = logits.gather(-1, chosen).softmax(-1)
    return torch.zeros_like(probabilities).scatter(-1, chosen, best)
