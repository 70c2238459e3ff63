"""Decides how tensors are made where the recipe has rules: the first whose filter fits a tensor's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mol.config.methods import METHODS
from mol.config.parameters import compile_filter
from mol.merge.combine import Combination, Combiner
from mol.merge.experts import matrix_names
from mol.merge.plan import COPY
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mol.config.merge_config import MergeConfig, ModelReference, SourceConfig
    from mol.config.parameters import Matcher
    from mol.config.rules import RuleConfig
    from mol.merge.combine import Combine
    from mol.merge.plan import OutputTensor

    Decide = Callable[[Sequence[str | None], str, float], Combination | str]


def combiner(
    config: MergeConfig,
    slice_index: int,
    sources: Sequence[SourceConfig],
    models: Sequence[ModelReference],
    base: ModelReference | None,
) -> Combine:
    """Return what decides how the tensors of a slice are made.

    Args:
        config: the recipe.
        slice_index: which slice.
        sources: those that the recipe lists for it.
        models: its inputs: these, and perhaps a base that the recipe does not list.
        base: its base.
    """
    positions = [index if index < len(sources) else None for index in range(len(models))]
    plain = Combiner(config, slice_index, positions, models.index(base) if base in models else None)
    if not config.rules:
        return plain
    combiners = [plain]
    decide = [_decide(config, rule, slice_index, models, base, combiners) for rule in config.rules]
    return _Ruled(combiners, decide, config.rules)


class _Ruled:
    """The rules of a recipe for one slice, and its own method for the rest."""

    def __init__(self, combiners: Sequence[Combiner], decide: Sequence[Decide], rules: Sequence[RuleConfig]) -> None:
        tests: list[Matcher | None] = [None if rule.filter is None else compile_filter(rule.filter) for rule in rules]
        self._rules = list(zip(tests, decide, range(1, len(rules) + 1), strict=True))
        self._plain = combiners[0]
        self._combiners = combiners
        self.fixed: Combination | str | None = None

    def set_depth(self, first: float, last: float) -> None:
        for combine in self._combiners:
            combine.set_depth(first, last)

    def __call__(self, names: Sequence[str | None], output: str, position: float) -> Combination | str:
        for matches, decide, number in self._rules:
            if matches is None or matches(output):
                found = decide(names, output, position)
                return f"rule {number}: {found}" if isinstance(found, str) else found._replace(rule=number)
        return self._plain(names, output, position)


def _decide(
    config: MergeConfig,
    rule: RuleConfig,
    slice_index: int,
    models: Sequence[ModelReference],
    base: ModelReference | None,
    combiners: list[Combiner],
) -> Decide:
    """Return how one rule makes a tensor of a slice; what decides by parameters is added to the combiners."""
    if rule.copy is not None:
        return _copy(rule.copy, slice_index, models, sliced=config.slices is not None)
    own = config.under_rule(rule)
    start = rule.base_model or base
    lacking = [source.model for source in rule.models or () if source.model not in models]
    if lacking:
        problem = f"{lacking[0]} is not among the sources of slice {slice_index + 1}"
        return lambda _names, _output, _position: problem
    listed = (own.models if own.slices is None else own.slices[slice_index].sources) or ()
    inputs: list[int] = []
    positions: list[int | None] = []
    for number, source in enumerate(listed):
        found = [index for index, model in enumerate(models) if model == source.model and index not in inputs]
        inputs.append(found[0])
        positions.append(number)
    if METHODS[own.method].starts_from(start) and start in models and start not in [models[index] for index in inputs]:
        inputs.append(models.index(start))
        positions.append(None)
    base_at = next((lane for lane, index in enumerate(inputs) if models[index] == start), None)
    inner = Combiner(own, slice_index, positions, base_at)
    combiners.append(inner)

    def decide(names: Sequence[str | None], output: str, position: float) -> Combination | str:
        found = inner([names[index] for index in inputs], output, position)
        return found if isinstance(found, str) else found.moved(inputs)

    return decide


def _copy(model: ModelReference, slice_index: int, models: Sequence[ModelReference], *, sliced: bool) -> Decide:
    found = [index for index, other in enumerate(models) if other == model]
    where = f"the sources of slice {slice_index + 1}" if sliced else "the models that are merged"
    if len(found) == 1:
        result: Combination | str = Combination(COPY, (found[0],))
    else:
        result = f"`copy: {model}`: it is {'twice' if found else 'not'} among {where}"
    return lambda _names, _output, _position: result


def rule_lines(config: MergeConfig, taken: Mapping[str, int]) -> Iterator[str]:
    """Report how many tensors each rule made."""
    counts = list(taken.values())
    for number, rule in enumerate(config.rules, 1):
        if count := counts.count(number):
            yield f"rule {number} ({rule}) made {count} tensor{'s' * (count > 1)}"


def idle_rules(config: MergeConfig, taken: Mapping[str, int], tensors: Sequence[OutputTensor]) -> Iterator[str]:
    """Report each rule that made no tensor."""
    names = [*(tensor.name for tensor in tensors), *matrix_names(tensors)]
    made = set(taken.values())
    for number, rule in enumerate(config.rules, 1):
        if number in made:
            continue
        if rule.filter is None or any(map(compile_filter(rule.filter), names)):
            yield f"rule {number} ({rule}) has no effect: rules before it take every tensor that it fits"
        else:
            parts = sorted({part for name in names for part in name.split(".")})
            yield f"rule {number} ({rule}) fits no tensor and has no effect{suggestion(rule.filter, parts)}"
