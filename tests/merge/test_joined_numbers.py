"""What is paired by the numbers of tokens, or stated twice, where vocabularies are joined."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mol.errors import MergeError
from mol.merge import plan_recipe, run_merge
from tests.merge.test_joined import SIZES, TOKENS, A, make, models
from tests.merge.toolkit import linear

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("tensor", "shape"), [("model.embed_tokens_per_layer.weight", (11, 4)), ("final_logits_bias", (1, 14))]
)
def test_what_is_paired_by_number_is_not_paired_with_other_tokens(
    tmp_path: Path, tensor: str, shape: tuple[int, int]
) -> None:
    extra = {tensor: np.zeros(shape, dtype="f4")}
    a, b, c = models(tmp_path, extra=extra)
    d = str(make(tmp_path / "d", A, SIZES["a"], extra=extra))
    assert plan_recipe(linear(0.5, 0.5, names=(a, d), tokenizer_source="union")).joined is not None
    with pytest.raises(MergeError, match=rf"`{tensor}` of {a} .* not those of .*{c}; leave"):
        plan_recipe(linear(1, 1, 1, names=(a, b, c), tokenizer_source="union"))


@pytest.mark.parametrize(
    ("tensor", "shape"), [("final_logits_bias", (1, 14)), ("model.layers.0.mlp.gate.tid2eid", (14, 2))]
)
def test_what_is_paired_by_number_has_as_many_as_the_output(
    tmp_path: Path, tensor: str, shape: tuple[int, ...]
) -> None:
    extra = {tensor: np.zeros(shape, dtype="i8" if "tid2eid" in tensor else "f4")}
    names = [str(make(tmp_path / name, A, 14, extra=extra)) for name in "ad"]
    assert plan_recipe(linear(0.5, 0.5, names=names, tokenizer_source="union")).joined is not None
    padded = {"source": "union", "pad_to_multiple_of": 32}
    with pytest.raises(MergeError, match=rf"`{tensor}` of .* not as many \(32, wanted 14\); leave such models out"):
        plan_recipe(linear(0.5, 0.5, names=names, tokenizer=padded))


def test_the_vocabulary_of_a_marian_is_stated_twice(tmp_path: Path) -> None:
    paths = [str(make(tmp_path / n, TOKENS[n], SIZES[n], config={"decoder_vocab_size": SIZES[n]})) for n in "ab"]
    padded = {"source": "union", "pad_to_multiple_of": 32}
    out = run_merge(linear(0.5, 0.5, names=paths, tokenizer=padded), tmp_path / "out").out
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["decoder_vocab_size"]) == (32, 32)


def test_two_vocabularies_cannot_follow_one_tokenizer(tmp_path: Path) -> None:
    paths = [str(make(tmp_path / n, TOKENS[n], SIZES[n], config={"decoder_vocab_size": 5})) for n in "ab"]
    with pytest.raises(MergeError, match="states two vocabularies"):
        plan_recipe(linear(0.5, 0.5, names=paths, tokenizer_source="union"))
