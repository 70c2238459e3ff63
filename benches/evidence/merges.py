"""The static merges of the evidence: recipes by method, of which validation text chooses one, and soups of a run."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from names import file_of

import measure
import mol
from measure import EXPERTS, MODELS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Recipe = dict[str, Any]
LAST: Final = (2, 3, 4, 6)


def recipe(method: str, models: Path, *, base: bool = True, **parameters: Any) -> Recipe:  # noqa: ANN401
    """Return a recipe that treats all experts alike; a parameter that has a value per model is given to each."""
    made: Recipe = {"merge_method": method, "models": [{"model": str(models / name)} for name in EXPERTS]}
    if base:
        made["base_model"] = str(MODELS / "base")
    per_model = {name: parameters.pop(name) for name in ("weight", "density", "epsilon", "gamma") if name in parameters}
    for model in made["models"] if per_model else []:
        model["parameters"] = dict(per_model)
    if parameters:
        made["parameters"] = parameters
    return made


# By method: for each parameter the values that are tried, in every combination.
SCALES: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
FEW: Final = (0.4, 0.6, 0.8)
ABOVE: Final = (1.0, 1.5, 2.0)
TRIED: Final[dict[str, dict[str, tuple[Any, ...]]]] = {
    "task_arithmetic": {"weight": SCALES},
    "ties": {"weight": (1.0,), "density": (0.3, 0.6, 1.0), "lambda": ABOVE},
    "dare_linear": {"weight": FEW, "density": (0.5, 0.8)},
    "dare_ties": {"weight": FEW, "density": (0.5, 0.8)},
    "della": {"weight": (1.0,), "density": (0.7,), "lambda": ABOVE},
    "della_linear": {"weight": FEW, "density": (0.7,)},
    "breadcrumbs": {"weight": FEW, "density": (0.9,)},
    "breadcrumbs_ties": {"weight": FEW, "density": (0.9,)},
    "sce": {"select_topk": (0.3, 1.0)},
    "consensus_ta": {"weight": FEW},
    "consensus_ties": {"weight": (1.0,), "density": (0.6,), "k": (1, 2)},
    "magmax": {"lambda": (0.6, 0.8, 1.0)},
    "localize_and_stitch": {"density": (0.1, 0.4)},
    "pcb": {"density": (0.1, 0.4), "lambda": (1.0, 2.0)},
    "cabs": {"weight": (0.6, 1.0)},
    "model_stock": {},
    "ram": {},
    "ramplus_tl": {},
}
WITHOUT_BASE: Final = ("linear", "multislerp", "karcher")
PER_MODEL_WEIGHT: Final = ("linear", "multislerp")


def candidates(method: str, models: Path) -> Iterator[tuple[dict[str, Any], Recipe]]:
    """Yield settings that are tried, and the recipe of each."""
    if method in WITHOUT_BASE:
        settings = {"weight": 1.0} if method in PER_MODEL_WEIGHT else {}
        yield settings, recipe(method, models, base=False, **settings)
        return
    tried = TRIED[method]
    for values in product(*tried.values()):
        settings = dict(zip(tried, values, strict=True))
        yield settings, recipe(method, models, **settings)


def merge(method: str, models: Path, scratch: Path, seed: int) -> tuple[Path, dict[str, Any]]:
    """Merge by every setting that is tried, and return the result that is best on validation text, and how it was."""
    if method == "slerp":
        return slerp(models, scratch), {"t": [0.5, 1 / 3]}
    validation = measure.validation_texts()
    found = []
    for number, (settings, one) in enumerate(candidates(method, models)):
        out = scratch / str(number)
        mol.run_merge(one, out, seed=seed)
        found.append((measure.mean(measure.losses(out, validation)) if _many(method) else 0.0, settings, out))
    _, settings, out = min(found, key=lambda one: one[0])
    tried = [{**one, "validation": round(score, 4)} for score, one, _ in found] if _many(method) else []
    return out, {**settings, "tried": tried}


def chosen(method: str, models: Path, out: Path, seed: int) -> Path:
    """Merge by the setting that was chosen on validation text when the row of the method was measured.

    Raises:
        OSError: it was not.
    """
    settings = json.loads(file_of(method, seed).read_text())["settings"]
    del settings["tried"]
    mol.run_merge(recipe(method, models, **settings), out, seed=seed)
    return out


def _many(method: str) -> bool:
    return any(len(values) > 1 for values in TRIED.get(method, {}).values())


def slerp(models: Path, scratch: Path) -> Path:
    """Merge the first two experts half and half, and the third by a third."""
    first, second, third = (str(models / name) for name in EXPERTS)
    for base, other, t, out in ((first, second, 0.5, "two"), (str(scratch / "two"), third, 1 / 3, "three")):
        one = {"merge_method": "slerp", "base_model": base, "models": [{"model": base}, {"model": other}]}
        mol.run_merge({**one, "parameters": {"t": t}}, scratch / out)
    return scratch / "three"


def soup(run: Path, scratch: Path) -> tuple[Path, dict[str, Any]]:
    """Average the last checkpoints of a run, as many as are best on validation text of its domain."""
    validation = {"python": measure.documents("python", "validation")}
    found = []
    for last in LAST:
        out = scratch / str(last)
        mol.run_merge({"merge_method": "average", "checkpoints": str(run), "last": last, "weights": "mean"}, out)
        found.append((measure.bits(measure.losses(out, validation)["python"]), last, out))
    _, last, out = min(found)
    return out, {"last": last, "tried": [{"last": one, "validation": round(score, 4)} for score, one, _ in found]}
