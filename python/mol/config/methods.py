"""The table of merge methods: what each needs, its parameters, their defaults and ranges."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Final

from mol.config.method_parameters import CHANGE, LAMBDA, WEIGHT, normalize
from mol.config.method_spec import NO_GAIN, REQUIRED, MethodSpec, ParameterSpec, table
from mol.config.sparse_methods import SPARSE
from mol.errors import ConfigError
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

METHODS: Final[dict[str, MethodSpec]] = {
    spec.name: spec
    for spec in (
        MethodSpec(
            "linear",
            table(WEIGHT._replace(copy_at={1.0: 0}), normalize(default=True)),
            base="input",
            min_models=1,
            title="weighted average (model soup)",
            url="https://arxiv.org/abs/2203.05482",
            about="sum of weight * model, divided by the sum of the weights unless `normalize: false`",
            divides=True,
        ),
        MethodSpec(
            "slerp",
            table(
                ParameterSpec(
                    "t",
                    default=REQUIRED,
                    flat_default=0.5,
                    about="0 is the base, 1 the other model",
                    copy_at={0.0: 0, 1.0: 1},
                )
            ),
            base="required",
            min_models=2,
            max_models=2,
            title="spherical linear interpolation",
            url="https://en.wikipedia.org/wiki/Slerp",
            about="a point on the arc from the base to the other model",
            base_twice=True,
        ),
        MethodSpec(
            "nuslerp",
            table(
                WEIGHT._replace(copy_at={1.0: 0}),
                ParameterSpec(
                    "nuslerp_flatten",
                    kind="bool",
                    default=True,
                    about="one angle for a tensor; otherwise one for each of its rows",
                ),
                ParameterSpec(
                    "nuslerp_row_wise",
                    kind="bool",
                    default=False,
                    about="with `nuslerp_flatten: false`, one angle for each column",
                ),
            ),
            base="optional",
            min_models=2,
            max_models=2,
            title="spherical linear interpolation by weights",
            url="https://en.wikipedia.org/wiki/Slerp",
            about="a point on the arc between two models, or between their differences from the base",
            divides=True,
        ),
        MethodSpec(
            "multislerp",
            table(
                WEIGHT._replace(copy_at={1.0: 0}),
                normalize(default=True)._replace(name="normalize_weights", aliases=("normalize",), plan="normalize"),
                ParameterSpec(
                    "eps",
                    default=1e-8,
                    low=0.0,
                    high=1e-3,
                    about="a length that counts as zero; it is added to others that are divided by",
                ),
            ),
            base="optional",
            min_models=1,
            title="spherical mean by weights",
            url="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
            about="the mean direction of the models, or of their differences from the base, as long as they are on "
            "average, by weight",
            divides=True,
        ),
        MethodSpec(
            "karcher",
            table(
                ParameterSpec(
                    "max_iter",
                    kind="int",
                    default=10,
                    low=0,
                    high=100_000,
                    about="steps at most",
                ),
                ParameterSpec(
                    "tol",
                    default=1e-5,
                    low=0.0,
                    about="an angle: a shorter step is the last",
                ),
            ),
            base="input",
            min_models=1,
            title="Karcher mean, the mean on a sphere",
            url="https://en.wikipedia.org/wiki/Fr%C3%A9chet_mean",
            about="the direction with the least sum of squared angles to all models, as long as they are on average",
        ),
        MethodSpec(
            "nearswap",
            table(
                ParameterSpec(
                    "t",
                    default=REQUIRED,
                    low=0.0,
                    flat_default=0.001,
                    about="how far a value moves at most; 0 is the base",
                    copy_at={0.0: 0},
                )
            ),
            base="required",
            min_models=2,
            max_models=2,
            title="near values are swapped",
            url="https://huggingface.co/alchemonaut/BoreanGale-70B",
            about="each value of the base moves by `t` towards the other model's, and no further than it",
        ),
        MethodSpec(
            "arcee_fusion",
            table(),
            base="required",
            min_models=2,
            max_models=2,
            title="Arcee Fusion, the values that matter most",
            url="https://www.arcee.ai/blog/meet-mergekit-v0-1-arcee-fusion-expanded-model-support-multi-gpu-acceleration",
            about="the base, with the other model's values where distance times divergence of the row is above the "
            "median by 1.5 quartile ranges",
        ),
        MethodSpec(
            "task_arithmetic",
            table(WEIGHT, normalize(default=False), LAMBDA),
            base="required",
            min_models=2,
            title="task arithmetic",
            url="https://arxiv.org/abs/2212.04089",
            about="base + lambda * sum of weight * (model - base); a negative weight takes a skill away",
            divides=True,
            evidence="the only one of six methods that reliably gained over the base on language models",
        ),
        *SPARSE,
        MethodSpec(
            "model_stock",
            table(
                ParameterSpec(
                    "filter_wise",
                    kind="bool",
                    default=False,
                    about="one ratio for each row instead of one for a tensor",
                )
            ),
            base="required",
            min_models=3,
            title="Model Stock",
            url="https://arxiv.org/abs/2403.19522",
            about="a point between the base and the mean of the models, the nearer to the mean the smaller the angles "
            "between their differences from the base are",
            evidence=NO_GAIN,
        ),
        MethodSpec(
            "ram",
            table(CHANGE),
            base="required",
            min_models=2,
            title="RAM, reinforced agent merging",
            url="https://arxiv.org/abs/2601.13572",
            about="to each value of the base the mean of those differences is added that change it, so what one model "
            "alone has learned is kept whole",
        ),
        MethodSpec(
            "ramplus_tl",
            table(
                CHANGE,
                ParameterSpec(
                    "r",
                    default=0.1,
                    about="how much what one model alone changes grows",
                ),
                ParameterSpec(
                    "alpha",
                    default=0.2,
                    low=0.0,
                    about="where the ratio of shared changes to those of one model is cut",
                ),
            ),
            base="required",
            min_models=2,
            title="RAM+, where changes of one model alone are made larger",
            url="https://arxiv.org/abs/2601.13572",
            about="as `ram`, and in each tensor what one model alone changes is multiplied by 1 + r * min(shared / "
            "unique, alpha), from how many of its changes others share",
        ),
        MethodSpec(
            "passthrough",
            table(
                ParameterSpec(
                    "scale",
                    per_model=True,
                    default=1.0,
                    about="factor on each tensor",
                    plan="factor",
                    copy_at={1.0: 0},
                )
            ),
            base="input",
            min_models=1,
            max_models=1,
            title="tensors taken as they are, optionally scaled",
            url="https://arxiv.org/abs/2312.15166",
            about="slices of models, stacked as they are",
            plan="scale",
        ),
    )
}


def _owners(word: str) -> str:
    """Name the methods that have a parameter."""
    listed = [name for name, spec in METHODS.items() if spec.parameter(word)]
    return f"a parameter of {' and '.join([', '.join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)}"


@cache
def foreign_parameters() -> dict[str, str]:
    """Return the words of mergekit and of the flat form that are known, each with why it has no effect on a method."""
    rows = (spec for method in METHODS.values() for spec in method.parameters.values())
    words = {word for spec in rows for word in (spec.name, *spec.aliases)}
    return {
        "eps": "a guard against division by zero that is built in here",
        **{word: _owners(word) for word in sorted(words)},
        "int8_mask": "in mergekit it changes the type of a temporary, never the result",
        "fallback_linear": "vectors that are nearly parallel are always interpolated linearly",
    }


def weights_cancel(weights: Sequence[float]) -> bool:
    """Return whether weights sum to zero, up to rounding, so that nothing can be divided by their sum."""
    return abs(math.fsum(weights)) <= 1e-8 * math.fsum(abs(weight) for weight in weights)


def method_named(word: str) -> MethodSpec:
    """Return the row of a method.

    Raises:
        ConfigError: there is none, with the one that was probably meant.
    """
    if word in METHODS:
        return METHODS[word]
    some = ", ".join(f"`{name}`" for name in list(METHODS)[:8])
    hint = suggestion(word, METHODS) or f"; there are {some} and more: `mol-merge methods` lists all {len(METHODS)}"
    raise ConfigError(f"unknown merge method `{word[:80]}`{hint}")
