"""Threads that come to a runtime at once: what is loaded and probed is whole before anybody uses it."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import pytest
import torch

from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mol.core.mol_runtime import MoLRuntime
    from tests.core.conftest import Fuse

SETTINGS = ({}, {"max_expert_memory": "70KB"}, {"dispatch": "token", "top_k_experts": 1, "router_type": "token_level"})


@pytest.fixture
def impatient() -> Iterator[None]:
    """Let threads take turns after each few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def generated(runtime: MoLRuntime) -> torch.Tensor:
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}
    with torch.no_grad():
        out = runtime.as_causal_lm().generate(tokens_of(2, 8), max_new_tokens=3, output_logits=True, **settings)
    return torch.stack(out.logits)


def forwarded(runtime: MoLRuntime) -> torch.Tensor:
    with torch.no_grad():
        return runtime.as_causal_lm()(tokens_of(2, 8)).logits


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("settings", SETTINGS, ids=["dense", "little memory", "by token"])
def test_a_first_generate_at_once_with_a_first_forward(settings: dict[str, object], fuse: Fuse) -> None:
    works = (generated, forwarded)
    wanted = [work(fuse("gpt2", "llama", "bert", layers=(1,), **settings)) for work in works]
    for _ in range(8):
        runtime = fuse("gpt2", "llama", "bert", layers=(1,), **settings)
        gate = threading.Barrier(len(works))
        got: dict[int, torch.Tensor] = {}

        def go(number: int, runtime: MoLRuntime = runtime, gate: threading.Barrier = gate, got=got) -> None:  # noqa: ANN001
            gate.wait()
            got[number] = works[number](runtime)

        threads = [threading.Thread(target=go, args=(number,)) for number in range(len(works))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, tensor in enumerate(wanted):
            torch.testing.assert_close(got[number], tensor, rtol=0, atol=1e-5)
