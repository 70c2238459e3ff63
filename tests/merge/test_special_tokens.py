"""The ids of special tokens follow the tokenizer that the recipe chooses; without one, other ends are warned of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from mol.merge import plan_recipe, run_merge
from tests.merge.models import TOKENIZER, llama_config, make_llama
from tests.merge.toolkit import linear

if TYPE_CHECKING:
    from pathlib import Path

IDS = {"bos_token_id": 1, "eos_token_id": 2}
CHAT = {"tokenizer_config__json": {"eos_token": "token11", "bos_token": "token1"}}


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model(directory: Path, seed: int = 0, *, generation: object = None, **files: Any) -> Path:  # noqa: ANN401
    more = {} if generation is None else {"generation_config__json": generation}
    return make_llama(directory, seed, **{"config__json": llama_config() | IDS, **more, **files})


def merged(out: str = "out", **recipe: Any) -> tuple[dict[str, Any], dict[str, Any] | None, list[str]]:  # noqa: ANN401
    """Merge a and b; give config.json, generation_config.json and what was said about special tokens."""
    report = run_merge(linear(0.5, 0.5, **recipe), out, overwrite=True)
    config, generation = (report.out / name for name in ("config.json", "generation_config.json"))
    said = [note for note in report.planned.notes if note.startswith("special tokens")]
    return json.loads(config.read_text()), json.loads(generation.read_text()) if generation.exists() else None, said


def test_config_and_generation_config_follow_the_tokenizers_model(tmp_path: Path) -> None:
    model(tmp_path / "a", generation={"eos_token_id": 2, "temperature": 0.7})
    config = llama_config() | IDS | {"eos_token_id": 11, "pad_token_id": 10}
    model(tmp_path / "b", config__json=config, generation={"eos_token_id": [11, 2], "top_k": 5}, **CHAT)
    config, generation, (note,) = merged(tokenizer_source="b")
    assert {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        "bos_token_id": 1, "eos_token_id": 11, "pad_token_id": 10,
    }  # fmt: skip
    assert generation == {"eos_token_id": [11, 2], "temperature": 0.7}
    assert note == (
        "special tokens follow the tokenizer of b: config.json `eos_token_id` 2 -> 11, config.json `pad_token_id` "
        "unset -> 10, generation_config.json `eos_token_id` 2 -> [11, 2]"
    )


def test_tokens_that_the_tokenizer_does_not_name_follow_by_their_text_or_are_left_out(tmp_path: Path) -> None:
    padded = {"pad_token_id": 12, "sep_token_id": 5}
    model(tmp_path / "a", config__json=llama_config() | IDS | padded, generation={"pad_token_id": 12})
    fewer = TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": {f"token{i}": i for i in range(12)}}}
    model(tmp_path / "b", config__json=llama_config() | IDS | {"eos_token_id": 11}, tokenizer__json=fewer, **CHAT)
    config, generation, _ = merged(tokenizer_source="b")
    assert (config["pad_token_id"], config["sep_token_id"]) == (None, 5)
    assert generation is not None
    assert generation["pad_token_id"] is None


def test_a_stale_config_of_the_tokenizers_model_does_not_hide_its_end(tmp_path: Path) -> None:
    model(tmp_path / "a", generation={"eos_token_id": 2})
    model(tmp_path / "b", generation={"eos_token_id": 2}, **CHAT)
    config, generation, _ = merged(tokenizer_source="b")
    assert (config["eos_token_id"], generation) == (11, {"eos_token_id": [11, 2]})


@pytest.mark.parametrize("generation", [None, {"eos_token_id": 2}])
def test_a_directory_of_a_tokenizer_alone_is_enough(tmp_path: Path, generation: object) -> None:
    model(tmp_path / "a", generation=generation)
    model(tmp_path / "b", **CHAT)
    (tmp_path / "b" / "generation_config.json").unlink(missing_ok=True)
    config, generated, _ = merged(tokenizer_source="b")
    assert config["eos_token_id"] == [11, 2]  # its config.json is all that says what it stops at
    assert generated == (None if generation is None else {"eos_token_id": [11, 2]})


@pytest.mark.parametrize("source", ["base", "union"])
@pytest.mark.parametrize(("stated", "kept"), [(11, [2, 11]), (200, 2)])
def test_an_end_that_config_json_alone_states_is_kept_if_the_vocabulary_has_it(
    tmp_path: Path, source: str, stated: int, kept: object
) -> None:
    for seed, name in enumerate("ab"):
        config = llama_config() | {"eos_token_id": stated}
        model(tmp_path / name, seed, config__json=config, tokenizer_config__json={"eos_token": "token2"})
    config, generation, said = merged(tokenizer_source=source)
    assert (config["eos_token_id"], generation) == (kept, None)
    assert said == [f"special tokens follow the tokenizer of {source}: config.json `eos_token_id` {stated} -> {kept}"]


def test_more_ends_than_config_json_has_get_a_generation_config(tmp_path: Path) -> None:
    model(tmp_path / "a")
    model(tmp_path / "b", config__json=llama_config() | {"eos_token_id": 11}, generation={"eos_token_id": [11, 2]})
    config, generated, _ = merged(tokenizer_source="b")
    assert (config["eos_token_id"], generated) == (11, {"eos_token_id": [11, 2]})


def test_ids_in_a_nested_config_follow_too(tmp_path: Path) -> None:
    nested = llama_config() | {"text_config": dict(IDS)}
    model(tmp_path / "a", config__json=nested)
    model(tmp_path / "b", config__json=nested, **CHAT)
    config, _, _ = merged(tokenizer_source="b")
    assert config["text_config"] == {"bos_token_id": 1, "eos_token_id": [11, 2]}
    assert "eos_token_id" not in config


def test_nothing_changes_where_nothing_differs(tmp_path: Path) -> None:
    files = {"tokenizer_config__json": {"eos_token": "token2", "pad_token": "token3"}}
    for name in "ab":
        model(tmp_path / name, generation={"eos_token_id": 2}, **files)
    for source in ("a", "base", None):
        config, generation, said = merged(**({} if source is None else {"tokenizer_source": source}))
        assert {key: config.get(key) for key in (*IDS, "pad_token_id")} == {**IDS, "pad_token_id": None}
        assert (generation, said) == ({"eos_token_id": 2}, [])


def test_the_base_tokenizer_brings_its_own_end_into_stale_configs(tmp_path: Path) -> None:
    for name in "ab":
        model(tmp_path / name, generation={"eos_token_id": 2}, **CHAT)
    config, generation, _ = merged(tokenizer_source="base")
    assert (config["eos_token_id"], generation) == (11, {"eos_token_id": [11, 2]})


def test_a_tokenizer_without_special_tokens_is_warned_of(tmp_path: Path) -> None:
    model(tmp_path / "a")
    model(tmp_path / "b", config__json=llama_config())
    planned = plan_recipe(linear(0.5, 0.5, tokenizer_source="b"))
    assert any("no file of b states the ids of its special tokens" in warning for warning in planned.warnings)


def test_without_a_tokenizer_source_other_ends_are_warned_of(tmp_path: Path) -> None:
    model(tmp_path / "a", generation={"eos_token_id": 2})
    model(tmp_path / "b", generation={"eos_token_id": [11, 2]})
    (warning,) = plan_recipe(linear(0.5, 0.5)).warnings
    assert warning.startswith(
        "the inputs end their texts with different tokens: a 2 (token2), b 2 (token2) or 11 (token11); the output has "
        "the ids of a"
    )
    assert "`tokenizer_source: b`" in warning
    assert plan_recipe(linear(0.5, 0.5, tokenizer_source="b")).warnings == ()


@pytest.mark.parametrize(
    ("source", "way_out"), [("base", "`tokenizer_source: b`"), ("union", "`eos_token_id` in generation_config.json")]
)
def test_other_ends_are_warned_of_where_rows_are_paired_by_token(tmp_path: Path, source: str, way_out: str) -> None:
    model(tmp_path / "a", generation={"eos_token_id": 2})
    moved = {f"token{i}": i for i in range(10)} | {"token10": 11, "token11": 10}
    tokens = TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": moved}}
    chat = {"tokenizer__json": tokens, "tokenizer_config__json": {"eos_token": "token10"}}
    model(tmp_path / "b", config__json=llama_config() | {"eos_token_id": 11}, generation={"eos_token_id": 11}, **chat)
    (warning,) = plan_recipe(linear(0.5, 0.5, tokenizer_source=source)).warnings
    assert "different tokens: a 2 (token2), b 11 (token10); the output has the ids of a" in warning
    assert way_out in warning
    # The same token under another id is the same end.
    model(tmp_path / "c", config__json=llama_config() | {"eos_token_id": 10}, generation={"eos_token_id": 10})
    assert plan_recipe(linear(0.5, 0.5, names="cb", tokenizer_source=source)).warnings == ()


def test_ends_that_are_spelled_otherwise_are_the_same(tmp_path: Path) -> None:
    model(tmp_path / "a", generation={"eos_token_id": [2]})
    model(tmp_path / "b", tokenizer_config__json={"eos_token": {"content": "token2"}})
    model(tmp_path / "c", config__json=llama_config() | {"text_config": {"eos_token_id": 2}})
    make_llama(tmp_path / "d", 3)
    assert plan_recipe(linear(1, 1, 1, 1)).warnings == ()
    assert TOKENIZER["added_tokens"] == []


def test_ids_that_no_tokenizer_names_follow_by_their_texts_and_what_is_lost_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    further = {"decoder_start_token_id": 5, "forced_eos_token_id": 2, "image_token_id": 7, "video_token_id": 11}
    generation = {"decoder_start_token_id": 5, "suppress_tokens": [3, 7, 11], "eos_token_id": 2}
    generation |= {"bad_words_ids": [[3, 7], [7, 11]], "forced_decoder_ids": [[1, None], [2, 7], [3, 11]]}
    model(tmp_path / "a", config__json=llama_config() | IDS | further, generation=generation)
    vocab = {f"token{i}": 11 - i for i in range(11)}
    turned = TOKENIZER | {"model": TOKENIZER["model"] | {"vocab": vocab}}
    ids = {"bos_token_id": 10, "eos_token_id": 9, "decoder_start_token_id": 8}
    model(tmp_path / "b", config__json=llama_config() | ids, tokenizer__json=turned)
    config, generated, _ = merged(tokenizer_source="b")
    assert {key: config[key] for key in further} == {
        "decoder_start_token_id": 8, "forced_eos_token_id": 9, "image_token_id": 4, "video_token_id": None,
    }  # fmt: skip
    assert generated == {
        "decoder_start_token_id": 8, "suppress_tokens": [8, 4], "eos_token_id": 9,
        "bad_words_ids": [[8, 4]], "forced_decoder_ids": [[1, None], [2, 4]],
    }  # fmt: skip
    assert any("video_token_id" in line and "token11" in line for line in caplog.messages)
    config, generated, _ = merged(tokenizer_source="base")
    assert ({key: config[key] for key in further}, generated) == (further, generation)
