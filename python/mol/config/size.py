"""Sizes in bytes as people write them."""

from __future__ import annotations

import re
from typing import Final

from mol.errors import ConfigError

_SIZE: Final = re.compile(r"([0-9][0-9_]*)\s*([KMGTB]?)(IB|B)?", re.IGNORECASE)
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
