"""Trainer's arithmetic around the loss: gradient accumulation and label smoothing do what they do with plain models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

from mol.core.pretrained.mixture import MoLMixture
from mol.errors import MolError
from tests.core.zoo import config_of, language_model_of, randomised, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

    from tests.core.conftest import Fuse

LENGTHS = (4, 24, 9, 16)
NO_ROUTING_LOSS: dict[str, Any] = {"load_balancing_coeff": 0.0, "entropy_penalty_coeff": 0.0}


def padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Collate rows of unequal length: padding has no label and is masked."""

    def column(key: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True, padding_value=value)

    ones = [{"mask": torch.ones_like(row["input_ids"])} for row in rows]
    mask = torch.nn.utils.rnn.pad_sequence([row["mask"] for row in ones], batch_first=True)
    return {"input_ids": column("input_ids", 0), "attention_mask": mask, "labels": column("labels", -100)}


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def update_of(
    model: PreTrainedModel, rows: list[dict[str, torch.Tensor]], where: Path, **settings: object
) -> torch.Tensor:
    """Make one step of plain gradient descent with Trainer and return what it changed."""
    without_dropout(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        str(where), max_steps=1, optim="sgd", learning_rate=1e-2, max_grad_norm=1e9, lr_scheduler_type="constant",
        report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no", **settings,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, data_collator=padded).train()
    return torch.cat([(p.detach() - before[name]).flatten() for name, p in model.named_parameters()])


def rows_of(*lengths: int) -> list[dict[str, torch.Tensor]]:
    rows = [tokens_of(1, length, seed=length)[0] for length in lengths]
    return [{"input_ids": row, "labels": row} for row in rows]


def assert_accumulates(
    make: Callable[[], PreTrainedModel], rows: list[dict[str, torch.Tensor]], where: Path, rtol: float = 1e-3
) -> None:
    together = update_of(make(), rows, where, per_device_train_batch_size=len(rows))
    one_by_one = update_of(make(), rows, where, per_device_train_batch_size=1, gradient_accumulation_steps=len(rows))
    assert together.norm() > 0
    assert (one_by_one - together).norm() / together.norm() < rtol


@pytest.mark.parametrize("host", ["gpt2", "gpt_neox", "bloom", "mamba"])
def test_accumulated_batches_train_like_one(host: str, fuse: Fuse, tmp_path: Path) -> None:
    assert_accumulates(lambda: fuse(host, "llama", **NO_ROUTING_LOSS).as_causal_lm(), rows_of(*LENGTHS), tmp_path)


def test_a_batch_without_a_label_adds_nothing_to_the_step(fuse: Fuse, tmp_path: Path) -> None:
    rows = rows_of(*LENGTHS)
    rows[1]["labels"] = torch.full_like(rows[1]["labels"], -100)
    assert_accumulates(lambda: fuse("gpt2", "llama", **NO_ROUTING_LOSS).as_causal_lm(), rows, tmp_path)


def test_the_entropy_of_routers_is_accumulated_too(fuse: Fuse, tmp_path: Path) -> None:
    # The entropy counts the last token of each row, which has no label; so rows of one length compare exactly.
    settings = {"load_balancing_coeff": 0.0, "entropy_penalty_coeff": 10.0}
    assert_accumulates(lambda: fuse("gpt2", "llama", **settings).as_causal_lm(), rows_of(9, 9, 9, 9), tmp_path)


def test_masked_language_models_accumulate_too(fuse: Fuse, tmp_path: Path) -> None:
    host = str(tmp_path / "host")
    randomised(AutoModelForMaskedLM.from_config(config_of("bert")), seed=0).save_pretrained(host)
    assert_accumulates(lambda: fuse(host, "llama").as_model(), rows_of(*LENGTHS), tmp_path)


def test_mixtures_accumulate_too(tmp_path: Path) -> None:
    def make() -> MoLMixture:
        torch.manual_seed(0)
        return MoLMixture.from_models([language_model_of("gpt2", seed) for seed in (0, 1)], weights="router")

    assert_accumulates(make, rows_of(*LENGTHS), tmp_path)


@pytest.mark.parametrize("coefficients", [NO_ROUTING_LOSS, {"load_balancing_coeff": 3.0, "entropy_penalty_coeff": 5.0}])
def test_smoothed_labels_are_those_of_the_next_token_and_routers_keep_their_losses(
    coefficients: dict[str, float], fuse: Fuse, tmp_path: Path
) -> None:
    smoothing, rows = 0.1, rows_of(9, 9)
    settings = {"per_device_train_batch_size": 2, "label_smoothing_factor": smoothing}
    found = update_of(fuse("gpt2", "llama", **coefficients).as_causal_lm(), rows, tmp_path, **settings)
    model = without_dropout(fuse("gpt2", "llama", **coefficients).as_causal_lm().train())
    batch = padded(rows)
    output = model(batch["input_ids"], batch["attention_mask"], batch["labels"])
    plain = functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    smoothed = functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=smoothing
    )
    (output.loss - plain + smoothed).backward()
    wanted = torch.cat([-1e-2 * parameter.grad.flatten() for parameter in model.parameters()])
    assert (found - wanted).norm() / wanted.norm() < 1e-3


def test_smoothing_in_fp16_is_refused_where_it_would_lose_the_routers_losses(fuse: Fuse) -> None:
    model, ids = fuse("gpt2", "llama").as_causal_lm().train(), tokens_of(1, 5)
    with torch.autocast("cpu", torch.float16), pytest.raises(MolError, match="train in bf16, or set to 0"):
        model(ids, num_items_in_batch=4)
