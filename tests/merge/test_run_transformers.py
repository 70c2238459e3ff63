"""What a merge leaves loads with transformers and generates; models are made tiny and random by transformers itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mol import LinearMerge, MergeConfig, run_merge

torch = pytest.importorskip("torch", reason="needs the extra: pip install 'mol-merge[fusion]'")
transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'mol-merge[fusion]'")

from safetensors.torch import load_file, save_file  # noqa: E402 - it needs torch

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fusion

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
SHARED = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama(**changed: Any) -> Any:  # noqa: ANN401
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaConfig(**SHARED | sizes | changed)


def gpt2(**changed: Any) -> Any:  # noqa: ANN401
    sizes = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32}
    return transformers.GPT2Config(**SHARED | sizes | changed)


def qwen2(**changed: Any) -> Any:  # noqa: ANN401
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    kinds = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "num_key_value_heads": 1}
    return transformers.Qwen2Config(**SHARED | sizes | kinds | changed)


def make(directory: Path, config: Any, seed: int, dtype: torch.dtype = torch.float32, **saving: Any) -> Any:  # noqa: ANN401
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too, so that every tensor counts
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(directory, **saving)
    return model


def load(directory: Path) -> Any:  # noqa: ANN401
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def generates(model: Any) -> bool:  # noqa: ANN401
    tokens = model.generate(PROMPT, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
    return bool(tokens.shape == (1, 10))


def linear(*models: Path, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    entries = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models]
    return {"merge_method": "linear", "models": entries, **more}


@pytest.mark.parametrize(
    "config",
    [llama(), llama(tie_word_embeddings=True), gpt2(), qwen2()],
    ids=["llama", "llama-tied", "gpt2", "qwen2"],
)
def test_a_mean_of_two_has_the_mean_weights_and_generates(tmp_path: Path, config: Any) -> None:  # noqa: ANN401
    a, b = (make(tmp_path / name, config, seed, max_shard_size="20KB") for seed, name in enumerate("ab"))
    run_merge(linear(tmp_path / "a", tmp_path / "b"), tmp_path / "out", out_shard_size=20_000)
    merged = load(tmp_path / "out")
    with torch.no_grad():
        for mine, first, second in zip(merged.parameters(), a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(mine, (first + second) / 2)
    assert generates(merged)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        make(tmp_path / name, llama(), seed, torch.bfloat16)
    run_merge(linear(tmp_path / "a", tmp_path / "b"), tmp_path / "out")
    merged = load(tmp_path / "out")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert generates(merged)


def test_the_dtype_of_the_recipe_is_the_dtype_that_loads(tmp_path: Path) -> None:
    make(tmp_path / "a", llama(), 0)
    make(tmp_path / "b", llama(), 1, torch.float16)
    run_merge(linear(tmp_path / "a", tmp_path / "b", dtype="bfloat16"), tmp_path / "out")
    assert load(tmp_path / "out").dtype == torch.bfloat16


def test_unequal_depths_of_the_seed_run(tmp_path: Path) -> None:
    make(tmp_path / "gpt2", gpt2(), 0)
    make(tmp_path / "distilgpt2", gpt2(n_layer=2), 1)
    config = MergeConfig(method="slerp", models=[str(tmp_path / "gpt2"), str(tmp_path / "distilgpt2")])
    run_merge(config, tmp_path / "out")
    merged = load(tmp_path / "out")
    assert merged.config.n_layer == 4
    assert generates(merged)


@pytest.mark.parametrize("config", [llama(num_hidden_layers=4), qwen2(), gpt2()], ids=["llama", "qwen2", "gpt2"])
def test_stacked_slices_load(tmp_path: Path, config: Any) -> None:  # noqa: ANN401
    a, b = (make(tmp_path / name, config, seed) for seed, name in enumerate("ab"))
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(tmp_path / "a"), "layer_range": [0, 3]}]},
            {"sources": [{"model": str(tmp_path / "b"), "layer_range": [1, 4]}]},
        ],
    }
    run_merge(recipe, tmp_path / "out")
    merged = load(tmp_path / "out")
    layers = [
        model.base_model.h if model.config.model_type == "gpt2" else model.base_model.layers for model in (merged, a, b)
    ]
    assert len(layers[0]) == 6
    for mine, theirs in zip(layers[0], [*layers[1][:3], *layers[2][1:]], strict=True):
        for name, parameter in mine.named_parameters():
            assert torch.equal(parameter, theirs.get_parameter(name))
    if config.model_type == "qwen2":
        kinds = config.layer_types
        assert merged.config.layer_types == [*kinds[:3], *kinds[1:]]
    assert generates(merged)


SIDE = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}


def bart(**changed: Any) -> Any:  # noqa: ANN401
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SIDE.items()}
    return transformers.BartConfig(**SHARED | {"d_model": 16, "decoder_start_token_id": 1} | sizes | changed)


OPENERS = {"bart": "AutoModelForSeq2SeqLM", "bert": "AutoModelForMaskedLM"}


def bert(**changed: Any) -> Any:  # noqa: ANN401
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.BertConfig(**SHARED | sizes | changed)


@pytest.mark.parametrize(
    "config",
    [llama(tie_word_embeddings=True), gpt2(), bert(), bart()],
    ids=["llama", "gpt2", "bert", "bart"],
)
def test_a_head_of_its_own_in_a_tied_model_scores_as_before(tmp_path: Path, config: Any) -> None:  # noqa: ANN401
    opener = getattr(transformers, OPENERS.get(config.model_type, "AutoModelForCausalLM"))
    torch.manual_seed(0)
    model = opener.from_config(config)
    model.save_pretrained(tmp_path / "a")
    (name,) = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    tensors[f"{name}.weight"] = torch.randn_like(model.get_output_embeddings().weight)
    save_file(tensors, tmp_path / "a" / "model.safetensors", metadata={"format": "pt"})
    run_merge({"merge_method": "passthrough", "models": [{"model": str(tmp_path / "a")}]}, tmp_path / "out")
    wanted, found = (opener.from_pretrained(tmp_path / which).eval() for which in ("a", "out"))
    with torch.no_grad():
        assert torch.equal(found(input_ids=PROMPT).logits, wanted(input_ids=PROMPT).logits)


@pytest.mark.parametrize("first_as_before", [True, False])
def test_a_vision_language_model_meets_its_renamed_sister_and_its_own_language_model(
    tmp_path: Path, first_as_before: bool
) -> None:
    text = llama()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=28, patch_size=14),
        image_token_index=3,
        tie_word_embeddings=False,
    )
    opener = transformers.LlavaForConditionalGeneration
    models = []
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        models.append(opener(config).eval())
        models[-1].save_pretrained(tmp_path / name, save_original_format=first_as_before is (name == "a"))
    run_merge(linear(tmp_path / "a", tmp_path / "b"), tmp_path / "out")
    merged = opener.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        for mine, first, second in zip(*(model.parameters() for model in (merged, *models)), strict=True):
            torch.testing.assert_close(mine, (first + second) / 2)
    tuned = make(tmp_path / "tuned", text, 7)
    recipe = linear(tmp_path / "tuned") | {"merge_method": "task_arithmetic", "base_model": str(tmp_path / "a")}
    run_merge(recipe, tmp_path / "retold")
    whole, info = opener.from_pretrained(tmp_path / "retold", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(whole(input_ids=PROMPT + 5).logits, tuned(input_ids=PROMPT + 5).logits)


def test_a_module_straight_from_a_merge(tmp_path: Path) -> None:
    a, b = (make(tmp_path / name, llama(), seed) for seed, name in enumerate("ab"))
    config = MergeConfig(method="linear", models=[str(tmp_path / "a"), str(tmp_path / "b")])
    module = LinearMerge(config).merge().to_module()
    assert isinstance(module, transformers.LlamaForCausalLM)
    with torch.no_grad():
        wanted = (a.lm_head.weight + b.lm_head.weight) / 2
        torch.testing.assert_close(module.lm_head.weight, wanted)
    assert generates(module)
