"""`precision: mergekit`: what a recipe may ask for in the arithmetic of mergekit 0.1.5, and why the rest is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from mol.config.auto_weights import Auto
from mol.config.document import shown
from mol.config.method_spec import DEPTH_SCALE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mol.config.document import Location
    from mol.config.model_reference import ModelReference
    from mol.config.parameters import ParameterMap
    from mol.config.values import ValueReader

Precision = Literal["exact", "mergekit"]

METHODS_AS_MERGEKIT: Final = (
    "passthrough", "linear", "slerp", "nuslerp", "multislerp", "nearswap", "task_arithmetic", "ties", "breadcrumbs",
    "breadcrumbs_ties", "sce", "model_stock", "ram", "ramplus_tl",
)  # fmt: skip
"""Methods that the engine has in that arithmetic too."""
WIDENED_AS_MERGEKIT: Final = ("ramplus_tl",)
"""Those whose result mergekit writes in float32, whatever `dtype` is, unless there is `out_dtype`."""
_DRAWN: Final = ("dare_linear", "dare_ties", "della", "della_linear")
_UNSTEADY: Final = {
    "arcee_fusion": "has no one result in mergekit, which picks other elements on another processor, and takes the "
    "threshold of more than a million elements from a random sample",
}
"""Methods whose result in mergekit depends on more than the recipe and the models."""
_OWN: Final = ("rules", "modules", "sweep")
_WAY_OUT: Final = "leave `precision` out for `exact`"


def read_precision(value: object, location: Location, reader: ValueReader) -> Precision:
    """Read how precisely a merge computes; a wrong word is a problem and `exact`."""
    if value == "mergekit":
        return "mergekit"
    if value not in (None, "exact"):
        reader.problems.add(location, f"`precision` is `exact` or `mergekit`, not {shown(value)}")
    return "exact"


def problems_as_mergekit(
    method: str,
    keys: Iterable[str],
    dtypes: Iterable[str | None],
    models: Iterable[ModelReference],
    parameters: Iterable[ParameterMap],
) -> Iterator[str]:
    """Yield why a recipe cannot be made in the arithmetic of mergekit.

    Args:
        method: its method.
        keys: those that it gives.
        dtypes: those that it names.
        models: those that it reads.
        parameters: of the recipe, its slices and its sources.
    """
    if method in _DRAWN:
        yield f"{method} draws at random, from another stream than mergekit's; {_WAY_OUT}"
    elif method in _UNSTEADY:
        yield f"{method} {_UNSTEADY[method]}; {_WAY_OUT}"
    elif method == "karcher":
        yield f"karcher: mergekit's cosines are dot products of torch's BLAS, which sums in its own order; {_WAY_OUT}"
    elif method not in METHODS_AS_MERGEKIT:
        listed = ", ".join(METHODS_AS_MERGEKIT)
        yield f"{method} is not among the methods that can be made so ({listed}); {_WAY_OUT}"
    for word in _OWN:
        if word in keys:
            yield f"it goes with no `{word}`, which mergekit lacks or takes otherwise; {_WAY_OUT}"
    if "F64" in dtypes:
        yield f"operations are rounded to float32, float16 or bfloat16, not to float64; {_WAY_OUT}"
    adapted = next((model for model in models if model.adapter is not None), None)
    if adapted is not None:
        yield f"{adapted}: adapters are added in full precision; {_WAY_OUT}, or merge the adapter into its model first"
    found = list(parameters)
    if any(DEPTH_SCALE.name in given for given in found):
        yield f"mergekit has no `{DEPTH_SCALE.name}`; {_WAY_OUT}"
    if any(rule.value == "count" for given in found for rule in given.get("majority_sign_method", ())):
        yield f"mergekit 0.1.5 ignores `majority_sign_method: count` and elects by `total`; write that, or {_WAY_OUT}"
    if any(isinstance(rule.value, Auto) for given in found for rules in given.values() for rule in rules):
        yield f"mergekit has no `weight: {{auto: ...}}`; {_WAY_OUT}, or write the weights"
