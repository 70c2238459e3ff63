"""Tokens that a union adds to a BPE model get no merges; those that texts are split into all the same are warned of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mol.merge import plan_recipe
from tests.merge.test_joined import make, tokenizer
from tests.merge.toolkit import linear

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("token", "model", "warned"),
    [
        ("new", {"ignore_merges": True}, True),
        ("new", {"ignore_merges": False}, False),
        ("<new>", {"ignore_merges": True}, False),  # an added token, which texts are meant to have
        ("n", {"byte_fallback": True}, True),
        ("new", {"byte_fallback": True}, False),
    ],
)
def test_new_tokens_that_are_used_without_merges_are_warned_of(
    tmp_path: Path, token: str, model: dict[str, Any], *, warned: bool
) -> None:
    ids = {"a": 0, "b": 1}
    names = [
        str(make(tmp_path / name, tokens, 3, files={"tokenizer.json": tokenizer(tokens, **model)}))
        for name, tokens in (("x", ids), ("y", {**ids, token: 2}))
    ]
    warnings = plan_recipe(linear(0.5, 0.5, names=names, tokenizer_source="union")).warnings
    assert any(f"e.g. {token!r}, are no longer split as before" in line for line in warnings) == warned
