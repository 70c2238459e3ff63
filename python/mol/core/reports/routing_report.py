"""Writes what routers choose for a text as one HTML page: the text coloured by expert, a row for each fused layer."""

from __future__ import annotations

import html
import math
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from mol.core.blocks.inputs import takes
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from mol.core.blocks.source import Source
    from mol.core.runtime import Runtime

_COLOURS: Final = 8  # in the template
_UNDERLINES: Final = ("solid", "dashed", "dotted", "double", "wavy")
# Characters that HTML forbids or changes; Unicode has a symbol for each.
_CONTROLS: Final = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}


class Token(NamedTuple):
    """A token of a text as the page shows it.

    Attributes:
        gap: text before it that belongs to no token.
        text: its text; empty for a special token, and for the second part of one character.
        mark: shown instead of text or before it, not part of the text.
        name: in its tooltip.
    """

    gap: str
    text: str
    mark: str
    name: str


class Split(NamedTuple):
    """A text in tokens.

    Attributes:
        ids: the tokens, (1, T).
        tokens: the same as the page shows them.
        rest: text after the last.
    """

    ids: torch.Tensor
    tokens: list[Token]
    rest: str


class LayerRouting(NamedTuple):
    """One fused layer over all texts.

    Attributes:
        position: which of the host's layers it replaces.
        names: its experts.
        keys: for each, its entry in the legend.
        weights: for each text (T, E).
        entropies: for each text the mean over its tokens, in nats.
    """

    position: int
    names: list[str]
    keys: list[int]
    weights: list[torch.Tensor]
    entropies: list[float]

    @property
    def totals(self) -> list[float]:
        """Weight of each expert over all tokens."""
        totals: list[float] = torch.cat(self.weights).double().sum(0).tolist()
        return totals

    @property
    def entropy(self) -> float:
        """Mean over all tokens, in nats."""
        counts = [len(weights) for weights in self.weights]
        return sum(entropy * count for entropy, count in zip(self.entropies, counts, strict=True)) / sum(counts)


def write_routing_report(runtime: Runtime, text: str | Sequence[str], path: str | Path) -> Path:
    """Write the page; see `MoLRuntime.routing_report`."""
    texts = [text] if isinstance(text, str) else list(text)
    if not runtime.positions:
        raise ConfigError("no layer was added, so there is nothing to choose from; call add_layer first")
    if runtime.training:
        raise ConfigError("routers drop features and add noise while they are trained; call eval() before the report")
    if not takes(runtime.host.model, "input_ids"):
        raise ConfigError(f"the host {runtime.host_name} reads no text, and this report shows text")
    if not texts or not all(isinstance(each, str) for each in texts):
        raise ConfigError(f"the text is {text!r}, wanted a string or several in a list")
    splits = [_split(runtime.load_tokenizer(), each) for each in texts]
    limits = {name: _longest(source) for name, source in runtime.fusion().sources.items()}
    name, limit = min(limits.items(), key=lambda item: item[1])
    problems = [
        f"text {number} has {len(split.tokens)} tokens, wanted 1 to {limit}, which is all that {name} takes"
        for number, split in enumerate(splits, 1)
        if not 1 <= len(split.tokens) <= limit
    ]
    if problems:
        raise ConfigError.listing("these texts cannot be run; cut them", problems)
    legend, layers = _route(runtime, splits)
    tokens = sum(len(split.tokens) for split in splits)
    page = Template(resources.files("mol.core.reports").joinpath("routing_report.html.in").read_text(encoding="utf-8"))
    path = Path(path)
    path.write_text(
        page.substitute(
            title=f"Routing of {_escape(runtime.host_name)}",
            about=f"The host is {_escape(runtime.host_name)}. Fused layers: {len(layers)}. Texts: {len(texts)}. "
            f"Tokens: {tokens}.",
            styles="\n".join(
                f".e{key} {{ --c: var(--c{key % _COLOURS}); text-decoration-style: "
                f"{_UNDERLINES[key % len(_UNDERLINES)]}; }}"
                for key in range(len(legend))
            ),
            legend="\n".join(f"<li>{_swatch(key)} {_escape(name)}</li>" for key, name in enumerate(legend)),
            shares="\n".join([*map(_layer_shares, layers), _overall(legend, layers)]),
            texts="\n".join(_text(number, split, layers) for number, split in enumerate(splits)),
        ),
        encoding="utf-8",
        newline="\n",
    )
    return path


def _route(runtime: Runtime, splits: Sequence[Split]) -> tuple[list[str], list[LayerRouting]]:
    """Run the texts one by one; experts of one model share an entry of the legend unless one layer has several."""
    keys: dict[tuple[str, int], int] = {}
    layers = []
    for position, layer in sorted(runtime.fusion().layers.items()):
        models = [spec.model for spec in layer.specs]
        numbers = [(model, models[:at].count(model)) for at, model in enumerate(models)]
        mine = [keys.setdefault(number, len(keys)) for number in numbers]
        layers.append(LayerRouting(position, list(map(str, layer.specs)), mine, [], []))
    for split in splits:
        with torch.no_grad():
            _, stats = runtime(split.ids.to(runtime.host.model.device), return_router_stats=True)
        for layer_ in layers:
            said = stats[f"layer_{layer_.position}"]
            layer_.weights.append(said["expert_weights"][0])
            layer_.entropies.append(said["router_entropy"])
    return [f"{model} ({number + 1})" if number else model for model, number in keys], layers


def _longest(source: Source) -> float:
    """Return the most tokens that a model has positions for."""
    limit = getattr(source.model.config.get_text_config(), "max_position_embeddings", None)
    return math.inf if limit is None else limit


def _split(tokenizer: PreTrainedTokenizerBase, text: str) -> Split:
    """Split a text into tokens, by the tokenizer's offsets, else by decoding each id."""
    encoded = tokenizer(text, return_offsets_mapping=tokenizer.is_fast)
    ids: list[int] = encoded["input_ids"]
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(ids)]
    tokens = []
    shown = 0
    if tokenizer.is_fast:
        for name, (start, end) in zip(names, encoded["offset_mapping"], strict=True):
            begin = max(start, shown)
            shown_text = text[begin:end]
            mark = "\u21b5" if "\n" in shown_text else "" if shown_text else "\u00b7" if start < end else name
            tokens.append(Token(text[shown:begin] if shown_text else "", shown_text, mark, text[start:end] or name))
            shown = max(shown, end)
    else:
        own = set(tokenizer.all_special_ids)
        for name, number in zip(names, ids, strict=True):
            shown_text = "" if number in own else str(tokenizer.decode([number], clean_up_tokenization_spaces=False))
            mark = name if number in own else "\u21b5" if "\n" in shown_text else "" if shown_text else "\u00b7"
            tokens.append(Token("", shown_text, mark, shown_text or name))
    return Split(torch.tensor([ids]), tokens, text[shown:] if tokenizer.is_fast else "")


def _text(number: int, split: Split, layers: Sequence[LayerRouting]) -> str:
    rows = "\n".join(_row(split, layer, layer.weights[number].tolist()) for layer in layers)
    return f"<section>\n<h2>Text {number + 1}</h2>\n{rows}\n</section>"


def _row(split: Split, layer: LayerRouting, weights: Sequence[Sequence[float]]) -> str:
    spans = []
    before = None
    for at, (token, weighed) in enumerate(zip(split.tokens, weights, strict=True)):
        best = max(range(len(weighed)), key=weighed.__getitem__)
        key = layer.keys[best]
        mark = ("" if key == before else _letter(key)) + token.mark
        said = [f"{at + 1}: {token.name}".replace("\n", "\u21b5")]
        for name, expert, weight in zip(layer.names, layer.keys, weighed, strict=True):
            said.append(f"{_letter(expert)} {name} {weight:.6f}")
        shown = f' data-m="{_escape(mark)}"' if mark else ""
        spans.append(
            f'{_escape(token.gap)}<span class="t e e{key}" style="--w:{weighed[best]:.3f}" tabindex="-1"{shown} '
            f'title="{_escape(chr(10).join(said))}">{_escape(token.text)}</span>'
        )
        before = key
    label = f"Layer {layer.position}"
    return (
        f'<figure><figcaption>{label}</figcaption><p class="row" dir="auto" tabindex="0" role="group" '
        f'aria-label="{label}">{"".join(spans)}{_escape(split.rest)}</p></figure>'
    )


def _layer_shares(layer: LayerRouting) -> str:
    highest = math.log(len(layer.names))
    entropy = f"{layer.entropy:.2f} of {highest:.2f}" if len(layer.names) > 1 else "no choice"
    return _shares(f"Layer {layer.position}", layer.names, layer.keys, layer.totals, entropy)


def _overall(legend: Sequence[str], layers: Sequence[LayerRouting]) -> str:
    totals = [0.0] * len(legend)
    for layer in layers:
        for key, total in zip(layer.keys, layer.totals, strict=True):
            totals[key] += total
    choosing = [layer.entropy for layer in layers if len(layer.names) > 1]
    entropy = f"{sum(choosing) / len(choosing):.2f}" if choosing else "no choice"
    return _shares("All", legend, range(len(legend)), totals, entropy)


def _shares(label: str, names: Sequence[str], keys: Sequence[int], totals: Sequence[float], entropy: str) -> str:
    whole = sum(totals)
    parts = [(name, key, total / whole) for name, key, total in zip(names, keys, totals, strict=True)]
    bar = "".join(f'<i class="e e{key}" style="flex-grow:{share:.4f}">{_letter(key)}</i>' for _, key, share in parts)
    listed = "".join(f"<li>{_swatch(key)} {_escape(name)} {share:.1%}</li>" for name, key, share in parts)
    return (
        f'<tr><th scope="row">{label}</th><td><div class="bar" aria-hidden="true">{bar}</div><ul>{listed}</ul></td>'
        f"<td>{entropy}</td></tr>"
    )


def _swatch(key: int) -> str:
    return f'<span class="swatch e e{key}">{_letter(key)}</span>'


def _letter(key: int) -> str:
    """Return a letter as spreadsheets name their columns: A to Z, AA, AB."""
    return (_letter(key // 26 - 1) if key >= 26 else "") + chr(ord("A") + key % 26)


def _escape(text: str) -> str:
    """Return text escaped for tags and attributes; a lone carriage return would be read as a line feed."""
    return html.escape(text.translate(_CONTROLS)).replace("\r", "&#13;")
