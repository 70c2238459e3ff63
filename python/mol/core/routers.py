"""Routers weigh the experts of a layer for each token, from that token and those before it, never from later ones.

Every token is normalised first: streams differ in scale, and a few tokens of most language models are a hundred times
larger than the rest and would dominate a mean. Everything from there on is in float32, also if the stream or the
parameters are in bfloat16 and under autocast: a choice between near equals does not survive 8 bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypedDict

import torch
from torch import nn
from torch.nn import functional

from mol.core.linear import FloatLinear, no_autocast
from mol.core.losses import (
    compute_load_balancing_loss,
    compute_mutual_information,
    compute_router_entropy,
    compute_router_z_loss,
)
from mol.core.top_k import top_k_weights
from mol.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "BaseRouter",
    "RouterState",
    "SimpleRouter",
    "TokenLevelRouter",
    "compute_load_balancing_loss",
    "compute_mutual_information",
    "compute_router_entropy",
    "compute_router_z_loss",
    "create_router",
    "top_k_weights",
]

_INIT_STD: Final = 0.1
"""Standard deviation of the first logits at any width: a fresh router hardly prefers any expert."""
_CAP: Final = 20.0
"""Of attention scores: their exponentials can then be summed over a prefix without knowing the largest in advance, and
neither overflow nor vanish in float32."""
_POOLINGS: Final = ("mean", "max", "attention")


@dataclass
class RouterState:
    """The state of a router after some tokens, so that they need not be seen again.

    Attributes:
        pooled: running sum, or maximum, of normalised tokens (B, H), float32; (B, 0) if there is no state.
        total: running sum of their weights (B, 1), float32; 0 for a row of padding so far.
    """

    pooled: torch.Tensor
    total: torch.Tensor

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be given several times, as beams do."""
        self.pooled = self.pooled.index_select(0, rows.to(self.pooled.device))
        self.total = self.total.index_select(0, rows.to(self.total.device))


class BaseRouter(nn.Module, ABC):
    """A linear classifier of features of each token and its prefix, which a subclass computes.

    Attributes:
        hidden_dim: width H of the stream.
        num_experts: E.
        temperature: of the softmax; may be changed while training.
        top_k: how many experts get a weight, all if None; may be changed while training.
        noise_std: of what is added to logits, in training.
        classifier: features to logits.
        expert_bias: is added to logits where the `top_k` experts are chosen (E,); None if nothing is. It has no
            gradient, see `mol.core.expert_loads`.
    """

    expert_bias: torch.Tensor | None
    options: ClassVar[frozenset[str]]
    """Options of its constructor next to `hidden_dim` and `num_experts`."""

    def __init__(
        self,
        hidden_dim: int,
        num_experts: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        dropout_rate: float = 0.0,
        noise_std: float = 0.0,
        expert_bias: bool = False,
    ) -> None:
        """Make the classifier, whose choice is nearly even at first.

        Args:
            hidden_dim: H.
            num_experts: E.
            temperature: of the softmax, above 0.
            top_k: how many experts get a weight; all if None.
            dropout_rate: share of the features that is dropped in training.
            noise_std: of what is added to logits, in training.
            expert_bias: choose by logits with a bias, which is 0 at first.

        Raises:
            ConfigError: a setting is out of range.
        """
        super().__init__()
        if min(hidden_dim, num_experts) < 1:
            raise ConfigError(f"hidden_dim {hidden_dim} and num_experts {num_experts} must be 1 or more")
        if not (temperature > 0.0 and math.isfinite(temperature)):
            raise ConfigError(f"temperature {temperature} is not a number above 0; a small one makes choices sharp")
        if top_k is not None and not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k {top_k} is not 1 to {num_experts}, the number of experts")
        if not 0.0 <= dropout_rate < 1.0:
            raise ConfigError(f"dropout_rate {dropout_rate} is not in [0, 1)")
        if not (noise_std >= 0.0 and math.isfinite(noise_std)):
            raise ConfigError(f"noise_std {noise_std} is not a number of 0 or more")
        self.hidden_dim = hidden_dim
        self.num_experts = num_experts
        self.temperature = temperature
        self.top_k = top_k
        self.noise_std = noise_std
        self.dropout = nn.Dropout(dropout_rate)
        self.classifier = FloatLinear(hidden_dim, num_experts)
        nn.init.normal_(self.classifier.weight, std=_INIT_STD / math.sqrt(hidden_dim))
        nn.init.zeros_(self.classifier.bias)
        self.register_buffer("expert_bias", torch.zeros(num_experts) if expert_bias else None)

    @abstractmethod
    def features(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, state: RouterState | None
    ) -> tuple[torch.Tensor, RouterState]:
        """Return the features of each token for the classifier.

        Args:
            tokens: (B, T, H), normalised, float32; 0 for padding.
            mask: (B, T, 1), false for padding; None if there is none.
            state: of the tokens before.

        Returns:
            (B, T, H) and the state for the next tokens. Features of a token do not depend on later ones.
        """

    def forward(
        self,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        state: RouterState | None = None,
        remember: bool = False,
        rows: bool = False,
    ) -> tuple[Any, ...]:
        """Weigh the experts for each token, or once per row; routers are always called, so wrappers and hooks act.

        A sequence in one call, and in several with the state passed on, gets the same weights.

        Args:
            x: (B, T, H), of any floating dtype.
            attention_mask: (B, T), 0 for padding; of these T tokens only.
            state: from the call for the earlier tokens, if there are any.
            remember: also return the state for the next tokens.
            rows: weigh each row by all of these tokens; one of padding alone is weighed as well.

        Returns:
            Weights (B, T, E): the softmax of the logits, or its `top_k` largest (see `top_k_weights`); 0 for padding.
            Logits (B, T, E), already over the temperature. Both are float32, and (B, E) with `rows`. And the state, if
            it is requested.

        Raises:
            ConfigError: x or the mask has the wrong shape, or `top_k` was set out of range.
        """
        mask = self._check(x, attention_mask)
        with no_autocast(x.device):
            seen, after = self.features(self._normalised(x, mask), mask, state)
            if rows:
                return self._choose(self.of_rows(seen, mask))
            weights, logits = self._choose(seen)
            if mask is not None:
                weights = weights.masked_fill(~mask, 0.0)
        return (weights, logits, after) if remember else (weights, logits)

    def of_rows(self, seen: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the features of a whole row (B, H), from those of its tokens (B, T, H): their mean.

        Args:
            seen: (B, T, H).
            mask: (B, T, 1), false for padding; None if there is none.
        """
        if mask is None:
            return seen.mean(1)
        return seen.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)

    def _normalised(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        tokens = x.float()
        if mask is not None:
            tokens = torch.where(mask, tokens, 0.0)  # not a product: padding may hold NaN
        return functional.layer_norm(tokens, (self.hidden_dim,))

    def _choose(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.classifier(self.dropout(seen))
        if self.training and self.noise_std > 0.0:
            logits = logits + torch.randn_like(logits) * self.noise_std
        logits = logits / self.temperature
        kept = self.num_experts if self.top_k is None else self.top_k
        return top_k_weights(logits, kept, self.expert_bias), logits

    def extra_repr(self) -> str:
        """Show the settings."""
        kept = "" if self.top_k is None else f", top_k={self.top_k}"
        return f"{self.hidden_dim}, {self.num_experts}, temperature={self.temperature:g}{kept}"

    def _check(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        name = type(self).__name__
        if x.dim() != 3:
            raise ConfigError(f"{name} takes hidden states (batch, tokens, {self.hidden_dim}), not {tuple(x.shape)}")
        if x.shape[-1] != self.hidden_dim:
            raise ConfigError(f"hidden states are {x.shape[-1]} wide, this {name} takes {self.hidden_dim}")
        if attention_mask is None:
            return None
        if attention_mask.shape != x.shape[:2]:
            raise ConfigError(
                f"attention_mask is {tuple(attention_mask.shape)} for hidden states {tuple(x.shape)}; {name} takes "
                "one number for each of these tokens, without those that came before"
            )
        return attention_mask.to(x.device).bool()[..., None]


class SimpleRouter(BaseRouter):
    """Weighs experts by the sequence so far: mean, maximum or attention over the prefix.

    g_t = norm(sum_{s<=t} a_s n_s / sum_{s<=t} a_s) over normalised tokens n_s that are no padding, with a_s = 1 for the
    mean and a_s = exp(v n_s), v learned and the score softly capped, for attention; for the maximum each element of g_t
    is the largest so far, normalised. Pooling the whole sequence would show later tokens to
    a model that predicts them, and is not possible when decoding.

    Attributes:
        pooling_type: "mean", "max" or "attention".
        attention: v, or None.
    """

    options = frozenset({"pooling_type", "temperature", "dropout_rate", "top_k", "expert_bias"})

    def __init__(
        self,
        hidden_dim: int,
        num_experts: int,
        pooling_type: str = "mean",
        temperature: float = 1.0,
        dropout_rate: float = 0.1,
        top_k: int | None = None,
        *,
        expert_bias: bool = False,
    ) -> None:
        """Make a router; see `BaseRouter` for the other settings.

        Args:
            hidden_dim: H.
            num_experts: E.
            pooling_type: "mean", "max" or "attention".
            temperature: of the softmax, above 0.
            dropout_rate: share of the features that is dropped in training.
            top_k: how many experts get a weight; all if None.
            expert_bias: choose by logits with a bias, which is 0 at first.

        Raises:
            ConfigError: a setting is out of range.
        """
        settings = {"temperature": temperature, "dropout_rate": dropout_rate}
        super().__init__(hidden_dim, num_experts, top_k=top_k, expert_bias=expert_bias, **settings)
        if pooling_type not in _POOLINGS:
            raise ConfigError(f"pooling_type {pooling_type!r} is not one of {', '.join(_POOLINGS)}")
        self.pooling_type = pooling_type
        self.attention: nn.Linear | None = None
        if pooling_type == "attention":
            self.attention = FloatLinear(hidden_dim, 1, bias=False)
            nn.init.normal_(self.attention.weight, std=_INIT_STD / math.sqrt(hidden_dim))

    def features(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, state: RouterState | None
    ) -> tuple[torch.Tensor, RouterState]:
        """Pool each prefix, see `BaseRouter.features`."""
        share = torch.ones_like(tokens[..., :1])
        if self.attention is not None:
            share = (_CAP * torch.tanh(self.attention(tokens) / _CAP)).exp()
        if mask is not None:
            share = share.masked_fill(~mask, 0.0)
        total = share.cumsum(1) if state is None else share.cumsum(1) + state.total[:, None]
        if self.pooling_type == "max":
            shown = tokens if mask is None else tokens.masked_fill(~mask, -math.inf)
            pooled = shown.cummax(1).values
            pooled = pooled if state is None else torch.maximum(pooled, state.pooled[:, None])
            prefix = pooled.masked_fill(total == 0.0, 0.0)
        else:
            # Padding is 0 already, and a share of 1 needs no product.
            pooled = (tokens if self.attention is None else tokens * share).cumsum(1)
            pooled = pooled if state is None else pooled + state.pooled[:, None]
            # Padding before the first token: there is nothing to pool, and 0 over anything is 0.
            prefix = pooled / total.masked_fill(total == 0.0, 1.0)
        # Copies: a view would keep the prefixes of all tokens.
        state = RouterState(pooled[:, -1].clone(), total[:, -1].clone())
        return functional.layer_norm(prefix, (self.hidden_dim,)), state

    def of_rows(self, seen: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return the last prefix, which is the row; padding behind it adds nothing. See `BaseRouter.of_rows`."""
        return seen[:, -1]


class TokenLevelRouter(BaseRouter):
    """Weighs experts by each token alone (Shazeer et al., 2017; noise as there, of a fixed size)."""

    options = frozenset({"temperature", "top_k", "dropout_rate", "noise_std", "expert_bias"})

    def __init__(
        self,
        hidden_dim: int,
        num_experts: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        dropout_rate: float = 0.1,
        noise_std: float = 0.1,
        *,
        expert_bias: bool = False,
    ) -> None:
        """Make a router; see `BaseRouter` for the settings.

        Raises:
            ConfigError: a setting is out of range.
        """
        settings = {"temperature": temperature, "dropout_rate": dropout_rate, "noise_std": noise_std}
        super().__init__(hidden_dim, num_experts, top_k=top_k, expert_bias=expert_bias, **settings)

    def features(
        self, tokens: torch.Tensor, mask: torch.Tensor | None, state: RouterState | None
    ) -> tuple[torch.Tensor, RouterState]:
        """Return each token as it is, without a state, see `BaseRouter.features`."""
        rows = len(tokens)
        return tokens, RouterState(tokens.new_zeros(rows, 0), tokens.new_zeros(rows, 1))


_KINDS: Final[dict[str, type[SimpleRouter] | type[TokenLevelRouter]]] = {
    "simple": SimpleRouter,
    "token": TokenLevelRouter,
    "token_level": TokenLevelRouter,
}


class RouterOptions(TypedDict, total=False):
    """Options of `create_router`; see `SimpleRouter` and `TokenLevelRouter`."""

    pooling_type: str
    temperature: float
    dropout_rate: float
    noise_std: float
    top_k: int | None
    expert_bias: bool


def create_router(router_type: str, hidden_dim: int, num_experts: int, **options: Unpack[RouterOptions]) -> BaseRouter:
    """Make a router by the name of its kind: "simple", or "token", which is also called "token_level".

    Every kind accepts the options of all: those that only another kind takes are left out.

    Raises:
        ConfigError: there is no such kind, or it refuses an option's value.
        TypeError: no kind takes an option.
    """
    if router_type not in _KINDS:
        raise ConfigError(f"router_type {router_type!r} is not one of {', '.join(_KINDS)}")
    known = frozenset[str]().union(*(kind.options for kind in _KINDS.values()))
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TypeError(f"no router takes {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    kind = _KINDS[router_type]
    taken: dict[str, Any] = {name: value for name, value in options.items() if name in kind.options}
    return kind(hidden_dim, num_experts, **taken)
