"""Decide by which method and parameters a tensor is made: parameters resolved, then the method simplified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mol.config.method_spec import DEPTH_SCALE
from mol.config.methods import METHODS, weights_cancel
from mol.config.parameters import compile_filter
from mol.errors import ConfigError
from mol.io.expressions import leaves
from mol.merge import plan
from mol.merge.experts import matrix_names
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mol.config.merge_config import MergeConfig
    from mol.config.method_spec import ParameterSpec
    from mol.merge.plan import MergePlan, Method


class Combination(NamedTuple):
    """The method and inputs of one tensor.

    Attributes:
        method: the method with its parameters.
        inputs: indices of the inputs it reads, in the method's order; inputs without influence are left out.
        scaled: by how much of its difference from the base the result is the base's, and which input that is; None
            where the method's result is taken as it is.
        rule: which of the recipe's rules says so; None where none does.
    """

    method: Method
    inputs: tuple[int, ...]
    scaled: tuple[float, int] | None = None
    rule: int | None = None

    def moved(self, inputs: Sequence[int]) -> Combination:
        """Return the same of inputs that are numbered otherwise."""
        scaled = None if self.scaled is None else (self.scaled[0], inputs[self.scaled[1]])
        return self._replace(inputs=tuple(inputs[index] for index in self.inputs), scaled=scaled)


class Combine(Protocol):
    """Decides how the tensors of one slice are made."""

    fixed: Combination | str | None
    """The combination, or why there is none, if it is the same for every tensor."""

    def set_depth(self, first: float, last: float) -> None:
        """Set where the slice lies in the depth of the output, from 0 (first layer) to 1 (last layer)."""
        ...

    def __call__(self, names: Sequence[str | None], output: str, position: float) -> Combination | str:
        """Decide for one tensor; see `Combiner`."""
        ...


class Combiner:
    """Decides how the tensors of one slice are made."""

    def __init__(self, config: MergeConfig, slice_index: int, sources: Sequence[int | None], base: int | None) -> None:
        """Prepare a slice.

        Args:
            config: the recipe.
            slice_index: which slice.
            sources: for each input its position in the recipe's slice; None for a base the recipe does not list.
            base: which input is the base that the method subtracts or starts from, if it does.
        """
        self._config = config
        self._slice = slice_index
        self._spec = METHODS[config.method]
        self._origin = base
        self._sources = tuple(sources)
        # As mergekit: a model without weight takes part in sums, and a result that equals an input is computed.
        self._simplifies = config.precision == "exact"
        self._base = base if self._spec.starts_from(base) else None
        self._others = tuple(index for index in range(len(sources)) if index != self._base)
        # (parameter, index of the input it belongs to, position of that input in the recipe)
        self._wanted = [
            (parameter, index, None if index is None else sources[index])
            for parameter in self._spec.parameters.values()
            for index in (self._others if parameter.per_model else (None,))
        ]
        self.scales = config.gives(DEPTH_SCALE.name, slice_index)
        """Whether the recipe has a `depth_scale`."""
        if self.scales:
            self._wanted.append((DEPTH_SCALE, None, None))
        self._span = (0.0, 1.0)
        self._memo: dict[tuple[object, ...], Combination | str] = {}
        constant = all(
            config.is_constant(parameter.name, slice_index=slice_index, source=source)
            for parameter, _, source in self._wanted
        )
        self.fixed: Combination | str | None = None
        """The combination, or why there is none, if it is the same for every tensor."""
        if constant:
            self.fixed = self._decide([""] * len(sources), "", 0.0)

    def __call__(self, names: Sequence[str | None], output: str, position: float) -> Combination | str:
        """Decide for one tensor.

        Args:
            names: its name in each input; the output's name stands in where an input lacks it.
            output: its name in the output.
            position: from 0 (first layer) to 1 (last layer) of the slice.

        Returns:
            The combination, or the reason why there is none.
        """
        return self._decide(names, output, position) if self.fixed is None else self.fixed

    def _decide(self, names: Sequence[str | None], output: str, position: float) -> Combination | str:
        try:
            values = tuple(
                self._config.resolve(
                    parameter.name,
                    slice_index=self._slice,
                    source=source,
                    source_tensor=(None if index is None else names[index]) or output,
                    output_tensor=output,
                    position=self._depth(position) if parameter is DEPTH_SCALE else position,
                )
                for parameter, index, source in self._wanted
            )
        except ConfigError as error:  # no filter fits this tensor; reported with the other problems
            return str(error)
        found = self._memo.get(values)
        if found is None:
            found = self._memo[values] = self._combine(values)
        return found

    def of_first(self, count: int) -> Combiner | None:
        """Return what decides by the first inputs of the slice alone, None if the base is not among them."""
        if self._origin is not None and self._origin >= count:
            return None
        return Combiner(self._config, self._slice, self._sources[:count], self._origin)

    def set_depth(self, first: float, last: float) -> None:
        """See `Combine`."""
        self._span = (first, last)

    def _depth(self, position: float) -> float:
        first, last = self._span
        return first + position * (last - first)

    def _combine(self, values: Sequence[Any]) -> Combination | str:
        """Decide by the values of the parameters, and scale the result as `depth_scale` says."""
        if not self.scales:
            return self._unscaled(values)
        combination, scale = self._unscaled(values[:-1]), float(values[-1])
        if scale == 1.0 or isinstance(combination, str):
            return combination
        if self._origin is None:
            return "`depth_scale` scales the difference from the base, and the base is none of the models merged here"
        method, inputs = combination.method, combination.inputs
        if scale == 0.0 or (method is plan.COPY and inputs == (self._origin,)):
            return Combination(plan.COPY, (self._origin,))
        if method is plan.COPY:
            return Combination(task_vector(scale), (self._origin, *inputs))
        factor = self._spec.parameters.get("lambda")
        if factor is not None and not factor.per_model:
            ((name, numbers),) = method.items()
            return Combination({name: {**numbers, "lambda": numbers["lambda"] * scale}}, inputs)
        return Combination(method, inputs, (scale, self._origin))

    def _unscaled(self, values: Sequence[Any]) -> Combination | str:
        if not self._others and self._base is not None:
            return Combination(plan.COPY, (self._base,))
        shared: dict[str, Any] = {}
        of_models: dict[str, dict[int, Any]] = {}
        for (parameter, index, _), value in zip(self._wanted, values, strict=False):
            typed = {"float": float, "int": int}.get(parameter.kind, type(value))(value)
            if index is None:
                shared[parameter.name] = typed
            else:
                of_models.setdefault(parameter.name, {})[index] = typed
        normalize = self._spec.parameter("normalize")
        divides = self._spec.divides and (normalize is None or shared[normalize.name])
        refuses = divides and self._spec.base != "required"  # what is added to a base is divided by 1 then
        if refuses and (problem := _cancelling(of_models["weight"].values(), normalize)):
            return problem
        parameters = self._spec.parameters
        for name, parameter in parameters.items():
            if parameter.of_models and shared[name] > len(self._others):
                return f"`{name}` is {shared[name]}, and there are {len(self._others)} models next to the base"
            for position, reach in of_models.get(name, {}).items() if parameter.around else ():
                if problem := _out_of_reach(parameter, of_models[parameter.around][position], reach):
                    return problem
        dropped = {
            index
            for name, numbers in of_models.items()
            if parameters[name].drops and self._simplifies
            for index, number in numbers.items()
            if number == 0.0
        }
        kept = [index for index in self._others if index not in dropped]
        # Without a model there is nothing to add: the result is the base, or zeros of the right shape.
        if not kept and self._base is not None:
            return Combination(plan.COPY, (self._base,))
        kept = kept or list(self._others[:1])
        inputs = tuple(kept if self._base is None else (self._base, *kept))
        for name, value in shared.items():
            if self._simplifies and (source := parameters[name].copy_at.get(value)) is not None:
                return Combination(plan.COPY, (inputs[source],))
        alone = len(kept) == 1 and (self._simplifies or self._spec.max_models == 1)
        if alone and self._is_copied(kept[0], of_models, divides=divides):
            return Combination(plan.COPY, (kept[0],))
        return Combination({self._spec.in_plan: self._numbers(shared, of_models, kept)}, inputs)

    def _is_copied(self, index: int, of_models: Mapping[str, Mapping[int, Any]], *, divides: bool) -> bool:
        """Return whether the only model that is left is the result, unchanged."""
        if not of_models:
            return self._base is None
        copying = {name: parameter.copy_at for name, parameter in self._spec.parameters.items() if name in of_models}
        return any(copying.values()) and all(
            (divides and name == "weight") or of_models[name][index] in values
            for name, values in copying.items()
            if values
        )

    def _numbers(
        self, shared: Mapping[str, Any], of_models: Mapping[str, Mapping[int, Any]], kept: Sequence[int]
    ) -> dict[str, Any]:
        """Return the parameters in the plan's form: a list if each model has one, in the order of the sources."""
        numbers: dict[str, Any] = {}
        for name, parameter in self._spec.parameters.items():
            word = parameter.plan or name
            if not parameter.per_model:
                numbers[word] = shared[name]
            elif self._spec.max_models == 1:
                numbers[word] = of_models[name][kept[0]]
            else:
                numbers[word] = [of_models[name][index] for index in kept]
        if self._spec.draws:
            # Positions among all models except the base: removing a model, or listing the base, does not change what
            # the others draw.
            numbers["models"] = [self._others.index(index) for index in kept]
        return numbers


def task_vector(scale: float) -> Method:
    """Return the method that adds a part of the difference of the second source from the first to the first."""
    return {"task_arithmetic": {"weights": [scale], "normalize": False, "lambda": 1.0}}


def _cancelling(weights: Iterable[float], normalize: ParameterSpec | None) -> str | None:
    """Return why weights cannot be divided by their sum, None if they can; `normalize` requests it."""
    values = list(weights)
    if not weights_cancel(values):
        return None
    listed = ", ".join(f"{weight:g}" for weight in values)
    if normalize is None:
        return f"the weights ({listed}) sum to zero, and they are divided by their sum; change them"
    reason = f"the weights ({listed}) sum to zero, and `{normalize.name}: true` divides by their sum"
    return f"{reason}; change them or set `{normalize.name}: false`"


def _out_of_reach(parameter: ParameterSpec, centre: float, reach: float) -> str | None:
    """Return why values around a number are no probabilities, None where they are; at 0 and 1 nothing is random."""
    least, most = centre - reach, centre + reach
    if not 0.0 < centre < 1.0 or (least > 0.0 and most < 1.0):
        return None
    return (
        f"{parameter.around} {centre:g} with {parameter.name} {reach:g} asks for probabilities from {least:g} to "
        f"{most:g}; they must be above 0 and below 1: choose {parameter.name} below {min(centre, 1.0 - centre):g}"
    )


def idle_filters(config: MergeConfig, plan: MergePlan) -> Iterator[str]:
    """Report each filter of a recipe that fits no tensor of the plan."""
    filters = dict.fromkeys(config.filters())
    if not filters:
        return
    names = {tensor.name for tensor in plan.tensors} | {name for task in plan.tasks for _, name in leaves(task.of)}
    names.update(matrix_names(plan.tensors))
    for parameter, text in filters:
        if not any(map(compile_filter(text), names)):
            parts = sorted({part for name in names for part in name.split(".")})
            yield f"the filter `{text}` of `{parameter}` fits no tensor and has no effect{suggestion(text, parts)}"
