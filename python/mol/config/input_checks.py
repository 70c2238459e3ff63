"""Checks that the inputs of a recipe, a module or a rule are what its method takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mol.config.auto_weights import Auto
from mol.config.method_spec import REQUIRED, MethodSpec
from mol.config.methods import weights_cancel
from mol.config.model_reference import may_be_one
from mol.config.parameters import Chain, ParameterMap
from mol.config.sources import SliceConfig, SourceConfig
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.config.document import Location
    from mol.config.inputs import Inputs
    from mol.config.model_reference import ModelReference
    from mol.config.values import ValueReader


def check_inputs(
    inputs: Inputs,
    base_model: ModelReference | None,
    parameters: ParameterMap,
    reader: ValueReader,
    *,
    resolved: bool,
) -> None:
    """Check number of inputs, base, lengths of ranges, parameters that must be there and weights that cancel.

    Nothing is checked where the method is not known, or a model or a range was not read.

    Args:
        inputs: what was read.
        base_model: the base of all slices that have none of their own.
        parameters: those of the recipe.
        reader: knows the method, and collects the problems.
        resolved: whether names that differ are known to be different models.
    """
    if reader.spec is None or not inputs.sound:
        return
    for index, (part, location) in enumerate(zip(inputs.slices, inputs.locations, strict=True)):
        where = "" if inputs.whole else f"slice {index + 1}: "
        check = _SliceCheck(part, location, where, reader.spec, part.base_model or base_model, parameters, reader)
        if check.models(whole=inputs.whole, resolved=resolved):
            check.ranges()
            if inputs.parameters_sound:
                check.parameters_given()


def add_base(
    inputs: Inputs, base: ModelReference | None, reader: ValueReader, *, weighs_base: bool, resolved: bool
) -> bool:
    """Add an unlisted base to `models` if the method takes its base as an input like any other.

    Args:
        inputs: what was read.
        base: the recipe's base.
        reader: knows the method, and collects notes and problems.
        weighs_base: whether the recipe itself gives a weight to models that have none of their own.
        resolved: whether names that differ are known to be different models.

    Returns:
        Whether it is known that the base is listed; if not, the inputs are checked when the commits are known.
    """
    spec = reader.spec
    if spec is None or not inputs.sound or not inputs.whole or spec.base != "input":
        return True
    if base is None or base in inputs.models():
        return True
    if not resolved and any(may_be_one(base, model) for model in inputs.models()):
        return False
    full = spec.max_models is not None and len(inputs.slices[0].sources) >= spec.max_models
    if not full and (weighs_base or "weight" not in spec.parameters):
        part = inputs.slices[0]
        inputs.slices[0] = SliceConfig((*part.sources, SourceConfig(base)), part.base_model, part.parameters)
        line = f"the base, {base}, is not among `models`: {spec.name} takes it as one more input"
        (reader.notes if weighs_base else reader.warnings).append(line)
        return True
    way_out = "list it among `models`, or leave `base_model` out"
    if full:
        count = "one model" if spec.max_models == 1 else f"{spec.max_models} models"
        problem, way_out = f", and {spec.name} takes {count} only", "leave `base_model` out"
    else:
        problem = " and finds no weight for it"
    reader.problems.add(
        inputs.locations[0],
        f"`base_model` {base} is not among `models`: {spec.name} has no base, mergekit takes it as one more input"
        f"{problem}; {way_out}",
    )
    return True


@dataclass(frozen=True, slots=True)
class _SliceCheck:
    """A slice, and what its inputs are checked by.

    Attributes:
        part: the slice; `models` count as one.
        location: where it stands.
        where: begins every message about it.
        spec: the method.
        base: the slice's base, or the recipe's.
        parameters: those of the recipe.
        reader: collects problems and warnings.
    """

    part: SliceConfig
    location: Location
    where: str
    spec: MethodSpec
    base: ModelReference | None
    parameters: ParameterMap
    reader: ValueReader

    def models(self, *, whole: bool, resolved: bool) -> bool:
        """Check base and number of models; return whether the rest of the slice can be checked."""
        spec, base, where, reader = self.spec, self.base, self.where, self.reader
        listed = [source.model for source in self.part.sources]
        if spec.base == "required" and base is None:
            self._refuse(f"{spec.name} needs `base_model`, the model it starts from")
            return False
        unlisted = base if base not in listed else None
        if not resolved and unlisted is not None and any(may_be_one(unlisted, model) for model in listed):
            return False  # checked again when their commits are known
        if spec.starts_from(base) and not whole and base not in listed:
            # Models of one family have names alike: only what looks like a typing error is offered.
            alike = [str(model) for model in listed if _digits(str(model)) == _digits(str(base))]
            hint = suggestion(str(base), alike, cutoff=0.85)
            self._refuse(f"the base, {base}, must be one of `sources`, with its `layer_range`{hint}")
            return False
        _warn_of_repeated(listed, base if spec.starts_from(base) else None, where, reader)
        if listed == [base] and spec.base == "required" and spec.min_models == 2 and spec.max_models is None:
            reader.warnings.append(f"{where}no model next to the base, {base}: {spec.name} gives the base itself")
            return False
        if spec.base == "optional":
            count = sum(model != base for model in listed)
        else:
            count = len(listed) + (spec.base == "required" and base not in listed)
        return self._count(count, unlisted)

    def _count(self, count: int, unlisted: ModelReference | None) -> bool:
        spec = self.spec
        if spec.min_models <= count <= (spec.max_models or count):
            return True
        base = {"required": ", the base among them", "optional": " in addition to a base"}.get(spec.base, "")
        extra = f"; the base, {unlisted}, is not listed and counts too" if unlisted and spec.base == "required" else ""
        wanted = f"exactly {spec.min_models}" if spec.max_models == spec.min_models else f"at least {spec.min_models}"
        noun = "model" if spec.min_models == 1 else "models"
        self._refuse(f"{spec.name} takes {wanted} {noun}{base}; found {count}{extra}")
        return False

    def ranges(self) -> None:
        """Refuse a base that is subtracted from itself, and ranges of different length."""
        sources, base = self.part.sources, self.base
        spans = [source.layer_range for source in sources if source.model == base]
        if self.spec.starts_from(base) and not self.spec.base_twice:
            if len(set(spans)) < len(spans):
                self._refuse(f"the base, {base}, is listed twice; it is subtracted, so list it once")
            if all(source.model == base for source in sources):
                self._refuse(f"{self.spec.name} needs a model in addition to the base, {base}")
        lengths = {source.layer_range[1] - source.layer_range[0] for source in sources if source.layer_range}
        if len(lengths) > 1:
            ranges = ", ".join(f"{source.model} {list(source.layer_range or ())}" for source in sources)
            self._refuse(f"the layer ranges of a slice have equal length; found {ranges}")

    def parameters_given(self) -> None:
        """Refuse parameters that are missing, and weights that cancel where they are divided by their sum."""
        spec, part = self.spec, self.part
        weighted = [source for source in part.sources if spec.base == "input" or source.model != self.base]
        for parameter in spec.parameters.values():
            if parameter.default is not REQUIRED:
                continue
            if not parameter.per_model and not Chain(parameter.name, part.parameters, self.parameters).links:
                self._refuse(f"{spec.name} needs the parameter `{parameter.name}`")
            for source in weighted if parameter.per_model else ():
                if not Chain(parameter.name, source.parameters, part.parameters, self.parameters).links:
                    self._refuse(f"{source.model} has no `{parameter.name}`; give it one under its `parameters`")
        if spec.divides:
            self._sum(weighted)

    def _sum(self, weighted: list[SourceConfig]) -> None:
        """Refuse weights that sum to zero where they are divided by their sum; warn where the divisor is then 1."""
        parameter, part = self.spec.parameter("normalize"), self.part
        chain = Chain(parameter.name if parameter else "", part.parameters, self.parameters)
        normalize = chain.constant if chain.links else parameter.default if parameter else True
        weights = [Chain("weight", source.parameters, part.parameters, self.parameters).constant for source in weighted]
        numbers = [float(weight) for weight in weights if weight is not None]
        if normalize is True and numbers and len(numbers) == len(weights) and weights_cancel(numbers):
            if self.spec.base == "required":
                self.reader.warnings.append(
                    f"{self.where}the weights {numbers} sum to zero: as in mergekit, `normalize: true` divides by 1 "
                    "instead"
                )
                return
            dividing, way_out = "they are divided by their sum", "change them"
            if parameter:
                dividing = f"`{parameter.name}: true` divides by their sum"
                way_out = f"change them or set `{parameter.name}: false`"
            self._refuse(f"the weights {numbers} sum to zero, and {dividing}; {way_out}")

    def _refuse(self, problem: str) -> None:
        self.reader.problems.add(self.location, self.where + problem)


def _warn_of_repeated(
    listed: Sequence[ModelReference], base: ModelReference | None, where: str, reader: ValueReader
) -> None:
    """Warn of models that a slice lists more than once, which versions of mergekit take in different ways."""
    for model in dict.fromkeys(model for model in listed if model != base and listed.count(model) > 1):
        reader.warnings.append(
            f"{where}{model} is listed {listed.count(model)} times, and each counts; mergekit 0.1.5 refuses that, "
            "older versions take one of them"
        )


def _digits(name: str) -> list[str]:
    return [character for character in name if character.isdecimal()]


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
