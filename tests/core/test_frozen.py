"""What looks for modules of the models of a fusion by name finds their names, and is refused in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from mol import MoLMixture
from mol.errors import MolError
from tests.core.zoo import language_model_of, tokens_of

if TYPE_CHECKING:
    from tests.core.conftest import Fuse

WORDS = "is a module of a model of the fusion, which is frozen, outside of the module tree and not saved with it"


def test_modules_of_all_models_are_named_before_those_that_are_trained(fuse: Fuse) -> None:
    names = [name for name, _ in fuse("gpt2", "llama").as_causal_lm().named_modules()]
    frozen = [name for name in names if name.startswith("runtime.frozen.")]
    assert names[:2] == ["", "runtime"]
    assert names[2 : 2 + len(frozen)] == frozen
    for part in ("gpt2.transformer.h.0.attn.c_attn", "gpt2.transformer.wte", "gpt2.lm_head"):
        assert f"runtime.frozen.{part}" in frozen
    for part in ("llama.layers.1.self_attn.q_proj", "llama.embed_tokens"):
        assert f"runtime.frozen.{part}" in frozen
    assert len(names) == len({*names})


def test_names_add_nothing_that_is_trained_or_saved_or_of_a_known_kind(fuse: Fuse) -> None:
    model = fuse("gpt2", "llama").as_causal_lm()
    frozen = [module for name, module in model.named_modules() if name.startswith("runtime.frozen.")]
    assert not any([*module.named_parameters(), *module.named_buffers()] for module in frozen)
    assert {type(module).__mro__[1] for module in frozen} == {torch.nn.Module}
    assert not any("frozen" in name for name in [*model.state_dict(), *dict(model.named_parameters())])


@pytest.mark.parametrize("name", ["runtime.frozen.gpt2.transformer.h.0.attn", "runtime.frozen.llama"])
def test_a_module_of_a_model_cannot_be_reached_through_the_fusion(name: str, fuse: Fuse) -> None:
    model = fuse("gpt2", "llama").as_causal_lm()
    with pytest.raises(MolError, match=f"{name} {WORDS}"):
        model.get_submodule(name)
    with pytest.raises(MolError, match=WORDS):
        model.runtime.get_submodule(name.removeprefix("runtime."))
    assert model.get_submodule("runtime.layers.0") is model.runtime.layers[0]


@pytest.mark.parametrize("way", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_hooks_that_would_never_be_called_are_refused(way: str, fuse: Fuse) -> None:
    modules = dict(fuse("gpt2", "llama").as_causal_lm().named_modules())
    with pytest.raises(MolError, match=r"hooks on them would not be called\. Name adapters and routers alone"):
        getattr(modules["runtime.frozen.gpt2.transformer.h.0"], way)(print)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["c_attn"]},
        {"target_modules": ["q_proj", "projection"]},
        {"target_modules": ["projection", "c_attn"]},
        {"target_modules": r".*proj.*"},
        {"target_modules": ["projection"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["projection"], "modules_to_save": ["embed_tokens"]},
    ],
)
def test_peft_is_refused_where_it_would_change_a_model(options: dict[str, Any], fuse: Fuse) -> None:
    peft = pytest.importorskip("peft")
    model, ids = fuse("gpt2", "llama").as_causal_lm(), tokens_of(2, 6)
    before = model(ids).logits
    with pytest.raises(MolError, match=WORDS):
        peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", **options))
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("target", ["all-linear", ["projection"], ["classifier"], r"runtime\.layers\..*projection"])
def test_peft_adapts_adapters_and_routers_and_merges(target: Any, fuse: Fuse) -> None:  # noqa: ANN401
    peft = pytest.importorskip("peft")
    model, ids = fuse("gpt2", "llama").as_causal_lm(), tokens_of(2, 6)
    before = model(ids).logits
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=target))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    after = tuned.eval()(input_ids=ids).logits
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.allclose(tuned.merge_and_unload()(ids).logits, after, atol=1e-5)


def test_a_mixture_names_the_modules_of_its_models_too() -> None:
    mixture = MoLMixture.from_models([language_model_of("gpt2"), language_model_of("llama")], weights="router")
    names = [name for name, _ in mixture.named_modules()]
    assert "frozen.1.model.layers.0.self_attn.q_proj" in names
    assert len(names) == len({*names})
    assert [*dict(mixture.named_parameters())] == [*mixture.state_dict()]
    assert not any("frozen" in name for name in mixture.state_dict())
    with pytest.raises(MolError, match=WORDS):
        mixture.get_submodule("frozen.0.transformer.h.0")


def test_peft_adapts_the_router_of_a_mixture_and_no_model() -> None:
    peft = pytest.importorskip("peft")
    mixture = MoLMixture.from_models([language_model_of("gpt2")] * 2, weights="router")
    with pytest.raises(MolError, match=WORDS):
        peft.get_peft_model(mixture, peft.LoraConfig(r=2, target_modules=["classifier", "c_attn"]))
    mixture = MoLMixture.from_models([language_model_of("gpt2")] * 2, weights="router")
    peft.get_peft_model(mixture, peft.LoraConfig(r=2, target_modules=["classifier"]))


def trained_further(model: Any, config: Any) -> Any:  # noqa: ANN401 - PEFT's
    """Wrap a model whose parameters are as after training, see that it answers as before, and take gradients."""
    import peft

    ids = tokens_of(2, 6)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.05)
    before = model(ids).logits
    tuned = peft.get_peft_model(model, config)
    output = tuned(input_ids=ids, labels=ids)
    assert torch.allclose(output.logits, before, atol=1e-4)
    output.loss.backward()
    return tuned


@pytest.mark.parametrize("adapter", ["linear", "bottleneck"])
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
@pytest.mark.parametrize("way", ["LN tuning", "modules_to_save"])
def test_norms_before_a_weight_that_stays_0_are_refused(way: str, adapter: str, fuse: Fuse) -> None:
    peft = pytest.importorskip("peft")
    norms, heads = r"runtime\.layers\..*layer_norm", r"runtime\.layers\..*classifier"
    config = (
        peft.LNTuningConfig(target_modules=norms, task_type="CAUSAL_LM")
        if way == "LN tuning"
        else peft.LoraConfig(r=2, target_modules=heads, modules_to_save=["layer_norm"])
    )
    tuned = peft.get_peft_model(fuse("gpt2", "llama", adapter_type=adapter).as_causal_lm(), config)
    with pytest.raises(MolError, match=r"norm of an adapter alone.*nothing would be trained.*adapter_init=\"lstsq\""):
        tuned(input_ids=tokens_of(2, 6))
    tuned = trained_further(fuse("gpt2", "llama", adapter_type=adapter).as_causal_lm(), config)
    trained = {name: each.grad for name, each in tuned.named_parameters() if each.requires_grad and "norm" in name}
    assert trained
    assert all(grad is not None and grad.any() for grad in trained.values())


KINDS_OF_PEFT: dict[str, tuple[str, dict[str, Any], str]] = {
    "DoRA": ("LoraConfig", {"use_dora": True}, "DoRA .* the result would be NaN"),
    "PiSSA": ("LoraConfig", {"init_lora_weights": "pissa"}, r"this start \(init_lora_weights\) multiplies"),
    "IA3": ("IA3Config", {"feedforward_modules": []}, "IA3 multiplies what the weight computes: nothing would be"),
    "HRA": ("HRAConfig", {}, "HRA multiplies what the weight computes: nothing would be trained"),
    "OFT": ("OFTConfig", {"oft_block_size": 4, "r": 0}, "OFT multiplies what the weight computes"),
}


@pytest.mark.parametrize("kind", KINDS_OF_PEFT)
@pytest.mark.parametrize("adapter", ["linear", "bottleneck"])
def test_peft_is_refused_where_a_weight_of_0_would_stay_so_or_divide(kind: str, adapter: str, fuse: Fuse) -> None:
    peft = pytest.importorskip("peft")
    name, options, words = KINDS_OF_PEFT[kind]
    target = r"runtime\.layers\..*\.(projection|outer)"
    config = getattr(peft, name)(target_modules=target, task_type="CAUSAL_LM", **options)
    tuned = peft.get_peft_model(fuse("gpt2", "llama", adapter_type=adapter).as_causal_lm(), config)
    with pytest.raises(MolError, match=rf"{words}.*adapter_init=\"lstsq\""):
        tuned(input_ids=tokens_of(2, 6))
    tuned = trained_further(fuse("gpt2", "llama", adapter_type=adapter).as_causal_lm(), config)
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in tuned.parameters())


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_vectors_in_front_of_a_text_are_refused(kind: str, fuse: Fuse) -> None:
    peft = pytest.importorskip("peft")
    mixture = MoLMixture.from_models([language_model_of("gpt2")] * 2, weights="router")
    for model in (fuse("gpt2", "llama").as_causal_lm(), mixture):
        sizes = {"num_virtual_tokens": 3, "token_dim": 32, "num_layers": 3, "num_attention_heads": 4}
        with pytest.raises(MolError, match=r"PEFT's prompt tuning, .* a fusion takes tokens alone: use LoRA"):
            peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **sizes))
