"""Suggests which block of which model to put beside each of the host's layers, by how alike their states are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch

from mol.config.mol_config import MoLConfig
from mol.core.fitting.calibration import checked_texts, load_reader
from mol.core.fitting.maps import linear_cka, r_squared
from mol.core.fitting.reading import Reader, pair_tokens, pieces
from mol.core.mol_layer import ExpertSpec
from mol.core.runtime import Runtime
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    States = dict[int, torch.Tensor]

Likeness = Literal["r2", "cka"]
LayerSpecs = list[tuple[str, int]]

_SCORES: Final[dict[str, Callable[[torch.Tensor, torch.Tensor], float]]] = {
    # Ridge fits tell more of a narrow model's states than there is to tell where there are few tokens: a firmer ridge
    # than a map to be used would have.
    "r2": lambda x, y: r_squared(x, y, ridge=1e-1),
    "cka": linear_cka,
}
_WIDTH: Final = 80


class Suggestion(NamedTuple):
    """A block for a layer.

    Attributes:
        layer: the host's layer.
        model: name of the block's model.
        block: number of the block.
        score: how alike the two are: 1 is the most.
    """

    layer: int
    model: str
    block: int
    score: float


@dataclass(frozen=True)
class Suggestions:
    """The best block for each of the host's layers; prints as a table.

    Attributes:
        host: name of the host.
        by: what was scored, "r2" or "cka".
        tokens: on how many pairs of tokens, by model.
        best: the best block for each layer, in the order of layers.
        scores: by model, the score of each block (rows) for each layer (columns), in the order of `best`.
    """

    host: str
    by: Likeness
    tokens: Mapping[str, int]
    best: tuple[Suggestion, ...]
    scores: Mapping[str, torch.Tensor]

    def specs(self, count: int | None = None) -> dict[int, LayerSpecs]:
        """Give what `add_layer` takes: the host's own block and the best other one, for each layer.

        Args:
            count: for so many layers only, those with the best scores; all if None.

        Returns:
            By layer, in order: `for layer, specs in ...: runtime.add_layer(specs, layer)`.
        """
        chosen = sorted(self.best, key=lambda one: -one.score)[:count]
        return {one.layer: [(self.host, one.layer), (one.model, one.block)] for one in sorted(chosen)}

    def __str__(self) -> str:
        """Show the best block for each layer with its score, at most 80 columns wide."""
        lines = ["layer  score  block"]
        lines += [f"{one.layer:5}  {one.score:5.2f}  {ExpertSpec(one.model, (one.block,))}" for one in self.best]
        lines += [{"r2": "scores: R2 of ridge fits, on tokens not fitted on", "cka": "scores: linear CKA"}[self.by]]
        lines += [f"on {count} tokens of {model}" for model, count in self.tokens.items()]
        return "\n".join(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..." for line in lines)


def suggest_layers(
    models: Runtime | Sequence[str],
    texts: Sequence[str],
    *,
    layers: Collection[int] | None = None,
    by: Likeness = "r2",
    max_tokens: int = 4096,
) -> Suggestions:
    """Score every block of a fusion's other models for every layer of its host, on text that all of them read.

    A layer that is to do what block j does has to tell it what it starts from, and to be told what it ends with. So the
    score of block j for layer l is the mean of two: how well the host's stream where l starts tells the states where
    j starts, and how well the states where j ends tell the stream where l ends. Each is the R2 of a ridge fit on tokens
    that it was not fitted on, or linear CKA (Kornblith et al., 2019), which is the same both ways. To choose blocks by
    likeness is due to Yang et al. (2022, "Deep Model Reassembly"). Each model is let go of again.

    States are scored at one size each: in trained models a few tokens are a hundred times as large as the others (Sun
    et al., 2024, "Massive Activations in Large Language Models") and would be all that counts.

    Args:
        models: a runtime, or names of models of which the first is the host; blocks of the others are scored.
        texts: of the kind that the fused model is for; tokens are paired by where they stand in the text.
        layers: of the host; all if None.
        by: "r2" or "cka".
        max_tokens: tokens of the text that are used; the states of all chosen layers are held for them.

    Returns:
        The best block for each layer, and all scores.

    Raises:
        ConfigError: there is no text, no other model or no such layer, `by` is unknown, or tokens are too few.
        ArchitectureError: a model reads no text.
    """
    runtime = models if isinstance(models, Runtime) else Runtime(MoLConfig(models=list(models)))
    host, texts = runtime.open_host(), checked_texts(texts)
    others = [name for name in runtime.config.models if name != host.name]
    chosen = sorted(range(len(host)) if layers is None else set(layers))
    problems = []
    if not others:
        problems.append("config.models names the host only; name a model whose blocks to choose from")
    if not chosen or not all(0 <= layer < len(host) for layer in chosen):
        problems.append(f"layers are {chosen}, the host {host.name} has layers 0 to {len(host) - 1}")
    if by not in _SCORES:
        problems.append(f"by is {by!r}, wanted one of {', '.join(_SCORES)}")
    if problems:
        raise ConfigError.listing("layers cannot be suggested", problems)
    reading, scores, tokens = Reader.of(host, runtime.config), {}, {}
    for name in others:
        other = load_reader(name, host, runtime.config)
        stream, states = _read(reading, other, texts, chosen, max_tokens)
        tokens[name] = len(states[0])
        score = _SCORES[by]
        scores[name] = torch.tensor(
            [
                [
                    (score(stream[layer], states[block]) + score(states[block + 1], stream[layer + 1])) / 2
                    for layer in chosen
                ]
                for block in range(len(other.source))
            ]
        )
    best = tuple(
        max(
            (
                Suggestion(layer, name, block, table[block, column].item())
                for name, table in scores.items()
                for block in range(len(table))
            ),
            key=lambda one: one.score,
        )
        for column, layer in enumerate(chosen)
    )
    return Suggestions(host.name, by, tokens, best, scores)


def _read(host: Reader, other: Reader, texts: Sequence[str], layers: Sequence[int], most: int) -> tuple[States, States]:
    """Return the states of paired tokens (N, width) where layers and blocks start and end, N at most `most`."""
    points, blocks = {layer + step for layer in layers for step in (0, 1)}, range(len(other.source) + 1)
    streams: list[States] = []
    states: list[States] = []
    count = 0
    for mine, theirs in pieces(texts, [host, other]):
        pairs = pair_tokens(mine, theirs)[: most - count]
        count += len(pairs)
        for kept, reader, ids, wanted, places in (
            (streams, host, mine.ids, points, [place for place, _ in pairs]),
            (states, other, theirs.ids, blocks, [place for _, place in pairs]),
        ):
            kept.append({point: _sized(hidden[places]) for point, hidden in reader.states(ids, wanted).items()})
        if count >= most:
            break
    least = max(host.source.width, other.source.width)
    if count < least:
        raise ConfigError(
            f"the text gives {count} tokens to compare {host.source.name} and {other.source.name} on, and widths up to "
            f"{least} need as many; give more text, or a larger max_tokens"
        )
    return _joined(streams), _joined(states)


def _sized(hidden: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(hidden.float(), dim=-1)


def _joined(pieces_of_text: list[States]) -> States:
    return {point: torch.cat([piece[point] for piece in pieces_of_text]) for point in pieces_of_text[0]}
