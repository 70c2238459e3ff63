"""Regular expressions that wait until they are used behave as compiled ones."""

from __future__ import annotations

import re

import pytest

from mol.regex import regex


def test_it_is_the_expression_that_re_compiles() -> None:
    words = regex(r"(?P<word>[a-z]+)(\d)?", re.IGNORECASE)
    compiled = re.compile(r"(?P<word>[a-z]+)(\d)?", re.IGNORECASE)
    for text in ("", "Ab1 c", "1"):
        for way in ("search", "match", "fullmatch"):
            found, wanted = getattr(words, way)(text), getattr(compiled, way)(text)
            assert (found and found.groupdict()) == (wanted and wanted.groupdict())
        assert words.findall(text) == compiled.findall(text)
        assert words.sub("-", text) == compiled.sub("-", text)
    assert (words.pattern, words.flags, words.groups) == (compiled.pattern, compiled.flags, compiled.groups)


def test_one_of_bytes_takes_bytes() -> None:
    assert regex(rb"size (\d+)").fullmatch(b"size 12")[1] == b"12"  # type: ignore[index]


def test_what_is_no_expression_is_refused_at_its_first_use() -> None:
    broken = regex("(")
    with pytest.raises(re.error):
        broken.search("")
