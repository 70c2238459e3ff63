"""The table of merge methods: what each needs, its parameters, their defaults and ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Scalar = float | int | bool | str
Kind = Literal["float", "bool", "str"]


class Required(Enum):
    """The type of `REQUIRED`, the default of a parameter that the recipe must give."""

    REQUIRED = "required"


REQUIRED: Final = Required.REQUIRED


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """One parameter of a method.

    Attributes:
        name: the word in a recipe.
        per_model: each model may have its own value; otherwise the parameter belongs to the whole merge.
        kind: type of one value.
        default: value where the recipe gives none, or `REQUIRED`.
        low: smallest allowed value, inclusive.
        high: largest allowed value, inclusive.
        flat_default: default of the Python and flat forms where it differs from `default`.
        aliases: other words for the parameter.
        choices: allowed texts of a `str`, each with the other words for it.
    """

    name: str
    per_model: bool
    kind: Kind
    default: Scalar | Required
    low: float = -math.inf
    high: float = math.inf
    flat_default: Scalar | None = None
    aliases: tuple[str, ...] = ()
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """One merge method.

    Attributes:
        name: the word in a recipe.
        parameters: its parameters by name.
        base: "required": the base is subtracted or interpolated from; "input": a base is an input like any other.
        min_models: fewest inputs of a slice, the base included.
        max_models: most inputs of a slice, the base included; None means no limit.
        title: a name for people.
        url: where the method is described.
    """

    name: str
    parameters: dict[str, ParameterSpec] = field(hash=False)
    base: Literal["required", "input"]
    min_models: int
    max_models: int | None
    title: str
    url: str

    def parameter(self, word: str) -> ParameterSpec | None:
        """Find a parameter by its name or by another word for it."""
        for spec in self.parameters.values():
            if word == spec.name or word in spec.aliases:
                return spec
        return None


_WEIGHT = ParameterSpec("weight", per_model=True, kind="float", default=REQUIRED, flat_default=1.0)
_LAMBDA = ParameterSpec("lambda", per_model=False, kind="float", default=1.0, aliases=("scaling_factor", "lambda_"))


def _normalize(*, default: bool) -> ParameterSpec:
    return ParameterSpec("normalize", per_model=False, kind="bool", default=default, aliases=("normalize_weights",))


def _table(*specs: ParameterSpec) -> dict[str, ParameterSpec]:
    return {spec.name: spec for spec in specs}


METHODS: Final[dict[str, MethodSpec]] = {
    spec.name: spec
    for spec in (
        MethodSpec(
            "linear",
            _table(_WEIGHT, _normalize(default=True)),
            base="input",
            min_models=1,
            max_models=None,
            title="weighted average (model soup)",
            url="https://arxiv.org/abs/2203.05482",
        ),
        MethodSpec(
            "slerp",
            _table(ParameterSpec("t", per_model=False, kind="float", default=REQUIRED, flat_default=0.5)),
            base="required",
            min_models=2,
            max_models=2,
            title="spherical linear interpolation",
            url="https://en.wikipedia.org/wiki/Slerp",
        ),
        MethodSpec(
            "task_arithmetic",
            _table(_WEIGHT, _normalize(default=False), _LAMBDA),
            base="required",
            min_models=2,
            max_models=None,
            title="task arithmetic",
            url="https://arxiv.org/abs/2212.04089",
        ),
        MethodSpec(
            "ties",
            _table(
                _WEIGHT,
                ParameterSpec(
                    "density", per_model=True, kind="float", default=1.0, low=0.0, high=1.0, flat_default=0.8
                ),
                _normalize(default=True),
                ParameterSpec("rescale", per_model=False, kind="bool", default=False),
                _LAMBDA,
                ParameterSpec(
                    "majority_sign_method",
                    per_model=False,
                    kind="str",
                    default="total",
                    choices={"total": ("sum", "mass"), "count": ()},
                ),
            ),
            base="required",
            min_models=2,
            max_models=None,
            title="TIES: trim, elect sign, disjoint mean",
            url="https://arxiv.org/abs/2306.01708",
        ),
        MethodSpec(
            "passthrough",
            _table(ParameterSpec("scale", per_model=True, kind="float", default=1.0)),
            base="input",
            min_models=1,
            max_models=1,
            title="tensors taken as they are, optionally scaled",
            url="https://arxiv.org/abs/2312.15166",
        ),
    )
}

LATER_METHODS: Final = (
    "nuslerp",
    "multislerp",
    "karcher",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "model_stock",
    "nearswap",
    "arcee_fusion",
    "ram",
    "ramplus_tl",
    "consensus_ta",
    "consensus_ties",
)
"""Methods that mergekit or mergekitty have and mol has not built yet: refused by name."""

FOREIGN_PARAMETERS: Final[dict[str, str]] = {
    "weight": "a parameter of linear, task_arithmetic and ties",
    "density": "a parameter of ties",
    "t": "a parameter of slerp",
    "normalize": "a parameter of linear, task_arithmetic and ties",
    "normalize_weights": "a parameter of linear",
    "rescale": "a parameter of ties",
    "lambda": "a parameter of task_arithmetic and ties",
    "scaling_factor": "a parameter of task_arithmetic and ties",
    "majority_sign_method": "a parameter of ties",
    "scale": "a parameter of passthrough",
    "int8_mask": "in mergekit it changes the type of a temporary, never the result",
    "epsilon": "a parameter of della and ram",
    "gamma": "a parameter of breadcrumbs",
    "select_topk": "a parameter of sce",
    "filter_wise": "a parameter of model_stock",
    "nuslerp_flatten": "a parameter of nuslerp",
    "nuslerp_row_wise": "a parameter of nuslerp",
    "eps": "a guard against division by zero that is built in here",
    "fallback_linear": "vectors that are nearly parallel are always interpolated linearly",
    "max_iter": "a parameter of karcher",
    "tol": "a parameter of karcher",
    "r": "a parameter of ramplus_tl",
    "alpha": "a parameter of ramplus_tl",
}
"""Words of mergekit and of the flat form that are known, each with why a method that lacks it takes no notice."""


def weights_cancel(weights: Sequence[float]) -> bool:
    """Tell whether weights sum to zero, up to rounding, so that nothing can be divided by their sum."""
    return abs(math.fsum(weights)) <= 1e-8 * math.fsum(abs(weight) for weight in weights)
