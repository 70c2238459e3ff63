"""Hosts that do not write: masked language models, classifiers of texts, tokens and images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from mol.auto import MoLForCausalLM, MoLForImageClassification, MoLForMaskedLM
from mol.config.mol_config import MoLConfig
from mol.core.models.heads import head_class
from mol.core.mol_runtime import MoLRuntime
from mol.errors import MolError
from tests.core.zoo import body_of, config_of, language_model_of, randomised, tokens_of

if TYPE_CHECKING:
    from pathlib import Path

MASKED, TEXT, TOKEN, IMAGE = (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForImageClassification,
)
_VISION: Final = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_TEXT: Final = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HOSTS: Final[dict[str, tuple[Any, str, dict[str, Any]]]] = {
    "bert-mask": (MASKED, "bert", {}),
    "roberta-mask": (MASKED, "roberta", {**_TEXT, "pad_token_id": 1, "bos_token_id": 0}),  # positions start at 2
    "albert-mask": (MASKED, "albert", {}),
    "squeezebert-mask": (MASKED, "squeezebert", {}),
    "bert-class": (TEXT, "bert", {"num_labels": 5}),
    "modernbert-class": (TEXT, "modernbert", {  # mean over the text
        **_TEXT, "num_labels": 5, "classifier_pooling": "mean", "cls_token_id": 1, "sep_token_id": 2,
    }),
    "gpt2-class": (TEXT, "gpt2", {"num_labels": 5}),  # reads the last token
    "distilbert-tokens": (TOKEN, "distilbert", {"num_labels": 5}),
    "vit-class": (IMAGE, "vit", {"num_labels": 5}),
    "deit-class": (IMAGE, "deit", {  # two tokens next to the patches
        **_VISION, "num_labels": 5, "architectures": ["DeiTForImageClassification"],
    }),
    "dinov2-class": (IMAGE, "dinov2", {**_VISION, "num_labels": 5}),  # images of any size
    "siglip-class": (IMAGE, "siglip", {"vision_config": _VISION, "text_config": _TEXT, "num_labels": 5}),
}  # fmt: skip
EXPERTS: Final = ("bert", "vit", "llama", "t5")
"""Bodies of other widths and kinds to put next to a host."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hosts")
    for seed, (name, (auto, kind, changes)) in enumerate(HOSTS.items()):
        randomised(auto.from_config(config_of(kind, **changes)), seed).save_pretrained(root / name)
    for seed, kind in enumerate(EXPERTS):
        make = language_model_of if kind == "llama" else body_of
        make(kind, seed).save_pretrained(root / kind)
    return root


@pytest.fixture(autouse=True)
def _next_to_the_models(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hub)


def fuse(host: str, *others: str, layers: tuple[int, ...] = (0, 2), **settings: object) -> MoLRuntime:
    torch.manual_seed(0)
    runtime = MoLRuntime(MoLConfig(models=[host, *others], **settings))
    runtime.setup_lm_head()
    for layer in layers:
        runtime.add_layer([(host, layer), *((name, layer) for name in others)], layer)
    return runtime


def inputs_of(host: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two images, or two texts of unlike lengths padded on the right."""
    if HOSTS[host][0] is IMAGE:
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))}
    ids, mask = tokens_of(2, 9, seed), torch.ones(2, 9, dtype=torch.long)
    ids[1, 6:], mask[1, 6:] = HOSTS[host][2].get("pad_token_id", 0), 0
    return {"input_ids": ids, "attention_mask": mask}


def labels_of(host: str) -> torch.Tensor:
    auto = HOSTS[host][0]
    return torch.tensor([1, 4]) if auto in (TEXT, IMAGE) else torch.arange(18).reshape(2, 9) % 5


def plain(host: str) -> PreTrainedModel:
    return HOSTS[host][0].from_pretrained(host).eval()


@pytest.mark.parametrize("host", HOSTS)
def test_experts_that_are_the_hosts_own_blocks_give_the_host_bit_for_bit(host: str) -> None:
    runtime, inputs, labels = fuse(host, layers=(0, 1, 2)), inputs_of(host), labels_of(host)
    model = runtime.as_model()
    with torch.no_grad():
        wanted, given = plain(host)(**inputs, labels=labels), model(**inputs, labels=labels)
        hidden, stats = runtime(**inputs, return_router_stats=True)
        assert runtime.lm_head is not None
        head = runtime.lm_head(hidden, inputs.get("attention_mask"))
    assert type(given) is type(wanted)
    assert torch.equal(given.logits, wanted.logits)
    assert torch.equal(given.loss, wanted.loss)
    assert torch.equal(head, wanted.logits)
    assert stats is not None
    assert stats["layer_0"]["expert_weights"].shape == (*hidden.shape[:2], 1)


@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("host", HOSTS)
def test_every_expert_matters(host: str, expert: str) -> None:
    runtime, inputs = fuse(host, expert), inputs_of(host)
    model = runtime.as_model()
    if expert == "vit":
        inputs.pop("attention_mask", None)

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs).logits

    before = logits()
    for name in (host, expert):
        block = runtime.source(name).calls.forms[2].block
        kept = {key: value.clone() for key, value in block.state_dict().items()}
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
        assert not torch.allclose(logits(), before, atol=1e-4), f"a block of {name} does not matter"
        block.load_state_dict(kept)
    assert torch.equal(logits(), before)


@pytest.mark.parametrize("expert", EXPERTS)
@pytest.mark.parametrize("host", HOSTS)
def test_padding_and_batch_mates_never_change_a_row(host: str, expert: str) -> None:
    # In float64: some of these random weights blow up the rounding of float32 by hundreds.
    model, inputs = fuse(host, expert, dtype="float64").as_model(), inputs_of(host)
    if HOSTS[host][0] is IMAGE:
        inputs = {name: value.double() for name, value in inputs.items()}
    if expert == "vit" and "input_ids" in inputs and not model.runtime.is_causal:
        with pytest.raises(MolError, match=r"padding changes .* of vit \(ViTModel\).*; give texts of one length"):
            model(**inputs)
        return
    with torch.no_grad():
        together = model(**inputs).logits[1]
        length = 6 if "input_ids" in inputs else None
        alone = model(**{name: value[1:, :length] for name, value in inputs.items()}).logits[0]
    torch.testing.assert_close(together[: len(alone)], alone, rtol=0, atol=1e-5)


def test_padding_that_blocks_cannot_mask_is_refused_where_it_matters() -> None:
    model, ids = fuse("llama", "vit").as_model(), tokens_of(2, 6)
    left, right = (torch.tensor([[1] * 6, row]) for row in ([0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]))
    with pytest.raises(MolError, match="pad on the right, or run them one by one"):
        model(ids, attention_mask=left)
    with torch.no_grad():
        together, alone = model(ids, attention_mask=right).logits[1, :4], model(ids[1:, :4]).logits[0]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_an_encoder_reads_both_ways_and_so_do_its_experts() -> None:
    runtime = fuse("bert-mask", "roberta-mask")
    assert not runtime.source("roberta-mask").made_causal
    model, ids = runtime.as_model(), tokens_of(1, 7)
    other = torch.cat([ids[:, :-1], ids[:, -1:] % 100 + 5], 1)
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits[:, 0], model(other).logits[:, 0], atol=1e-4)


@pytest.mark.parametrize("host", ["bert-mask", "gpt2-class", "distilbert-tokens", "vit-class"])
def test_gradients_reach_every_adapter_and_router_and_no_expert(host: str) -> None:
    runtime = fuse(host, "bert", "vit").train()
    model = runtime.as_model()
    # Adapters start as identities whose inner halves are at zero: two steps reach all of them.
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = inputs_of(host)
    inputs.pop("attention_mask", None)  # which the blocks of a ViT cannot go by
    for _ in range(2):
        optimiser.zero_grad()
        model(**inputs, labels=labels_of(host)).loss.backward()
        optimiser.step()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert names == set()
    for name in (host, "bert", "vit"):
        assert all(parameter.grad is None for parameter in runtime.source(name).model.parameters())


@pytest.mark.parametrize("host", ["roberta-mask", "bert-class", "distilbert-tokens", "vit-class"])
def test_what_was_saved_is_loaded_exactly(host: str, tmp_path: Path) -> None:
    model, inputs = fuse(host, "llama").as_model(), inputs_of(host)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.save_pretrained(tmp_path / "fused")
        again = HOSTS[host][0].from_pretrained(tmp_path / "fused")
        assert type(again) is type(model)
        assert again.config.num_labels == model.runtime.host.model.config.num_labels
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_images_of_other_sizes_have_other_numbers_of_patches() -> None:
    runtime = fuse("dinov2-class", "bert")
    images = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        hidden, stats = runtime(pixel_values=images, return_router_stats=True)
        assert runtime.lm_head is not None
        assert torch.equal(runtime.lm_head(hidden), runtime.as_model()(pixel_values=images).logits)
    assert stats is not None
    assert stats["layer_0"]["expert_weights"].shape == (2, 25, 2)


def test_a_wrapper_is_for_hosts_of_its_head() -> None:
    says = (
        r"the host bert-mask \(BertForMaskedLM\) does not {}, as that of a {} must; it was made to fill masked tokens"
    )
    with pytest.raises(MolError, match=says.format("classify images", "MoLForImageClassification")):
        MoLForImageClassification.from_runtime(fuse("bert-mask"))
    with pytest.raises(MolError, match=says.format("predict the next token", "MoLForCausalLM")):
        fuse("bert-mask").as_causal_lm()
    with pytest.raises(MolError, match="does not predict the next token"):
        fuse("gpt2-class").generate(tokens_of(1, 4))
    assert isinstance(fuse("bert-mask").as_model(), MoLForMaskedLM)
    assert isinstance(fuse("llama").as_model(), MoLForCausalLM)


def test_hosts_say_what_they_read() -> None:
    text, image = fuse("bert-class"), fuse("vit-class")
    pixels = torch.zeros(1, 3, 32, 32)
    with pytest.raises(
        MolError, match=r"vit-class \(ViTForImageClassification\) reads pixel_values .* given input_ids"
    ):
        image(tokens_of(1, 4))
    with pytest.raises(MolError, match=r"bert-class .* reads input_ids .* given pixel_values"):
        text.as_model()(pixel_values=pixels)
    with pytest.raises(MolError, match="given neither tokens nor images"):
        text()
    with pytest.raises(MolError, match="return_dict=False is not supported"):
        text.as_model()(tokens_of(1, 4), return_dict=False)


@pytest.mark.parametrize(
    ("kind", "saved_as", "changes", "wanted"),
    [
        ("gpt2", "GPT2LMHeadModel", {}, AutoModelForCausalLM),
        ("gpt2", "GPT2ForSequenceClassification", {}, TEXT),
        ("bert", "BertForTokenClassification", {}, TOKEN),
        ("bert", "BertForPreTraining", {}, MASKED),
        ("bert", "BertModel", {}, MASKED),
        ("bert", None, {}, MASKED),
        ("bert", None, {"is_decoder": True}, AutoModelForCausalLM),
        ("bert", "BertLMHeadModel", {}, AutoModelForCausalLM),
        ("deit", "DeiTForImageClassificationWithTeacher", {}, IMAGE),
    ],
)
def test_the_head_is_what_the_checkpoint_was_saved_as(
    kind: str, saved_as: str | None, changes: dict[str, Any], wanted: type
) -> None:
    config = config_of(kind, **changes)
    config.architectures = None if saved_as is None else [saved_as]
    assert head_class(config) is wanted


def test_models_without_such_a_head_are_refused() -> None:
    vit = config_of("vit", architectures=["ViTModel"])
    with pytest.raises(MolError, match=r"vit \(vit, saved as ViTModel\) has no head .* fill masked tokens, .* images"):
        head_class(vit)
    with pytest.raises(MolError, match=r"bart \(bart\) has an encoder and a decoder"):
        head_class(config_of("bart", architectures=["BartForSequenceClassification"]))
