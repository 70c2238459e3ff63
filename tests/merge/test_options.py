"""Options of a run: sizes in every spelling, values that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from mol.errors import ConfigError
from mol.merge.options import MergeOptions, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5B", 5_000_000_000), ("5b", 5_000_000_000), ("5GB", 5_000_000_000), ("5G", 5_000_000_000),
        ("500M", 500_000_000), ("500 MB", 500_000_000), ("2k", 2_000), ("1TB", 10**12), ("4GiB", 4 << 30),
        ("5_000", 5_000), ("1234", 1234), (" 1MiB ", 1 << 20),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0GB", "GB", "-5GB", "5.5GB", "5XB", "5iB", "five", "_5"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    "fields", [{"threads": 0}, {"out_shard_size": 0}, {"seed": -1}, {"digest": "md5"}, {"simd": "neon"}]
)
def test_values_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        MergeOptions(**fields)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        MergeOptions(threads=0, digest="md5")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 2
