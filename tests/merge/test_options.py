"""Options of a run: sizes in every spelling, values that cannot be."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from mol.errors import ConfigError
from mol.merge.option_names import read_options
from mol.merge.options import MergeOptions, OptionFields
from mol.text import parse_size


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
    "fields",
    [
        {"threads": 0}, {"threads": "4"}, {"threads": True}, {"threads": 2.0}, {"out_shard_size": 0},
        {"out_shard_size": 2**63}, {"seed": -1}, {"seed": 2**64}, {"tile": 2**64}, {"tile": 0}, {"digest": "md5"},
        {"digest": 16**5000}, {"simd": "neon"}, {"seed": -(16**5000)},
        {"overwrite": 1}, {"sync": "yes"}, {"copy_tokenizer": None}, {"mmap": 1},
    ],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_values_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        MergeOptions(**fields)


def test_every_option_is_typed_and_what_is_typed_is_an_option() -> None:
    known = {field.name for field in fields(MergeOptions)}
    assert known <= OptionFields.__annotations__.keys()
    assert all(read_options({name: 1}).keys() <= known for name in OptionFields.__annotations__)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        MergeOptions(threads=0, digest="md5")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 2


def test_a_token_is_not_shown() -> None:
    assert "hf_secret" not in repr(MergeOptions(token="hf_secret"))


@pytest.mark.parametrize("threads", [1, 7, 2**64, 16**5000], ids=lambda count: f"{count.bit_length()} bits")
def test_no_more_workers_are_started_than_the_machine_can_use(threads: int) -> None:
    workers = MergeOptions(threads=threads).workers
    assert workers == threads if threads < 16 else workers is not None and workers < 10_000


def test_a_size_without_end_is_no_size() -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_size("9" * 5000)
