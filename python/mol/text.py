"""Texts for people: sizes in bytes, ranges of numbers, the known word that was probably meant."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from mol.errors import ConfigError
from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BYTES: Final = ((" TB", 10**12), (" GB", 10**9), (" MB", 10**6), (" kB", 10**3))
_COUNTS: Final = (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3))
_SIZE: Final = regex(r"([0-9][0-9_]*)\s*([KMGTB]?)(IB|B)?", re.IGNORECASE)
_LONGEST: Final = 200  # characters of a word that is compared with known ones
_POWERS: Final = {"": 0, "K": 1, "M": 2, "G": 3, "B": 3, "T": 4}


def parse_size(text: str) -> int:
    """Read a number of bytes: `5B` (mergekit's billions), `5GB`, `500M`, `4GiB`, `5_000`.

    Raises:
        ConfigError: if the text is not a positive size.
    """
    match = _SIZE.fullmatch(text.strip()) if len(text) <= 40 else None
    if match is None or (match[2] == "" and (match[3] or "").upper() == "IB"):
        raise ConfigError(f"{text[:40]!r} is not a size: write bytes as `5B`, `5GB`, `500M`, `4GiB` or `5_000`")
    unit = 1024 if (match[3] or "").upper() == "IB" else 1000
    size: int = int(match[1].replace("_", "")) * unit ** _POWERS[match[2].upper()]
    if size == 0:
        raise ConfigError(f"{text!r} is no size: wanted at least one byte")
    return size


def write_size(count: int | float) -> str:
    """Write bytes in decimal units with three figures: `2.20 GB`, `612 MB`, `48 bytes`."""
    return _scaled(count, _BYTES) or ("1 byte" if count == 1 else f"{count:.0f} bytes")


def write_count(count: int) -> str:
    """Write a number with three figures: `7.09M`, `612k`, `48`."""
    return _scaled(count, _COUNTS) or str(count)


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers shortly: 0-3, 7, 9-11."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def suggestion(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return `; did you mean ...?` for a key that looks like a known one, else nothing."""
    near = closest(word.lower().replace("-", "_"), known, cutoff=cutoff)
    return f"; did you mean `{near}`?" if near else ""


def closest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Find the known word that is most like a word; None where none is as much like it as `cutoff`, from 0 to 1."""
    if len(word) > _LONGEST:
        return None  # the comparison takes time by the product of the lengths
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return close[0] if close else None


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, two if a colon ends it; of one that says nothing its type."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first


def _scaled(count: int | float, units: Sequence[tuple[str, int]]) -> str | None:
    for unit, scale in units:
        if count >= 0.9995 * scale:
            value = count / scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"
    return None
