"""Parameters that several merge methods share."""

from __future__ import annotations

from typing import Final

from mol.config.method_spec import REQUIRED, ParameterSpec

WEIGHT: Final = ParameterSpec(
    "weight",
    per_model=True,
    default=REQUIRED,
    flat_default=1.0,
    about="how much of the model; negative takes away",
    plan="weights",
    drops=True,
    forms=("auto",),
)
DENSITY: Final = ParameterSpec(
    "density",
    per_model=True,
    default=1.0,
    low=0.0,
    high=1.0,
    flat_default=0.8,
    about="share of each difference that is kept",
    plan="densities",
    drops=True,
)
LAMBDA: Final = ParameterSpec(
    "lambda",
    default=1.0,
    aliases=("scaling_factor", "lambda_"),
    about="factor on what is added to the base",
    copy_at={0.0: 0},
)
CHANGE: Final = ParameterSpec(
    "epsilon",
    default=1e-5,
    low=0.0,
    high=1.0,
    about="a difference up to this is no change",
)

EPSILON: Final = ParameterSpec(
    "epsilon",
    per_model=True,
    default=0.15,
    low=0.0,
    high=0.5,
    about="by how much the probability of the largest value of a row is above `density`, that of the smallest below",
    plan="epsilons",
    around="density",
)
GAMMA: Final = ParameterSpec(
    "gamma",
    per_model=True,
    default=0.01,
    low=0.0,
    high=1.0,
    about="share of each difference that is dropped because it is the largest",
    plan="gammas",
)
MASK: Final = ParameterSpec(
    "lambda",
    per_model=True,
    default=1.0,
    low=0.0,
    aliases=("lambda_",),
    about="threshold of the mask: the larger, the fewer values a model needs",
    plan="lambdas",
)
VOTES: Final = ParameterSpec(
    "k",
    kind="int",
    default=1,
    low=0,
    high=1000,
    about="how many models must need a value; 2 in the paper",
    of_models=True,
)


def normalize(*, default: bool) -> ParameterSpec:
    """Return `normalize`, whose default differs between methods."""
    return ParameterSpec(
        "normalize",
        kind="bool",
        default=default,
        aliases=("normalize_weights",),
        about="divide by the sum of the weights",
    )


def rescale(*, default: bool) -> ParameterSpec:
    """Return `rescale`, whose default differs between methods."""
    return ParameterSpec(
        "rescale",
        kind="bool",
        default=default,
        about="make each difference as large as it was before values were dropped",
    )
