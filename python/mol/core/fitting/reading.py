"""Runs several models on the same text: hidden states between blocks, tokens paired by characters."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import nn

from mol.core.blocks.calls import Arguments, argument, output_at
from mol.core.blocks.dispatch import call_block, intercepted
from mol.core.blocks.inputs import takes, token_inputs
from mol.core.models.loading import load_tokenizer
from mol.errors import ArchitectureError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from mol.config.mol_config import MoLConfig
    from mol.core.blocks.source import Source

_WINDOW: Final = 256
"""The most tokens of one chunk: enough for context, few enough for every model."""


class TokenizedText(NamedTuple):
    """The tokens of one text.

    Attributes:
        ids: T numbers.
        spans: for each token its first character and the one after its last; equal ones for special tokens.
    """

    ids: list[int]
    spans: list[tuple[int, int]]


class TextModel(NamedTuple):
    """A model with its tokenizer.

    Attributes:
        source: the model, with its token embeddings.
        tokenizer: a fast one, which returns the offsets of tokens.
    """

    source: Source
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, source: Source, settings: MoLConfig) -> TextModel:
        """Load a model's tokenizer.

        Raises:
            ArchitectureError: the model reads no text, or its tokenizer returns no offsets.
            OSError: there is no tokenizer.
        """
        way_out = "choose another model, or use adapter_init='identity'"
        if not takes(source.owner, "input_ids"):
            raise ArchitectureError(
                f"{source.name} ({type(source.owner).__name__}) reads no text, so nothing can be fitted on its states; "
                f"{way_out}"
            )
        tokenizer = load_tokenizer(source.name, settings)
        if not tokenizer.is_fast:
            raise ArchitectureError(
                f"the tokenizer of {source.name} ({type(tokenizer).__name__}) returns no offsets of its tokens in a "
                f"text, so they cannot be paired with those of another; {way_out}"
            )
        return cls(source, tokenizer)

    def tokens(self, text: str) -> TokenizedText:
        """Return the tokens of a text as the model's own forward gets them, with special tokens."""
        # Without warnings of texts that are too long: they are cut below.
        read = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        return TokenizedText(read["input_ids"], [(start, end) for start, end in read["offset_mapping"]])

    @property
    def limit(self) -> int:
        """The most tokens of a chunk for this model, at most `_WINDOW`."""
        most: int | None = getattr(self.source.owner.config, "max_position_embeddings", None)
        return min(_WINDOW, int(self.tokenizer.model_max_length), most or _WINDOW)

    def states(self, ids: list[int], points: Collection[int]) -> dict[int, torch.Tensor]:
        """Run the model on one text, and return its hidden states at some points.

        Args:
            ids: T tokens.
            points: j is the input of block j, the number of blocks the output of the last one.

        Returns:
            For each point (T, D).
        """
        source = self.source
        last, kept, count = max(points), dict[int, torch.Tensor](), 0

        def keep(point: int, hidden: torch.Tensor) -> None:
            if point in points:
                # A copy: some models add to their input in place.
                kept[point] = source.layout.from_block(hidden, 1)[0, : len(ids)].clone()

        def run(block: nn.Module, call: Arguments) -> Any:  # noqa: ANN401 - as the block returns it
            nonlocal count
            index, form = count, source.calls.form_of(count, block)
            count += 1
            hidden = argument(call, form.hidden_in)
            keep(index, hidden)
            if index >= last:  # its result, and what follows, is not needed
                return source.calls.stub(index, call, hidden)
            result = call_block(block, source.driver.made(index, call))
            if index == len(source) - 1:
                keep(len(source), output_at(result, form.result.port))
            return result

        source.require(range(last))
        given = torch.tensor([ids], device=source.device)
        inputs = token_inputs(source.owner, given, torch.ones_like(given), positions=source.is_causal())
        with torch.no_grad(), source.driver.masking(), intercepted(source.blocks, run):
            source.owner(**inputs)
        source.calls.check_count(count)
        return kept


def chunks_of(texts: Sequence[str], text_models: Sequence[TextModel]) -> Iterator[tuple[TokenizedText, ...]]:
    """Cut texts, at spaces if there are any, until every model can read a chunk at once.

    Yields:
        The tokens of a chunk for each model.
    """
    waiting = list(reversed(texts))
    while waiting:
        text = waiting.pop()
        readings = tuple(text_model.tokens(text) for text_model in text_models)
        if all(len(reading.ids) <= text_model.limit for reading, text_model in zip(readings, text_models, strict=True)):
            if all(reading.ids for reading in readings):
                yield readings
        elif len(text) > 1:
            middle = len(text) // 2
            space = text.rfind(" ", 1, middle)
            cut = middle if space < 0 else space
            waiting += [text[cut:], text[:cut]]
        else:
            raise ConfigError(f"one character of the calibration text, {text!r}, is more tokens than a model can read")


def pair_tokens(host: TokenizedText, other: TokenizedText) -> list[tuple[int, int]]:
    """Pair the host's tokens with those of another model, by their offsets in the text.

    A token of the host is paired with the last token of the other model that ends where it ends or before, so with
    nothing that comes later. Special tokens have no offsets and no partner, unless both models read the same tokens:
    then each is paired with itself.

    Returns:
        Indices in `host` and in `other`; tokens of the host that end before any of the other's are left out.
    """
    if host == other:
        return [(index, index) for index in range(len(host.ids))]
    partners = [index for index, (start, end) in enumerate(other.spans) if start < end]
    ends = [other.spans[index][1] for index in partners]
    pairs = []
    for index, (start, end) in enumerate(host.spans):
        read = bisect_right(ends, end)
        if start < end and read:
            pairs.append((index, partners[read - 1]))
    return pairs
