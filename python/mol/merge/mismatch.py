"""Collects everything that does not fit, and reports it briefly: layers alike on one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mol.regex import regex
from mol.structure.names import EMBEDDING, HEAD
from mol.text import ranges

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.merge.model import Model

_DIMENSION: Final = regex(r"size|dim|head|embd|inner|ffn|layer|expert|model|position|ctx|vocab|group")
_EXPERT: Final = regex(r"((?:^|\.)experts\.)([0-9]{1,9})(?=\.)")
_LABELS_SHOWN: Final = 4


class Mismatches:
    """What speaks against a merge, in the order in which it was found."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._plain: dict[str, None] = {}
        self._grouped: dict[tuple[str, str], dict[int | None, set[tuple[int, ...]]]] = {}
        self._vocabulary: dict[tuple[str, int, int], list[str]] = {}
        self._misshapen: dict[int, Model] = {}
        self._foreign: Sequence[Model] = ()

    def add(self, problem: str) -> None:
        """Add a line; the same line twice counts once."""
        self._plain[problem] = None

    def add_architectures(self, problem: str, models: Sequence[Model]) -> None:
        """Add that models have different architectures; the sizes that their configs state are reported too."""
        self.add(problem)
        self._foreign = models

    def add_tensor(self, name: str, layer: int | None, problem: str) -> None:
        """Add what is wrong with a tensor; the same in several layers, or of several experts, becomes one line.

        Args:
            name: the tensor, with `*` for the number of its layer if `layer` is given.
            layer: that number.
            problem: what follows the name in the line.
        """
        pattern = _EXPERT.sub(r"\1*", name)
        experts = tuple(int(number) for _, number in _EXPERT.findall(name))
        self._grouped.setdefault((pattern, problem), {}).setdefault(layer, set()).add(experts)

    def add_shape(
        self, donor: Model, model: Model, name: str, layer: int | None, found: tuple[int, ...], wanted: tuple[int, ...]
    ) -> None:
        """Add a tensor whose shape is not the wanted one."""
        sizes = _vocabulary_sizes(donor, model, name, found, wanted)
        if sizes is not None:
            self._vocabulary.setdefault((model.label, *sizes), []).append(name)
            return
        self._misshapen.setdefault(model.index, model)
        self.add_tensor(
            name, layer, f"has shape {list(found)} in {model.label}, wanted {list(wanted)} as in {donor.label}"
        )

    def __bool__(self) -> bool:
        """Return whether anything was found."""
        return bool(self._plain or self._grouped or self._vocabulary)

    @property
    def call_for_fusion(self) -> bool:
        """Whether architectures differ, or tensors differ in shape for another reason than the vocabulary."""
        return bool(self._misshapen or self._foreign)

    def lines(self, donor: Model) -> list[str]:
        """Return everything that was found, one line each."""
        lines = list(self._plain)
        for model in self._foreign:
            sizes = ", ".join(f"{key} {size}" for key, size in _dimensions(model.checkpoint.config).items())
            lines.append(f"config.json of {model.label} has {sizes or 'no sizes'}")
        for (label, found, wanted), names in self._vocabulary.items():
            lines.append(
                f"vocabulary sizes differ: {label} has {found} rows in {_listed(names)}, wanted {wanted} as in "
                f"{donor.label}; rows are paired by token only where a tokenizer is known, in embeddings and heads "
                "that are known by name; leave the model out"
            )
        for model in self._misshapen.values():
            lines.extend(_config_differences(donor, model))
        for (name, problem), by_layer in self._grouped.items():
            alike: dict[frozenset[tuple[int, ...]], list[int]] = {}
            for layer, experts in by_layer.items():
                alike.setdefault(frozenset(experts), []).extend(() if layer is None else (layer,))
            for of_each, layers in alike.items():
                numbers = {number for experts in of_each for number in experts}
                parts = (f"{what} {ranges(of)}" for what, of in (("layers", layers), ("experts", numbers)) if of)
                where = ", ".join(parts)
                lines.append(f"tensor `{name}`{where and f' ({where})'} {problem}")
        return lines


def _vocabulary_sizes(
    donor: Model, model: Model, name: str, found: Sequence[int], wanted: Sequence[int]
) -> tuple[int, int] | None:
    """Return the two vocabulary sizes when they are all that differs, else None."""
    if len(found) != len(wanted):
        return None
    axes = [axis for axis, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b]
    if len(axes) != 1:
        return None
    sizes = found[axes[0]], wanted[axes[0]]
    stated = sizes[0] in _stated(model.checkpoint.config), sizes[1] in _stated(donor.checkpoint.config)
    named = axes[0] == 0 and (EMBEDDING.search(name) or HEAD.search(name))
    return sizes if all(stated) or named else None


def _stated(config: Mapping[str, Any]) -> set[int]:
    """Collect the vocabulary sizes that config.json states."""
    found = {v for key, v in config.items() if "vocab_size" in key and type(v) is int}
    return found.union(*(_stated(v) for v in config.values() if isinstance(v, dict)))


def _config_differences(donor: Model, model: Model) -> list[str]:
    ours, theirs = _dimensions(donor.checkpoint.config), _dimensions(model.checkpoint.config)
    differing = [f"{key} {theirs[key]} (wanted {ours[key]})" for key in ours if theirs.get(key, ours[key]) != ours[key]]
    return [f"config.json of {model.label} differs from {donor.label}: {', '.join(differing)}"] if differing else []


def _dimensions(config: Mapping[str, Any], path: str = "") -> dict[str, int]:
    found: dict[str, int] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _dimensions(value, f"{path}{key}.")
        elif type(value) is int and _DIMENSION.search(key):
            found[f"{path}{key}"] = value
    return found


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_LABELS_SHOWN])
    return shown if len(names) <= _LABELS_SHOWN else f"{shown} and {len(names) - _LABELS_SHOWN} more"
