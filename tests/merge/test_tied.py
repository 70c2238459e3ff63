"""Embeddings and heads that may be tied: when the output has a head of its own, and of what it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.merge.toolkit import based, linear, plan, task, tensors
from tests.tiny import headers, llama, llama_config

if TYPE_CHECKING:
    from mol.io.checkpoint import Checkpoint


def tie(name: str, *, tied: bool, head: bool) -> Checkpoint:
    return headers(name, llama(2, head=head), llama_config(2, tied=tied))


def test_tied_models_stay_tied() -> None:
    planned = plan(linear(0.5, 0.5), tie("a", tied=True, head=False), tie("b", tied=True, head=False))
    assert planned.model_config["tie_word_embeddings"] is True
    assert not [t for t in tensors(planned) if t.name == "lm_head.weight"]


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_tied_and_an_untied_model_give_an_untied_one(names: str) -> None:
    tied, untied = tie("a", tied=True, head=False), tie("b", tied=False, head=True)
    planned = plan(linear(0.25, 0.75, names=names), tied, untied)
    method, sources = task(planned, "lm_head.weight")
    assert method == {"linear": {"weights": [0.25, 0.75], "normalize": True}}
    wanted = {"a": "model.embed_tokens.weight", "b": "lm_head.weight"}
    assert sources == [(i, wanted[name]) for i, name in enumerate(names)]
    assert planned.model_config["tie_word_embeddings"] is False
    assert any("tied in a" in note for note in planned.notes)
    assert planned.dropped == ()


def test_a_head_that_its_own_model_ignores_is_not_merged() -> None:
    a, b = tie("a", tied=True, head=False), tie("b", tied=True, head=True)
    planned = plan(linear(0.5, 0.5), a, b)
    assert planned.model_config["tie_word_embeddings"] is True
    assert planned.dropped == ("lm_head.weight of b: its scores are made with the embedding, to which it is tied",)
    reverse = plan(linear(0.5, 0.5, names="ba"), b, a)
    assert task(reverse, "lm_head.weight")[1] == task(reverse, "model.embed_tokens.weight")[1]


def test_a_written_head_of_a_tied_model_is_made_as_the_embedding_is() -> None:
    a, b = tie("a", tied=True, head=True), tie("b", tied=True, head=True)
    planned = plan(based("slerp", {}, "a", "b", parameters={"t": [0.25, 0.75]}), a, b)
    assert task(planned, "lm_head.weight") == task(planned, "model.embed_tokens.weight")


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_class_that_ties_by_default_ignores_heads_on_disk(names: str) -> None:
    config = {key: value for key, value in llama_config(2).items() if key != "tie_word_embeddings"}
    a, b = headers("a", llama(2), config), headers("b", llama(2, head=False), config)
    t = [{"filter": "lm_head", "value": 1.0}, {"value": 0.25}]
    planned = plan(based("slerp", {}, "a", "b", parameters={"t": t}) | {"base_model": names[0]}, a, b)
    made = {task.name: task.method for task in tensors(planned)}
    assert made.get("lm_head.weight", made["model.embed_tokens.weight"]) == {"slerp": {"t": 0.25}}
    assert planned.model_config.get("tie_word_embeddings") is None
    assert planned.notes == ()


def test_a_donor_without_scores_gets_no_head() -> None:
    bare = headers("a", llama(2, head=False), llama_config(2) | {"architectures": ["LlamaModel"]})
    planned = plan(linear(0.4, 0.3, 0.3), bare, tie("b", tied=False, head=True), tie("c", tied=True, head=False))
    assert {t.name for t in planned.plan.tensors} == set(bare.tensors)
    assert planned.dropped == ("lm_head.weight of b: a has no such tensor",)
