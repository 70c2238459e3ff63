"""Modules: towers and sides of a model, each made of its own inputs; what a recipe does not name is carried over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.merge.toolkit import linear, plan, problems, task, tensors
from tests.tiny import headers, llama, llama_config

if TYPE_CHECKING:
    from mol.io.checkpoint import Checkpoint
    from mol.merge.planned import PlannedMerge


def seeing(*names: str, vision: int = 3, text: str = "language_model.model.") -> list[Checkpoint]:
    """Models of images and texts, as Llava's checkpoints name their parts."""
    tower = {f"vision_tower.encoder.layers.{i}.fc1.weight": (4, 4) for i in range(vision)}
    tower |= {"vision_tower.embeddings.patch_embedding.weight": (4, 4), "vision_tower.post_layernorm.weight": (4,)}
    shapes = tower | {"multi_modal_projector.linear_1.weight": (8, 4)}
    shapes |= {
        f"{'' if name.startswith(text) else 'language_model.'}{name}": s for name, s in llama(prefix=text).items()
    }
    config = {
        "model_type": "llava",
        "text_config": llama_config(),
        "vision_config": {"hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": vision},
    }
    return [headers(name, shapes, config) for name in names]


def two_sided(*names: str) -> list[Checkpoint]:
    """Models of an encoder and a decoder, as T5's checkpoints name them."""
    shapes = {f"{s}.block.{i}.layer.0.wo.weight": (4, 4) for s in ("encoder", "decoder") for i in range(3)}
    shapes |= {f"{s}.final_layer_norm.weight": (4,) for s in ("encoder", "decoder")}
    shapes |= {"shared.weight": (8, 4), "lm_head.weight": (8, 4)}
    config = {"model_type": "t5", "is_encoder_decoder": True, "num_layers": 3, "vocab_size": 8}
    return [headers(name, shapes, config | {"tie_word_embeddings": False}) for name in names]


def divided(**modules: dict[str, Any]) -> dict[str, Any]:
    return {"merge_method": "linear", "parameters": {"weight": 0.5}, "modules": modules}


def models(*names: str) -> dict[str, Any]:
    return {"models": [{"model": name} for name in names]}


def stacked(module: str, *parts: tuple[str, int, int]) -> dict[str, Any]:
    """A recipe that makes a module of layers of single models."""
    slices = [{"sources": [{"model": model, "layer_range": [start, end]}]} for model, start, end in parts]
    return {"merge_method": "passthrough", "base_model": "a", "modules": {module: {"slices": slices}}}


def made_by(planned: PlannedMerge, part: str) -> set[str]:
    return {word for made in tensors(planned) if part in made.name for word in made.method}


def test_each_module_has_its_models_and_the_rest_is_carried_over() -> None:
    recipe = divided(text_decoder=models("a", "b"), vision_tower=models("c")) | {"base_model": "a"}
    planned = plan(recipe, *seeing("a", "b", "c"))
    assert {made.name for made in tensors(planned)} == set(seeing("a")[0].tensors)
    assert made_by(planned, "language_model") == {"linear"}
    assert task(planned, "vision_tower.post_layernorm.weight")[1] == [(2, "vision_tower.post_layernorm.weight")]
    assert task(planned, "multi_modal_projector.linear_1.weight") == (
        {"copy": {}}, [(0, "multi_modal_projector.linear_1.weight")],
    )  # fmt: skip
    assert planned.notes == ("`multi_modal_projector` is not among `modules`: it is carried over from a",)
    assert planned.dropped == (
        "`vision_tower` of a (5 tensors): this module is made of other models",
        "`vision_tower` of b (5 tensors): this module is made of other models",
        "`multi_modal_projector` of b (1 tensor): this module is made of other models",
        "`text_decoder` of c (39 tensors): this module is made of other models",
        "`multi_modal_projector` of c (1 tensor): this module is made of other models",
    )


@pytest.mark.parametrize("word", ["default", "language_model", "text_decoder"])
def test_words_for_modules(word: str) -> None:
    planned = plan(divided(**{word: models("a", "b")}), *seeing("a", "b"))
    assert made_by(planned, "language_model") == {"linear"}
    assert made_by(planned, "vision_tower") == {"linear" if word == "default" else "copy"}


def test_a_model_with_one_tower_has_the_module_default() -> None:
    config = headers("a", llama(), llama_config()), headers("b", llama(), llama_config())
    whole = plan(linear(0.5, 0.5), *config)
    assert plan(divided(default=models("a", "b")), *config).plan == whole.plan
    assert "a has no module `text_decoder`; it has `default`" in problems(
        divided(text_decoder=models("a", "b")), *config
    )


def test_a_text_decoder_takes_a_language_model_without_towers() -> None:
    recipe = divided(text_decoder=models("a", "b")) | {"base_model": "a"}
    planned = plan(recipe, *seeing("a"), headers("b", llama(), llama_config()))
    assert made_by(planned, "language_model") == {"linear"}
    assert made_by(planned, "vision_tower") == {"copy"}
    assert planned.dropped == ()
    refused = problems(divided(vision_tower=models("a", "b")), *seeing("a"), headers("b", llama(), llama_config()))
    assert "module `vision_tower`: b has no tensor of it" in refused


def test_slices_of_a_module_are_of_its_layers() -> None:
    planned = plan(stacked("vision_tower", ("a", 0, 2), ("b", 1, 3)), *seeing("a", "b"))
    layers = [made.sources[0] for made in tensors(planned) if "vision_tower.encoder" in made.name]
    assert [(source.input, source.tensor.split(".")[3]) for source in layers] == [
        (0, "0"),
        (0, "1"),
        (1, "1"),
        (1, "2"),
    ]
    assert planned.model_config["vision_config"]["num_hidden_layers"] == 4
    assert planned.model_config["text_config"]["num_hidden_layers"] == 4
    assert task(planned, "vision_tower.post_layernorm.weight")[1][0][0] == 1
    assert task(planned, "vision_tower.embeddings.patch_embedding.weight")[1][0][0] == 0


@pytest.mark.parametrize(("side", "counts"), [("encoder", (2, 3)), ("decoder", (3, 2))])
def test_slices_of_a_side_change_the_number_of_its_layers_alone(side: str, counts: tuple[int, int]) -> None:
    planned = plan(stacked(side, ("b", 0, 1), ("b", 2, 3)), *two_sided("a", "b"))
    config = planned.model_config
    assert (config["num_layers"], config["num_decoder_layers"]) == counts
    blocks = {made.name.rpartition(".layer")[0]: made.sources[0] for made in tensors(planned) if ".block." in made.name}
    assert blocks[f"{side}.block.1"] == (0, f"{side}.block.2.layer.0.wo.weight")
    assert len(blocks) == 5
    ends = {"shared.weight": "encoder", "lm_head.weight": "decoder"}
    assert {name: task(planned, name)[1][0][0] for name in ends} == {n: int(of != side) for n, of in ends.items()}


@pytest.mark.parametrize("parts", [[("b", 1, 3), ("a", 0, 2)], [("b", 1, 3)], [("b", 0, 2), ("a", 0, 3)]])
def test_a_table_of_positions_in_the_first_block_stays_there_whichever_blocks_move(
    parts: list[tuple[str, int, int]],
) -> None:
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    models = [
        headers(one.name, {n: i.shape for n, i in one.tensors.items()} | {name: (4, 2)}, one.config)
        for one in two_sided("a", "b")
    ]
    planned = plan(stacked("encoder", *parts), *models)
    found = [made for made in tensors(planned) if "relative_attention_bias" in made.name]
    assert [(made.name, made.sources) for made in found] == [(name, [(0, name)])]  # of b, which is named first
    held = [note for note in planned.notes if "relative_attention_bias" in note]
    assert len(held) == (parts[0][1] != 0)


@pytest.mark.parametrize(("side", "counts"), [("encoder", (3, 2)), ("decoder", (2, 3))])
@pytest.mark.parametrize("prefixes", [("led.encoder.", "led.decoder."), ("m.encoder.", "m.transf_decoder._decoder.")])
def test_a_side_is_known_wherever_its_word_stands(
    side: str, counts: tuple[int, int], prefixes: tuple[str, str]
) -> None:
    """As in a LED and a Cohere-ASR, which counts the layers of its encoder in a section of its own."""
    shapes = {f"{prefix}layers.{i}.fc1.weight": (4, 4) for prefix in prefixes for i in range(3)}
    tower = {f"{prefixes[0]}vision_tower.layers.{i}.fc2.weight": (4, 4) for i in range(2)}
    config = {"is_encoder_decoder": True, "num_hidden_layers": 3, "encoder_config": {"num_hidden_layers": 3}}
    a = headers("a", shapes | tower, config)
    planned = plan(stacked(side, ("a", 0, 1), ("a", 2, 3)), a)
    found = planned.model_config
    assert (found["num_hidden_layers"], found["encoder_config"]["num_hidden_layers"]) == counts
    assert len(planned.plan.tensors) == 7


def test_a_module_has_its_own_method_base_and_parameters() -> None:
    decoder = {"merge_method": "ties", "base_model": "b", "parameters": {"density": 0.5, "weight": 1}, **models("a")}
    planned = plan(divided(encoder=models("a", "b"), decoder=decoder), *two_sided("a", "b"))
    assert made_by(planned, "encoder") == {"linear"}
    method, sources = task(planned, "decoder.block.0.layer.0.wo.weight")
    assert (list(method), [source for source, _ in sources]) == (["ties"], [1, 0])


def test_rules_hold_in_every_module() -> None:
    rules = [{"filter": "block.1.", "copy": "b"}]
    planned = plan(divided(encoder=models("a", "b"), decoder=models("b", "a")) | {"rules": rules}, *two_sided("a", "b"))
    assert [list(made.method) for made in tensors(planned) if ".block.1." in made.name] == [["copy"], ["copy"]]
    assert made_by(planned, ".block.0.") == {"linear"}


def test_unknown_modules_are_refused_with_those_there_are() -> None:
    found = problems(divided(text_decodr=models("a", "b"), vision=models("a"), visual=models("b")), *seeing("a", "b"))
    assert "a has no module `text_decodr`; did you mean `text_decoder`?; it has `text_decoder`, `vision_tower`" in found
    assert "`visual` is the module `vision_tower`, which the recipe has already" in found


# Without `modules`


def test_towers_that_all_models_have_are_merged_and_others_carried_over() -> None:
    assert plan(linear(0.5, 0.5), *seeing("a", "b")).methods == {"linear": 45}
    planned = plan(linear(0.5, 0.5), *seeing("a"), headers("b", llama(), llama_config()))
    assert {made.name for made in tensors(planned)} == set(seeing("a")[0].tensors)
    assert made_by(planned, "language_model") == {"linear"}
    assert made_by(planned, "vision_tower") | made_by(planned, "multi_modal") == {"copy"}
