"""Fused models whose hosts do not generate: masked language models and classifiers of texts, tokens and images.

They are registered with AutoModelForMaskedLM and so on, which then load what `save_pretrained` wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mol.core.host import host_inputs
from mol.core.models.heads import (
    IMAGE_CLASSIFICATION,
    MASKED_LM,
    SEQUENCE_CLASSIFICATION,
    TOKEN_CLASSIFICATION,
)
from mol.core.pretrained.fused_model import FusedModel
from mol.core.pretrained.model_config import MoLModelConfig
from mol.core.pretrained.step_loss import share_of, weigh
from mol.errors import FusionError

if TYPE_CHECKING:
    import torch
    from transformers.utils import ModelOutput


class TaskModel(FusedModel):
    """A fused model with the output of its host: logits, and a loss if there are labels."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **others: Any,  # noqa: ANN401 - further inputs of the host's forward
    ) -> ModelOutput:
        """Run the host's forward with the fused layers in it.

        Args:
            input_ids: (B, T), of a host that reads tokens.
            attention_mask: (B, T), 0 for padding.
            token_type_ids: (B, T), of hosts that read two texts.
            pixel_values: (B, C, height, width), of a host that reads images.
            labels: as the host's own forward takes them.
            return_dict: must not be False.
            num_items_in_batch: number of labels that count in all batches of an optimiser's step; the loss is then the
                part of these in the mean over all.
            others: inputs that only the host knows.

        Returns:
            The output of the host's class, `logits` and `loss` in it.

        Raises:
            FusionError: tokens or images are missing, or were given to a host that reads the other.
        """
        if return_dict is False:
            raise FusionError("a fused model returns its outputs by name: return_dict=False is not supported")
        host = self.runtime.host
        named = {"token_type_ids": token_type_ids, "pixel_values": pixel_values, "labels": labels}
        inputs, mask = host_inputs(host, host.model, input_ids, attention_mask, {**named, **self._requested(others)})
        output, run = self.runtime.run_host(lambda: host.model(**inputs), mask, mask.shape[1])
        self.routings = run.routings
        result: ModelOutput = output
        if labels is not None and num_items_in_batch is not None:
            result["loss"] = weigh(
                result["loss"], share_of(labels, num_items_in_batch, shifted=False), result["logits"]
            )
        return result


class MoLForMaskedLM(TaskModel):
    """A fused masked language model; see `FusedModel` and `TaskModel`."""

    head = MASKED_LM


class MoLForSequenceClassification(TaskModel):
    """A fused classifier of texts; see `FusedModel` and `TaskModel`."""

    head = SEQUENCE_CLASSIFICATION


class MoLForTokenClassification(TaskModel):
    """A fused classifier of tokens; see `FusedModel` and `TaskModel`."""

    head = TOKEN_CLASSIFICATION


class MoLForImageClassification(TaskModel):
    """A fused classifier of images; see `FusedModel` and `TaskModel`."""

    head = IMAGE_CLASSIFICATION
    main_input_name = "pixel_values"


for _task in (MoLForMaskedLM, MoLForSequenceClassification, MoLForTokenClassification, MoLForImageClassification):
    _task.head.auto_class.register(MoLModelConfig, _task)
