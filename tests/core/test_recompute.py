"""Layers that run again in the backward pass: the same gradients, and far less is kept for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.core.zoo import HOSTS, T5_DECODER, tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mol.core.mol_runtime import MoLRuntime
    from tests.core.conftest import Fuse

NOISY: dict[str, Any] = {"router_type": "token", "adapter_type": "bottleneck"}


def gradients_of(mol: MoLRuntime, *, recompute: bool, padded: bool = True) -> tuple[list[torch.Tensor], int]:
    """The gradients of a loss, and the bytes of activations that were kept for them."""
    model, ids = mol.as_causal_lm().train(), tokens_of(3, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 6:] = 0
    mol.gradient_checkpointing = recompute
    mol.zero_grad()
    kept = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[0] += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(ids, mask, labels=ids.masked_fill(mask == 0, -100)).loss
    loss.backward()
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in mol.parameters()], kept[0]


def cases() -> Iterator[Any]:
    yield from ((host, "gpt2" if host == "llama" else "llama", {}) for host in HOSTS)
    yield from (("gpt2", source, {}) for source in ("t5", T5_DECODER, "bert", "qwen3"))
    for dispatch in ("dense", "sequence", "token"):
        yield "gpt2", "llama", {"dispatch": dispatch, "top_k_experts": 1, "router_prefix": 4}


@pytest.mark.parametrize(("host", "source", "settings"), [*cases()])
def test_gradients_are_the_same_bit_for_bit(host: str, source: str, settings: dict[str, Any], fuse: Fuse) -> None:
    padded = host not in ("mamba", "jamba")
    # A block in two layers, so that what blocks hand on is another in the second run.
    mol = fuse(host, source, source, layers=(0, 1), **NOISY, **settings)
    wanted, all_bytes = gradients_of(mol, recompute=False, padded=padded)
    found, few_bytes = gradients_of(mol, recompute=True, padded=padded)
    assert any(gradient.any() for gradient in wanted)
    assert all(map(torch.equal, found, wanted))
    assert few_bytes < all_bytes / 3


def test_nothing_runs_twice_without_a_backward_pass(fuse: Fuse) -> None:
    mol = fuse("gpt2", "llama", use_gradient_checkpointing=True)
    assert mol.gradient_checkpointing
    model, ids = mol.as_causal_lm(), tokens_of(1, 5)
    for trains in (False, True):  # in training mode with a cache, too
        model.train(trains)
        cache = model.new_cache()
        with torch.no_grad():
            first = model(ids, past_key_values=cache).logits
            second = model(ids[:, :1], torch.ones(1, 6, dtype=torch.long), past_key_values=cache).logits
        assert first.shape[1] + second.shape[1] == 6


def test_transformers_trainer_turns_it_on_and_trains_the_same(fuse: Fuse, tmp_path: Path) -> None:
    rows, found = [{"input_ids": row, "labels": row} for row in tokens_of(4, 6)], []
    for checkpointing in (False, True):
        model = fuse("gpt2", "llama").as_causal_lm()
        arguments = TrainingArguments(
            str(tmp_path), max_steps=2, gradient_checkpointing=checkpointing, use_cpu=True, report_to=[],
            disable_tqdm=True, learning_rate=1e-3, save_strategy="no",
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows).train()
        assert model.is_gradient_checkpointing is checkpointing
        found.append([parameter.detach() for parameter in model.parameters()])
    assert all(map(torch.equal, *found))
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
