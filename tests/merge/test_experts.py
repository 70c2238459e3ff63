"""Experts in both layouts: inputs in any mixture give the same bytes, each expert is merged by itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import mol
from tests.merge.loras import factors, save_adapter
from tests.merge.models import weights_of
from tests.merge.toolkit import linear, plan, problems
from tests.tiny import headers, llama, llama_config

if TYPE_CHECKING:
    from pathlib import Path

    from mol.merge.planned import PlannedMerge

WIDTH, INNER, EXPERTS, LAYERS = 6, 4, 3, 2
Weights = dict[str, np.ndarray[Any, Any]]

BY = {
    "linear": {"weight": 0.5},
    "slerp": {"t": 0.25},
    "ties": {"weight": 0.5, "density": 0.5},
    "dare_ties": {"weight": 0.5, "density": 0.5},
    "della": {"weight": 0.5, "density": 0.5, "epsilon": 0.25},
    "sce": {"select_topk": 0.5},
}
WORDS = {"mixtral": ("block_sparse_moe", "w1", "w3", "w2"), "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj")}


def single(kind: str, seed: int) -> Weights:
    """Weights with a tensor for each expert."""
    random = np.random.default_rng(seed)
    block, gate, up, down = WORDS[kind]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (8, WIDTH), "lm_head.weight": (8, WIDTH)}
    shapes["model.norm.weight"] = (WIDTH,)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}input_layernorm.weight": (WIDTH,), f"{at}{block}.gate.weight": (EXPERTS, WIDTH)}
        for expert in range(EXPERTS):
            own = f"{at}{block}.experts.{expert}."
            shapes |= {f"{own}{word}.weight": (INNER, WIDTH) for word in (gate, up)}
            shapes[f"{own}{down}.weight"] = (WIDTH, INNER)
    return {name: random.standard_normal(shape).astype("float32") for name, shape in shapes.items()}


def fused(kind: str, weights: Weights) -> Weights:
    """The same weights as version 5 of transformers names and stores them."""
    block, gate, up, down = WORDS[kind]
    found = {name.replace(f"{block}.", "mlp."): w for name, w in weights.items() if ".experts." not in name}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}.{block}.experts."
        of = {word: [weights[f"{at}{expert}.{word}.weight"] for expert in range(EXPERTS)] for word in (gate, up, down)}
        own = f"model.layers.{layer}.mlp.experts."
        pairs = zip(of[gate], of[up], strict=True)
        found[f"{own}gate_up_proj"] = np.stack([np.concatenate(pair) for pair in pairs])
        found[f"{own}down_proj"] = np.stack(of[down])
    return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of either kind, each in both layouts."""
    directory = tmp_path_factory.mktemp("experts")
    for kind in WORDS:
        for seed, name in enumerate("ab"):
            weights = single(kind, seed)
            for layout, tensors in (("single", weights), ("fused", fused(kind, weights))):
                path = directory / f"{kind}-{name}-{layout}"
                path.mkdir()
                save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
                config = {"model_type": kind, "num_hidden_layers": LAYERS, "vocab_size": 8, "hidden_size": WIDTH}
                (path / "config.json").write_text(json.dumps(config))
    return directory


def merged(out: Path, method: str, base: Path, other: Path, **options: Any) -> tuple[Weights, PlannedMerge]:  # noqa: ANN401
    recipe = {"merge_method": method, "models": [{"model": str(base)}, {"model": str(other)}], "parameters": BY[method]}
    if method != "linear":
        recipe["base_model"] = str(base)
    report = mol.run_merge(recipe, out, **options)
    return weights_of(out), report.planned


def same(a: Weights, b: Weights) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("method", BY)
@pytest.mark.parametrize("kind", WORDS)
def test_inputs_of_either_layout_give_the_same_bytes(stored: Path, tmp_path: Path, kind: str, method: str) -> None:
    results = {}
    for layout, other in (("single", "fused"), ("fused", "single")):
        base = stored / f"{kind}-a-{layout}"
        of_one, _ = merged(tmp_path / f"{layout}-1", method, base, stored / f"{kind}-b-{layout}")
        mixed, _ = merged(tmp_path / f"{layout}-2", method, base, stored / f"{kind}-b-{other}")
        same(of_one, mixed)
        chosen, _ = merged(
            tmp_path / f"{layout}-3", method, stored / f"{kind}-a-{other}", stored / f"{kind}-b-{other}",
            expert_layout=layout,
        )  # fmt: skip
        same(of_one, chosen)
        results[layout] = of_one
    if method in ("dare_ties", "della"):
        return  # they draw by the names of the output's tensors
    same(fused(kind, results["single"]), results["fused"])


def test_methods_that_look_at_whole_tensors_take_each_expert_by_itself(stored: Path, tmp_path: Path) -> None:
    base, other = stored / "qwen3_moe-a-fused", stored / "qwen3_moe-b-fused"
    _, by_ties = merged(tmp_path / "ties", "ties", base, other)
    _, by_linear = merged(tmp_path / "linear", "linear", base, other)
    names = [tensor.name for tensor in by_ties.plan.tensors]
    rows = [task.row for task in by_ties.plan.tasks if names[task.tensor].endswith("0.mlp.experts.gate_up_proj")]
    assert rows == [INNER * number for number in range(2 * EXPERTS)]
    assert len(by_linear.plan.tasks) == len(by_linear.plan.tensors) == len(names)
    assert by_ties.methods == {"ties": len(names)}


def test_a_layout_that_was_changed_is_noted(stored: Path, tmp_path: Path) -> None:
    _, planned = merged(tmp_path / "out", "linear", stored / "mixtral-a-single", stored / "mixtral-b-fused")
    (note,) = [note for note in planned.notes if "experts" in note]
    assert "stored all in one (`model.layers.0.mlp.experts.gate_up_proj`)" in note
    assert note.endswith("they are read as `model.layers.0.block_sparse_moe.experts.0.w1.weight`")


@pytest.mark.parametrize("layout", ["single", "fused"])
@pytest.mark.parametrize("method", ["ties", "dare_ties", "della"])
def test_a_stage_of_experts_has_the_bytes_of_its_own_merge(
    stored: Path, tmp_path: Path, method: str, layout: str
) -> None:
    a, b = (str(stored / f"qwen3_moe-{name}-{layout}") for name in "ab")
    ties = {"merge_method": method, "base_model": a, "models": [{"model": b}], "parameters": BY[method]}
    mol.run_merge(ties, tmp_path / "first")
    a = str(stored / "qwen3_moe-a-fused")
    second = {"merge_method": "slerp", "base_model": a, "parameters": {"t": 0.25}}
    apart = {**second, "models": [{"model": a}, {"model": str(tmp_path / "first")}]}
    mol.run_merge(apart, tmp_path / "apart")
    mol.run_merge({**second, "models": [{"model": a}, {"model": "s"}], "stages": {"s": ties}}, tmp_path / "at once")
    same(weights_of(tmp_path / "apart"), weights_of(tmp_path / "at once"))


RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "parameters": {"weight": 0.5}},
    "depth_scale": {"merge_method": "linear", "parameters": {"weight": 0.5, "depth_scale": 0.5}},
    "slerp": {"merge_method": "slerp", "parameters": {"t": 0.25}},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_and_a_depth_scale_merge_experts_of_both_layouts(stored: Path, tmp_path: Path, recipe: str) -> None:
    a, results = str(stored / "mixtral-a-fused"), {}
    for layout in ("single", "fused"):
        models = [{"model": a}, {"model": str(stored / f"mixtral-b-{layout}")}]
        step = {**RECIPES[recipe], "base_model": a, "models": models}
        second = linear(0.5, 0.5, names=(a, "step"), base_model=a, stages={"step": step})
        for name, whole in (("alone", step), ("step", second)):
            mol.run_merge(whole, tmp_path / f"{name}-{layout}")
            results[name, layout] = weights_of(tmp_path / f"{name}-{layout}")
    same(results["alone", "single"], results["alone", "fused"])
    same(results["step", "single"], results["step", "fused"])


@pytest.mark.parametrize("adapted", [False, True], ids=["stored in F32", "made by an adapter"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_experts_of_several_dtypes_become_one_tensor(tmp_path: Path, recipe: str, adapted: bool) -> None:
    paths, config = {}, {"model_type": "mixtral", "num_hidden_layers": LAYERS, "vocab_size": 8, "hidden_size": WIDTH}
    module = "model.layers.1.block_sparse_moe.experts.1.w1"
    for seed, name in enumerate(("single", "fused", "other")):
        weights = {key: w.astype("float16") for key, w in single("mixtral", seed // 2).items()}
        if name == "other" and not adapted:
            weights[f"{module}.weight"] = single("mixtral", 2)[f"{module}.weight"]
        paths[name] = tmp_path / name
        paths[name].mkdir()
        save_file(fused("mixtral", weights) if name == "fused" else weights, paths[name] / "model.safetensors")
        (paths[name] / "config.json").write_text(json.dumps(config))
    other = str(paths["other"])
    if adapted:
        other += f"+{save_adapter(tmp_path / 'lora', factors(module, INNER, WIDTH))}"
    results = {}
    for layout in ("single", "fused"):
        base = str(paths[layout])
        whole = {**RECIPES[recipe], "base_model": base, "models": [{"model": base}, {"model": other}]}
        report = mol.run_merge(whole, tmp_path / f"out-{layout}", dtype="float32")
        assert report.bytes_read == report.planned.bytes_read
        results[layout] = weights_of(report.out)
    same(fused("mixtral", results["single"]), results["fused"])


# Layouts that have no other


def transposed(name: str, kind: str) -> Any:  # noqa: ANN401
    shapes = {key: shape for key, shape in llama(LAYERS).items() if ".mlp." not in key}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}.mlp."
        shapes |= {f"{at}experts.gate_up_proj": (EXPERTS, WIDTH, 2 * INNER), f"{at}router.weight": (EXPERTS, WIDTH)}
        shapes |= {f"{at}experts.down_proj": (EXPERTS, INNER, WIDTH), f"{at}experts.down_proj_bias": (EXPERTS, WIDTH)}
    return headers(name, shapes, llama_config(LAYERS) | {"model_type": kind})


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4"])
def test_transposed_experts_are_merged_one_by_one(kind: str) -> None:
    recipe = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
    planned = plan(recipe | {"parameters": {"t": 0.5}}, transposed("a", kind), transposed("b", kind))
    names = [tensor.name for tensor in planned.plan.tensors]
    rows = {part: [] for part in ("gate_up_proj", "down_proj", "down_proj_bias")}
    for task in planned.plan.tasks:
        prefix, _, part = names[task.tensor].rpartition(".")
        if prefix == "model.layers.1.mlp.experts":
            rows[part].append(task.row)
    assert rows == {"gate_up_proj": [0, 6, 12], "down_proj": [0, 4, 8], "down_proj_bias": [0, 1, 2]}


def test_experts_with_gate_and_up_in_turns_have_no_other_layout() -> None:
    shapes = {name: w.shape for name, w in single("qwen3_moe", 0).items()}
    b = headers("b", shapes, llama_config(LAYERS) | {"model_type": "gpt_oss"})
    assert "experts are stored in two layouts" in problems(linear(0.5, 0.5), transposed("a", "gpt_oss"), b)


def test_routers_that_are_merged_are_warned_of() -> None:
    a, b = transposed("a", "llama4"), transposed("b", "llama4")
    (warning,) = plan(linear(0.5, 0.5), a, b).warnings
    assert "routers are merged as weights (2 tensors, e.g. `model.layers.0.mlp.router.weight`)" in warning
    assert "{filter: mlp.router., copy: a}" in warning
    assert plan(linear(0.5, 0.5, rules=[{"filter": "mlp.router.", "copy": "a"}]), a, b).warnings == ()


# Filters, whichever way the output stores experts


def qwen(name: str, layout: str) -> Any:  # noqa: ANN401
    weights = single("qwen3_moe", 0)
    stored = weights if layout == "single" else fused("qwen3_moe", weights)
    config = {"model_type": "qwen3_moe", "num_hidden_layers": LAYERS, "vocab_size": 8, "hidden_size": WIDTH}
    return headers(name, {key: w.shape for key, w in stored.items()}, config)


def shares(planned: PlannedMerge) -> dict[tuple[int, int], float]:
    """The value of `t` for each expert of the first layer, and each of gate, up and down."""
    found = {}
    names = [tensor.name for tensor in planned.plan.tensors]
    for task in planned.plan.tasks:
        _, at, part = names[task.tensor].partition("model.layers.0.mlp.experts.")
        if not at:
            continue
        t = task.by["slerp"]["t"] if "slerp" in task.by else 0.0
        whole = [other.tensor for other in planned.plan.tasks].count(task.tensor) == 1
        if part in ("gate_up_proj", "down_proj"):
            each = [(e, p) for e in range(EXPERTS) for p in ((0, 1) if part == "gate_up_proj" else (2,))]
            rows = INNER if part == "gate_up_proj" else WIDTH
            found |= dict.fromkeys(each if whole else [each[task.row // rows]], t)
        else:
            found[int(part.split(".")[0]), [w in part for w in ("gate_proj", "up_proj", "down_proj")].index(True)] = t
    return found


@pytest.mark.parametrize("layout", ["single", "fused"])
@pytest.mark.parametrize(
    ("text", "experts", "parts"),
    [
        ("gate_proj", (0, 1, 2), (0,)),
        ("w1", (0, 1, 2), (0,)),
        ("w2", (0, 1, 2), (2,)),
        ("experts.1.", (1,), (0, 1, 2)),
        ("gate_up_proj", (0, 1, 2), (0, 1)),
        ("*.experts.down_proj", (0, 1, 2), (2,)),
        ("block_sparse_moe.experts", (0, 1, 2), (0, 1, 2)),
        ("re:experts\\.[02]\\.up_proj", (0, 2), (1,)),
    ],
)
def test_filters_choose_experts_by_the_names_of_either_layout(
    layout: str, text: str, experts: tuple[int, ...], parts: tuple[int, ...]
) -> None:
    recipe = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
    t = [{"filter": text, "value": 0.75}, {"value": 0.25}]
    planned = plan(recipe | {"parameters": {"t": t}}, qwen("a", layout), qwen("b", layout))
    chosen = {(expert, part) for expert in experts for part in parts}
    assert shares(planned) == {(e, p): 0.75 if (e, p) in chosen else 0.25 for e in range(EXPERTS) for p in range(3)}
    assert not [line for line in planned.warnings if "filter" in line and "fits no tensor" in line]
    rules = [{"filter": text, "copy": "a"}]
    planned = plan(recipe | {"parameters": {"t": 0.25}, "rules": rules}, qwen("a", layout), qwen("b", layout))
    assert shares(planned) == {(e, p): 0.0 if (e, p) in chosen else 0.25 for e in range(EXPERTS) for p in range(3)}
    assert not [line for line in planned.warnings if "has no effect" in line]


def test_words_for_other_tensors_do_not_choose_experts() -> None:
    recipe = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
    t = [{"filter": "gate.", "value": 0.75}, {"value": 0.25}]
    planned = plan(recipe | {"parameters": {"t": t}}, qwen("a", "single"), qwen("b", "single"))
    assert set(shares(planned).values()) == {0.25}
