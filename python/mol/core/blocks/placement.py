"""Memory: loads blocks when they first run, and evicts the least recently used when there is no room for others."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mol.core.blocks.calls import Arguments
    from mol.core.models.weights import ModelWeights

_Key = tuple[int, str]


class Place(NamedTuple):
    """Where a block is kept.

    Attributes:
        device: its device; its model's if None.
        stays: keep it after it has run while there is room; otherwise it is read each time.
    """

    device: torch.device | None = None
    stays: bool = True


class Memory:
    """The memory that blocks share; the least recently used are evicted first.

    Only blocks loaded by `hold` count: what a host keeps for itself does not.

    Attributes:
        limit: the most bytes; None for no limit.
        used: bytes in memory now.
        reads: how many times a block was read.
    """

    def __init__(self, limit: int | None = None) -> None:
        """Start empty."""
        self.limit = limit
        self.used = 0
        self.reads = 0
        self._held: Counter[_Key] = Counter()
        self._inside: OrderedDict[_Key, tuple[ModelWeights, frozenset[str], int]] = OrderedDict()
        self._changed = threading.Condition()
        self._last: _Key | None = None
        self._next: dict[_Key, tuple[ModelWeights, str, torch.device | None]] = {}
        self._reader: ThreadPoolExecutor | None = None

    @contextmanager
    def hold(self, weights: ModelWeights, path: str, place: Place) -> Iterator[None]:
        """Keep a block in memory while the context is open; meanwhile read ahead the one that followed it last time.

        Args:
            weights: of its model.
            path: of the block.
            place: where it is kept.

        Raises:
            CheckpointError: it cannot be read.
            FusionError: it is larger than the limit.
        """
        key = id(weights), path
        self._enter(weights, path, place.device, held=True)
        if self._last is not None and self._last != key:
            self._next[self._last] = (weights, path, place.device)
        self._last = key
        self._read_ahead(key)
        try:
            yield
        finally:
            with self._changed:
                self._held[key] -= 1
                if not place.stays and not self._held[key]:
                    self._leave(key)
                self._changed.notify_all()

    def _enter(self, weights: ModelWeights, path: str, device: torch.device | None, *, held: bool) -> None:
        key = id(weights), path
        with self._changed:
            if key in self._inside:
                self._inside.move_to_end(key)
                self._held[key] += held
                return
            names = weights.under(path) - weights.staying
            size = weights.bytes_of(names)
            if self.limit is not None and size > self.limit:
                raise FusionError(
                    f"{weights.name}: block `{path}` takes {size:,} bytes, and max_expert_memory is {self.limit:,}; "
                    "allow more, or use a smaller block or dtype"
                )
            while not self._has_room(size):
                if not held:
                    return  # reading ahead does not wait
                self._changed.wait()
                if key in self._inside:  # another thread loaded it
                    self._held[key] += 1
                    return
            weights.load(names, device)
            self.reads += 1
            self.used += size
            self._inside[key] = (weights, names, size)
            self._held[key] += held

    def _has_room(self, size: int) -> bool:
        """Evict blocks that nobody holds until there is room, and return whether there is."""
        if self.limit is None:
            return True
        for key in list(self._inside):
            if self.used + size <= self.limit:
                break
            if not self._held[key]:
                self._leave(key)
        return self.used + size <= self.limit

    def _leave(self, key: _Key) -> None:
        weights, names, size = self._inside.pop(key)
        weights.drop(names)
        self.used -= size

    def _read_ahead(self, key: _Key) -> None:
        following = self._next.get(key)
        if following is None or (id(following[0]), following[1]) in self._inside:
            return
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="mol-read-ahead")
        # An error there is raised again when the block itself is loaded.
        self._reader.submit(self._enter, *following, held=False)


def to_device(call: Arguments, device: torch.device) -> Arguments:
    """Return a call with its tensors on a device; caches move by themselves as they grow."""
    args, kwargs = call
    return tuple(_moved(value, device) for value in args), {key: _moved(v, device) for key, v in kwargs.items()}


def device_of(name: str) -> torch.device:
    """Return the device of a name in the settings.

    Raises:
        FusionError: this machine has no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FusionError(f"device_map names {name!r}, which this machine does not have ({reason})") from error
    return device


def _moved(value: Any, device: torch.device) -> Any:  # noqa: ANN401 - whatever a block is handed
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value
