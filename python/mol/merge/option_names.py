"""Options of a run under the names that mergekit and the seed have for them, and why some change nothing here."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from mol.config.document import shown
from mol.errors import ConfigError
from mol.merge.options import MergeOptions
from mol.text import parse_size, suggestion
from mol.without_effect import ON_THE_CPU, WITHOUT_EFFECT

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger("mol")

_IN_PYTHON: Final = {
    **WITHOUT_EFFECT,
    "write_threads": "the same threads read, compute and write; `threads` sets their number",
    "quiet": "messages go to the logger `mol`",
    "verbose": "messages go to the logger `mol`",
    "verbosity": "messages go to the logger `mol`",
}
_RENAMED: Final = {"transformers_cache": "cache_dir", "random_seed": "seed", "num_threads": "threads"}
_SAFETENSORS: Final = ("safe_serialization", "use_safetensors")


def read_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of MergeOptions for options under any name; one that changes nothing is logged in one line.

    Raises:
        ConfigError: pickle files are requested, or a device that does not exist.
        TypeError: there is no such option.
    """
    known = {field.name for field in fields(MergeOptions)}
    read: dict[str, Any] = {}
    for word, value in given.items():
        name = _RENAMED.get(word, word)
        if name in known:
            if name in read and read[name] != value:
                raise TypeError(f"`{word}` is `{name}` again: give one of the two")
            if value is not None or name == word:
                in_words = name in ("memory", "out_shard_size") and isinstance(value, str)
                read[name] = parse_size(value) if in_words else value
        elif word in _IN_PYTHON:
            if value is not None and value is not False:
                _log.info("`%s` has no effect: %s", word, _IN_PYTHON[word])
        elif word == "device":
            if str(value) not in ("None", "cpu"):
                _log.info("`device` %s has no effect: %s", shown(value), ON_THE_CPU)
        elif word in _SAFETENSORS:
            if value is False:
                raise ConfigError(f"`{word}=False` is refused: pickle files can run code when loaded")
        else:
            names = (*known, *_RENAMED, *_IN_PYTHON, *_SAFETENSORS, "device")
            raise TypeError(f"a merge has no option `{word}`{suggestion(word, sorted(names))}")
    return read
