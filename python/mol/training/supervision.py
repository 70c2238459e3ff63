"""What a trainer may know of a row: the expert that it belongs to, and what that expert's own model predicts for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel

    from mol.core.mol_layer import Routing
    from mol.core.runtime import Runtime

UNKNOWN: Final = -100
"""The domain of a row that belongs to no expert in particular."""


def domain_term(
    routings: Sequence[Routing], mask: torch.Tensor, domains: torch.Tensor, tokens: torch.Tensor | float
) -> torch.Tensor:
    """Return the cross entropy between the choices of routers and the experts that rows belong to, ().

    It is a mean over the layers with a choice, and over tokens, of which those of rows without a domain add 0.

    Args:
        routings: of the fused layers in one forward.
        mask: (B, T), 0 for padding.
        domains: (B,), for each row the number of an expert in a layer, -100 for none; layers without so many experts
            leave the row out.
        tokens: what the tokens of this batch are a share of.
    """
    losses = []
    for _, logits in routings:
        if logits is not None:
            batch, length, experts = logits.shape
            wanted = domains.to(logits.device)[:, None].expand(batch, length)
            shown = mask.to(logits.device).ne(0) if mask.shape == wanted.shape else torch.ones_like(wanted).bool()
            wanted = wanted.masked_fill(~shown | (wanted >= experts), UNKNOWN)
            losses.append(
                functional.cross_entropy(
                    logits.float().flatten(0, 1), wanted.flatten(), ignore_index=UNKNOWN, reduction="sum"
                ).to(mask.device)
            )
    return torch.stack(losses).mean() / tokens if losses else torch.zeros((), device=mask.device)


class Teachers:
    """Whole models that rows of their domain are distilled from."""

    def __init__(self, models: Mapping[int, PreTrainedModel], vocabulary: int) -> None:
        """Keep models, frozen and in eval mode.

        Args:
            models: by domain.
            vocabulary: tokens of the fusion, which the models must share.

        Raises:
            ConfigError: a model has another number of tokens.
        """
        problems = [
            f"the teacher of domain {domain} ({type(model).__name__}) has {size} tokens, the host {vocabulary}"
            for domain, model in models.items()
            if (size := model.config.get_text_config().vocab_size) != vocabulary
        ]
        if problems:
            raise ConfigError.listing("these models cannot teach this fusion: their tokens are others", problems)
        self._models = dict(models)
        for model in self._models.values():
            model.requires_grad_(requires_grad=False).eval()

    @classmethod
    def checked(
        cls, models: Mapping[int, PreTrainedModel] | None, coefficient: float, runtime: Runtime
    ) -> Teachers | None:
        """Return the teachers of a fusion, None without any.

        Raises:
            ConfigError: there are models and no coefficient, or the other way round; or see `Teachers`.
        """
        if bool(models) != bool(coefficient):
            raise ConfigError(
                "distillation takes both, teachers (the models, by domain) and a distillation_coeff above 0: give both "
                "or neither"
            )
        return cls(models, runtime.open_host().model.config.get_text_config().vocab_size) if models else None

    def term(
        self,
        logits: torch.Tensor,
        batch: Mapping[str, torch.Tensor],
        domains: torch.Tensor,
        labels: torch.Tensor | float,
    ) -> torch.Tensor:
        """Return the divergence KL(teacher, fusion) summed over the labels that count, in nats, over `labels`, ().

        Args:
            logits: of the fusion (B, T, V).
            batch: `input_ids`, `attention_mask` and `labels`, (B, T).
            domains: (B,); rows of a domain without a teacher add 0.
            labels: what the labels of this batch are a share of.
        """
        total = logits.new_zeros((), dtype=torch.float32)
        for domain, model in self._models.items():
            rows = domains.eq(domain).nonzero().flatten().to(logits.device)
            if not len(rows):
                continue
            given = {name: batch[name][rows] for name in ("input_ids", "attention_mask") if name in batch}
            with torch.no_grad():
                model.to(logits.device)
                taught = model(**given, use_cache=False).logits[:, :-1].float().log_softmax(-1)
            own = logits[rows, :-1].float().log_softmax(-1)
            apart = functional.kl_div(own, taught, reduction="none", log_target=True).sum(-1)
            total = total + apart.masked_fill(batch["labels"][rows, 1:].eq(-100), 0.0).sum()
        return total / labels
