"""Summarises a runtime in numbers: its models, experts, adapters and routers, parameters, memory and devices."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from mol.core.mol_layer import Expert, ExpertSpec
from mol.text import write_count, write_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from mol.core.blocks.source import Source
    from mol.core.mol_layer import MoLLayer
    from mol.core.reports.notes import Note
    from mol.core.runtime import Runtime

_WIDTH: Final = 80
_LABEL: Final = 9
_HEADS: Final = ("expert", "width", "frozen", "adapters", "trained", "bytes", "on", "cache")
_LEFT: Final = frozenset({0, 3, 6, 7})  # columns of words; numbers are right-aligned
_GAP: Final = "  "


class ModelLine(NamedTuple):
    """One model of a fusion.

    Attributes:
        name: its name.
        is_host: whether it is the host.
        source: the model, None while it is not loaded.
        notes: what its blocks do without in this host.
    """

    name: str
    is_host: bool
    source: Source | None
    notes: Sequence[Note] = ()

    def __str__(self) -> str:
        """Return one line about it."""
        who = f"{self.name} (host)" if self.is_host else self.name
        if self.source is None:
            return f"{who}: not loaded yet; its first use loads it"
        config = self.source.model.config.get_text_config()
        vocabulary = getattr(config, "vocab_size", None)
        facts = [
            type(self.source.model).__name__,
            f"{len(self.source)} layers",
            f"width {self.source.width}",
            *([f"vocabulary {vocabulary}"] if self.is_host and vocabulary else []),
            str(self.source.dtype).removeprefix("torch."),
            *_masks(self.source),
            *(note.fact for note in self.notes),
        ]
        return f"{who}: {', '.join(facts)}"


class ExpertLine(NamedTuple):
    """One expert of a fused layer.

    Attributes:
        name: its blocks, as `gpt2[3]`.
        width: D.
        frozen: parameters of its blocks, each counted once.
        adapters: their kind, "none" if they are identities.
        trained: parameters of its adapters.
        bytes: size of its blocks' parameters.
        device: theirs, None while they are not in memory.
        cache: "host" for the host's own block in its own layer, "native" if its blocks have a cache of their own,
            "replay" if they run on all tokens again, "?" before the first `generate`, which probes it.
        made_causal: whether its blocks attended to later tokens until they were given causal masks.
    """

    name: str
    width: int
    frozen: int
    adapters: str
    trained: int
    bytes: int
    device: str | None
    cache: str
    made_causal: bool

    def cells(self) -> list[str]:
        """Return the cells of its row, in the order of the heads."""
        numbers = [str(self.width), write_count(self.frozen)]
        return [self.name, *numbers, self.adapters, write_count(self.trained), write_size(self.bytes),
                self.device or "disk", self.cache]  # fmt: skip


class LayerLine(NamedTuple):
    """One fused layer.

    Attributes:
        position: which of the host's layers it replaces.
        router: its kind, None for a single expert.
        top_k: how many experts get a weight; None for all.
        trained: parameters of the router.
        experts: its experts.
    """

    position: int
    router: str | None
    top_k: int | None
    trained: int
    experts: tuple[ExpertLine, ...]

    def __str__(self) -> str:
        """Return one line about its router."""
        if self.router is None:
            return f"layer {self.position}: one expert, no router"
        kept = "" if self.top_k is None else f", top {self.top_k}"
        return f"layer {self.position}: {self.router}{kept}, {self.trained:,} parameters"


@dataclass(frozen=True)
class Summary:
    """The parts of a runtime; prints as a plain table, 80 columns wide.

    Attributes:
        models: every model of the fusion.
        layers: the fused layers by position.
        unchanged: how many of the host's layers run without experts; None while the host is not loaded.
        skipped: how many do not run (`keep_host_layers=False`).
        frozen: parameters that run and are not trained: of the host outside of its blocks, and of all blocks that run,
            each counted once.
        trained: parameters of adapters and routers that are trained.
        memory: bytes of all weights and buffers by device; two that share memory count once.
    """

    models: tuple[ModelLine, ...]
    layers: tuple[LayerLine, ...]
    unchanged: int | None
    skipped: int
    frozen: int
    trained: int
    memory: Mapping[str, int]

    def __str__(self) -> str:
        """Return the table."""
        lines = [line for model in self.models for line in _field("model", str(model))]
        if self.unchanged is None:
            return "\n".join(lines)
        whole = len(self.layers) + self.unchanged + self.skipped
        left_out = f", {self.skipped} left out" if self.skipped else ""
        lines += _field("layers", f"the host's {whole}: {len(self.layers)} fused, {self.unchanged} unchanged{left_out}")
        if self.layers:
            lines += ["", *self._table(), ""]
        held = [f"{write_size(size)} on {device}" for device, size in sorted(self.memory.items())]
        lines += _field("total", f"{self.frozen:,} frozen and {self.trained:,} trained parameters")
        lines += _field("memory", ", ".join(held) or "none")
        return "\n".join(lines)

    def _table(self) -> Iterator[str]:
        rows = [[expert.cells() for expert in layer.experts] for layer in self.layers]
        widths = [
            max(map(len, column)) for column in zip(_HEADS, *(row for group in rows for row in group), strict=True)
        ]
        widths[0] = max(len(_HEADS[0]), min(widths[0], _WIDTH - sum(widths[1:]) - len(_GAP) * len(widths)))
        yield _row(_HEADS, widths)
        for layer, group in zip(self.layers, rows, strict=True):
            yield str(layer)
            for cells in group:
                yield _row(cells, widths)


def summarise(runtime: Runtime) -> Summary:
    """Describe a runtime without loading or running anything."""
    sources = runtime.opened
    names = dict.fromkeys((runtime.host_name, *runtime.config.models))
    models = tuple(
        ModelLine(name, name == runtime.host_name, sources.get(name), runtime.notes.get(name, [])) for name in names
    )
    host = sources.get(runtime.host_name)
    layers = sorted(zip(runtime.positions, runtime.fused, strict=True), key=lambda pair: pair[0])
    trained = _trained(runtime)
    running = set(runtime.parameters()) - trained
    unchanged = None
    if host is not None:
        others = [index for index in range(len(host)) if index not in runtime.positions]
        unchanged = len(others) if runtime.config.keep_host_layers else 0
        inside = set(_parameters(host.blocks))
        running |= {parameter for parameter in host.model.parameters() if parameter not in inside}
        running.update(_parameters(_blocks(host, others[:unchanged])))
    for _, layer in layers:
        for spec in layer.specs:
            running.update(_parameters(_blocks(sources[spec.model], spec.blocks)))
    return Summary(
        models=models,
        layers=tuple(_layer(position, layer, sources, runtime.host_name) for position, layer in layers),
        unchanged=unchanged,
        skipped=0 if host is None or unchanged is None else len(host) - len(layers) - unchanged,
        frozen=_count(running),
        trained=_count(trained),
        memory=_memory([runtime, *(source.model for source in sources.values())]),
    )


def device_of(blocks: Iterable[nn.Module]) -> str | None:
    """Return the device of the weights of blocks, None if not all are in memory."""
    parameters = list(_parameters(blocks))
    if any(_is_hollow(parameter) for parameter in parameters):
        return None
    return "+".join(sorted({str(parameter.device) for parameter in parameters}))


def _masks(source: Source) -> list[str]:
    if source.known_causal is None:
        return []
    return ["made causal" if source.made_causal else "causal" if source.known_causal else "bidirectional"]


def _layer(position: int, layer: MoLLayer, sources: Mapping[str, Source], host: str) -> LayerLine:
    router = layer.router
    experts = layer.built
    return LayerLine(
        position=position,
        router=None if router is None else type(router).__name__,
        top_k=None if router is None else router.top_k,
        trained=0 if router is None else _count(_trained(router)),
        experts=tuple(
            _expert(expert, sources[expert.spec.model], own=expert.spec == ExpertSpec(host, (position,)))
            for expert in experts
        ),
    )


def _expert(expert: Expert, source: Source, *, own: bool) -> ExpertLine:
    blocks = _blocks(source, expert.spec.blocks)
    parameters = list(_parameters(blocks))
    kinds = dict.fromkeys(type(a).__name__.removesuffix("Adapter").lower() for a in (expert.down, expert.up))
    known = {source.known_native_cache(block) for block in expert.spec.blocks}
    return ExpertLine(
        name=str(expert.spec),
        width=source.width,
        frozen=_count(parameters),
        adapters="none" if expert.is_exact else "/".join(kinds),
        trained=_count(_trained(expert)),
        bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
        device=device_of(blocks),
        cache="host" if own else "replay" if False in known else "?" if None in known else "native",
        made_causal=source.made_causal,
    )


def _blocks(source: Source, numbers: Iterable[int]) -> list[nn.Module]:
    return [source.calls.forms[number].block for number in numbers]


def _parameters(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the parameters of modules, each once, also those of a block that several layers call."""
    yield from dict.fromkeys(parameter for module in modules for parameter in module.parameters())


def _trained(module: nn.Module) -> set[nn.Parameter]:
    return {parameter for parameter in module.parameters() if parameter.requires_grad}


def _count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _is_hollow(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has no storage of its size: on the meta device, or with stride 0 until it is loaded."""
    spread = any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.is_meta or spread


def _memory(modules: Iterable[nn.Module]) -> dict[str, int]:
    """Add up what tensors hold by device; a storage that several share counts once."""
    storages: dict[tuple[str, int], int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            if not tensor.is_meta:
                storage = tensor.untyped_storage()
                storages[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    held: dict[str, int] = defaultdict(int)
    for (device, _), size in storages.items():
        held[device] += size
    return dict(held)


def _row(cells: Iterable[str], widths: list[int]) -> str:
    laid = []
    for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        # The end of a long name is kept: the model and the block.
        shown = cell if len(cell) <= width else "..." + cell[len(cell) - width + 3 :]
        laid.append(shown.ljust(width) if column in _LEFT else shown.rjust(width))
    return (_GAP + _GAP.join(laid)).rstrip()


def _field(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=label.ljust(_LABEL), subsequent_indent=" " * _LABEL, break_on_hyphens=False
    )
