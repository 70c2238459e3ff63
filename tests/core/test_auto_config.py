"""What transformers' Auto classes make of a config and its options, and the dtypes that models and adapters get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mol import MoLMixture, MoLRuntime
from mol.errors import MolError
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core.conftest import Fuse


def dtypes_of(model: Any) -> set[torch.dtype]:  # noqa: ANN401 - both classes
    """Dtypes of the frozen models."""
    if isinstance(model, MoLMixture):
        return {each.dtype for each in model.models}
    return {model.runtime.source(name).dtype for name in model.runtime.config.models}


@pytest.fixture(params=["fusion", "mixture"])
def saved(request: pytest.FixtureRequest, fuse: Fuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fused = fuse("gpt2", "llama").as_causal_lm()
    # The models have no tokenizers to compare.
    monkeypatch.setattr("mol.core.pretrained.mixture.check_vocabularies", lambda *_: None)
    model = fused if request.param == "fusion" else MoLMixture.from_models(["gpt2", "llama"], "router")
    model.save_pretrained(tmp_path)
    return tmp_path


def test_from_config_gives_the_models_the_dtype_and_the_attention_of_the_call(saved: Path) -> None:
    for dtype in (torch.bfloat16, "bfloat16"):
        config = AutoConfig.from_pretrained(saved)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
        assert {model.dtype, model.config.dtype} == dtypes_of(model) == {torch.bfloat16}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # what is trained stays so
        first = model.models[0] if isinstance(model, MoLMixture) else model.runtime.host.model
        assert first.config._attn_implementation == "eager"
        assert model(tokens_of(1, 4)).logits.isfinite().all()
    with pytest.raises(MolError, match=r"from_config of a (fused model|mixture) does not take load_in_8bit; it takes"):
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(saved), load_in_8bit=True)


def test_the_dtype_of_a_config_that_is_passed_is_that_of_the_models(saved: Path) -> None:
    config = AutoConfig.from_pretrained(saved, dtype=torch.bfloat16)
    assert dtypes_of(AutoModelForCausalLM.from_pretrained(saved, config=config)) == {torch.bfloat16}
    assert dtypes_of(AutoModelForCausalLM.from_pretrained(saved, config=config, dtype="auto")) == {torch.bfloat16}
    assert dtypes_of(AutoModelForCausalLM.from_pretrained(saved, config=config, dtype="float16")) == {torch.float16}
    assert dtypes_of(AutoModelForCausalLM.from_config(config)) == {torch.bfloat16}
    assert dtypes_of(AutoModelForCausalLM.from_config(config, dtype="float16")) == {torch.float16}


def test_a_model_that_is_moved_to_the_meta_device_is_refused_and_unchanged(saved: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(saved)
    before = model(tokens_of(2, 4)).logits
    for move in (lambda: model.to("meta"), lambda: model.to_empty(device="meta")):
        with pytest.raises(MolError, match=r"on the meta device the models would have no weights.*leave \.to"):
            move()
    assert torch.equal(model(tokens_of(2, 4)).logits, before)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [(None, torch.float16), (torch.float32, torch.float32), ("bfloat16", torch.float32), ("float16", torch.float16)],
)
def test_what_was_trained_is_widened_to_the_dtype_of_the_call_and_never_rounded(
    given: Any,  # noqa: ANN401 - as transformers has it
    wanted: torch.dtype,
    fuse: Fuse,
    tmp_path: Path,
) -> None:
    model = fuse("gpt2", "llama").as_causal_lm().half()
    model.save_pretrained(tmp_path / "fused")
    model.runtime.save_checkpoint(tmp_path / "file")
    options = {} if given is None else {"dtype": given}
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "fused", **options)
    for again in (loaded, MoLRuntime.load_checkpoint(tmp_path / "file", **options).as_causal_lm()):
        assert {parameter.dtype for parameter in again.parameters()} == {wanted}
        found = again.state_dict()
        assert all(torch.equal(value.to(wanted), found[name]) for name, value in model.state_dict().items())


def test_an_implementation_of_experts_that_would_reach_no_model_is_refused(saved: Path) -> None:
    with pytest.raises(MolError, match="does not take experts_implementation"):
        AutoModelForCausalLM.from_pretrained(saved, experts_implementation="batched_mm")
    model: Any = AutoModelForCausalLM.from_pretrained(saved)
    with pytest.raises(MolError, match=r"each model has an experts_implementation of its own: .* set it in the models"):
        model.set_experts_implementation("eager")
    with pytest.raises(MolError, match="the models are outside of the module tree and cannot be replaced"):
        model.set_decoder(torch.nn.Identity())
