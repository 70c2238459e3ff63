"""Lists every tensor of an input that is not in the output: whole layers on one line, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mol.structure.layers import is_side_tower
from mol.structure.names import natural_key
from mol.text import ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Model
    from mol.merge.parts import Parts
    from mol.structure.layers import Stack


class Account:
    """What of the inputs is not in the output.

    Attributes:
        lines: "name: reason" of each tensor, or of several layers.
        tensors: number of them.
        warnings: towers that the output does not have.
    """

    def __init__(self, donor: Model, parts: Parts, problems: Mismatches, *, strict: bool) -> None:
        """Start with nothing.

        Args:
            donor: the model whose tensors the output has.
            parts: what is merged.
            problems: where what may not be dropped goes.
            strict: refuse to drop tensors that only the donor lacks.
        """
        self._donor = donor
        self._parts = parts
        self._problems = problems
        self._strict = strict
        self.lines: list[str] = []
        self.tensors = 0
        self.warnings: list[str] = []

    def drop(self, line: str, tensors: int = 1) -> None:
        """Add a line."""
        self.lines.append(line)
        self.tensors += tensors

    def close(self, models: Sequence[Model]) -> None:
        """List every tensor of the models that has not been used."""
        known = self._donor.checkpoint.tensors
        for model in models:
            left = model.checkpoint.tensors.keys() - model.used
            for name, others in self._parts.others(model):
                if count := len(others & left):
                    what = f"`{name}` of {model.label} ({count} tensor{'s' * (count > 1)})"
                    self.drop(f"{what}: this module is made of other models", count)
                    left -= others
            for stack in model.structure.stacks:
                self._close_stack(model, stack, left)
            for tail in model.structure.tails:
                self._close_tail(model, tail, left)
            for name in sorted(left, key=natural_key):
                if name in known or model.alignment.to_donor(name, known) in known:
                    self.drop(f"{name} of {model.label}: this tensor comes from another slice")
                elif self._strict:
                    problem = f"is in {model.label}, and {self._donor.label} lacks it (--strict-tensors)"
                    self._problems.add_tensor(name, None, problem)
                else:
                    self.drop(f"{name} of {model.label}: {self._donor.label} has no such tensor")

    def _close_tail(self, model: Model, tail: Stack, left: set[str]) -> None:
        names = [name for layer in range(len(tail)) for name in tail.names(layer) if name in left]
        if names:
            left.difference_update(names)
            donor = self._donor
            reason = f"that of {donor.label} is copied" if donor.structure.tails else f"{donor.label} has none"
            self.drop(
                f"{span_of(tail, model, len(names))}: predicts further tokens and is no layer; {reason}",
                len(names),
            )

    def _close_stack(self, model: Model, stack: Stack, left: set[str]) -> None:
        """List layers that were left out as a whole, and take their names off `left`."""
        unused: list[int] = []
        count = 0
        for layer in range(len(stack)):
            names = stack.names(layer)
            if names and left.issuperset(names):
                unused.append(layer)
                count += len(names)
                left.difference_update(names)
        if not unused:
            return
        what = span_of(stack, model, count, unused)
        ours = next((prefix for prefix, theirs in model.alignment.stacks.items() if theirs is stack), None)
        if ours is None and (self._parts.divided or model in self._parts.of("")[0].models):
            without = f"{self._donor.label} has no such layers"
            if not self._parts.divided and (
                self._strict or not is_side_tower(stack.prefix) or stack is model.structure.main
            ):
                self._problems.add(f"{what}: {without}")
                return
            self.drop(f"{what}: {without}", count)
            self.warnings.append(
                f"{model.label} has `{stack.prefix}` and {self._donor.label}, after which the output is built, has no "
                "such tower: it is left out"
            )
        elif ours is None or any(slice_.length and model in slice_.models for slice_ in self._parts.of(ours)):
            self.drop(f"{what}: in no slice", count)
        else:
            self.drop(f"{what}: layer_alignment maps others instead", count)


def span_of(stack: Stack, model: Model, tensors: int, layers: Sequence[int] | None = None) -> str:
    """Name layers of a model, all if None, with the number of their tensors."""
    start = f"{stack.prefix}." if stack.prefix else ""
    numbers = ranges(stack.first + layer for layer in (range(len(stack)) if layers is None else layers))
    return f"{start}{numbers} of {model.label} ({tensors} tensor{'s' * (tensors > 1)})"
