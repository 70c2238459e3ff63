"""`depth_scale`: what a method changes about the base, scaled by the depth of the layer (LiNeS), under any method."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mol.config import MergeConfig
from mol.errors import ConfigError
from mol.merge import plan_recipe, run_merge
from tests.engine.toolkit import decode, read_shard
from tests.merge.models import make_llama
from tests.merge.toolkit import based, llamas, plan, problems, task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.reference import Tensor

LINE = {"alpha": 0.25, "beta": 0.5}
METHODS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    # models other than the base, parameters of each, parameters of the merge
    "task_arithmetic": (2, {"weight": 0.5}, {"lambda": 0.8}),
    "ties": (2, {"weight": 0.5, "density": 0.6}, {}),
    "consensus_ta": (2, {"weight": 0.5}, {}),
    "sce": (2, {}, {"select_topk": 0.5}),
    "model_stock": (2, {}, {}),
    "slerp": (1, {}, {"t": 0.4}),
    "linear": (2, {"weight": 0.5}, {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    return [str(make_llama(folder / name, seed)) for seed, name in enumerate("abc")]


def merged(recipe: Mapping[str, Any], out: Path) -> dict[str, Tensor]:
    planned = plan_recipe(MergeConfig.from_dict(recipe))
    report = run_merge(MergeConfig.from_dict(recipe), out)
    assert (planned.bytes_read, planned.bytes_written) == (report.bytes_read, report.bytes_written)
    assert set(planned.methods) == {recipe["merge_method"]}
    return {name: decode(tensor) for name, tensor in read_shard(out / "model.safetensors").items()}


def depth(name: str, layers: int) -> float:
    if ".layers." in name:
        return int(name.split(".")[2]) / (layers - 1)
    return 0.0 if "embed" in name else 1.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_the_difference_from_the_base_grows_with_the_depth(
    method: str, dtype: str, models: list[str], tmp_path: Path
) -> None:
    count, each, shared = METHODS[method]
    listed = models[: count + 1] if method in ("slerp", "linear") else models[1 : count + 1]
    recipe = {
        "merge_method": method,
        "base_model": models[0],
        "models": [{"model": model, "parameters": each} for model in listed],
        "dtype": dtype,
    }
    plain = merged({**recipe, "parameters": shared, "dtype": "float32"}, tmp_path / "plain")
    scaled = merged({**recipe, "parameters": {**shared, "depth_scale": LINE}}, tmp_path / "scaled")
    base = {name: decode(tensor) for name, tensor in read_shard(Path(models[0]) / "model.safetensors").items()}
    layers = 1 + max(int(name.split(".")[2]) for name in base if ".layers." in name)
    assert layers > 1
    for name, tensor in scaled.items():
        factor = LINE["alpha"] + LINE["beta"] * depth(name, layers)
        wanted = base[name] + factor * (plain[name] - base[name])
        step = 2.0**-20 if dtype == "float32" else 2.0**-8
        assert np.allclose(tensor, wanted, rtol=step, atol=2.0**-20), name


def test_one_is_the_method_itself_and_nought_the_base() -> None:
    plain = based("ties", {"weight": 0.5}, "b", "c")
    name = "model.layers.1.mlp.up_proj.weight"
    once = plan(plain, *llamas(*"abc"))
    same = plan({**plain, "parameters": {"depth_scale": 1}}, *llamas(*"abc"))
    assert same.plan == once.plan
    assert task(plan({**plain, "parameters": {"depth_scale": 0}}, *llamas(*"abc")), name) == ({"copy": {}}, [(0, name)])


def test_a_method_with_a_factor_takes_it_there() -> None:
    recipe = based("ties", {"weight": 0.5}, "b", "c", parameters={"lambda": 0.5, "depth_scale": LINE})
    planned = plan(recipe, *llamas(*"abc", layers=5))
    found = [task(planned, f"model.layers.{i}.mlp.up_proj.weight")[0]["ties"]["lambda"] for i in range(5)]
    assert found == [0.125, 0.1875, 0.25, 0.3125, 0.375]


def test_filters_choose_the_scale_too() -> None:
    scale = [{"filter": "mlp", "value": LINE}, {"filter": "input_layernorm", "value": 0.5}, {"value": 1}]
    recipe = based("task_arithmetic", {"weight": 1}, "b", parameters={"depth_scale": scale})
    planned = plan(recipe, *llamas(*"ab"))
    factors = {
        part: task(planned, f"model.layers.3.{part}.weight")[0]["task_arithmetic"]["lambda"]
        for part in ("mlp.up_proj", "input_layernorm", "self_attn.q_proj")
    }
    assert factors == {"mlp.up_proj": 0.75, "input_layernorm": 0.5, "self_attn.q_proj": 1.0}


def test_slices_are_as_deep_as_they_lie_in_the_output() -> None:
    sources = [
        {"sources": [{"model": "a", "layer_range": r}, {"model": "b", "layer_range": r, "parameters": {"weight": 1}}]}
        for r in ([0, 2], [1, 4])
    ]
    recipe = {"merge_method": "task_arithmetic", "base_model": "a", "slices": sources}
    planned = plan({**recipe, "parameters": {"depth_scale": {"alpha": 0, "beta": 1}}}, *llamas(*"ab"))
    by = [task(planned, f"model.layers.{i}.mlp.up_proj.weight")[0] for i in range(5)]
    assert by[0] == {"copy": {}}
    assert [found["task_arithmetic"]["lambda"] for found in by[1:]] == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"alpha": 0.3}, "`depth_scale` needs both, as in {alpha: 0.2, beta: 0.8}"),
        ({"alpha": 0.3, "beta": "much"}, "`depth_scale` is 'much'; it must be a finite number"),
        ({"alpha": 3e38, "beta": 3e38}, "`depth_scale` is 6e+38; it must be a finite number, and no larger than"),
        ("deep", "`depth_scale` is 'deep'; it must be a finite number"),
    ],
)
def test_a_line_has_two_numbers(value: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        MergeConfig.from_dict(based("ties", {"weight": 1}, "b", parameters={"depth_scale": value}))


def test_without_a_base_there_is_nothing_to_scale() -> None:
    models = [{"model": name, "parameters": {"weight": 1}} for name in "ab"]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"depth_scale": 0.5}}
    assert "`depth_scale` scales the difference from the base, and the base is none of the models" in problems(
        recipe, *llamas(*"ab")
    )


def test_a_rule_scales_by_the_depth_too() -> None:
    rules = [{"filter": "mlp", "merge_method": "sce", "models": ["c"], "parameters": {"depth_scale": LINE}}]
    recipe = based("task_arithmetic", {"weight": 1}, "b", "c", rules=rules)
    planned = plan(recipe, *llamas(*"abc", layers=5))
    name = "model.layers.2.mlp.up_proj.weight"
    by, sources = task(planned, name)
    assert by == {"task_arithmetic": {"weights": [0.5], "normalize": False, "lambda": 1.0}}
    assert [number for number, _ in sources] == [2, 2, 1]  # the base, which is the last, and of it and c
    assert planned.methods["sce"] == 15
