"""The recipes that `mol-merge examples` writes: each validates, and runs where its models are at hand."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, Final

import yaml

from mol.config.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.config.method_spec import MethodSpec

_MODELS: Final = ("openai-community/gpt2", "distilbert/distilgpt2", "microsoft/DialoGPT-small")
_FORMS: Final[dict[str, str]] = {
    "gradient_slerp_example.yml": """\
# Interpolation that changes over the layers and differs by part: a list holds
# control points from the first layer to the last, a filter chooses tensors by name.
merge_method: slerp
base_model: openai-community/gpt2
models:
  - model: openai-community/gpt2
  - model: distilbert/distilgpt2
parameters:
  t:
    - filter: .attn.
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: .mlp.
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
layer_alignment: auto
""",
    "slices_example.yml": """\
# Different blends in different layers: the first six pure, the last six interpolated.
merge_method: slerp
base_model: openai-community/gpt2
slices:
  - sources:
      - model: openai-community/gpt2
        layer_range: [0, 6]
      - model: distilbert/distilgpt2
        layer_range: [0, 6]
    parameters:
      t: 0
  - sources:
      - model: openai-community/gpt2
        layer_range: [6, 12]
      - model: distilbert/distilgpt2
        layer_range: [0, 6]
    parameters:
      t: [0, 0.5]
""",
    "flat_example.yml": """\
# The short form: names of models, one list of weights, and where to write.
merge_method: linear
models:
  - openai-community/gpt2
  - distilbert/distilgpt2
weights: [0.7, 0.3]
output_path: ./merged_model
""",
}
"""What a recipe can say in addition to the parameters of its method."""


def example_of(spec: MethodSpec, models: Sequence[str]) -> dict[str, Any]:
    """Return a recipe of a method in mergekit's grammar, with every parameter at its default.

    Args:
        spec: the method.
        models: names of models, the base first if the method needs one; as many are taken as it allows.
    """
    based = spec.base == "required"
    listed = models[based:][: None if spec.max_models is None else spec.max_models - based]
    values = {name: parameter.example for name, parameter in spec.parameters.items()}
    of_model = {name: values[name] for name, parameter in spec.parameters.items() if parameter.per_model}
    shared = {name: values[name] for name in values if name not in of_model}
    recipe: dict[str, Any] = {"merge_method": spec.name}
    if based:
        recipe["base_model"] = models[0]
    recipe["models"] = [{"model": name, **({"parameters": of_model.copy()} if of_model else {})} for name in listed]
    if shared:
        recipe["parameters"] = shared
    return recipe


def example_text(spec: MethodSpec) -> str:
    """Return an example of a method as YAML, with what the method and each of its parameters do as comments."""
    models = _MODELS[: max(2, spec.min_models)]
    recipe = example_of(spec, models)
    if spec.max_models == 1:  # what such a method is for: layers 0 to 7, then 4 to 11
        ranges = ([0, 8], [4, 12])
        recipe["slices"] = [{"sources": [{"model": models[0], "layer_range": list(part)}]} for part in ranges]
        recipe["parameters"] = recipe.pop("models")[0]["parameters"]
    else:
        recipe["layer_alignment"] = "auto"  # gpt2 has 12 layers, distilgpt2 6
    lines = [
        f"{spec.title[0].upper()}{spec.title[1:]}: {spec.about}.",
        *(f"{name}: {each.about}." for name, each in spec.parameters.items()),
    ]
    comment = [textwrap.fill(line, 80, initial_indent="# ", subsequent_indent="#   ") for line in lines]
    return "\n".join([*comment, yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=80)])


EXAMPLES: Final[dict[str, str]] = {
    **{f"{name}_example.yml": example_text(spec) for name, spec in METHODS.items()},
    **_FORMS,
}
"""Recipes by file name."""
