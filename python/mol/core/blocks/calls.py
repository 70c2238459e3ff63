"""Reads and replaces the arguments and results of a block's call: hidden states, and all that is passed with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with: positional and keyword arguments."""

Slot = int | str
"""An argument: its position, or its keyword."""

Port = int | str | None
"""A tensor of a result: its index or key; None if the result is the tensor itself."""


def items(call: Arguments) -> Iterator[tuple[Slot, Any]]:
    """Yield every argument with its slot."""
    args, kwargs = call
    yield from enumerate(args)
    yield from kwargs.items()


def argument(call: Arguments, slot: Slot) -> Any:  # noqa: ANN401 - whatever a model passes
    """Return the argument in a slot, None if the call has none there."""
    args, kwargs = call
    if isinstance(slot, int):
        return args[slot] if slot < len(args) else None
    return kwargs.get(slot)


def with_argument(call: Arguments, slot: Slot, value: object) -> Arguments:
    """Return the same call with another argument in a slot."""
    args, kwargs = call
    if isinstance(slot, int):
        return (*args[:slot], value, *args[slot + 1 :]), kwargs
    return args, {**kwargs, slot: value}


def ports(result: object) -> Iterator[tuple[Port, Any]]:
    """Yield every tensor of a result with its port."""
    if isinstance(result, torch.Tensor):
        yield None, result
    elif isinstance(result, Mapping):
        yield from result.items()
    elif isinstance(result, (tuple, list)):
        yield from enumerate(result)


def output_at(result: Any, port: Port) -> Any:  # noqa: ANN401 - whatever a block returns
    """Return the tensor at a port of a result."""
    return result if port is None else result[port]


def first_hidden(call: Arguments) -> Slot | None:
    """Return the slot of the first float tensor of two or more axes, None if there is none."""
    for slot, value in items(call):
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() >= 2:
            return slot
    return None


def tensors(value: Any) -> Iterator[torch.Tensor]:  # noqa: ANN401 - whatever a model hands a block
    """Yield the tensors in a value, however deep."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


class ResultForm:
    """The structure of a block's result without its tensors, to build the same around other hidden states."""

    def __init__(self, result: object, port: Port) -> None:
        """Record the type and the keys of a result whose hidden states are at `port`.

        Raises:
            TypeError: the result is no tensor, tuple, list or mapping.
        """
        self.port = port
        self._type: Any = type(result)
        self._keys: list[Port] = [key for key, _ in ports(result)]
        if not self._keys:
            raise TypeError(f"a block returned a {self._type.__name__}, wanted a tensor, a tuple or a mapping of them")

    def make(self, hidden: torch.Tensor, others: Mapping[Port, object]) -> Any:  # noqa: ANN401 - as the block returns it
        """Return a result with these hidden states, the given other tensors, and None at all other ports."""
        if self.port is None:
            return hidden
        values = {key: hidden if key == self.port else others.get(key) for key in self._keys}
        if issubclass(self._type, Mapping):
            return self._type(**{str(key): value for key, value in values.items()})
        if hasattr(self._type, "_fields"):  # a namedtuple takes its fields one by one
            return self._type(*values.values())
        return self._type(values.values())
