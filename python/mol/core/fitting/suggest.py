"""Suggests which block of which model to use for each of the host's layers, by the similarity of their states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch

from mol.config.mol_config import MoLConfig
from mol.core.fitting.calibration import checked_texts, load_text_model
from mol.core.fitting.maps import linear_cka, r_squared
from mol.core.fitting.reading import TextModel, chunks_of, pair_tokens
from mol.core.mol_layer import ExpertSpec
from mol.core.runtime import Runtime
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    States = dict[int, torch.Tensor]

Similarity = Literal["r2", "cka"]
LayerSpecs = list[tuple[str, int]]

_SCORES: Final[dict[str, Callable[[torch.Tensor, torch.Tensor], float]]] = {
    # With few tokens ridge fits overfit the states of a narrow model: a larger ridge than for a map that is used.
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
        score: their similarity, at most 1.
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
        tokens: number of pairs of tokens, by model.
        best: the best block for each layer, in the order of layers.
        scores: by model, the score of each block (rows) for each layer (columns), in the order of `best`.
    """

    host: str
    by: Similarity
    tokens: Mapping[str, int]
    best: tuple[Suggestion, ...]
    scores: Mapping[str, torch.Tensor]

    def specs(self, count: int | None = None) -> dict[int, LayerSpecs]:
        """Return arguments of `add_layer`: the host's own block and the best other one, for each layer.

        Args:
            count: number of layers, those with the best scores; all if None.

        Returns:
            By layer, in order: `for layer, specs in ...: runtime.add_layer(specs, layer)`.
        """
        chosen = sorted(self.best, key=lambda one: -one.score)[:count]
        return {one.layer: [(self.host, one.layer), (one.model, one.block)] for one in sorted(chosen)}

    def __str__(self) -> str:
        """Show the best block for each layer with its score, at most 80 columns wide."""
        lines = ["layer  score  block"]
        lines += [f"{one.layer:5}  {one.score:5.2f}  {ExpertSpec(one.model, (one.block,))}" for one in self.best]
        lines += [{"r2": "scores: R2 of ridge fits, on held-out tokens", "cka": "scores: linear CKA"}[self.by]]
        lines += [f"on {count} tokens of {model}" for model, count in self.tokens.items()]
        return "\n".join(line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..." for line in lines)


def suggest_layers(
    models: Runtime | Sequence[str],
    texts: Sequence[str],
    *,
    layers: Collection[int] | None = None,
    by: Similarity = "r2",
    max_tokens: int = 4096,
) -> Suggestions:
    """Score every block of a fusion's other models for every layer of its host, on text that all of them read.

    To replace layer l by block j, the input of j must be predictable from that of l, and the output of l from that of
    j. So the score of block j for layer l is the mean of two: how well the host's stream before l predicts the states
    before j, and how well the states after j predict the stream after l. Each is the R2 of a ridge fit on held-out
    tokens, or linear CKA (Kornblith et al., 2019), which is symmetric. To choose blocks by similarity is due to Yang et
    al. (2022, "Deep Model Reassembly"). Each model is dropped again.

    States are normalised: in trained models a few tokens are a hundred times as large as the others (Sun et al., 2024,
    "Massive Activations in Large Language Models") and would dominate.

    Args:
        models: a runtime, or names of models of which the first is the host; blocks of the others are scored.
        texts: of the kind that the fused model is for; tokens are paired by their offsets in the text.
        layers: of the host; all if None.
        by: "r2" or "cka".
        max_tokens: most tokens of the text to use; the states of all chosen layers are kept for them.

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
    reading, scores, tokens = TextModel.of(host, runtime.config), {}, {}
    for name in others:
        other = load_text_model(name, host, runtime.config)
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


def _read(
    host: TextModel, other: TextModel, texts: Sequence[str], layers: Sequence[int], most: int
) -> tuple[States, States]:
    """Return the states of paired tokens (N, width) between layers and between blocks, N at most `most`."""
    points, blocks = {layer + step for layer in layers for step in (0, 1)}, range(len(other.source) + 1)
    streams: list[States] = []
    states: list[States] = []
    count = 0
    for mine, theirs in chunks_of(texts, [host, other]):
        pairs = pair_tokens(mine, theirs)[: most - count]
        count += len(pairs)
        for kept, text_model, ids, wanted, indices in (
            (streams, host, mine.ids, points, [index for index, _ in pairs]),
            (states, other, theirs.ids, blocks, [index for _, index in pairs]),
        ):
            kept.append({point: _sized(hidden[indices]) for point, hidden in text_model.states(ids, wanted).items()})
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


def _joined(chunks: list[States]) -> States:
    return {point: torch.cat([chunk[point] for chunk in chunks]) for point in chunks[0]}
