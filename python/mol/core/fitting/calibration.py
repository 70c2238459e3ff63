"""Fits the adapters of a fused layer on calibration text, so that it starts near the host's own layer.

Down adapters A map the host's stream h_l to the states x_j that the expert's first block was trained on, token by
token. Up adapters U map what the expert then adds, E(Ah) - Ah, to what the host's layer adds, h_{l+1} - h_l. Where
the host's other layers do not run (`keep_host_layers=False`), an expert replaces several of them: then it is h_m - h_l.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from mol.core.adapters import LinearAdapter
from mol.core.blocks.inputs import Tokens
from mol.core.blocks.placement import Memory
from mol.core.fitting.maps import fit_held_out, fit_orthogonal
from mol.core.fitting.reading import TextModel, chunks_of, pair_tokens
from mol.core.models.loading import open_source
from mol.core.running import run_expert_blocks
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.config.mol_config import MoLConfig
    from mol.core.blocks.source import Source
    from mol.core.mol_layer import Expert

_log: Final = logging.getLogger("mol")


class Chunk(NamedTuple):
    """The states of one chunk of text at a layer.

    Attributes:
        before: the input of the host's layers that are replaced (T, H).
        after: their output (T, H).
        paired: for each expert, the P tokens of the host that have a partner.
        partners: for each expert, the input of its first block at the partners (P, D).
    """

    before: torch.Tensor
    after: torch.Tensor
    paired: list[list[int]]
    partners: list[torch.Tensor]


def checked_texts(texts: Sequence[str]) -> list[str]:
    """Return calibration text as a list, after a check.

    Raises:
        ConfigError: it is one string, or empty, or holds something else than text.
    """
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError("calibration is a list of texts, none of them empty, and not a single text")
    return list(texts)


def replaced_layers(positions: Sequence[int], count: int, *, keep: bool) -> dict[int, range]:
    """Return by position of a fused layer which of the host's layers do not run because of it.

    Args:
        positions: of the fused layers, in any order.
        count: number of layers of the host.
        keep: the host's layers between them run.
    """
    if keep:
        return {position: range(position, position + 1) for position in positions}
    ordered = sorted(positions)
    edges = [0, *ordered[1:], count]
    return {position: range(*edges[at : at + 2]) for at, position in enumerate(ordered)}


def fit_layer(
    experts: Sequence[Expert], replaced: range, host: Source, settings: MoLConfig, texts: Sequence[str] | None
) -> None:
    """Fit the adapters of the experts of one layer, as `settings.adapter_init` says; "identity" leaves them alone.

    The states of the host are its own, without other fused layers; its blocks up to this layer are loaded and stay.
    Each expert's model is loaded up to its block, with embeddings, and dropped again. Nothing is random: the same text
    gives the same adapters.

    Args:
        experts: from `Expert.build`; those that are the host's own block are left alone.
        replaced: the host's layers that do not run because of them, in a row: one, or with `keep_host_layers=False` all
            up to the next fused layer.
        host: the host.
        settings: of the fusion.
        texts: calibration text, of the kind that the fused model is for.

    Raises:
        ConfigError: there is no text, or too little; the adapters cannot hold a fitted map; or "orthogonal" is
            requested between unequal widths.
        ArchitectureError: a model reads no text.
    """
    fitted = [expert for expert in experts if not expert.is_exact]
    if settings.adapter_init == "identity" or not fitted:
        return
    _check(fitted, settings, texts)
    read = _read(fitted, replaced, host, settings, checked_texts(texts or ()))
    for number, expert in enumerate(fitted):
        down, up = expert.down, expert.up
        assert isinstance(down, LinearAdapter)  # by _check
        assert isinstance(up, LinearAdapter)
        x = torch.cat([chunk.before[chunk.paired[number]] for chunk in read.chunks])
        y = torch.cat([chunk.partners[number] for chunk in read.chunks])
        least = max(x.shape[1], y.shape[1])
        if len(x) < least:
            raise ConfigError(
                f"the calibration text gives {len(x)} tokens to fit {expert.spec} on, and maps between widths "
                f"{x.shape[1]} and {y.shape[1]} need {least}; give more text, ten times as much is better"
            )
        if settings.adapter_init == "orthogonal":
            _fit_orthogonal(down, up, x, y)
            continue
        there = fit_held_out(x, y)
        down.set_map_(there.weight, there.bias)
        # Fitted on its own input. A map fitted from the expert's states to the host's, as stitching does, is
        # right for states and wrong for their differences: at layers 5 and 15 of SmolLM2, blocks of MiniLM left a
        # squared error of 3 to 8000 times the host's update itself, where this map explains 10 to 45% of it, all on
        # held-out text. A bias changed that by 2% or less, and without one an expert that adds nothing changes nothing.
        added = torch.cat([_added(read.sources[number], expert, chunk.before) for chunk in read.chunks])
        wanted = torch.cat([chunk.after - chunk.before for chunk in read.chunks])
        back = fit_held_out(added, wanted, bias=False)
        up.set_map_(back.weight)
        _log.info(
            "%s at layer %d: held out, the adapter down explains %.0f%% of the variance of the block's input, the "
            "adapter up %.0f%% of what the host's %s",
            expert.spec, replaced.start, 100 * there.held_out, 100 * back.held_out,
            "layer adds" if len(replaced) == 1 else f"{len(replaced)} layers add",
        )  # fmt: skip


class _Read(NamedTuple):
    """Chunks of text, and for each expert the model that its blocks belong to."""

    chunks: list[Chunk]
    sources: list[Source]


def _check(experts: Sequence[Expert], settings: MoLConfig, texts: Sequence[str] | None) -> None:
    kind, problems = settings.adapter_init, []
    if texts is None:
        problems.append("there is no text to fit on: pass add_layer(..., calibration=[...]) or call calibrate([...])")
    if settings.adapter_type != "linear":
        problems.append(f"a {settings.adapter_type} adapter is not a linear map: set adapter_type='linear'")
    elif kind == "orthogonal":
        problems += [
            f"{expert.spec} is {expert.down.output_dim} wide and the host {expert.down.input_dim}: 'orthogonal' needs "
            "equal widths, 'lstsq' does not"
            for expert in experts
            if expert.down.input_dim != expert.down.output_dim
        ]
    if problems:
        raise ConfigError.listing(f"adapters cannot be fitted (adapter_init={kind!r}; 'identity' fits none)", problems)


def _read(experts: Sequence[Expert], replaced: range, host: Source, settings: MoLConfig, texts: Sequence[str]) -> _Read:
    text_models = {host.name: TextModel.of(host, settings)}
    for name in {expert.spec.model: None for expert in experts}:
        if name not in text_models:
            text_models[name] = load_text_model(name, host, settings)
    names, found = list(text_models), []
    points = {name: {expert.spec.blocks[0] for expert in experts if expert.spec.model == name} for name in names}
    for readings in chunks_of(texts, list(text_models.values())):
        stream = text_models[host.name].states(readings[0].ids, {replaced.start, replaced.stop})
        pairs = [pair_tokens(readings[0], reading) for reading in readings]
        states = [
            text_models[name].states(reading.ids, points[name]) if points[name] else {}
            for name, reading in zip(names, readings, strict=True)
        ]
        which = [(names.index(expert.spec.model), expert.spec.blocks[0]) for expert in experts]
        found.append(
            Chunk(
                stream[replaced.start],
                stream[replaced.stop],
                [[token for token, _ in pairs[model]] for model, _ in which],
                [
                    states[model][block][[partner for _, partner in pairs[model]]].to(host.device)
                    for model, block in which
                ],
            )
        )
    return _Read(found, [text_models[expert.spec.model].source for expert in experts])


def load_text_model(name: str, host: Source, settings: MoLConfig) -> TextModel:
    """Load a model with its embeddings and tokenizer onto the host's device, to be dropped again.

    Raises:
        ArchitectureError: see `TextModel.of`.
        MolError: its blocks cannot be run alone.
        OSError: it cannot be loaded.
    """
    source = open_source(name, replace(settings, device_map={}), Memory(None))
    text_model = TextModel.of(source, settings)
    source.apply(lambda tensor: tensor.to(host.device))
    source.require_rest(skip_missing=True)
    if host.is_causal() and not settings.allow_bidirectional:  # so that it is read as it will run
        for index in range(len(source)):
            source.make_causal(index)
    return text_model


@torch.no_grad()
def _added(source: Source, expert: Expert, before: torch.Tensor) -> torch.Tensor:
    """Return E(Ah) - Ah (T, D) for the stream h (T, H) of one text, as the layer computes it."""
    inner: torch.Tensor = expert.down(before[None])
    hidden = inner.to(source.dtype)
    mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    context = source.context(Tokens.of(mask, hidden.shape[1], source.dtype))
    hidden = run_expert_blocks(source, expert.spec, hidden, context, None, {})
    return (hidden.to(inner.dtype) - inner)[0]


def _fit_orthogonal(down: LinearAdapter, up: LinearAdapter, x: torch.Tensor, y: torch.Tensor) -> None:
    x_mean, y_mean = x.double().mean(0), y.double().mean(0)
    weight = fit_orthogonal(x - x_mean, y - y_mean)
    down.set_map_(weight, y_mean - weight @ x_mean)
    # The way back is the inverse: then h + U(E(Ah) - Ah) is the expert itself, seen from the host's axes.
    up.set_map_(weight.T)
