"""Every row of the table of methods from a recipe to the result: accepted by the engine, equal to its reference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mol.config import MergeConfig
from mol.config.examples import example_of
from mol.config.methods import METHODS
from mol.merge import plan_recipe, run_merge
from tests.engine.toolkit import Case, assert_agrees, read_shard
from tests.merge.models import make_llama
from tests.merge.toolkit import tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mol.config.method_spec import MethodSpec, ParameterSpec

Recipe = dict[str, Any]


def odd(parameter: ParameterSpec, model: int = 0) -> float | bool | str:
    """A value without short cuts, another for each model."""
    if parameter.kind == "float":
        value = (0.35, 0.2, 0.55, 0.8)[model]
        value = value / 10 if parameter.name == "epsilon" else value  # lies about the density
        return -value if model == 1 and parameter.low < 0 else min(value, parameter.high)
    return parameter.example


def numbers(recipe: Recipe, spec: MethodSpec) -> Recipe:
    """The recipe with values without short cuts, wherever a number is wanted."""
    models = [
        {**entry, "parameters": {name: odd(spec.parameters[name], i) for name in entry.get("parameters", {})}}
        for i, entry in enumerate(recipe["models"])
    ]
    shared = {name: odd(spec.parameters[name]) for name in recipe.get("parameters", {})}
    return {**recipe, "models": models, "parameters": shared}


def switched(recipe: Recipe, spec: MethodSpec) -> Iterator[tuple[str, Recipe]]:
    """The recipe once for each truth value turned round, and for each word that is not the default."""
    for name, parameter in spec.parameters.items():
        others = [not parameter.default] if parameter.kind == "bool" else list(parameter.choices)[1:]
        for other in others:
            yield f"{name}={other}", {**recipe, "parameters": {**recipe["parameters"], name: other}}


def recipes(spec: MethodSpec, models: list[str]) -> dict[str, Recipe]:
    """Recipes of a method: its defaults, other numbers, and every switch."""
    default = example_of(spec, models)
    other = numbers(default, spec)
    found = {"default": default, "numbers": other, **dict(switched(other, spec))}
    if spec.base == "optional":
        based = example_of(spec, models[1:])
        found["with a base"] = numbers({**based, "base_model": models[0]}, spec)
    return found


LABELS = [(name, label) for name, spec in METHODS.items() for label in recipes(spec, ["a", "b", "c", "d"])]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [str(make_llama(folder / name, seed)) for seed, name in enumerate("abcd")]


@pytest.mark.parametrize(("method", "label"), LABELS)
def test_a_recipe_gives_what_the_reference_gives(method: str, label: str, models: list[str], tmp_path: Path) -> None:
    recipe = recipes(METHODS[method], models)[label]
    planned = plan_recipe(MergeConfig.from_dict(recipe))
    report = run_merge(MergeConfig.from_dict(recipe), tmp_path / "out")
    assert (planned.bytes_read, planned.bytes_written) == (report.bytes_read, report.bytes_written)
    merged = read_shard(tmp_path / "out" / "model.safetensors")
    inputs = [read_shard(Path(file.path)) for file in planned.plan.inputs]
    made = tensors(planned)
    assert merged.keys() == {task.name for task in made}
    for task in made:
        sources = tuple(inputs[source.input][source.tensor] for source in task.sources)
        assert_agrees(Case(dict(task.method), sources, task.dtype), merged[task.name], task.name)
    if label != "default":  # where defaults may mean that nothing is to be computed
        assert set(planned.methods) == {METHODS[method].in_plan}
