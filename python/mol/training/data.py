"""Rows of text as a dataset, and the loaders that a trainer makes of rows."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

_log: Final = logging.getLogger("mol")
_IGNORED: Final = -100
"""The label that does not count, as in transformers."""


class TextRows:
    """Texts as rows of tokens, all padded on the right to the longest of them; a map-style dataset.

    Each row has `input_ids`, `attention_mask`, 0 for padding, and `labels`, -100 for padding: all (T,), int64.
    """

    def __init__(self, rows: Sequence[Sequence[int]], padding: int) -> None:
        """Keep the tokens of each text, and what stands behind them."""
        self._rows = rows
        self._padding = padding
        self._length = max(map(len, rows))

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return a row."""
        import torch

        row = list(self._rows[index])
        rest = self._length - len(row)
        return {
            "input_ids": torch.tensor(row + [self._padding] * rest),
            "attention_mask": torch.tensor([1] * len(row) + [0] * rest),
            "labels": torch.tensor(row + [_IGNORED] * rest),
        }


def create_simple_dataset(
    texts: Any,  # noqa: ANN401 - see below
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 512,
) -> TextRows:
    """Tokenise texts, one row each, for a DataLoader or `MoLTrainer.train`.

    Args:
        texts: strings; or a `pathlib.Path`, or several, of files with a text per line, of which `.jsonl` has objects
            with a `text`; or an object of `datasets` with a column `text`.
        tokenizer: of the host.
        max_length: longer texts are cut to this many tokens, and a warning says how many were.

    Raises:
        ConfigError: there is no text, or something else than text, or a text without any token.
        OSError: a file cannot be read.
    """
    if type(max_length) is not int or max_length < 2:
        raise ConfigError(f"max_length is {max_length!r}, wanted a whole number of at least 2: one token predicts one")
    found = _texts(texts)
    # Cut here: the tokenizer would cut as well, and not say how much.
    encoded = tokenizer(found, add_special_tokens=True, padding=False, truncation=False, verbose=False)["input_ids"]
    empty = [f"text {number} ({found[number][:40]!r}) has no token" for number, row in enumerate(encoded) if not row]
    if empty:
        raise ConfigError.listing("these texts cannot be trained on", empty)
    long = [len(row) for row in encoded if len(row) > max_length]
    if long:
        _log.warning(
            "%d of %d texts are longer than max_length, %d tokens, and cut: %d of %d tokens are left out",
            len(long), len(encoded), max_length, sum(long) - max_length * len(long), sum(map(len, encoded)),
        )  # fmt: skip
    padding = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    return TextRows([row[:max_length] for row in encoded], padding)


def collate_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Make a batch of rows of unequal length: padded on the right to the longest, which padding at their ends is not.

    Columns of one length per row are padded where the rows differ: labels with -100, all others with 0. A row without
    `attention_mask` has no padding.

    Args:
        rows: dictionaries with `input_ids` (T,) and others (T,) or (); numbers, lists or tensors.
    """
    import torch

    columns = {name: [torch.as_tensor(row[name]) for row in rows] for name in rows[0]}
    ids = columns.get("input_ids")
    if ids is not None:
        columns.setdefault("attention_mask", [torch.ones_like(row) for row in ids])
        # Rows that a dataset padded to one length are cut to what the longest of this batch needs.
        longest = max((int(mask.nonzero()[-1]) + 1 if mask.any() else 1) for mask in columns["attention_mask"])
        lengths = [len(row) for row in ids]
        for name, values in columns.items():
            if [len(value) if value.dim() else -1 for value in values] == lengths:
                columns[name] = [value[:longest] for value in values]
    return {name: _stacked(values, _IGNORED if name == "labels" else 0) for name, values in columns.items()}


def make_loader(
    data: Any,  # noqa: ANN401 - a DataLoader, a dataset, texts
    batch_size: int,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    *,
    shuffle: bool,
) -> DataLoader[Any]:
    """Return a loader as it is, or make one of rows or texts.

    Args:
        data: a DataLoader; or rows, a map-style dataset or list of dictionaries; or what `create_simple_dataset` takes.
        batch_size: rows of a batch of a loader that is made here.
        tokenizer: returns that of texts.
        shuffle: whether a loader that is made here shuffles.

    Raises:
        ConfigError: it is something else.
    """
    from torch.utils.data import DataLoader

    if isinstance(data, DataLoader):
        return data
    first = data[0] if isinstance(data, list | tuple) and data else data
    if isinstance(first, str | Path) or "text" in (getattr(data, "column_names", None) or ()):
        data = create_simple_dataset(data, tokenizer())
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise ConfigError(
            f"the data are a {type(data).__name__}, wanted a DataLoader of batches, a dataset or list of rows, or texts"
        )
    if not len(data):
        raise ConfigError("there are no data: not a single row")
    first = data[0]
    if not hasattr(first, "keys"):
        raise ConfigError(f"a row is a {type(first).__name__}, wanted a dictionary with `input_ids` and so on")
    ids = first.get("input_ids")
    if getattr(ids, "ndim", 1) != 1:
        raise ConfigError(
            f"the `input_ids` of a row are {tuple(ids.shape)}, wanted one axis; batches are given in a DataLoader"
        )
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, collate_fn=collate_rows)


def _stacked(values: Sequence[torch.Tensor], padding: int) -> torch.Tensor:
    import torch

    if values[0].dim() != 1:
        return torch.stack(list(values))
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True, padding_value=padding)


def _texts(given: object) -> list[str]:
    """Return texts, in whichever form they were given.

    Raises:
        ConfigError: there are none, or something else.
    """
    columns = getattr(given, "column_names", None)
    if columns is not None:
        if "text" not in columns:
            raise ConfigError(f"the dataset has no column `text`, but {', '.join(map(str, columns)) or 'none at all'}")
        given = given["text"]  # type: ignore[index]
    if isinstance(given, str):
        raise ConfigError("texts are one string, wanted several; a file is given as a pathlib.Path")
    if isinstance(given, Path):
        given = [given]
    try:
        found = [text for one in given for text in (_lines(one) if isinstance(one, Path) else [one])]  # type: ignore[attr-defined]
    except TypeError:
        raise ConfigError(f"texts are a {type(given).__name__}, wanted a list of strings or of files") from None
    if not found:
        raise ConfigError("there is no text")
    other = next((text for text in found if not isinstance(text, str)), "")
    if other != "":
        raise ConfigError(f"a text is a {type(other).__name__}, wanted strings, or pathlib.Path of files")
    return found


def _lines(path: Path) -> list[str]:
    """Return the texts of a file, one per line that is not blank."""
    try:
        # Not at the other line separators of Unicode, which may be part of a text.
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from error
    if path.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, 1):
        try:
            texts.append(json.loads(line)["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: {line[:60]!r} is no JSON object with a `text`") from error
    return texts


def length_of(loader: Any) -> int | None:  # noqa: ANN401
    """Return the number of batches of a loader; None if its data have no length."""
    try:
        return len(loader)
    except TypeError:  # of an iterable dataset
        return None
