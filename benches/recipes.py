"""The recipes that bench_merge.py times: mergekit's grammar, so that mol and mergekit read the same file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# The four that are timed against mergekit, and merged in little memory too.
TIMED = ("linear", "slerp", "task_arithmetic", "ties")
# Further ones that are timed against mergekit.
BESIDE = ("dare_ties", "della", "model_stock", "karcher", "breadcrumbs", "sce", "union")

TUNED = ("tuned_a", "tuned_b", "tuned_c")
OF_WORDS = ("words_base", "words_a", "words_b")
MANY = tuple(f"of_many_{i:02}" for i in range(20))

DTYPE = "dtype: bfloat16\n"


def linear(models: dict[str, float], extra: str = "dtype: bfloat16") -> tuple[tuple[str, ...], str]:
    entries = "".join(f"  - {{model: @{name}, parameters: {{weight: {weight}}}}}\n" for name, weight in models.items())
    return tuple(models), f"merge_method: linear\nmodels:\n{entries}{extra}\n"


def on_base(method: str, base: str, tuned: tuple[str, ...], parameters: str, extra: str) -> tuple[tuple[str, ...], str]:
    entries = "".join(f"  - {{model: @{name}, parameters: {{{parameters}}}}}\n" for name in tuned)
    return (base, *tuned), f"merge_method: {method}\nbase_model: @{base}\nmodels:\n{entries}{extra}dtype: bfloat16\n"


def average(extra: str) -> tuple[tuple[str, ...], str]:
    entries = "".join(f"  - @{name}\n" for name in MANY)
    return MANY, f"merge_method: average\ncheckpoints:\n{entries}weights: minus-sqrt\n{extra}dtype: bfloat16\n"


RECIPES: dict[str, tuple[tuple[str, ...], str]] = {
    "linear": linear({"base": 0.5, "tuned_a": 0.5}),
    "slerp": (
        ("base", "tuned_a"),
        "merge_method: slerp\nbase_model: @base\nmodels:\n  - model: @base\n  - model: @tuned_a\n"
        "parameters:\n  t: 0.5\ndtype: bfloat16\n",
    ),
    "task_arithmetic": on_base("task_arithmetic", "base", TUNED, "weight: 0.5", ""),
    "ties": on_base("ties", "base", TUNED, "weight: 0.5, density: 0.5", "parameters:\n  normalize: true\n"),
    "dare_ties": on_base("dare_ties", "base", TUNED, "weight: 0.5, density: 0.5", ""),
    "della": on_base("della", "base", TUNED, "weight: 0.5, density: 0.5, epsilon: 0.1", ""),
    "model_stock": on_base("model_stock", "base", TUNED, "", ""),
    "karcher": (TUNED, "merge_method: karcher\nmodels:\n" + "".join(f"  - model: @{name}\n" for name in TUNED) + DTYPE),
    "breadcrumbs": on_base("breadcrumbs", "base", TUNED, "weight: 0.5, density: 0.9, gamma: 0.01", ""),
    "sce": on_base("sce", "base", TUNED, "", "parameters:\n  select_topk: 0.5\n"),
    "union": linear(
        {"words_base": 0.4, "words_a": 0.3, "words_b": 0.3},
        f"base_model: @words_base\ntokenizer_source: union\n{DTYPE}",
    ),
    "one_linear": linear({"one_base": 0.5, "one_a": 0.5}),
    "one_ties": on_base("ties", "one_base", ("one_a", "one_b", "one_c"), "weight: 0.5, density: 0.5", ""),
    "bf16_3": linear({"base": 0.5, "tuned_a": 0.3, "tuned_b": 0.2}),
    "mixed_to_bf16": linear({"base_f32": 0.5, "tuned_a": 0.3, "tuned_f16": 0.2}, "out_dtype: bfloat16"),
    "mixed_to_f32": linear({"base_f32": 0.5, "tuned_a": 0.3, "tuned_f16": 0.2}, ""),
    "f32_2": linear({"base_f32": 0.6, "tuned_f32": 0.4}, ""),
    "ties3": on_base("ties", MANY[0], MANY[1:4], "weight: 0.5, density: 0.5", ""),
    "ties7": on_base("ties", MANY[0], MANY[1:8], "weight: 0.5, density: 0.5", ""),
    "ties_count": on_base(
        "ties", MANY[0], MANY[1:4], "weight: 0.5, density: 0.5", "parameters:\n  majority_sign_method: count\n"
    ),
    "ties_rescale": on_base("ties", MANY[0], MANY[1:4], "weight: 0.5, density: 0.5", "parameters:\n  rescale: true\n"),
    "linear20": linear(dict.fromkeys(MANY, 0.05)),
    "average20": average(""),
    "windows": average("sweep: {last: [5, 10, 20]}\n"),
    "linear_sweep": (
        ("base", "tuned_a"),
        "merge_method: linear\nmodels:\n  - model: @base\n  - model: @tuned_a\n"
        "sweep:\n  weights: [[9, 1], [7, 3], [5, 5], [3, 7], [1, 9]]\ndtype: bfloat16\n",
    ),
    "slerp_sweep": (
        ("base", "tuned_a"),
        "merge_method: slerp\nbase_model: @base\nmodels:\n  - model: @base\n  - model: @tuned_a\n"
        "sweep:\n  t: [0.1, 0.3, 0.5, 0.7, 0.9]\ndtype: bfloat16\n",
    ),
    "many": linear({"many_a": 0.7, "many_b": 0.3}),
    # Two models that are not there: `validate` reads the recipe alone.
    "missing": linear({"nobody/model-a": 0.7, "nobody/model-b": 0.3}),
}


def text(name: str, directory: Path) -> str:
    """The YAML of recipe `name`, its models in `directory`."""
    return RECIPES[name][1].replace("@nobody/", "nobody/").replace("@", f"{directory}/")


def models(name: str) -> tuple[str, ...]:
    """The directories that recipe `name` reads, base first."""
    return RECIPES[name][0]
