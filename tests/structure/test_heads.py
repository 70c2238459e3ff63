"""The head that a file holds is believed before config.json, whatever stands next to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mol.cli import main
from mol.config import ModelReference
from mol.io.checkpoint import Checkpoint
from mol.merge import plan_recipe, run_merge
from mol.structure.heads import find_own_heads
from mol.structure.layers import find_structures
from tests.merge.models import llama_config, llama_tensors, make_llama, weights_of

if TYPE_CHECKING:
    from pathlib import Path

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SAID = "head and embedding are tied, and `lm_head.weight` differs from `model.embed_tokens.weight`"


def make(directory: Path, seed: int, head: str, tied: bool | None = True) -> dict[str, np.ndarray[Any, Any]]:
    """Write a model whose head is its "own", "equal" to the embedding, or "none"; `tied` is what its config says."""
    config = {key: value for key, value in llama_config().items() if key != "tie_word_embeddings"}
    make_llama(directory, seed, config__json=config if tied is None else config | {"tie_word_embeddings": tied})
    tensors = llama_tensors(seed)
    if head == "equal":
        tensors[HEAD] = tensors[EMBEDDING].copy()
    elif head == "none":
        del tensors[HEAD]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return tensors


def linear(*names: str) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": name, "parameters": {"weight": 1}} for name in names]}


def tie_of(out: Path) -> bool | None:
    flag: bool | None = json.loads((out / "config.json").read_text()).get("tie_word_embeddings")
    return flag


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("method", ["passthrough", "linear"])
def test_a_head_of_its_own_comes_through_one_model(tmp_path: Path, method: str) -> None:
    tensors = make(tmp_path / "a", 1, "own")
    report = (
        run_merge({"merge_method": method, "models": [{"model": "a", "parameters": {"weight": 1}}]}, "out")
        if (method == "linear")
        else run_merge({"merge_method": method, "models": [{"model": "a"}]}, "out")
    )
    merged = weights_of(tmp_path / "out")
    assert all(np.array_equal(merged[name], tensors[name]) for name in tensors)
    assert tie_of(tmp_path / "out") is False
    assert [note for note in report.planned.notes if SAID in note]


def test_a_head_that_is_the_embedding_stays_tied(tmp_path: Path) -> None:
    make(tmp_path / "a", 1, "equal")
    report = run_merge({"merge_method": "passthrough", "models": [{"model": "a"}]}, "out")
    merged = weights_of(tmp_path / "out")
    assert np.array_equal(merged[HEAD], merged[EMBEDDING])
    assert tie_of(tmp_path / "out") is True
    assert report.planned.notes == ()


@pytest.mark.parametrize("other", ["none", "equal", "own", "untied"])
@pytest.mark.parametrize("first", [True, False])
def test_scores_are_merged_as_each_model_makes_them(tmp_path: Path, other: str, first: bool) -> None:
    """Whatever the other input does, and whichever is the donor, the head is the mean of what the two score with."""
    a = make(tmp_path / "a", 1, "own")
    b = make(tmp_path / "b", 2, "own" if other == "untied" else other, tied=other != "untied")
    run_merge(linear(*("ab" if first else "ba")), "out")
    merged = weights_of(tmp_path / "out")
    np.testing.assert_allclose(merged[HEAD], (a[HEAD] + b.get(HEAD, b[EMBEDDING])) / 2, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(merged[EMBEDDING], (a[EMBEDDING] + b[EMBEDDING]) / 2, rtol=1e-6, atol=1e-7)
    assert tie_of(tmp_path / "out") is False


def test_a_task_vector_of_the_head_starts_from_the_tied_embedding_of_the_base(tmp_path: Path) -> None:
    base, tuned = make(tmp_path / "base", 1, "none"), make(tmp_path / "tuned", 2, "own")
    recipe = linear("tuned") | {"merge_method": "task_arithmetic", "base_model": "base"}
    recipe["models"][0]["parameters"]["weight"] = 0.5
    run_merge(recipe, "out")
    wanted = base[EMBEDDING] + 0.5 * (tuned[HEAD] - base[EMBEDDING])
    np.testing.assert_allclose(weights_of(tmp_path / "out")[HEAD], wanted, rtol=1e-6, atol=1e-6)
    assert tie_of(tmp_path / "out") is False


@pytest.mark.parametrize("last", ["a", "b"])
def test_slices_take_the_head_from_the_last(tmp_path: Path, last: str) -> None:
    made = {"a": make(tmp_path / "a", 1, "own"), "b": make(tmp_path / "b", 2, "none")}
    order = ["b", "a"] if last == "a" else ["a", "b"]
    pieces = [
        {"sources": [{"model": order[0], "layer_range": [0, 1]}]},
        {"sources": [{"model": order[1], "layer_range": [1, 2]}]},
    ]
    run_merge({"merge_method": "passthrough", "slices": pieces}, "out")
    merged = weights_of(tmp_path / "out")
    assert np.array_equal(merged[HEAD], made[last].get(HEAD, made[last][EMBEDDING]))
    assert np.array_equal(merged[EMBEDDING], made[order[0]][EMBEDDING])
    assert tie_of(tmp_path / "out") is False


def test_a_config_that_says_nothing_is_no_reason_to_tie(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 1, "own", tied=None), make(tmp_path / "b", 2, "none", tied=None)
    run_merge(linear("b", "a"), "out")
    np.testing.assert_allclose(weights_of(tmp_path / "out")[HEAD], (a[HEAD] + b[EMBEDDING]) / 2, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "name"),
    [({"is_encoder_decoder": True}, HEAD), ({"model_type": "roberta"}, "lm_head.decoder.weight")],
)
def test_a_flag_that_ties_more_than_the_head_is_left(tmp_path: Path, config: dict[str, Any], name: str) -> None:
    """It ties the embeddings of encoder and decoder too, or the biases of a head in parts."""
    made = {}
    for seed, directory in enumerate("ab"):
        tensors = make(tmp_path / directory, seed, "own")
        tensors[name] = tensors.pop(HEAD)
        save_file(tensors, tmp_path / directory / "model.safetensors", metadata={"format": "pt"})
        text = json.dumps(llama_config() | {"tie_word_embeddings": True} | config)
        (tmp_path / directory / "config.json").write_text(text)
        made[directory] = tensors
    report = run_merge(linear("a", "b"), "out")
    wanted = (made["a"][name] + made["b"][name]) / 2
    np.testing.assert_allclose(weights_of(tmp_path / "out")[name], wanted, rtol=1e-6, atol=1e-7)
    assert tie_of(tmp_path / "out") is True
    assert any("tie_word_embeddings is left as it is" in note for note in report.planned.notes)


@pytest.mark.parametrize("change", ["first", "last", "none"])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float16", "float32")])
def test_heads_are_compared_to_their_last_element(tmp_path: Path, change: str, dtypes: tuple[str, str]) -> None:
    """In parts, over shards, after other tensors; values are compared where dtypes differ."""
    embedding = np.tile(np.arange(64, dtype="f4"), (20_000, 1)).astype(dtypes[0])
    head = embedding.astype(dtypes[1])
    if change != "none":
        head[0 if change == "first" else -1, -1] += 1
    config = llama_config() | {"tie_word_embeddings": True}
    for parts in ([{"a": embedding[:3], EMBEDDING: embedding, HEAD: head}], [{EMBEDDING: embedding}, {HEAD: head}]):
        directory = tmp_path / f"of{len(parts)}"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        names = [f"model-0000{i + 1}-of-0000{len(parts)}.safetensors" for i in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            save_file(part, directory / name)
        weight_map = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        models = {ModelReference("m"): Checkpoint.open(directory)}
        found = find_own_heads(models, find_structures(models))
        assert bool(found) is (change != "none")


def test_plan_validate_and_merge_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a", 1, "own")
    recipe = tmp_path / "r.yml"
    recipe.write_text("merge_method: passthrough\nmodels:\n- model: a\n")
    assert plan_recipe(recipe).model_config["tie_word_embeddings"] is False
    for verb in (["validate", "r.yml"], ["plan", "r.yml", "--json"], ["r.yml", "out", "--json"]):
        assert main(verb) == 0
        said = capsys.readouterr()
        if verb[0] != "validate":
            assert SAID in said.out
