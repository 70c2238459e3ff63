"""The types of a row in the table of merge methods: a method and its parameters."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

STUDY: Final = "https://arxiv.org/abs/2511.21437"
"""A comparison by others of six methods on language models of 3 to 8 billion parameters, 12 fine-tunes of each."""
NO_GAIN: Final = "typically no notable gain over the base on language models"
"""What that study found of most of the six."""

Scalar = float | int | bool | str
Kind = Literal["float", "int", "bool", "str"]


class Required(Enum):
    """The type of `REQUIRED`, the default of a parameter that the recipe must give."""

    REQUIRED = "required"


REQUIRED: Final = Required.REQUIRED


class ParameterSpec(NamedTuple):
    """One parameter of a method.

    Attributes:
        name: the word in a recipe.
        default: value where the recipe gives none, or `REQUIRED`.
        per_model: each model may have its own value; otherwise the parameter belongs to the whole merge.
        kind: type of one value.
        low: smallest allowed value, inclusive.
        high: largest allowed value, inclusive.
        flat_default: default of the Python and flat forms where it differs from `default`.
        aliases: other words for the parameter.
        choices: allowed texts of a `str`, each with the other words for it.
        about: what it does, in a few words.
        plan: the plan's word, where it is not the recipe's: one list per parameter of the models.
        drops: a model whose value is zero has no influence and is left out.
        around: the parameter of the same model, a probability, that the value is added to and taken from.
        copy_at: values at which the result is one source as it is: value to position of the source, 0 for the base. Of
            a parameter that each model has, values at which the only model left is the result.
        forms: keys of a map that a value may be written as.
        of_models: it counts models other than the base, so there are at least as many.
    """

    name: str
    default: Scalar | Required
    per_model: bool = False
    kind: Kind = "float"
    low: float = -math.inf
    high: float = math.inf
    flat_default: Scalar | None = None
    aliases: tuple[str, ...] = ()
    choices: Mapping[str, tuple[str, ...]] = {}
    about: str = ""
    plan: str = ""
    drops: bool = False
    around: str = ""
    copy_at: Mapping[float, int] = {}
    forms: tuple[str, ...] = ()
    of_models: bool = False

    @property
    def bounds(self) -> str:
        """The range of a number, as in "from 0 to 1"; nothing where any will do."""
        if math.isinf(self.high):
            return "" if math.isinf(self.low) else f"{self.low:g} or more"
        return f"from {self.low:g} to {self.high:g}"

    @property
    def example(self) -> Scalar:
        """The value in an example: that of the short form where it has its own."""
        if self.flat_default is not None:
            return self.flat_default
        return 1.0 if isinstance(self.default, Required) else self.default


DEPTH_SCALE: Final = ParameterSpec(
    "depth_scale",
    default=1.0,
    about="factor on the difference of the result from the base, under any method; `{alpha: A, beta: B}` is "
    "A + B * depth, from A in the first layer to A + B in the last (LiNeS, https://arxiv.org/abs/2410.17146)",
    forms=("alpha", "beta"),
)


class MethodSpec(NamedTuple):
    """One merge method.

    Attributes:
        name: the word in a recipe.
        parameters: its parameters by name.
        base: "required": the result starts from the base; "optional": it does where there is one; "input": a base is an
            input like any other.
        min_models: fewest inputs of a slice; a required base counts, an optional one does not.
        title: a name for people.
        url: where the method is described.
        about: what the result is, with formulas where words are long.
        max_models: most inputs of a slice, counted the same; None means no limit.
        plan: the plan's word for the method, where it is not the recipe's.
        divides: weights are divided by their sum, where there is a `normalize` only if that is true; differences from
            a required base by 1 if the sum is zero.
        base_twice: the base may be the other model too, with other layers for example.
        evidence: what the study that `STUDY` names found about it, if it was in it.
        draws: it draws random numbers, and the plan says by which number each model does (`models`).
    """

    name: str
    parameters: dict[str, ParameterSpec]
    base: Literal["required", "optional", "input"]
    min_models: int
    title: str
    url: str
    about: str
    max_models: int | None = None
    plan: str = ""
    divides: bool = False
    base_twice: bool = False
    draws: bool = False
    evidence: str = ""

    def starts_from(self, base: object) -> bool:
        """Return whether the result starts from the base, which is None where the recipe has none."""
        return self.base == "required" or (self.base == "optional" and base is not None)

    @property
    def in_plan(self) -> str:
        """The plan's word for the method."""
        return self.plan or self.name

    @property
    def inputs(self) -> str:
        """What the method takes, as in "the base and 1 model or more"."""
        least = self.min_models - (self.base == "required")
        count = f"{least} {'model' if least == 1 else 'models'}{' or more' if self.max_models is None else ''}"
        return {"required": f"the base and {count}", "optional": f"{count}; a base, if there is one"}.get(
            self.base, count
        )

    def parameter(self, word: str) -> ParameterSpec | None:
        """Find a parameter, one that all methods have included, by its name or by another word for it."""
        for spec in (*self.parameters.values(), DEPTH_SCALE):
            if word == spec.name or word in spec.aliases:
                return spec
        return None


def table(*specs: ParameterSpec) -> dict[str, ParameterSpec]:
    """Return the parameters of a method by their names."""
    return {spec.name: spec for spec in specs}
