"""What the planner's tests are written with: recipes of a line, models that are headers only, what is planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from mol.config import MergeConfig, ModelReference
from mol.errors import MergeError
from mol.io.expressions import Source, sources_of
from mol.merge.options import MergeOptions
from mol.merge.planner import plan_merge
from tests.tiny import headers, llama, llama_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.io.checkpoint import Checkpoint
    from mol.merge.plan import Method
    from mol.merge.planned import PlannedMerge


def plan(recipe: dict[str, Any] | MergeConfig, *checkpoints: Checkpoint, **options: Any) -> PlannedMerge:  # noqa: ANN401
    config = recipe if isinstance(recipe, MergeConfig) else MergeConfig.from_dict(recipe)
    table = {ModelReference(checkpoint.name): checkpoint for checkpoint in checkpoints}
    return plan_merge(config, table, options=MergeOptions(**options))


def linear(*weights: float, names: Sequence[str] = "abcd", **more: Any) -> dict[str, Any]:  # noqa: ANN401
    models = [{"model": name, "parameters": {"weight": w}} for name, w in zip(names, weights, strict=False)]
    return {"merge_method": "linear", "models": models, **more}


def based(method: str, each: dict[str, Any], *names: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """A recipe of a method that starts from a base `a`; `each` are the parameters of every model."""
    models = [{"model": name, "parameters": each} for name in names]
    return {"merge_method": method, "base_model": "a", "models": models, **more}


def llamas(*names: str, layers: int = 4, **shapes: Any) -> list[Checkpoint]:  # noqa: ANN401
    return [headers(name, llama(layers, **shapes), llama_config(layers)) for name in names]


class Made(NamedTuple):
    """A tensor of the output, and how it is made."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    output: int
    method: Method
    sources: list[Source]


def tensors(planned: PlannedMerge) -> list[Made]:
    """Every tensor of the output, each made by one task from whole tensors."""
    made = zip(planned.plan.tensors, planned.plan.tasks, strict=True)
    return [Made(*tensor, task.by, list(sources_of(task.of))) for tensor, task in made]


def task(planned: PlannedMerge, name: str) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """What is done to a tensor, and to what."""
    (found,) = [made for made in tensors(planned) if made.name == name]
    return dict(found.method), [(source.input, source.tensor) for source in found.sources]


def problems(recipe: dict[str, Any] | MergeConfig, *checkpoints: Checkpoint, **options: Any) -> str:  # noqa: ANN401
    with pytest.raises(MergeError) as caught:
        plan(recipe, *checkpoints, **options)
    return str(caught.value)


def sliced(*slices: list[tuple[str, int, int]], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """A recipe of slices; each is a list of sources: a model, its first layer, and the layer after its last."""
    return {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": m, "layer_range": [start, end]} for m, start, end in sources]} for sources in slices
        ],
        **more,
    }
