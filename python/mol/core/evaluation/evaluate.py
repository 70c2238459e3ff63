"""evaluate: bits per byte and perplexity of a language model, by domain."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional

from mol.core.blocks.inputs import takes
from mol.core.blocks.lengths import announced
from mol.core.evaluation.opening import EvaluationOptions, open_model
from mol.core.evaluation.scores import DomainScore, Evaluation
from mol.core.evaluation.texts import read_domains
from mol.core.evaluation.windows import Window, windows_of
from mol.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Unpack

    from mol.core.runtime import Runtime

_log: Final = logging.getLogger("mol")
_LONGEST: Final = 2048
"""The most tokens of a window unless `max_length` is given: contexts may be too long for memory."""


def evaluate(
    model: str | Path | Runtime | PreTrainedModel,
    texts: Any,  # noqa: ANN401 - see below
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    progress: bool | None = None,
    **options: Unpack[EvaluationOptions],
) -> Evaluation:
    """Measure a language model on texts: bits per byte and perplexity, by domain.

    Every token of a document is scored once. The first is predicted from the tokenizer's BOS, or its EOS where it has
    none, which itself is not scored; no other special token is added. A document longer than `max_length` is read in
    windows: each after the first scores the next `stride` tokens, with as many before them as fit. Bits per byte are
    the negative log likelihood of all tokens over the bytes of the text in UTF-8, so that models with different
    tokenizers can be compared. Logits are taken in float32, and sums in float64.

    Args:
        model: a directory (of any causal language model, a merge, or a saved fusion), the file of `save_checkpoint`,
            or a name on the Hub; or a `MoLRuntime`, or a model of transformers, which is put back into the mode in
            which it was.
        texts: a mapping from domains to strings or `pathlib.Path`s of files, one or several each; or paths, whose
            domains are the files' names; or strings, of one domain. A file is one document, but each line of a `.jsonl`
            file is one, an object with a `text`.
        tokenizer: the model's own if None.
        max_length: the most tokens that are read at once; the model's context, at most 2048, if None.
        stride: how many tokens a later window scores; half of `max_length` if None. `max_length` is fastest.
        batch_size: windows per forward; it changes no result but for rounding.
        progress: whether to show a bar; None shows it on a terminal only.
        **options: for a model that is given by name, as in transformers: `device` (a GPU if there is one), `dtype`
            (as stored), `attn_implementation`, `trust_remote_code`, `token`, `cache_dir`.

    Raises:
        ConfigError: there is no text, a document is empty, or a number is out of its range.
        FusionError: the model does not predict each token from those before it, such as an encoder.
        CheckpointError: the model cannot be loaded, or returns NaN.
        OSError: a file is missing or cannot be read.
    """
    domains = read_domains(texts)
    for word, number in (("batch_size", batch_size), ("max_length", max_length), ("stride", stride)):
        if number is not None and (type(number) is not int or number < 1):
            raise ConfigError(f"{word} is {number!r}, wanted a whole number of at least 1")
    opened, tokenizer, name = open_model(model, options, tokenizer)
    length = _length(opened, tokenizer, name, max_length)
    stride = max(length // 2, 1) if stride is None else stride
    if stride > length:
        raise ConfigError(f"stride is {stride}, more than max_length, {length}: tokens would be left out")
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is None:
        raise ConfigError(
            f"the tokenizer of {name} has neither BOS nor EOS to begin a document with: set tokenizer.bos_token, and "
            "give tokenizer="
        )
    encoded = {
        domain: tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
        for domain, documents in domains.items()
    }
    _check_tokens(encoded, opened, tokenizer, name)
    windows = [
        window
        for domain, documents in encoded.items()
        for number, tokens in enumerate(documents)
        for window in windows_of(domain, number, [first, *tokens], length, stride)
    ]
    sums = _score(opened, windows, batch_size, progress, name)
    scores = {
        domain: DomainScore(
            len(documents),
            sum(len(text.encode()) for text in documents),
            sum(map(len, encoded[domain])),
            math.fsum(nll for window, nll in zip(windows, sums, strict=True) if window.domain == domain),
        )
        for domain, documents in domains.items()
    }
    return Evaluation(name, scores, length, stride, str(tokenizer.convert_ids_to_tokens(first)))


def _length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, max_length: int | None) -> int:
    context = announced(model)
    if max_length is None:
        return min(context or _LONGEST, int(tokenizer.model_max_length), _LONGEST)
    if context is not None and max_length > context:
        raise ConfigError(f"max_length is {max_length}, and {name} is made for {context} tokens: give no more")
    return max_length


def _check_tokens(
    encoded: Mapping[str, Sequence[Sequence[int]]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
) -> None:
    """Refuse tokens that the model lacks and documents without any; warn of those that hide what a text says."""
    empty = [
        f"document {number} of {domain} has no token"
        for domain, documents in encoded.items()
        for number, tokens in enumerate(documents, 1)
        if not tokens
    ]
    if empty:
        raise ConfigError.listing(f"{name} cannot be measured on these texts", empty)
    tokens = [token for documents in encoded.values() for document in documents for token in document]
    rows = model.get_input_embeddings().num_embeddings
    if max(tokens) >= rows:
        raise ConfigError(f"the tokenizer has a token {max(tokens)}, and {name} {rows} tokens: give its own tokenizer")
    unknown = 0 if tokenizer.unk_token_id is None else tokens.count(tokenizer.unk_token_id)
    if unknown:
        _log.warning(
            "%d of %d tokens are %s, which hides what the text says there: bits per byte are too low to be compared",
            unknown, len(tokens), tokenizer.unk_token,
        )  # fmt: skip


def _score(
    model: Any,  # noqa: ANN401 - of transformers
    windows: Sequence[Window],
    batch_size: int,
    progress: bool | None,
    name: str,
) -> list[float]:
    """Return the sum of the targets' negative log likelihoods for each window, in nats."""
    from tqdm import tqdm

    order = sorted(range(len(windows)), key=lambda index: -len(windows[index].ids))
    sums = [0.0] * len(windows)
    training = model.training
    model.eval()
    disable = None if progress is None else not progress
    try:
        with (
            torch.no_grad(),
            tqdm(total=len(windows), desc="evaluating", unit="window", disable=disable, dynamic_ncols=True) as bar,
        ):
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                logits = _logits(model, [windows[index].ids for index in batch])
                for index, row in zip(batch, logits, strict=True):
                    _, _, ids, targets = windows[index]
                    scored = row[len(ids) - len(targets) : len(ids)].float()
                    labels = torch.tensor(targets, device=scored.device)
                    sums[index] = float(functional.cross_entropy(scored, labels, reduction="none").double().sum())
                bar.update(len(batch))
    finally:
        model.train(training)
    wrong = [window for window, nll in zip(windows, sums, strict=True) if not math.isfinite(nll)]
    if wrong:
        raise CheckpointError(
            f"{name} returns NaN or infinity for document {wrong[0].document + 1} of {wrong[0].domain}: its weights "
            "are damaged, or its dtype is too narrow (dtype='float32')"
        )
    return sums


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:  # noqa: ANN401 - of transformers
    """Run the model on rows of tokens, padded on the right where they differ in length; returns (B, T, V)."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=model.device)
    given: dict[str, Any] = {"input_ids": ids}
    if any(len(row) < longest for row in rows):
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        given["attention_mask"] = torch.tensor(mask, device=model.device)
    options = {"use_cache": False, "attention_mask": None}
    given = {**{name: value for name, value in options.items() if takes(model, name)}, **given}
    logits: torch.Tensor = model(**given).logits
    return logits
