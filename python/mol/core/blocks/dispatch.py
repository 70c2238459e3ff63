"""Intercepts the calls of a model's blocks in one forward, in its own thread and context only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, TypeVar

from torch import nn

from mol.core.blocks.calls import Arguments

Handler = Callable[[nn.Module, Arguments], Any]
"""Handles a block's call instead of the block."""

_handlers: ContextVar[dict[int, Handler] | None] = ContextVar("mol_block_handlers", default=None)
_M = TypeVar("_M", bound=nn.Module)


def twin(model: _M) -> _M:
    """Return a second set of modules over the same parameters and buffers.

    Changes of a twin's modules (their forward, `is_causal`, the mode) do not reach the model, and no weight is copied.
    """
    shared = {id(tensor): tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
    return copy.deepcopy(model, dict(shared))


def make_interceptable(blocks: Iterable[nn.Module]) -> None:
    """Replace the forward of each block by a dispatcher, which calls the original one unless there is a handler."""
    for block in blocks:
        if "_mol_forward" not in block.__dict__:
            block.__dict__["_mol_forward"] = block.__dict__.get("forward")
            # A bound method and no closure: a copy of the block then dispatches its own calls.
            block.__dict__["forward"] = MethodType(_dispatch, block)


def call_block(block: nn.Module, call: Arguments) -> Any:  # noqa: ANN401 - as the block returns it
    """Call a block's own forward, past the dispatcher of `make_interceptable`."""
    args, kwargs = call
    replaced = block.__dict__["_mol_forward"]  # such as the one of a device hook
    return type(block).forward(block, *args, **kwargs) if replaced is None else replaced(*args, **kwargs)


@contextmanager
def intercepted(blocks: Iterable[nn.Module], handler: Handler) -> Iterator[None]:
    """Pass every call of these blocks, and of no others, to `handler` while the context is open."""
    token = _handlers.set({id(block): handler for block in blocks})
    try:
        yield
    finally:
        _handlers.reset(token)


def _dispatch(block: nn.Module, *args: object, **kwargs: object) -> Any:  # noqa: ANN401 - as the block returns it
    handlers = _handlers.get()
    handler = None if handlers is None else handlers.get(id(block))
    if handler is None:
        return call_block(block, (args, kwargs))
    return handler(block, (args, kwargs))
