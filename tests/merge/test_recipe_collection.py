"""tests/recipes: recipes in the forms that people write, each run as it is and held to what its own comments say.

A line `#: layers.0.mlp.up_proj = slerp {t: 0.5} of base a:1` says by hand which numbers a tensor is made with and of
what: the same tensor of a model, `:1` its layer there, and a row by its token where the tensor is named with one.
Numbers that are not given are the method's defaults. Every other tensor is held to the reference as it was planned.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from mol.config import MergeConfig
from mol.config.methods import METHODS
from mol.merge import plan_recipe, run_merge
from tests.engine.toolkit import Case, Stored, assert_agrees, decode, encode, read_shard, write_shard
from tests.merge.models import TOKENIZER, llama_config
from tests.merge.toolkit import made_of
from tests.tiny import Shapes, llama

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yml"))
CHAT = ("<|im_start|>", "<|im_end|>")
LAYERS, ROWS = 4, 12


def seeing() -> tuple[Shapes, dict[str, Any]]:
    """Names and shapes of a Llama with a vision tower of two layers, and its config.json."""
    shapes = llama(LAYERS, vocab=ROWS)
    shapes |= {f"visual.blocks.{i}.attn.{part}.weight": (8, 8) for i in range(2) for part in ("qkv", "proj")}
    config = llama_config(LAYERS) | {"model_type": "qwen2_vl", "vision_config": {"depth": 2, "model_type": "qwen2_vl"}}
    return shapes, config


def experts(kind: str, module: str, per_layer: Shapes) -> tuple[Shapes, dict[str, Any]]:
    """Names and shapes of a Llama with a router and these tensors instead of each MLP, and its config.json."""
    shapes = {name: shape for name, shape in llama(LAYERS, vocab=ROWS).items() if ".mlp." not in name}
    for i in range(LAYERS):
        at = f"model.layers.{i}.{module}."
        shapes[f"{at}gate.weight"] = (2, 8)
        shapes |= {f"{at}experts.{name}": shape for name, shape in per_layer.items()}
    return shapes, llama_config(LAYERS) | {"model_type": kind, "num_experts": 2, "num_local_experts": 2}


OTHERS = {
    "seeing": seeing(),
    "mixtral": experts(
        "mixtral", "block_sparse_moe",
        {f"{i}.{w}.weight": (8, 16) if w == "w2" else (16, 8) for i in range(2) for w in ("w1", "w2", "w3")},
    ),
    "qwen": experts("qwen3_moe", "mlp", {"gate_up_proj": (2, 32, 8), "down_proj": (2, 8, 16)}),
}  # fmt: skip


class Line(NamedTuple):
    """What a recipe says of its result."""

    about: str
    text: str


def lines(recipe: Path) -> list[Line]:
    found = re.findall(r"^#: (.+?) (=|has) (.+?)\r?$", recipe.read_text(encoding="utf-8"), re.MULTILINE)
    return [Line(f"file {about}" if word == "has" else about, text) for about, word, text in found]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three fine-tunes of it in bf16, one more with tokens of its own, and an adapter of the base.

    Two models with a vision tower as well, two with an expert in each tensor, and two with all experts in one.
    """
    folder = tmp_path_factory.mktemp("models")
    random = np.random.default_rng(7)
    base = {name: random.normal(0, 1, shape) for name, shape in llama(LAYERS, vocab=ROWS).items()}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for name in ("base", "a", "b", "c", "chat"):
        tensors = {
            key: value + 0.1 * random.normal(0, 1, value.shape) * (name != "base") for key, value in base.items()
        }
        tokenizer, config = dict(TOKENIZER), llama_config(LAYERS) | {"torch_dtype": "bfloat16"}
        if name == "chat":
            for key in ("model.embed_tokens.weight", "lm_head.weight"):
                tensors[key] = np.concatenate([tensors[key], random.normal(0, 1, (len(CHAT), 8))])
            tokenizer["added_tokens"] = [{"id": ROWS + i, "content": token, **flags} for i, token in enumerate(CHAT)]
            config["vocab_size"] = ROWS + len(CHAT)
        stored = {key: encode(value, "BF16") for key, value in tensors.items()}
        (folder / name).mkdir()
        write_shard(folder / name / "model.safetensors", stored, metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    for kind, (shapes, config) in OTHERS.items():
        first = {name: random.normal(0, 1, shape) for name, shape in shapes.items()}
        for name in (f"{kind}_a", f"{kind}_b"):
            stored = {
                key: encode(value + 0.1 * random.normal(0, 1, value.shape), "BF16") for key, value in first.items()
            }
            (folder / name).mkdir()
            write_shard(folder / name / "model.safetensors", stored, metadata={"format": "pt"})
            (folder / name / "config.json").write_text(json.dumps(config))
            (folder / name / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
    )
    random_factors = {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{kind}.weight": random.normal(0, 1, shape)
        for i in range(LAYERS)
        for kind, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    factors = {key: encode(values, "F32") for key, values in random_factors.items()}
    write_shard(folder / "lora" / "adapter_model.safetensors", factors)
    return folder


def name_of(tensor: str) -> str:
    """`layers.0.mlp.up_proj` as it is called in the file."""
    name = f"{'' if tensor.startswith(('lm_head', 'visual')) else 'model.'}{tensor}"
    return name if name.endswith("gate_up_proj") else f"{name}.weight"


def source(models: Path, model: str, tensor: str) -> Stored:
    """A tensor of a model; `a:1` takes it from layer 1, `base+lora` adds the adapter, `a/b` is the mean of two."""
    model, _, adapter = model.partition("+")
    name, _, layer = model.partition(":")
    key = re.sub(r"layers\.\d+", f"layers.{layer}", name_of(tensor)) if layer else name_of(tensor)
    if "/" in model:
        both = [source(models, one, tensor) for one in model.split("/")]
        stored = encode(sum(decode(one).reshape(one.data.shape) for one in both) / 2, "BF16")
    else:
        stored = read_shard(models / name / "model.safetensors")[key]
    if not adapter:
        return stored
    factors = read_shard(models / adapter / "adapter_model.safetensors")
    a, b = (
        decode(factor).reshape(factor.data.shape)
        for kind in "AB"
        for factor in [factors[f"base_model.model.{key.removesuffix('.weight')}.lora_{kind}.weight"]]
    )
    return encode(decode(stored).reshape(stored.data.shape) + 2 * (b @ a), "F32")


def ids_of(directory: Path) -> dict[str, int]:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    return tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def numbers_of(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Numbers as the plan has them, with defaults where a line gives none."""
    spec = next(spec for spec in METHODS.values() if spec.in_plan == method)
    defaults = {
        parameter.plan or name: parameter.default
        for name, parameter in spec.parameters.items()
        if not parameter.per_model
    }
    return defaults | given


def assert_made(line: Line, models: Path, out: Path) -> None:
    """A tensor, or one row of it, is what a line says."""
    found = re.fullmatch(r"(\w+) (\{.*\}) of (.+)", line.text)
    assert found is not None, line
    method, given, of = found[1], yaml.safe_load(found[2]), found[3].split()
    tensor, _, token = line.about.partition("[")
    merged = read_shard(out / "model.safetensors")[name_of(tensor)]
    numbers = given if method == "copy" or method == "scale" else numbers_of(method, given)
    sources = [source(models, model, tensor) for model in of]
    if token:
        token = token.removesuffix("]")
        rows = [ids_of(models / model)[token] for model in of]
        sources = [Stored(kept.dtype, kept.data[row : row + 1]) for kept, row in zip(sources, rows, strict=True)]
        row = ids_of(out)[token]
        merged = Stored(merged.dtype, merged.data[row : row + 1])
    assert_agrees(Case({method: numbers}, tuple(sources), merged.dtype), merged, name_of(tensor))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_gives_what_it_says(
    recipe: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    out = tmp_path / "out"
    planned = plan_recipe(recipe)
    run_merge(recipe, out)
    said = lines(recipe)
    assert any(" of " in line.text for line in said), "no line says how a tensor is made"
    config = json.loads((out / "config.json").read_text())
    facts = {
        "layers": str(config["num_hidden_layers"]),
        "vocabulary": str(config["vocab_size"]),
        "dtype": ", ".join(sorted({stored.dtype for stored in read_shard(out / "model.safetensors").values()})),
    }
    for line in said:
        if line.about in facts:
            assert facts[line.about] == line.text
        elif line.about == "says":
            assert line.text in "\n".join([*planned.notes, *planned.warnings])
        elif line.about.startswith("file "):
            assert line.text in (out / line.about.removeprefix("file ")).read_text(encoding="utf-8")
        else:
            assert_made(line, models, out)
    merged = read_shard(out / "model.safetensors")
    made = made_of(planned, tmp_path)
    assert merged.keys() == made.keys()
    for name, case in made.items():
        assert_agrees(case, merged[name], name)


def test_every_method_has_a_recipe() -> None:
    assert {MergeConfig.from_yaml(recipe).method for recipe in RECIPES} == set(METHODS)
