"""The recipes that `mol-merge examples` writes: each validates, and runs where its models are at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.config.methods import MethodSpec

MODELS: Final = ("openai-community/gpt2", "distilbert/distilgpt2")

EXAMPLES: Final[dict[str, str]] = {
    "slerp_example.yml": """\
# Spherical interpolation between two models of one width.
# t: 0 is the base model, 1 the other. distilgpt2 has 6 layers, gpt2 has 12:
# `layer_alignment: auto` maps them proportionally; the depth is the base's.
merge_method: slerp
base_model: openai-community/gpt2
models:
  - model: openai-community/gpt2
  - model: distilbert/distilgpt2
parameters:
  t: 0.5
layer_alignment: auto
""",
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
    "linear_example.yml": """\
# Weighted average. Weights need not sum to 1: `normalize: true` divides by their sum.
merge_method: linear
models:
  - model: openai-community/gpt2
    parameters:
      weight: 0.7
  - model: distilbert/distilgpt2
    parameters:
      weight: 0.3
parameters:
  normalize: true
layer_alignment: auto
""",
    "task_arithmetic_example.yml": """\
# base + lambda * sum of weight * (model - base). Add fine-tunes of the base under
# `models`; a negative weight takes a skill away.
merge_method: task_arithmetic
base_model: openai-community/gpt2
models:
  - model: distilbert/distilgpt2
    parameters:
      weight: 0.4
parameters:
  lambda: 1.0
layer_alignment: auto
""",
    "ties_example.yml": """\
# TIES: of each model's difference from the base, keep the largest share (density),
# elect a sign for each weight, and average those that agree. Add fine-tunes of the base.
merge_method: ties
base_model: openai-community/gpt2
models:
  - model: distilbert/distilgpt2
    parameters:
      weight: 1.0
      density: 0.5
parameters:
  normalize: true
layer_alignment: auto
""",
    "nuslerp_example.yml": """\
# Spherical linear interpolation by weights: a point on the arc between two
#   models, or between their differences from the base.
# weight: how much of the model; negative takes away.
# nuslerp_flatten: one angle for a tensor; otherwise one for each of its rows.
# nuslerp_row_wise: with `nuslerp_flatten: false`, one angle for each column.
merge_method: nuslerp
models:
- model: openai-community/gpt2
  parameters: {weight: 1.0}
- model: distilbert/distilgpt2
  parameters: {weight: 1.0}
parameters: {nuslerp_flatten: true, nuslerp_row_wise: false}
layer_alignment: auto
""",
    "dare_linear_example.yml": """\
# DARE: task arithmetic over differences thinned out at random: of each
#   difference from the base values are dropped at random, the rest is made as
#   large as the whole was, and the weighted sum is added to the base.
# weight: how much of the model; negative takes away.
# density: share of each difference that is kept.
# normalize: divide by the sum of the weights.
# rescale: make each difference as large as it was before values were dropped.
# lambda: factor on what is added to the base.
merge_method: dare_linear
base_model: openai-community/gpt2
models:
- model: distilbert/distilgpt2
  parameters: {weight: 1.0, density: 0.8}
parameters: {normalize: false, rescale: true, lambda: 1.0}
layer_alignment: auto
""",
    "passthrough_example.yml": """\
# Layers stacked as they are: layers 0 to 7, then 4 to 11, make a model of 16 layers.
merge_method: passthrough
slices:
  - sources:
      - model: openai-community/gpt2
        layer_range: [0, 8]
  - sources:
      - model: openai-community/gpt2
        layer_range: [4, 12]
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
"""Recipes by file name."""


def example_of(spec: MethodSpec, models: Sequence[str] = MODELS) -> dict[str, Any]:
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
