"""Builds a fused layer: checks that the requested blocks exist and may replace one of the host's, and adds adapters."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from operator import index
from typing import TYPE_CHECKING, Final

from mol.core.mol_layer import Expert, ExpertSpec, MoLLayer
from mol.core.reports.notes import blank_content, foreign_notes
from mol.errors import ConfigError, FusionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.core.runtime import Runtime

    Requested = tuple[str, int | Iterable[int]]
    """A model, and the number of one of its blocks, or of several that run in a row."""

_log: Final = logging.getLogger("mol")


def build_layer(runtime: Runtime, requested: Sequence[Requested], position: int) -> MoLLayer:
    """Build the layer that is to replace one of the host's, on its device; see `MoLRuntime.add_layer`.

    Raises:
        ConfigError: a model, a block or the layer does not exist, or the layer was added before.
        MolError: blocks cannot be run alone, or attend to later tokens in a causal model.
    """
    host, settings = runtime.open_host(), runtime.config
    problems = []
    if len(runtime.layers) == settings.max_layers:
        problems.append(f"max_layers is {settings.max_layers}, and that many layers were added")
    if not 0 <= position < len(host):
        problems.append(f"layer_idx is {position}, the host {host.name} has layers 0 to {len(host) - 1}")
    if position in runtime.positions:
        problems.append(f"layer_idx {position} was added before")
    if not requested:
        problems.append("no block is named")
    specs = []
    for one in requested:
        try:
            name, given = one
            blocks = tuple(map(index, given if isinstance(given, Iterable) else [given]))
        except (TypeError, ValueError):
            problems.append(f"{one!r} is not (model, number of a block) or (model, numbers of several)")
            continue
        count = len(runtime.source(name))
        if not blocks or not all(0 <= block < count for block in blocks):
            problems.append(f"{name} has blocks 0 to {count - 1}, not {given}")
        specs.append(ExpertSpec(name, blocks))
    if problems:
        raise ConfigError.listing(f"layer {position} cannot be added", problems)
    _make_causal(runtime, specs)
    own = ExpertSpec(host.name, (position,))
    _warn_of_notes(runtime, specs, own)
    experts = [
        Expert.build(
            spec,
            host.width,
            runtime.source(spec.model).width,
            None if spec == own else settings.adapter_type,
            settings.adapter_init,
        )
        for spec in specs
    ]
    layer = MoLLayer.build(
        experts,
        host.width,
        router_type=settings.router_type,
        temperature=settings.temperature,
        top_k=settings.top_k_experts,
        biased=settings.balance == "bias",
    )
    return layer.to(host.device)


def _warn_of_notes(runtime: Runtime, specs: Sequence[ExpertSpec], own: ExpertSpec) -> None:
    """Warn, once per model, of what its blocks do without here; see `mol.core.reports.notes`."""
    host, settings = runtime.host, runtime.config
    for spec in specs:
        source = runtime.source(spec.model)
        if source is not host:
            found = foreign_notes(source, host, chosen=spec.model in settings.stacks)
        elif spec != own or settings.dispatch != "dense":
            where = "those that run away from their own layer, or on a part of the tokens,"
            found = [note for note in [blank_content(source, where)] if note is not None]
        else:
            continue
        for note in found:
            known = runtime.notes.setdefault(spec.model, [])
            if note not in known:
                known.append(note)
                _log.warning("%s", note.sentence)


def _make_causal(runtime: Runtime, specs: Sequence[ExpertSpec]) -> None:
    """Make the blocks of experts causal if the host is, and refuse those that cannot be."""
    if not runtime.host.is_causal() or runtime.config.allow_bidirectional:
        return
    ahead = [
        f"{spec.model}[{block}] ({type(runtime.source(spec.model).blocks[0]).__name__})"
        for spec in specs
        for block in spec.blocks
        if not runtime.source(spec.model).make_causal(block)
    ]
    if ahead:
        raise FusionError.listing(
            f"the host {runtime.host_name} predicts the next token, and these blocks attend to later tokens even with "
            "causal masks; choose others, or pass allow_bidirectional=True if nothing is trained or generated",
            ahead,
        )
