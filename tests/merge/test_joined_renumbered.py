"""Tokenizers that load with other ids than their files state: refused where rows are paired by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer

from mol.errors import MergeError
from mol.merge import plan_recipe
from tests.merge.test_joined import make, tokenizer
from tests.merge.toolkit import linear

if TYPE_CHECKING:
    from pathlib import Path

GAP = {"a": 0, "b": 1, "<x>": 5, "<y>": 6}


def test_all_files_with_other_ids_are_refused_at_once_but_where_nothing_is_paired(tmp_path: Path) -> None:
    file = tokenizer(GAP)
    file["model"]["vocab"] = {"a": 0, "b": 1}
    names = [str(make(tmp_path / name, GAP, 8, files={"tokenizer.json": file})) for name in "pq"]
    loaded = Tokenizer.from_file(f"{names[0]}/tokenizer.json").get_vocab()
    assert loaded == {"a": 0, "b": 1, "<x>": 2, "<y>": 3}
    for source in ("union", "base", names[1]):
        with pytest.raises(MergeError) as refused:
            plan_recipe(linear(0.5, 0.5, names=names, tokenizer_source=source, base_model=names[0]))
        for name, line in zip(names, refused.value.problems, strict=True):
            assert f"{name}/tokenizer.json states other ids than 2 of its tokens load with" in line
            assert "'<x>' (states 5, loads with 2), '<y>' (states 6, loads with 3)" in line
            assert "AutoTokenizer" in line
    plan_recipe(linear(0.5, 0.5, names=names))


def test_ids_that_load_as_stated_may_follow_a_gap_of_the_vocabulary(tmp_path: Path) -> None:
    names = [str(make(tmp_path / name, {"a": 0, "b": 7, "<x>": 2, "<y>": 3}, 8)) for name in "pq"]
    plan_recipe(linear(0.5, 0.5, names=names, tokenizer_source="union"))
