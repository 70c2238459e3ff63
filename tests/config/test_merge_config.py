"""MergeConfig in Python: the seed's snippets, the forms it takes, and what it is as a value."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mol.config import MergeConfig, ModelReference, ParameterMap, Rule, SourceConfig
from mol.errors import ConfigError


def problems(**recipe: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        MergeConfig(**recipe)  # type: ignore[arg-type]
    return caught.value.problems


def test_the_seeds_slerp() -> None:
    config = MergeConfig(
        method="slerp", models=["gpt2", "distilgpt2"], parameters={"t": 0.5}, output_path="./merged_model"
    )
    gpt2 = ModelReference("gpt2")
    assert config.method == "slerp"
    assert config.models == (SourceConfig(gpt2), SourceConfig(ModelReference("distilgpt2")))
    assert config.base_model == gpt2
    assert config.parameters == ParameterMap({"t": (Rule(0.5),)})
    assert config.layer_alignment == "auto"
    assert config.output_path == "./merged_model"
    assert config.notes == (
        "no `base_model` is given: the first model, gpt2, is the base",
        "filled in, since the recipe is in the short form: `layer_alignment` auto (mergekit's form has strict)",
    )


def test_the_seeds_ties() -> None:
    config = MergeConfig(
        method="ties",
        base_model="gpt2",
        models=["gpt2-finetuned-poetry", "gpt2-finetuned-science", "gpt2-finetuned-code"],
        parameters={"density": 0.8, "normalize": True},
        output_path="./enhanced_gpt2",
    )
    assert config.base_model == ModelReference("gpt2")
    assert config.parameters["weight"] == (Rule(1.0),)
    assert config.parameters["density"] == (Rule(0.8),)
    assert config.notes == (
        "filled in, since the recipe is in the short form: `weight` 1 (mergekit's form needs one), "
        "`layer_alignment` auto (mergekit's form has strict)",
    )


@pytest.mark.parametrize(
    ("method", "defaults"),
    [
        ("slerp", {"t": 0.5}),
        ("ties", {"weight": 1.0, "density": 0.8}),
        ("linear", {"weight": 1.0}),
        ("task_arithmetic", {"weight": 1.0}),
    ],
)
def test_defaults_of_the_python_form(method: str, defaults: dict[str, float]) -> None:
    config = MergeConfig(method, ["a", "b"])
    assert config.parameters.to_dict() == defaults


def test_a_default_follows_the_filters_that_are_given() -> None:
    config = MergeConfig("slerp", ["a", "b"], {"t": {"filter": "mlp", "value": 1}})
    assert config.parameters["t"] == (Rule(1.0, "mlp"), Rule(0.5))


def test_merge_method_is_method() -> None:
    assert MergeConfig(merge_method="linear", models=["a"]) == MergeConfig(method="linear", models=["a"])


def test_models_in_every_form() -> None:
    config = MergeConfig(
        "linear",
        models=[
            "a@v1",
            Path("dir@x"),
            ModelReference("b", "v2"),
            {"model": {"path": "c", "revision": "v3"}, "parameters": {"weight": "0.5"}},
            {"name": "d", "weight": 2},
            SourceConfig(ModelReference("e"), None, ParameterMap({"weight": (Rule(3.0),)})),
        ],
    )
    assert [str(reference) for reference in config.model_references()] == ["a@v1", "dir@x", "b@v2", "c@v3", "d", "e"]
    assert config.model_references()[1] == ModelReference("dir@x")
    assert config.models is not None
    weights = [source.parameters.to_dict().get("weight") for source in config.models]
    assert weights == [None, None, None, 0.5, 2.0, 3.0]


def test_dtypes_of_torch_are_read_by_their_text() -> None:
    dtype = type("dtype", (), {"__str__": lambda self: "torch.bfloat16"})()
    assert MergeConfig("linear", ["a"], dtype=dtype).dtype == "BF16"


def test_wrong_recipes_name_the_location() -> None:
    assert problems(method="slerp", models=["a", {"model": "b", "paramters": {}}], parameters={"t": "x"}, dtyp="f") == (
        "dtyp: unknown key `dtyp` in a recipe; did you mean `dtype`?",
        "parameters.t: `t` is 'x'; it must be a finite number",
        "models[1].paramters: unknown key `paramters` in an entry of `models`; did you mean `parameters`?",
    )
    assert problems(method="linear", models=["a", 3]) == (
        "models[1]: a model is named by text, not by 3; put the name in quotes",
    )
    assert problems(method="linear", models="gpt2") == (
        "models: `models` is a list, its entries begin with `- `; here is 'gpt2'",
    )
    assert problems(method="linear")[0] == "a recipe has either `models` or `slices`; here is neither"


def test_values_that_are_no_recipe_values() -> None:
    assert (
        "must be a finite number" in problems(method="slerp", models=["a", "b"], parameters={"t": SimpleNamespace()})[0]
    )
    assert "must be a finite number" in problems(method="slerp", models=["a", "b"], parameters={"t": 10**400})[0]
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ConfigError, match="nested more than 32 deep"):
        MergeConfig("slerp", ["a", "b"], {"t": endless})


def test_numbers_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    config = MergeConfig("slerp", ["a", "b"], {"t": numpy.float32(0.25)}, layer_range=[numpy.int64(0), numpy.int64(2)])
    assert config.parameters["t"] == (Rule(0.25),)
    assert type(config.parameters["t"][0].value) is float


def test_from_dict_has_the_defaults_of_its_form() -> None:
    flat = MergeConfig.from_dict({"merge_method": "slerp", "models": ["a", "b"]})
    assert flat == MergeConfig("slerp", ["a", "b"])
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_dict({"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]})
    assert str(caught.value) == "invalid recipe:\n  - models: slerp needs the parameter `t`"
    with pytest.raises(ConfigError, match="a recipe is a map"):
        MergeConfig.from_dict(["linear"])  # type: ignore[arg-type]


FULL: dict[str, Any] = {
    "method": "ties",
    "base_model": {"path": "org/base+x", "revision": "main"},
    "models": [{"model": "a", "parameters": {"weight": [{"filter": "re:mlp", "value": [0, 1]}, {"value": 0.5}]}}, "b"],
    "parameters": {"majority_sign_method": "count", "lambda": 1e-3, "rescale": True},
    "dtype": "float64",
    "out_dtype": "bfloat16",
    "tokenizer_source": "a",
    "chat_template": "{% for message in messages %}{{ message }}{% endfor %}",
    "trust_remote_code": True,
    "allow_crimes": True,
    "output_path": "größe/out",
    "device": "cpu",
}


def test_it_is_a_value() -> None:
    one, two = MergeConfig(**FULL), MergeConfig(**FULL)
    one.resolve("lambda", slice_index=0, source=None, source_tensor="x", output_tensor="x", position=0.0)
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == two
    assert one != MergeConfig(**{**FULL, "dtype": "float32"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.method = "linear"  # type: ignore[misc]


def test_it_reads_back_equal() -> None:
    config = MergeConfig(**FULL)
    assert MergeConfig.from_dict(config.to_dict()) == config
    assert MergeConfig.from_yaml(config.to_yaml()) == config
    assert MergeConfig.from_yaml(config.to_yaml()).notes == ()


def test_replace_keeps_what_was_checked() -> None:
    text = "merge_method: ties\nbase_model: a\nmodels:\n  - model: b\n    parameters: {weight: 1}\ndevice: cpu\n"
    config = MergeConfig.from_yaml(text)
    changed = dataclasses.replace(config, dtype="float16")
    assert changed.dtype == "F16"
    assert dataclasses.replace(changed, dtype=None) == config  # no default of the Python form slips in
    assert changed.notes == config.notes


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "transformers", "huggingface_hub"}
    code = f"import sys, mol.config; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
