"""Recipes in the forms in which people publish them, some per method: they run as they are, and say what is idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mol.config import MergeConfig
from mol.config.methods import METHODS
from mol.merge import plan_recipe, run_merge
from tests.merge.models import make_llama

if TYPE_CHECKING:
    from pathlib import Path

# What is published as it is, but for the names of the models.
FORMS = {
    "dare_ties": """
models:
  - model: A
    # No parameters necessary for base model
  - model: B
    parameters:
      density: 0.53
      weight: 0.4
  - model: C
    parameters:
      density: 0.53
      weight: 0.3
merge_method: dare_ties
base_model: A
parameters:
  int8_mask: true
dtype: bfloat16
""",
    "dare_ties with gradients": """
slices:
- sources:
  - layer_range: [0, 2]
    model: A
    parameters:
      density: [1, 0.7, 0.1]
      weight: 1.0
  - layer_range: [0, 2]
    model: B
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
  - layer_range: [0, 2]
    model: C
    parameters: {density: 0.5, weight: [0, 0.3, 0.7, 1]}
merge_method: dare_ties
base_model: A
parameters:
  normalize: true
  int8_mask: true
dtype: float16
""",
    "della": """
base_model: A
merge_method: della
dtype: bfloat16
models:
  - model: B
    parameters: {weight: 0.6, density: 0.7, epsilon: 0.2}
  - model: C
    parameters: {weight: 0.4, density: 0.5, epsilon: 0.05}
parameters:
  normalize: true
  int8_mask: true
  rescale: false
  lambda: 1.1
tokenizer_source: base
""",
    "della_linear": """
models:
  - model: B
    parameters:
      weight: [0.25, 0.3, 0.5, 0.6, 0.75]
      density: 0.6
  - model: C
    parameters:
      weight: [0.75, 0.6, 0.5, 0.3, 0.25]
      density: 0.6
merge_method: della_linear
base_model: A
parameters:
  epsilon: 0.05
  lambda: 1
  normalize: 1
dtype: bfloat16
""",
    "breadcrumbs": """
models:
  - model: B
    parameters: {weight: 0.5}
  - model: C
    parameters: {weight: 0.3}
merge_method: breadcrumbs
base_model: A
parameters:
  density: 0.9
  gamma: 0.01
dtype: bfloat16
""",
    "breadcrumbs_ties": """
models:
  - model: B
    parameters: {density: 0.9, gamma: 0.01, weight: 0.5}
  - model: C
    parameters: {density: 0.9, gamma: 0.03, weight: 0.2}
  - model: A
merge_method: breadcrumbs_ties
base_model: A
parameters:
  normalize: true
  int8_mask: true
dtype: bfloat16
name: crumbs
""",
    "sce": """
merge_method: sce
models:
  - model: B
  - model: C
base_model: A
parameters:
  select_topk: 0.15
  int8_mask: true
dtype: bfloat16
""",
    "model_stock": """
models:
  - model: B
  - model: C
merge_method: model_stock
base_model: A
parameters:
  filter_wise: true
  int8_mask: true
  normalize: false
dtype: bfloat16
""",
    "model_stock of listed base": """
base_model: A
dtype: bfloat16
merge_method: model_stock
models:
  - model: A
  - model: B
  - model: C
""",
}


def text_of(form: str, folder: Path) -> str:
    text = FORMS[form]
    for seed, name in enumerate("ABC"):
        model = make_llama(folder / name.lower(), seed)
        text = text.replace(f"model: {name}\n", f"model: {model}\n")
    return text


@pytest.mark.parametrize("form", FORMS)
def test_a_published_recipe_runs_as_it_is(form: str, tmp_path: Path) -> None:
    method = form.split(maxsplit=1)[0]
    recipe = MergeConfig.from_yaml(text_of(form, tmp_path))
    planned = plan_recipe(recipe)
    assert set(planned.methods) - {"copy"} == {METHODS[method].in_plan}
    assert bool([note for note in planned.notes if "int8_mask" in note]) == ("int8_mask" in FORMS[form])
    run_merge(recipe, tmp_path / "out")
    first = (tmp_path / "out" / "model.safetensors").read_bytes()
    run_merge(recipe, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == first
