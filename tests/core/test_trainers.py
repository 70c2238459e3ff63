"""What trainers, evaluation harnesses and pipelines of others touch in a fused model."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Trainer, TrainingArguments

from mol import MoLMixture
from mol.errors import MolError
from tests.core.zoo import HOSTS, language_model_of, tokens_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.core.conftest import Fuse


@pytest.mark.parametrize("host", HOSTS)
def test_hidden_states_of_the_body_through_the_hosts_head_are_the_logits(host: str, fuse: Fuse) -> None:
    model, ids = fuse(host, "llama" if host != "llama" else "gpt2").as_causal_lm(), tokens_of(2, 9)
    mask = torch.ones_like(ids)
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    head: Any = model.get_output_embeddings()
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    cap = getattr(model.config, "final_logit_softcapping", None)  # as TRL reads it
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    assert torch.allclose(logits, model(ids, mask).logits, atol=1e-4)
    assert torch.allclose(head(hidden), hidden @ head.weight.T + (0 if head.bias is None else head.bias), atol=1e-5)
    # PEFT's "all-linear" leaves the head out by its name, and what trains or is saved does not have it.
    assert [name for name, module in model.named_modules() if module is head] == ["output_embeddings"]
    assert not list(head.parameters())
    assert model.base_model is model.base_model.base_model
    assert [*model.base_model.state_dict()] == [*model.state_dict()]


def test_gradients_reach_routers_and_adapters_through_the_body_and_what_is_left_out_is_reported(
    fuse: Fuse, caplog: pytest.LogCaptureFixture
) -> None:
    model = fuse("gpt2", "llama").as_causal_lm().train()
    with caplog.at_level(logging.WARNING, logger="mol"):
        for _ in range(2):
            model.base_model(input_ids=tokens_of(1, 6)).last_hidden_state.square().sum().backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert [record.getMessage()[:41] for record in caplog.records] == ["the loss is computed outside of the model"]


@pytest.mark.parametrize("way", ["set_input_embeddings", "set_output_embeddings", "resize_token_embeddings"])
def test_embeddings_are_refused_before_anything_changes(way: str, fuse: Fuse) -> None:
    model, ids = fuse("gpt2", "llama").as_causal_lm(), tokens_of(2, 5)
    before = model(ids).logits
    with pytest.raises(MolError, match="the embeddings are those of the host, gpt2, and not saved with the fusion"):
        getattr(model, way)(140 if way.startswith("resize") else torch.nn.Embedding(140, 32))
    assert torch.equal(model(ids).logits, before)
    assert model.config.vocab_size == 128


@pytest.mark.parametrize("way", ["set_input_embeddings", "set_output_embeddings", "resize_token_embeddings"])
def test_embeddings_of_a_mixture_are_refused_before_anything_changes(way: str) -> None:
    model = MoLMixture.from_models([language_model_of("gpt2"), language_model_of("llama")])
    ids = tokens_of(2, 5)
    before = model(ids).logits
    with pytest.raises(MolError, match="embeddings are those of the models, which are not saved with a mixture"):
        getattr(model, way)(140 if way.startswith("resize") else torch.nn.Embedding(140, 32))
    assert torch.equal(model(ids).logits, before)
    assert model.resize_token_embeddings(128) is model.resize_token_embeddings() is model.get_input_embeddings()


def test_a_head_to_cast_is_refused_and_is_no_attribute(fuse: Fuse) -> None:
    model = fuse("gpt2", "llama", dtype="bfloat16").as_causal_lm()
    assert not hasattr(model, "lm_head")
    assert not hasattr(model, "lm_heads")
    with pytest.raises(MolError, match=r"in TRL leave cast_lm_head_to_fp32 out, .* dtype=\{'gpt2': 'float32'\}"):
        model.lm_head.float()  # as GRPOTrainer does
    with pytest.raises(AttributeError, match="no attribute 'lm_heads'"):
        model.lm_heads  # noqa: B018
    again = fuse("gpt2", "llama", dtype={"gpt2": "float32", "llama": "bfloat16"}).as_causal_lm()
    assert again(tokens_of(1, 4)).logits.dtype == torch.float32


def test_a_resize_that_changes_nothing_is_taken(fuse: Fuse) -> None:
    model = fuse("gpt2", "llama").as_causal_lm()
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(128) is model.get_input_embeddings()


@pytest.mark.parametrize("settings", [{"use_reentrant": True}, {"every_n_layers": 2}, {"offload": True}])
def test_ways_of_checkpointing_that_a_fusion_does_not_have_are_refused(settings: dict[str, Any], fuse: Fuse) -> None:
    model: Any = fuse("gpt2", "llama").as_causal_lm()
    kwargs = {name: settings.pop(name) for name in ("use_reentrant",) if name in settings}
    with pytest.raises(MolError, match=f"{[*kwargs, *settings][0]} is (True|2)"):
        model.activation_checkpointing_enable(kwargs or None, **settings)
    assert not model.is_gradient_checkpointing


def test_noise_that_frozen_embeddings_never_add_is_refused(fuse: Fuse, tmp_path: Path) -> None:
    model = fuse("gpt2", "llama").as_causal_lm()
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, neftune_noise_alpha=5.0, use_cpu=True, report_to=[], disable_tqdm=True
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens_of(2, 6)]
    with pytest.raises(MolError, match="those of a fusion are its host's, frozen and in eval mode: leave it out"):
        Trainer(model, arguments, train_dataset=rows).train()


@pytest.mark.parametrize(
    "options",
    [
        {"subfolder": ""}, {"local_files_only": True}, {"force_download": False}, {"revision": None},
        {"revision": "main"}, {"proxies": None}, {"proxies": {}}, {"weights_only": True}, {"use_safetensors": None},
        {"output_loading_info": False}, {"code_revision": None}, {"dtype": "auto"}, {"trust_remote_code": False},
        {"gguf_file": None, "quantization_config": None}, {"variant": ""}, {"device_map": {"": "cpu"}},
    ],
)  # fmt: skip
def test_options_that_request_nothing_are_taken(options: dict[str, Any], fuse: Fuse, tmp_path: Path) -> None:
    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("base", ["named by the adapter", "in one directory with it"])
def test_the_auto_classes_do_not_load_a_model_without_its_adapter(
    base: str, fuse: Fuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PEFT is installed they take the directory of an adapter for that of its model."""
    monkeypatch.setattr("transformers.models.auto.auto_factory.is_peft_available", lambda: True)
    directory = tmp_path / "adapter" if base == "named by the adapter" else tmp_path
    directory.mkdir(exist_ok=True)
    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path)
    (directory / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(MolError, match=r"has an adapter of PEFT.*PeftModel\.from_pretrained\(model, directory\)"):
        AutoModelForCausalLM.from_pretrained(directory)
    if directory != tmp_path:
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("way", "says"),
    [
        (lambda model: model.set_attn_implementation("eager"), "give attn_implementation to from_pretrained"),
        (lambda model: model.push_to_hub("org/name"), "model.runtime.push_to_hf"),
        (lambda model: model.generate_batch([[5, 6], [7]], GenerationConfig(max_new_tokens=2)), "a cache for each of"),
        (lambda model: model.save_pretrained("out", variant="fp16"), "leave variant out"),
    ],
)
@pytest.mark.parametrize("mixture", [False, True])
def test_what_would_reach_no_model_is_refused(
    way: Callable[[Any], object], says: str, mixture: bool, fuse: Fuse, tmp_path: Path
) -> None:
    model: Any = fuse("gpt2", "llama").as_causal_lm()
    if mixture:
        model = MoLMixture.from_models([str(Path("gpt2").resolve())])
    before = model.config._attn_implementation
    with pytest.raises(MolError, match=says):
        way(model)
    assert model.config._attn_implementation == before
    assert not Path("out").exists()


@pytest.mark.parametrize("opened", ["AutoModel", "AutoModelForCausalLM"])
def test_auto_classes_know_a_save_after_a_runtime_was_made_alone(opened: str, fuse: Fuse, tmp_path: Path) -> None:
    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path / "fusion")
    code = (
        "import sys, transformers; from mol.core.mol_runtime import MoLConfig, MoLRuntime; "
        "MoLRuntime(MoLConfig(models=['gpt2'])); "
        f"print(type(transformers.{opened}.from_pretrained(sys.argv[1])).__name__)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "fusion")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout.strip() == {"AutoModel": "MoLModel"}.get(opened, "MoLForCausalLM")
