"""The README's fusions, each as it stands there, on tiny models of the names that they use."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.core.zoo import tokens_of
from tests.fenced import fenced
from tests.seed_models import write_seed_models

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mol.core.mol_runtime import MoLRuntime

README: Final = Path(__file__).parents[2] / "README.md"
SECTION: Final = README.read_text(encoding="utf-8").split("\n## Fusion\n")[1].split("\n## ")[0]
BLOCKS: Final = fenced(SECTION, "python")
CHAT, CODE, SCIENCE = "microsoft/DialoGPT-small", "Salesforce/codet5-small", "allenai/scibert_scivocab_uncased"
KEYS: Final = {"expert_weights", "router_entropy", "load_balancing_loss", "num_experts", "experts"}
FIRST, DOMAINS, CHATS, FAMILIES = "./fused", "# Conversational expert", "mol.core.mol_runtime", "# Encoder-decoder"
TRUST, HANDLER, PARTS = "config_trusted", "handler.detect_architecture", "linear_adapter"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seed_models(tmp_path_factory.mktemp("hub"))


@pytest.fixture(autouse=True)
def _next_to_the_models(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub)


def run(sign: str) -> dict[str, Any]:
    """Run the one block that holds `sign`; one that imports nothing continues where the block before it ended."""
    (number,) = (number for number, block in enumerate(BLOCKS) if sign in block)
    start = number
    while "import " not in BLOCKS[start]:
        start -= 1
    said: dict[str, Any] = {}
    for block in BLOCKS[start : number + 1]:
        exec(compile(block, str(README), "exec"), said)
    return said


def check_that_experts_run(mol: MoLRuntime, specs: Iterable[tuple[str, int]]) -> None:
    """Other weights in any of these blocks give another stream, and other logits."""
    ids = tokens_of(2, 7)

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            hidden, _ = mol(ids)
            assert mol.lm_head is not None
            return hidden, mol.lm_head(hidden)

    before = outputs()
    for name, number in specs:
        block = mol.source(name).calls.forms[number].block
        kept = {key: value.clone() for key, value in block.state_dict().items()}
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
        for value, old in zip(outputs(), before, strict=True):
            assert not torch.allclose(value, old, atol=1e-4), f"{name}[{number}] does not matter"
        block.load_state_dict(kept)
    assert all(map(torch.equal, outputs(), before))


def test_the_first_example(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gpt2", "bert-base-uncased"):
        (tmp_path / name).symlink_to(hub / name)
    monkeypatch.chdir(tmp_path)  # for it writes
    said = run(FIRST)
    assert said["text"].shape[1] > said["inputs"]["input_ids"].shape[1]
    again = AutoModelForCausalLM.from_pretrained("./fused")
    with torch.no_grad():
        assert torch.equal(again(**said["inputs"]).logits, said["logits"])
    check_that_experts_run(said["fusion"], [("gpt2", 4), ("bert-base-uncased", 4)])


def test_a_chatbot_of_three_domains(capsys: pytest.CaptureFixture[str]) -> None:
    said = run(DOMAINS)
    out = capsys.readouterr().out
    for text in said["test_inputs"]:
        assert f"Input: {text}\nExpert selection: share of each expert\n  layer_0: DialoGPT-small[0] " in out
    assert max(map(len, out.splitlines())) <= 80
    mol, stats, (_, length) = said["fusion"], said["router_stats"], said["inputs"]["input_ids"].shape
    assert [mol.source(name).width for name in (CHAT, CODE, SCIENCE)] == [48, 32, 48]
    assert said["hidden_states"].shape == (1, length, 48)
    assert list(stats) == ["layer_0", "layer_1", "layer_2", "layer_3"]
    for number, layer in enumerate(stats.values()):
        assert set(layer) == KEYS
        weights = layer["expert_weights"]
        assert (weights.shape, weights.dtype, weights.device.type) == ((1, length, 3), torch.float32, "cpu")
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, length))
        assert layer["num_experts"] == 3
        assert layer["experts"] == [f"{name}[{number}]" for name in (CHAT, CODE, SCIENCE)]
        assert 0.0 < layer["router_entropy"] <= 1.0987
    check_that_experts_run(mol, [(name, number) for name in (CHAT, CODE, SCIENCE) for number in range(4)])


def test_two_chat_models() -> None:
    said = run(CHATS)
    weights = said["router_stats"]["layer_0"]["expert_weights"]
    assert weights.shape == (1, said["inputs"]["input_ids"].shape[1], 2)
    check_that_experts_run(said["fusion"], [(CHAT, 0), ("distilgpt2", 0)])


def test_three_families() -> None:
    mol = run(FAMILIES)["mol_runtime"]
    assert [mol.source(name).width for name in ("gpt2", "bert-base-uncased", "t5-small")] == [48, 48, 32]
    check_that_experts_run(mol, [("gpt2", 0), ("bert-base-uncased", 0), ("t5-small", 0)])


def test_code_of_a_model_is_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mol"):
        said = run(TRUST)
    assert not said["config"].trust_remote_code
    assert said["config_trusted"].trust_remote_code
    (warning,) = (record for record in caplog.records if "trust_remote_code" in record.message)
    assert "trust_remote_code: Python code that comes with a model will be run" in warning.message


def test_what_a_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    run(HANDLER)
    assert capsys.readouterr().out.splitlines() == [
        "Architecture: gpt2",
        "Family: decoder_only",
        "Layers: 24",
        "Hidden Dim: 64",
        "Layer Path: transformer.h",
        "Supports Causal LM: True",
    ]


def test_parts_by_themselves() -> None:
    said = run(PARTS)
    narrow, wide = torch.randn(2, 5, 512), torch.randn(2, 5, 768)
    for adapter in (said["linear_adapter"], said["bottleneck_adapter"]):
        out = adapter(narrow)
        assert out.shape == (2, 5, 768)
        assert torch.equal(out[..., :512], narrow)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    for router in (said["simple_router"], said["token_router"]):
        weights, logits = router.eval()(wide, mask)
        assert weights.shape == (2, 5, 3)
        assert logits.shape[-1] == 3
        assert not weights[1, 3:].any()
    assert said["token_router"](wide, mask)[0][0].gt(0).sum(-1).eq(2).all()


def test_every_block_of_the_section_is_run_here() -> None:
    signs = (FIRST, DOMAINS, CHATS, FAMILIES, TRUST, HANDLER, PARTS)
    assert [sum(sign in block for sign in signs) for block in BLOCKS] == [1] * len(signs)
