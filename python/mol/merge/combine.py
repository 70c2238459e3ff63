"""Which method, with which numbers, makes a tensor: parameters resolved, then the work simplified."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from mol.config.methods import METHODS, weights_cancel
from mol.config.parameters import compile_filter
from mol.errors import ConfigError
from mol.merge import plan
from mol.merge.plan import sources_of
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mol.config.merge_config import MergeConfig
    from mol.config.parameters import ParameterMap
    from mol.merge.plan import MergePlan, Method


class Combination(NamedTuple):
    """What is done to one tensor.

    Attributes:
        method: with its numbers.
        lanes: the inputs it reads, in the order the method wants; inputs without influence are left out.
    """

    method: Method
    lanes: tuple[int, ...]


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
        self._base = base if self._spec.starts_from(base) else None
        self._lanes = tuple(range(len(sources)))
        self._others = tuple(lane for lane in self._lanes if lane != self._base)
        # (parameter, lane it belongs to, position of the lane in the recipe)
        self._wanted = [
            (parameter, lane, None if lane is None else sources[lane])
            for parameter in self._spec.parameters.values()
            for lane in (self._others if parameter.per_model else (None,))
        ]
        self._memo: dict[tuple[object, ...], Combination | str] = {}
        constant = all(self._is_constant(parameter.name, source) for parameter, _, source in self._wanted)
        self.fixed: Combination | str | None = None
        """The answer, or why there is none, where it is the same for every tensor."""
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

    def _is_constant(self, name: str, source: int | None) -> bool:
        levels: list[ParameterMap] = []
        config = self._config
        if config.slices is not None:
            piece = config.slices[self._slice]
            levels += [piece.parameters] if source is None else [piece.sources[source].parameters, piece.parameters]
        elif config.models is not None and source is not None:
            levels.append(config.models[source].parameters)
        levels.append(config.parameters)
        for level in levels:
            for rule in level.get(name, ()):
                return rule.filter is None and not isinstance(rule.value, tuple)
        return True

    def _decide(self, names: Sequence[str | None], output: str, position: float) -> Combination | str:
        try:
            values = tuple(
                self._config.resolve(
                    parameter.name,
                    slice_index=self._slice,
                    source=source,
                    source_tensor=(None if lane is None else names[lane]) or output,
                    output_tensor=output,
                    position=position,
                )
                for parameter, lane, source in self._wanted
            )
        except ConfigError as error:  # no filter fits this tensor; listed with what else is wrong
            return str(error)
        found = self._memo.get(values)
        if found is None:
            found = self._memo[values] = self._check(values) or self._combine(values)
        return found

    def _check(self, values: Sequence[object]) -> str:
        problems = []
        for (parameter, _, _), value in zip(self._wanted, values, strict=True):
            if parameter.kind != "float":
                continue
            assert isinstance(value, (int, float))  # what `kind` says, held by MergeConfig
            if not math.isfinite(value):
                problems.append(f"{parameter.name} is {value}, wanted a finite number")
            elif not parameter.low <= value <= parameter.high:
                problems.append(f"{parameter.name} is {value}, wanted {parameter.low} to {parameter.high}")
        return "; ".join(problems)

    def _combine(self, values: Sequence[Any]) -> Combination | str:
        shared: dict[str, Any] = {}
        of_models: dict[str, dict[int, Any]] = {}
        for (parameter, lane, _), value in zip(self._wanted, values, strict=True):
            typed = float(value) if parameter.kind == "float" else value
            if lane is None:
                shared[parameter.name] = typed
            else:
                of_models.setdefault(parameter.name, {})[lane] = typed
        divides = self._spec.divides and shared.get("normalize", True)
        if divides and (problem := _cancelling(of_models["weight"].values(), optional="normalize" in shared)):
            return problem
        parameters = self._spec.parameters
        dropped = {
            lane
            for name, numbers in of_models.items()
            if parameters[name].drops
            for lane, number in numbers.items()
            if number == 0.0
        }
        kept = [lane for lane in self._others if lane not in dropped]
        # Without a model there is nothing to add: the base is left, or zeros of the right shape.
        if not kept and self._base is not None:
            return Combination(plan.COPY, (self._base,))
        kept = kept or list(self._others[:1])
        lanes = tuple(kept if self._base is None else (self._base, *kept))
        for name, value in shared.items():
            if (source := parameters[name].copy_at.get(value)) is not None:
                return Combination(plan.COPY, (lanes[source],))
        if len(kept) == 1 and self._is_copied(kept[0], of_models, divides=divides):
            return Combination(plan.COPY, (kept[0],))
        return Combination({self._spec.in_plan: self._numbers(shared, of_models, kept)}, lanes)

    def _is_copied(self, lane: int, of_models: Mapping[str, Mapping[int, Any]], *, divides: bool) -> bool:
        """Whether the only model that is left is the result as it is."""
        copying = {name: parameter.copy_at for name, parameter in self._spec.parameters.items() if name in of_models}
        return any(copying.values()) and all(
            (divides and name == "weight") or of_models[name][lane] in values
            for name, values in copying.items()
            if values
        )

    def _numbers(
        self, shared: Mapping[str, Any], of_models: Mapping[str, Mapping[int, Any]], kept: Sequence[int]
    ) -> dict[str, Any]:
        """Give the parameters as the plan has them: a list where each model has one, in the order of the sources."""
        numbers: dict[str, Any] = {}
        for name, parameter in self._spec.parameters.items():
            word = parameter.plan or name
            if not parameter.per_model:
                numbers[word] = shared[name]
            elif self._spec.max_models == 1:
                numbers[word] = of_models[name][kept[0]]
            else:
                numbers[word] = [of_models[name][lane] for lane in kept]
        if self._spec.draws:
            # Places among all models but the base, so neither a model that leaves nor a base that is listed changes
            # what the others draw.
            numbers["models"] = [self._others.index(lane) for lane in kept]
        return numbers


def _cancelling(weights: Iterable[float], *, optional: bool) -> str | None:
    """Say why weights cannot be divided by their sum, None where they can; `optional` if a parameter asks for that."""
    values = list(weights)
    if not weights_cancel(values):
        return None
    listed = ", ".join(f"{weight:g}" for weight in values)
    if not optional:
        return f"the weights ({listed}) sum to zero, and they are divided by their sum; change them"
    told = f"the weights ({listed}) sum to zero, and `normalize: true` divides by their sum"
    return f"{told}; change them or say `normalize: false`"


def idle_filters(config: MergeConfig, plan: MergePlan) -> Iterator[str]:
    """Tell of each filter of a recipe that fits no tensor of the plan."""
    filters = dict.fromkeys(config.filters())
    if not filters:
        return
    names = {tensor.name for tensor in plan.tensors} | {name for task in plan.tasks for _, name in sources_of(task.of)}
    for parameter, text in filters:
        if not any(map(compile_filter(text), names)):
            parts = sorted({part for name in names for part in name.split(".")})
            yield f"the filter `{text}` of `{parameter}` fits no tensor and has no effect{suggestion(text, parts)}"
