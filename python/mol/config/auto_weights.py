"""`weight: {auto: ...}`: weights of whole models that are found from the norms of their differences from the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mol.text import suggestion

if TYPE_CHECKING:
    from mol.config.inputs import Inputs
    from mol.config.method_spec import MethodSpec
    from mol.config.model_reference import ModelReference
    from mol.config.parameters import ParameterMap

FORMS: Final = {"norm": ("metagpt",), "inverse_norm": ("nan",)}
"""Ways to weigh, each with the other words for it."""


@dataclass(frozen=True, slots=True)
class Auto:
    """A weight that is found when the models are read.

    Attributes:
        form: "norm": the square of the model's norm over the sum of all squares, which minimises the mean loss of the
            tasks under the assumptions of MetaGPT (https://arxiv.org/abs/2406.11385); "inverse_norm": the inverse of
            the norm over the sum of all inverses (NAN, https://arxiv.org/abs/2505.16148).
    """

    form: str

    def to_plain(self) -> dict[str, str]:
        """Return the value as YAML holds it."""
        return {"auto": self.form}


def read_auto(word: object) -> Auto | str:
    """Return the value that a word under `auto` stands for, or what is wrong with it."""
    for form, others in FORMS.items():
        if word == form or word in others:
            return Auto(form)
    hint = suggestion(word, FORMS) if isinstance(word, str) else ""
    return f"`auto` is {' or '.join(f'`{form}`' for form in FORMS)}, not {str(word)[:80]!r}{hint}"


def auto_of(parameters: ParameterMap) -> Auto | None:
    """Return the way in which a recipe weighs its models by norms, None where it gives weights itself."""
    found = [rule.value for rule in parameters.get("weight", ())]
    return found[0] if found and isinstance(found[0], Auto) else None


def problem_of_auto(
    spec: MethodSpec, base: ModelReference | None, inputs: Inputs, parameters: ParameterMap
) -> str | None:
    """Return why models cannot be weighed by norms, None if they can or are not."""
    holders = [source.parameters for part in inputs.slices for source in part.sources]
    holders += [part.parameters for part in inputs.slices]
    elsewhere = [rule.value for holder in holders for rule in holder.get("weight", ())]
    rules = [rule.value for rule in parameters.get("weight", ())]
    if not any(isinstance(value, Auto) for value in (*elsewhere, *rules)):
        return None
    if elsewhere or len(rules) > 1:
        return "it gives all models their weights: write it once, in `parameters` of the recipe, and no other `weight`"
    if not inputs.whole:
        return "it weighs whole models, and the recipe cuts them into `slices`: give each source a `weight`"
    if not spec.starts_from(base):
        way_out = "add a `base_model`" if spec.base == "optional" else "such as task_arithmetic does"
        return f"it weighs models by their differences from a base, and {spec.name} starts from none; {way_out}"
    return None
