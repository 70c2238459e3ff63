"""What each part of the output is made of: one list of slices for all, or one for each module of the recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mol.merge.combine import Combination
from mol.merge.inputs import make_slices, set_depths
from mol.merge.model import Slice, SliceSource
from mol.merge.plan import COPY
from mol.structure.modules import DEFAULT, find_modules, stacks_of
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mol.config.merge_config import MergeConfig, ModelReference
    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Model
    from mol.structure.layers import Stack
    from mol.structure.modules import Modules


class _Carry:
    """Copies the only input."""

    def __init__(self) -> None:
        self.fixed: Combination | str | None = Combination(COPY, (0,))

    def set_depth(self, first: float, last: float) -> None:
        """Nothing depends on the depth."""

    def __call__(self, names: Sequence[str | None], output: str, position: float) -> Combination | str:
        return Combination(COPY, (0,))


class Parts:
    """The slices of every part of the output."""

    def __init__(
        self,
        config: MergeConfig,
        models: Mapping[ModelReference, Model],
        donor: Model,
        problems: Mismatches,
        notes: dict[str, None],
    ) -> None:
        """Find the inputs of every slice.

        Args:
            config: the recipe.
            models: every model of it.
            donor: the one whose tensors the output has.
            problems: where what does not fit goes.
            notes: where it is said what is carried over.
        """
        self._donor = donor
        self._modules: Modules | None = None
        self._slices: dict[str, list[Slice]] = {}
        if not config.modules:
            self._slices[DEFAULT] = make_slices(config, models, problems, donor.structure.main)
            set_depths(self._slices[DEFAULT])
            return
        self._modules = modules = find_modules(donor.structure, donor.checkpoint.config)
        wanted: dict[str, MergeConfig] = {}
        for given in config.modules:
            name = DEFAULT if given.name == DEFAULT else modules.named(given.name)
            if name is None:
                listed = ", ".join(f"`{known}`" for known in modules.words)
                hint = suggestion(given.name, [word for words in modules.words.values() for word in words])
                problems.add(f"{donor.label} has no module `{given.name}`{hint}; it has {listed}")
            elif name in wanted:
                problems.add(f"`{given.name}` is the module `{name}`, which the recipe has already")
            else:
                wanted[name] = config.of_module(given)
        rest = wanted.pop(DEFAULT, None)
        for name in modules.words:
            own = wanted.get(name, rest)
            if own is None:
                notes[f"`{name}` is not among `modules`: it is carried over from {donor.label}"] = None
                self._slices[name] = [Slice((SliceSource(donor, 0, None),), 0, 0, _Carry(), None)]
                continue
            stacks = stacks_of(modules, name, donor.structure)
            stack = stacks[0] if len(stacks) == 1 else None
            self._slices[name] = make_slices(own, models, problems, stack, f"module `{name}`: ")
            set_depths(self._slices[name])
            if name in wanted:
                for model in dict.fromkeys(model for slice_ in self._slices[name] for model in slice_.models):
                    if not self._tensors(modules, name, model):
                        problems.add(f"module `{name}`: {model.label} has no tensor of it")

    def _tensors(self, modules: Modules, name: str, model: Model) -> set[str]:
        """Return the names of a module's tensors in one of the models."""
        names = modules.tensors(name, self._donor.structure)
        found = (model.alignment.find(tensor, model.checkpoint.tensors) for tensor in names)
        return {tensor for tensor in found if tensor is not None}

    def others(self, model: Model) -> Iterator[tuple[str, set[str]]]:
        """Yield the modules for which the recipe does not take a model, with its tensors of them."""
        for name, slices in self._slices.items():
            if self._modules is not None and not any(model in slice_.models for slice_ in slices):
                yield name, self._tensors(self._modules, name, model)

    def of(self, path: str) -> list[Slice]:
        """Return the slices that make a tensor outside the layers, or a stack named by its prefix."""
        return next(iter(self._slices.values())) if self._modules is None else self._slices[self._modules.of[path]]

    def all(self) -> Iterator[list[Slice]]:
        """Yield the slices of each part."""
        yield from self._slices.values()

    @property
    def divided(self) -> bool:
        """Whether the recipe has `modules`."""
        return self._modules is not None

    def stack(self, slices: Sequence[Slice]) -> Stack | None:
        """Return the donor's stack whose layers slices choose, None where whole models are merged."""
        return slices[0].stack if slices[0].length else None
