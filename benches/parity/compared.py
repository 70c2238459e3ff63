"""The recipes that are compared: every method that mol and mergekit have, in every form that makes sense for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from worlds import DTYPES, TUNED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Recipe = dict[str, Any]

FORMS: Final = ("llama", "gpt2", "t5", "moe", "tied", "slices", "gradients", "filters", "union")
_WORLDS: Final = {"slices": "llama", "gradients": "llama", "filters": "llama"}
RANDOM: Final = ("dare_linear", "dare_ties", "della", "della_linear")


@dataclass(frozen=True)
class Words:
    """What a method is given: parameters of each model and of all, and how many models other than the base."""

    each: dict[str, tuple[float, ...]]
    shared: dict[str, Any]
    models: int = 3
    base: bool = True  # base_model is given
    listed: bool = False  # and the base stands among the models


_WEIGHTS: Final = {"weight": (0.5, 0.3, 0.4)}
_SPARSE: Final = {**_WEIGHTS, "density": (0.6, 0.35, 0.8)}
METHODS: Final[dict[str, Words]] = {
    "linear": Words({"weight": (0.5, 0.3, 0.2)}, {}, base=False),
    "slerp": Words({}, {"t": 0.4}, 1, listed=True),
    "nuslerp": Words({"weight": (0.5, 0.3)}, {}, 2, base=False),
    "multislerp": Words(_WEIGHTS, {}, base=False),
    "karcher": Words({}, {}, base=False),
    "nearswap": Words({}, {"t": 0.001}, 1),
    "arcee_fusion": Words({}, {}, 1),
    "task_arithmetic": Words(_WEIGHTS, {}),
    "ties": Words(_SPARSE, {}),
    "breadcrumbs": Words({**_SPARSE, "gamma": (0.05, 0.1, 0.02)}, {}),
    "breadcrumbs_ties": Words({**_SPARSE, "gamma": (0.05, 0.1, 0.02)}, {}),
    "sce": Words({}, {"select_topk": 0.5}),
    "model_stock": Words({}, {}),
    "ram": Words({}, {}),
    "ramplus_tl": Words({}, {}),
    "passthrough": Words({}, {"scale": 0.7}, 1, base=False),
    # One model, whose differences can be computed from the result.
    "dare_linear": Words({"weight": (1.0,), "density": (0.6,)}, {}, 1),
    "dare_ties": Words({"weight": (1.0,), "density": (0.6,)}, {}, 1),
    "della": Words({"weight": (1.0,), "density": (0.6,), "epsilon": (0.3,)}, {}, 1),
    "della_linear": Words({"weight": (1.0,), "density": (0.6,), "epsilon": (0.3,)}, {}, 1),
}
# Settings other than the defaults, on Llama alone.
SETTINGS: Final[dict[str, tuple[str, Words]]] = {
    "linear, not normalized": ("linear", Words({"weight": (0.5, 0.3, 0.4)}, {"normalize": False}, base=False)),
    "slerp, beyond the end": ("slerp", Words({}, {"t": 1.3}, 1, listed=True)),
    "nuslerp of differences": ("nuslerp", Words({"weight": (0.5, 0.3)}, {}, 2)),
    "nuslerp by rows": ("nuslerp", Words({"weight": (0.5, 0.3)}, {"nuslerp_flatten": False}, 2, base=False)),
    "nuslerp by columns": (
        "nuslerp",
        Words({"weight": (0.5, 0.3)}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}, 2, base=False),
    ),
    "multislerp of differences": ("multislerp", Words(_WEIGHTS, {})),
    "multislerp, not normalized": ("multislerp", Words(_WEIGHTS, {"normalize_weights": False}, base=False)),
    "karcher, to the end": ("karcher", Words({}, {"max_iter": 100, "tol": 1e-9}, base=False)),
    "task_arithmetic, normalized, lambda": ("task_arithmetic", Words(_WEIGHTS, {"normalize": True, "lambda": 0.8})),
    "task_arithmetic, a negative weight": ("task_arithmetic", Words({"weight": (0.8, -0.3, 0.4)}, {})),
    "ties, rescaled, lambda": ("ties", Words(_SPARSE, {"rescale": True, "lambda": 1.2})),
    "ties, not normalized": ("ties", Words(_SPARSE, {"normalize": False})),
    "breadcrumbs, normalized, rescaled": (
        "breadcrumbs",
        Words({**_SPARSE, "gamma": (0.05, 0.1, 0.02)}, {"normalize": True, "rescale": True}),
    ),
    "breadcrumbs_ties, gamma 0": ("breadcrumbs_ties", Words({**_SPARSE, "gamma": (0.0, 0.0, 0.0)}, {"lambda": 0.7})),
    "sce of all": ("sce", Words({}, {"select_topk": 1.0})),
    "model_stock by rows": ("model_stock", Words({}, {"filter_wise": True})),
    "ram, epsilon": ("ram", Words({}, {"epsilon": 1e-3})),
    "ramplus_tl, r, alpha": ("ramplus_tl", Words({}, {"epsilon": 1e-3, "r": 0.5, "alpha": 1.0})),
    "dare_ties of all": ("dare_ties", Words({**_WEIGHTS, "density": (1.0, 1.0, 1.0)}, {})),
    "della of all": ("della", Words({**_WEIGHTS, "density": (1.0, 1.0, 1.0)}, {"lambda": 1.5})),
}


@dataclass(frozen=True)
class Compared:
    """One recipe, run by both.

    Attributes:
        setting: the method, or the method with what is set other than the defaults.
        method: the method.
        form: of the recipe, or the architecture.
        dtype: of models and result, a key of `DTYPES`.
    """

    setting: str
    method: str
    form: str
    dtype: str

    @property
    def world(self) -> str:
        """The models that it reads."""
        return _WORLDS.get(self.form, self.form)

    @property
    def name(self) -> str:
        """A name for files."""
        return re.sub(r"\W+", "-", f"{self.form} {self.dtype} {self.setting}")

    @property
    def drawn(self) -> bool:
        """Whether its result depends on a random stream."""
        return self.method in RANDOM and self.setting == self.method

    def recipe(self, models: Path) -> Recipe:
        """Return the recipe; `models` holds the directories of the worlds."""
        words = SETTINGS[self.setting][1] if self.setting in SETTINGS else METHODS[self.method]
        return _recipe(self.method, words, self.form, self.dtype, models / f"{self.world}-{self.dtype}")


def all_compared() -> list[Compared]:
    """Return what is compared, in the order of the table."""
    return [*_all_compared()]


def _all_compared() -> Iterator[Compared]:
    for dtype in DTYPES:
        for form in FORMS:
            for method, words in METHODS.items():
                if form in ("gradients", "filters") and (_varied(words) is None or method in RANDOM):
                    continue
                if form == "union" and method in (*RANDOM, "passthrough"):  # one model, or nothing but draws
                    continue
                yield Compared(method, method, form, dtype)
        yield from (Compared(setting, method, "llama", dtype) for setting, (method, _) in SETTINGS.items())


def _varied(words: Words) -> str | None:
    """The parameter that changes over layers or names: the first number there is."""
    numbers = [*words.each, *(name for name, value in words.shared.items() if isinstance(value, float))]
    return numbers[0] if numbers else None


def _over(value: float, form: str) -> object:
    """A parameter as a gradient, or by filters."""
    if form == "gradients":
        return [round(value * 0.4, 6), round(value * 1.2, 6), value]
    if form == "filters":
        return [{"filter": "self_attn", "value": round(value * 0.4, 6)}, {"filter": "mlp", "value": value},
                {"value": round(value * 0.7, 6)}]  # fmt: skip
    return value


def _recipe(method: str, words: Words, form: str, dtype: str, world: Path) -> Recipe:
    varied = _varied(words)
    entries: list[Recipe] = [{"model": str(world / "base")}] if words.listed else []
    for i, model in enumerate(TUNED[: words.models]):
        each = {name: _over(values[i], form if name == varied else "") for name, values in words.each.items()}
        entries.append({"model": str(world / model), **({"parameters": each} if each else {})})
    shared = {name: _over(value, form) if name == varied else value for name, value in words.shared.items()}
    recipe: Recipe = {"merge_method": method}
    if words.base:
        recipe["base_model"] = str(world / "base")
    if form == "slices":
        if words.base and not words.listed:
            entries.insert(0, {"model": str(world / "base")})
        recipe["slices"] = [
            {"sources": [{**entry, "layer_range": [*layers]} for entry in entries]} for layers in ((0, 2), (1, 3))
        ]
    else:
        recipe["models"] = entries
    if shared:
        recipe["parameters"] = shared
    if form == "union":
        recipe["tokenizer_source"] = "union"
    return {**recipe, "dtype": DTYPES[dtype][1]}
