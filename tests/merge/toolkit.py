"""What the planner's tests are written with: recipes of a line, models that are headers only, what is planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from mol import _rust
from mol.config import MergeConfig, ModelReference
from mol.errors import MergeError
from mol.io.expressions import Leaf, leaves
from mol.merge.options import MergeOptions
from mol.merge.plan import OutputTensor
from mol.merge.planner import plan_merge
from tests.engine.toolkit import Case, Stored, read_shard
from tests.tiny import headers, llama, llama_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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
    sources: list[Leaf]


def tensors(planned: PlannedMerge) -> list[Made]:
    """Every tensor of the output, each made by one task from whole tensors."""
    made = zip(planned.plan.tensors, planned.plan.tasks, strict=True)
    return [Made(*tensor, task.by, list(leaves(task.of))) for tensor, task in made]


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


def made_of(planned: PlannedMerge, scratch: Path) -> dict[str, Case]:
    """Each tensor of the output as the plan makes it, of what is read for it, in F32.

    Sources may be rows of several models, or a model with its adapter: the engine itself writes them out.
    """
    plan = planned.plan
    tensors = tuple(OutputTensor(name, "F32", shape, output) for name, _, shape, output in plan.tensors)
    sources: dict[str, list[Stored]] = {name: [] for name, *_ in tensors}
    for place in range(max(len(task.of) for task in plan.tasks)):
        tasks = tuple(
            task._replace(by={"scale": {"factor": 1.0}}, of=(task.of[min(place, len(task.of) - 1)],))
            for task in plan.tasks
        )
        partial = scratch / f"sources-{place}.partial"
        _rust.execute(plan._replace(tensors=tensors, tasks=tasks).to_json(), str(partial))
        for output in plan.outputs:
            for name, stored in read_shard(partial / output).items():
                sources[name].append(stored)
    return {
        name: Case({by: dict(numbers) for by, numbers in task.by.items()}, tuple(sources[name][: len(task.of)]), dtype)
        for (name, dtype, *_), task in zip(plan.tensors, plan.tasks, strict=True)
    }
