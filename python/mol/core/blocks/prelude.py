"""Runs a model with its blocks stubbed, and captures what each block is handed: masks, positions, caches, all of it.

A stub returns the hidden states that it was given, so everything around the blocks is the model's own code, and no code
here depends on an architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache

from mol.core.blocks.calls import (
    Arguments,
    Port,
    ResultForm,
    Slot,
    argument,
    first_hidden,
    items,
    output_at,
    ports,
    with_argument,
)
from mol.core.blocks.dispatch import call_block, intercepted, make_interceptable
from mol.errors import ArchitectureError

Forward = Callable[[], object]
"""Runs the model that calls the blocks."""

Carries = dict[tuple[int, Slot], Any]
"""Values of extra results in this forward, by the call and the slot that take them."""


class Carry(NamedTuple):
    """An extra result that the next call takes: T5's position bias, say.

    Attributes:
        call: the call that takes it.
        slot: where.
        port: in the result of the call before.
    """

    call: int
    slot: Slot
    port: Port


@dataclass(frozen=True)
class CallForm:
    """One call of a block in a forward; a block that is shared between layers is called several times.

    Attributes:
        block: the module.
        hidden_in: the slot of the hidden states.
        result: the structure of its result, with the port of the hidden states.
        also_in: further slots of the same hidden states: as keys and values, say.
    """

    block: nn.Module
    hidden_in: Slot
    result: ResultForm
    also_in: frozenset[Slot] = frozenset()

    def with_hidden(self, call: Arguments, hidden: torch.Tensor | None) -> Arguments:
        """Return the same call with other hidden states, or with none."""
        for slot in (self.hidden_in, *self.also_in):
            call = with_argument(call, slot, hidden)
        return call


class BlockCalls:
    """The calls of a stack's blocks in one forward of the model around them, in order.

    Attributes:
        forms: one for each call.
        carries: extra results that one call passes to the next.
        producers: calls that compute a carry instead of passing it on, or write into a mapping that all are handed
            (keys and values for later layers, say); a prelude runs these for real.
        writes: whether a block writes into a mapping that others read.
        shape: shape of the hidden states of the first call when the calls were traced.
    """

    def __init__(self, blocks: Sequence[nn.Module], forward: Forward, name: str) -> None:
        """Trace one forward and follow the data between blocks by the identity of tensors.

        Args:
            blocks: the stack; its blocks are made interceptable.
            forward: one real forward of the model around them, on a tiny input.
            name: the stack's name in messages.

        Raises:
            ArchitectureError: the forward calls none of the blocks, or a block's hidden states cannot be followed.
        """
        make_interceptable(blocks)
        self._blocks = list(blocks)
        self._name = name
        trace: list[tuple[nn.Module, Arguments, Any]] = []
        writers: set[int] = set()

        def record(block: nn.Module, call: Arguments) -> Any:  # noqa: ANN401 - as the block returns it
            before = _mappings(call)
            result = call_block(block, call)
            if any(before[slot].keys() != after.keys() for slot, after in _mappings(call).items()):
                writers.add(len(trace))
            trace.append((block, call, result))
            return result

        with torch.no_grad(), intercepted(blocks, record):
            forward()
        if not trace:
            raise ArchitectureError(f"{name}: a forward of its model calls none of its blocks")
        self.carries: list[Carry] = []
        self.forms = self._follow(trace)
        self.producers = {carry.call - 1 for carry in self.carries if self._is_made(trace[carry.call - 1], carry)}
        self.producers |= writers
        self.writes = bool(writers)
        hidden = argument(trace[0][1], self.forms[0].hidden_in)
        self.shape = tuple(hidden.shape)
        self._check_shapes(trace)

    def __len__(self) -> int:
        """Count the calls."""
        return len(self.forms)

    def capture(self, forward: Forward, last: torch.Tensor | None = None) -> tuple[list[Arguments], Any]:
        """Run the prelude, `forward` with stubbed blocks, and return what each block was handed.

        Args:
            forward: a forward of the model around the blocks.
            last: hidden states that the last stub returns, so that the final norm and head run on them.

        Returns:
            What each call was handed, and what `forward` returned.

        Raises:
            ArchitectureError: the forward does not call the blocks as it did when it was traced.
        """
        handed: list[Arguments] = []

        def stub(block: nn.Module, call: Arguments) -> Any:  # noqa: ANN401 - as the block returns it
            index = len(handed)
            form = self.form_of(index, block)
            handed.append(call)
            hidden = argument(call, form.hidden_in)
            if last is not None and index == len(self.forms) - 1:
                hidden = last
            return self.stub(index, call, hidden)

        with intercepted(self._blocks, stub):
            result = forward()
        self.check_count(len(handed))
        return handed, result

    def check_count(self, count: int) -> None:
        """Check that a forward called the blocks as often as the traced one.

        Raises:
            ArchitectureError: it has not.
        """
        if count != len(self.forms):
            raise ArchitectureError(
                f"{self._name}: {count} calls of blocks in this forward, {len(self)} when it was traced"
            )

    def form_of(self, index: int, block: nn.Module) -> CallForm:
        """Return the form of a call, after a check that it is the call of this block.

        Raises:
            ArchitectureError: it is not.
        """
        if index >= len(self.forms) or self.forms[index].block is not block:
            raise ArchitectureError(
                f"{self._name}: call {index} of its blocks is not the one that was traced: its model chooses them"
            )
        return self.forms[index]

    def stub(self, index: int, call: Arguments, hidden: torch.Tensor) -> Any:  # noqa: ANN401 - as the block returns it
        """Return the result of a call without running it: these hidden states, and its carries."""
        form = self.forms[index]
        carried: dict[Port, object] = {}
        mine = [carry for carry in self.carries if carry.call == index + 1]
        made: Any = None
        if index in self.producers:
            with untouched_caches(call):
                made = call_block(form.block, call)
        for carry in mine:
            carried[carry.port] = argument(call, carry.slot) if made is None else output_at(made, carry.port)
        return form.result.make(hidden, carried)

    def run_call(self, index: int, hidden: torch.Tensor, call: Arguments, live: Carries | None = None) -> torch.Tensor:
        """Run the block of a call on hidden states, with the other arguments from its prelude.

        Args:
            index: which call.
            hidden: in the block's own layout, see `Layout`.
            call: from `capture`.
            live: carries of blocks that ran before in this forward; those of this block are added.

        Returns:
            Hidden states in the same layout.
        """
        form = self.forms[index]
        call = form.with_hidden(call, hidden)
        for (taker, slot), value in (live or {}).items():
            if taker == index:
                call = with_argument(call, slot, value)
        result = call_block(form.block, call)
        if live is not None:
            for carry in self.carries:
                if carry.call == index + 1:
                    live[carry.call, carry.slot] = output_at(result, carry.port)
        hidden_out: torch.Tensor = output_at(result, form.result.port)
        return hidden_out

    def _follow(self, trace: list[tuple[nn.Module, Arguments, Any]]) -> list[CallForm]:
        ins: list[Slot | None] = [None] * len(trace)
        outs: list[Port] = [None] * len(trace)
        for index in range(1, len(trace)):
            (_, _, result), (_, call, _) = trace[index - 1], trace[index]
            links = [
                (slot, port)
                for port, given in ports(result)
                if isinstance(given, torch.Tensor)
                for slot, taken in items(call)
                if taken is given
            ]
            floats = [link for link in links if output_at(result, link[1]).is_floating_point()]
            hidden = floats[0] if floats else self._same_values(result, call)
            if hidden is None:
                raise ArchitectureError(
                    f"{self._name}: what block call {index - 1} returns does not reach call {index} unchanged, so its "
                    "blocks cannot be run alone"
                )
            ins[index], outs[index - 1] = hidden
            self.carries += [Carry(index, slot, port) for slot, port in links if (slot, port) != hidden]
        first, last = trace[0], trace[-1]
        ins[0] = ins[1] if len(trace) > 1 else None
        if ins[0] is None or not isinstance(argument(first[1], ins[0]), torch.Tensor):
            ins[0] = first_hidden(first[1])
        if len(trace) > 1:
            outs[-1] = outs[-2]
        else:
            floating = (p for p, v in ports(last[2]) if isinstance(v, torch.Tensor) and v.is_floating_point())
            outs[-1] = next(floating, None)
        if any(slot is None for slot in ins):
            raise ArchitectureError(f"{self._name}: its first block is handed no hidden states")
        taking = [slot for slot in ins if slot is not None]
        also = self._taken_also([call for _, call, _ in trace], taking)
        self.carries = [c for c in self.carries if not (c.slot in also and c.port == outs[c.call - 1])]
        return [
            CallForm(block, slot, ResultForm(result, port), also)
            for (block, _, result), slot, port in zip(trace, taking, outs, strict=True)
        ]

    @staticmethod
    def _taken_also(calls: list[Arguments], taking: list[Slot]) -> frozenset[Slot]:
        """Return the slots that in every call get the same hidden states as the one that takes them."""
        if len(calls) == 1:  # arguments of all calls, such as the first hidden states, are the same in the first call
            return frozenset()
        return frozenset[Slot].intersection(
            *(
                frozenset(slot for slot, value in items(call) if slot != own and value is argument(call, own))
                for call, own in zip(calls, taking, strict=True)
            )
        )

    @staticmethod
    def _same_values(result: object, call: Arguments) -> tuple[Slot, Port] | None:
        """Return where hidden states go that were cloned or viewed on their way."""
        for port, given in ports(result):
            if isinstance(given, torch.Tensor) and given.is_floating_point():
                for slot, taken in items(call):
                    if isinstance(taken, torch.Tensor) and taken.shape == given.shape and torch.equal(taken, given):
                        return slot, port
        return None

    @staticmethod
    def _is_made(traced: tuple[nn.Module, Arguments, Any], carry: Carry) -> bool:
        _, call, result = traced
        value = output_at(result, carry.port)
        return all(value is not taken for _, taken in items(call))

    def _check_shapes(self, trace: list[tuple[nn.Module, Arguments, Any]]) -> None:
        for form, (_, call, result) in zip(self.forms, trace, strict=True):
            taken = argument(call, form.hidden_in)
            given = output_at(result, form.result.port)
            if tuple(taken.shape) != self.shape or tuple(given.shape) != self.shape:
                raise ArchitectureError(
                    f"{self._name}: its blocks change the shape of the hidden states ({list(self.shape)} to "
                    f"{list(given.shape)}), so a single block cannot replace another"
                )


def _mappings(call: Arguments) -> dict[Slot, dict[Any, Any]]:
    """Return copies of the mappings that a block is handed and may write into."""
    return {slot: dict(value) for slot, value in items(call) if isinstance(value, MutableMapping)}


@contextmanager
def untouched_caches(call: Arguments) -> Iterator[None]:
    """Context manager that restores the caches a block was handed after it has run."""
    saved: list[tuple[dict[str, Any], dict[str, Any]]] = []
    lists: list[tuple[list[Any], list[Any]]] = []
    waiting = [value for _, value in items(call) if isinstance(value, Cache)]
    while waiting:
        cache = waiting.pop()
        saved.append((cache.__dict__, dict(cache.__dict__)))
        for value in cache.__dict__.values():
            if isinstance(value, Cache):
                waiting.append(value)
            elif isinstance(value, dict):
                saved.append((value, dict(value)))
        layers = cache.__dict__.get("layers", [])
        lists.append((layers, list(layers)))
        # Layers replace their tensors when they grow, so the old ones are still whole.
        saved += [(layer.__dict__, dict(layer.__dict__)) for layer in layers]
    try:
        yield
    finally:
        for attributes, before in saved:
            attributes.clear()
            attributes.update(before)
        for layers, kept in lists:
            layers[:] = kept


def with_cache(call: Arguments, cache: Cache) -> Arguments:
    """Return the same call with another cache instead of the one that it has."""
    for slot, value in list(items(call)):
        if isinstance(value, Cache):
            call = with_argument(call, slot, cache)
    return call
