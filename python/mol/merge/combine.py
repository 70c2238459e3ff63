"""Which method, with which numbers, makes a tensor: parameters resolved, then the work simplified."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.config.document import suggestion
from mol.config.methods import METHODS, weights_cancel
from mol.config.parameters import compile_filter
from mol.errors import ConfigError
from mol.merge import plan

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
        self._base = base if self._spec.base == "required" else None
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
        per_lane: dict[str, dict[int, float]] = {}
        for (parameter, lane, _), value in zip(self._wanted, values, strict=True):
            typed = float(value) if parameter.kind == "float" else value
            if lane is None:
                shared[parameter.name] = typed
            else:
                per_lane.setdefault(parameter.name, {})[lane] = typed
        return _METHODS[self._spec.name](self, shared, per_lane)

    def _linear(self, shared: Mapping[str, Any], per_lane: Mapping[str, Mapping[int, float]]) -> Combination | str:
        weights, normalize = per_lane["weight"], shared["normalize"]
        if normalize and (problem := _cancelling(weights.values())):
            return problem
        kept = tuple(lane for lane, weight in weights.items() if weight != 0.0)
        if len(kept) == 1 and (normalize or weights[kept[0]] == 1.0):
            return Combination(plan.COPY, kept)
        # Without a weight there is nothing to add up, and the result is zeros of the right shape.
        kept = kept or self._lanes[:1]
        return Combination(plan.linear([weights[lane] for lane in kept], normalize=normalize), kept)

    def _slerp(self, shared: Mapping[str, Any], _: Mapping[str, Mapping[int, float]]) -> Combination | str:
        if len(self._lanes) != 2:
            return f"slerp takes exactly 2 models, here are {len(self._lanes)}"
        a = self._lanes[0] if self._base is None else self._base
        b = self._lanes[1 - a]
        t = shared["t"]
        if t in (0.0, 1.0):
            return Combination(plan.COPY, (b if t else a,))
        return Combination(plan.slerp(t), (a, b))

    def _task_arithmetic(
        self, shared: Mapping[str, Any], per_lane: Mapping[str, Mapping[int, float]]
    ) -> Combination | str:
        assert self._base is not None  # MethodSpec.base is "required"
        weights, normalize, lambda_ = per_lane["weight"], shared["normalize"], shared["lambda"]
        if normalize and (problem := _cancelling(weights.values())):
            return problem
        kept = [lane for lane, weight in weights.items() if weight != 0.0]
        if not kept or lambda_ == 0.0:
            return Combination(plan.COPY, (self._base,))
        method = plan.task_arithmetic([weights[lane] for lane in kept], normalize=normalize, lambda_=lambda_)
        return Combination(method, (self._base, *kept))

    def _ties(self, shared: Mapping[str, Any], per_lane: Mapping[str, Mapping[int, float]]) -> Combination | str:
        assert self._base is not None  # MethodSpec.base is "required"
        weights, densities = per_lane["weight"], per_lane["density"]
        # A trimmed-away or weightless difference is zero: it neither votes nor counts in the divisor.
        kept = [lane for lane, weight in weights.items() if weight != 0.0 and densities[lane] != 0.0]
        if not kept or shared["lambda"] == 0.0:
            return Combination(plan.COPY, (self._base,))
        method = plan.ties(
            [weights[lane] for lane in kept],
            [densities[lane] for lane in kept],
            normalize=shared["normalize"],
            rescale=shared["rescale"],
            lambda_=shared["lambda"],
            majority_sign_method=shared["majority_sign_method"],
        )
        return Combination(method, (self._base, *kept))

    def _passthrough(self, _: Mapping[str, Any], per_lane: Mapping[str, Mapping[int, float]]) -> Combination | str:
        if len(self._lanes) != 1:
            return f"passthrough takes exactly 1 model in a slice, here are {len(self._lanes)}"
        factor = per_lane["scale"][0]
        return Combination(plan.COPY if factor == 1.0 else plan.scale(factor), (0,))


_METHODS: Final = {
    "linear": Combiner._linear,
    "slerp": Combiner._slerp,
    "task_arithmetic": Combiner._task_arithmetic,
    "ties": Combiner._ties,
    "passthrough": Combiner._passthrough,
}


def _cancelling(weights: Iterable[float]) -> str | None:
    """Say why weights cannot be divided by their sum, None where they can."""
    values = list(weights)
    if not weights_cancel(values):
        return None
    listed = ", ".join(f"{weight:g}" for weight in values)
    told = f"the weights ({listed}) sum to zero, and `normalize: true` divides by their sum"
    return f"{told}; change them or say `normalize: false`"


def idle_filters(config: MergeConfig, plan: MergePlan) -> Iterator[str]:
    """Tell of each filter of a recipe that fits no tensor of the plan."""
    filters = dict.fromkeys(config.filters())
    if not filters:
        return
    names = {task.name for task in plan.tasks} | {name for task in plan.tasks for _, name in task.sources}
    for parameter, text in filters:
        if not any(map(compile_filter(text), names)):
            parts = sorted({part for name in names for part in name.split(".")})
            yield f"the filter `{text}` of `{parameter}` fits no tensor and has no effect{suggestion(text, parts)}"
