"""Suggested layers: the right blocks of a model that is known, what add_layer takes, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mol
from mol.config.mol_config import MoLConfig
from mol.core.fitting.calibration import load_text_model
from mol.core.fitting.maps import linear_cka
from mol.core.fitting.reading import TextModel
from mol.core.mol_runtime import MoLRuntime
from mol.errors import ArchitectureError, ConfigError
from tests.core.test_calibration import LICENSE, TEXT, pair

if TYPE_CHECKING:
    from pathlib import Path

    from mol.core.fitting.suggest import Similarity

__all__ = ["pair"]


@pytest.fixture(autouse=True)
def there(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair)


@pytest.mark.parametrize("by", ["r2", "cka"])
def test_a_host_in_other_axes_is_recognised_block_by_block(by: Similarity) -> None:
    found = mol.suggest_layers(["host", "bert", "wider"], TEXT, by=by)
    assert [(one.layer, one.model, one.block) for one in found.best] == [(n, "wider", n) for n in range(3)]
    assert {name: tuple(table.shape) for name, table in found.scores.items()} == {"bert": (3, 3), "wider": (3, 3)}
    assert all(one.score == found.scores["wider"][one.block, one.layer] for one in found.best)
    assert min(one.score for one in found.best) > (0.999 if by == "cka" else 0.9)
    assert found.scores["bert"].max() < 0.9


def test_a_score_is_the_mean_of_both_ends() -> None:
    runtime = MoLRuntime(MoLConfig(models=["host", "turned"]))
    text = LICENSE[:110]
    found = runtime.suggest_layers([text], by="cka", layers=[1])
    host, other = TextModel.of(runtime.host, runtime.config), load_text_model("turned", runtime.host, runtime.config)
    ids = host.tokens(text).ids
    assert len(ids) > 32
    assert found.tokens == {"turned": len(ids)}
    mine, theirs = (
        {point: states / states.norm(dim=-1, keepdim=True) for point, states in read.items()}
        for read in (host.states(ids, {1, 2}), other.states(ids, {2, 3}))
    )
    wanted = (linear_cka(mine[1], theirs[2]) + linear_cka(mine[2], theirs[3])) / 2
    assert found.scores["turned"][2, 0].item() == pytest.approx(wanted, rel=1e-6)


def test_the_specs_are_what_add_layer_takes() -> None:
    runtime = MoLRuntime(MoLConfig(models=["host", "bert"], adapter_init="lstsq"))
    runtime.calibrate(TEXT)
    found = runtime.suggest_layers(TEXT, max_tokens=200)
    assert found.tokens == {"bert": 200}
    two = found.specs(2)
    assert len(two) == 2
    assert set(two) == {one.layer for one in sorted(found.best, key=lambda one: one.score)[1:]}
    assert list(two) == sorted(two)
    assert list(found.specs()) == [0, 1, 2]
    for layer, specs in two.items():
        assert specs[0] == ("host", layer)
        runtime.add_layer(specs, layer)
    assert runtime.positions == list(two)


def test_the_table_is_no_wider_than_a_terminal() -> None:
    found = mol.suggest_layers(["host", "bert"], TEXT, max_tokens=100)
    assert str(found).splitlines() == [
        "layer  score  block",
        *(f"{one.layer:5}  {one.score:5.2f}  bert[{one.block}]" for one in found.best),
        "scores: R2 of ridge fits, on held-out tokens",
        "on 100 tokens of bert",
    ]
    long = found.best[0]._replace(model="a/directory/" * 9)
    wide = type(found)(found.host, found.by, {long.model: 100}, (long,), found.scores)
    assert max(len(line) for line in str(wide).splitlines()) == 80


def test_a_token_of_enormous_size_does_not_hide_the_others(tmp_path: Path) -> None:
    host = AutoModelForCausalLM.from_pretrained("host")
    tokenizer = AutoTokenizer.from_pretrained("host")
    first = tokenizer(TEXT[0])["input_ids"][40]
    with torch.no_grad():
        host.get_input_embeddings().weight[first] *= 1e4
    for part in (host, tokenizer):
        part.save_pretrained(tmp_path / "sunk")
    found = mol.suggest_layers([str(tmp_path / "sunk"), "wider"], TEXT)
    assert [one.block for one in found.best] == [0, 1, 2]
    assert min(one.score for one in found.best) > 0.8


def test_the_same_text_gives_the_same_scores() -> None:
    one, two = (mol.suggest_layers(["host", "bert"], TEXT, max_tokens=200) for _ in range(2))
    assert torch.equal(one.scores["bert"], two.scores["bert"])


def test_what_cannot_be_suggested_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        mol.suggest_layers(["host"], TEXT, layers=[3], by="cosine")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "layers cannot be suggested:\n"
        "  - config.models names the host only; name a model whose blocks to choose from\n"
        "  - layers are [3], the host host has layers 0 to 2\n"
        "  - by is 'cosine', wanted one of r2, cka"
    )
    with pytest.raises(ConfigError, match="widths up to 48 need as many"):
        mol.suggest_layers(["host", "bert"], ["a few words"])
    with pytest.raises(ConfigError, match="a list of texts"):
        mol.suggest_layers(["host", "bert"], "a few words")
    with pytest.raises(ArchitectureError, match=r"vit .*reads no text"):
        mol.suggest_layers(["host", "vit"], TEXT)
