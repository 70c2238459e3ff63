"""A step that chooses its vocabulary is, for what is made of it, the model that it would be in a directory."""

from __future__ import annotations

import gc
import json
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from mol import run_merge
from mol.errors import ConfigError, MergeError
from mol.merge.chat_template import chat_template_of
from mol.merge.run import plan_recipe
from tests.merge.loras import EMBEDDING, HIDDEN, PLAIN, draw, embedding_factors, factors, save_adapter
from tests.merge.models import ROWS, contents_of, llama_config, make_llama, weights_of

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
TOKENS = [f"token{i}" for i in range(ROWS)]
FIRST, SECOND = "<|im_start|>", "<|im_end|>"


def make(directory: Path, seed: int, tokens: list[str], added: tuple[str, ...] = (), **files: object) -> None:
    """A model with these tokens and a row for each."""
    content = {
        "model": {"vocab": {token: i for i, token in enumerate(tokens)}},
        "added_tokens": [{"id": len(tokens) + i, "content": token, **FLAGS} for i, token in enumerate(added)],
    }
    rows = len(tokens) + len(added)
    config = llama_config() | {"vocab_size": rows}
    make_llama(directory, seed, tokenizer__json=content, config__json=config, **files)
    tensors = weights_of(directory)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.random.default_rng(seed).normal(0, 1, (rows, HIDDEN)).astype(np.float32)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, one with two more tokens and an end of its own, one with one more and the others reversed."""
    root = tmp_path_factory.mktemp("models")
    named = {"eos_token": "token3", "chat_template": "{{ messages[0].content }} of a"}
    make(root / "a", 1, TOKENS, tokenizer_config__json=named, generation_config__json={"eos_token_id": 3})
    own = {"eos_token": SECOND, "chat_template": "{{ messages[0].content }} of b"}
    end = {"eos_token_id": ROWS + 1}
    make(root / "b", 2, TOKENS, (FIRST, SECOND), tokenizer_config__json=own, generation_config__json=end)
    make(root / "c", 3, TOKENS[::-1], (SECOND,))
    save_adapter(root / "lora", PLAIN)
    return root


def linear(*models: object, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    listed = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models]
    return {"merge_method": "linear", "models": listed, "dtype": "float32", **more}


def steps(root: Path, first: str, then: str) -> list[dict[str, Any]]:
    a, b, c = (root / name for name in "abc")
    tokens = {FIRST: {"source": str(b), "force": True}, "<new>": {"source": {"kind": "zero"}}}
    of_first: dict[str, dict[str, Any]] = {
        "union": {"tokenizer_source": "union"},
        "a union with rules": {"tokenizer": {"source": "union", "tokens": tokens, "pad_to_multiple_of": 8}},
        "another model": {"tokenizer_source": str(b)},
        "the base": {"tokenizer_source": "base"},
        "no choice": {},
    }
    of_then: dict[str, dict[str, Any]] = {
        "a copy": {"merge_method": "passthrough", "models": [{"model": "stage"}]},
        "linear": linear("stage", b, base_model="stage"),
        "linear of one with other tokens": linear(a, "stage", base_model=str(a), tokenizer_source="base"),
        "a union": linear(c, "stage", base_model=str(c), tokenizer_source="union"),
        "slerp": {
            "merge_method": "slerp",
            "models": [{"model": "stage"}, {"model": str(b)}],
            "base_model": "stage",
            "parameters": {"t": 0.3},
            "tokenizer_source": "union",
        },
        "its tokenizer": linear(a, "stage", base_model=str(a), tokenizer_source="stage"),
        "an adapter": {"merge_method": "passthrough", "models": [{"model": f"stage+{root / 'lora'}"}]},
    }
    return [
        {"name": "stage", **linear(a, b, base_model=str(a), **of_first[first])},
        {**of_then[then], "dtype": "float32"},
    ]


def in_one(documents: list[dict[str, Any]], out: Path) -> Any:  # noqa: ANN401
    return run_merge("---\n".join(map(yaml.safe_dump, documents)), out)


def apart(documents: list[dict[str, Any]], root: Path) -> Path:
    """The same as two commands."""
    first, then = documents
    run_merge({**first, "name": None}, root / "stage")
    text = json.dumps(then).replace('"stage', f'"{root / "stage"}')
    run_merge(json.loads(text), root / "result")
    return root / "result"


def files_of(directory: Path) -> dict[str, Any]:
    """All but the papers, which name the recipe."""
    return {
        name: json.loads(content) if name.endswith(".json") else content
        for name, content in contents_of(directory).items()
        if name not in {"README.md", "mol_manifest.json", "recipe.yml", "mol_recipe.yml", "mergekit_config.yml"}
    }


@pytest.mark.parametrize(
    "then",
    [
        "a copy", "linear", "linear of one with other tokens", "a union", "slerp", "its tokenizer", "an adapter",
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", ["union", "a union with rules", "another model", "the base", "no choice"])
def test_two_documents_are_two_commands(first: str, then: str, models: Path, tmp_path: Path) -> None:
    documents = steps(models, first, then)
    in_one(documents, tmp_path / "out")
    ours, theirs = files_of(tmp_path / "out"), files_of(apart(documents, tmp_path))
    assert ours == theirs
    assert ours["config.json"]["vocab_size"] == len(weights_of(tmp_path / "out")["lm_head.weight"])


def test_a_union_of_a_step_has_all_tokens_in_the_result(models: Path, tmp_path: Path) -> None:
    report = in_one(steps(models, "union", "a copy"), tmp_path / "out")
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert [token["content"] for token in tokenizer["added_tokens"]] == [FIRST, SECOND]
    assert weights_of(tmp_path / "out")["model.embed_tokens.weight"].shape == (ROWS + 2, HIDDEN)
    said = "\n".join(report.planned.notes)
    assert f"stage: the vocabulary of the output has {ROWS + 2} tokens and {ROWS + 2} rows" in said


def test_a_step_between_hands_the_files_of_a_step_on(models: Path, tmp_path: Path) -> None:
    first, last = steps(models, "union", "linear")
    between = {"name": "between", **linear("stage", models / "b", base_model="stage")}
    in_one([first, between, json.loads(json.dumps(last).replace('"stage"', '"between"'))], tmp_path / "out")
    result = apart([first, between], tmp_path)
    text = json.dumps(last).replace('"stage"', json.dumps(str(result)))
    run_merge(json.loads(text), tmp_path / "last")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "last")


def test_the_tokenizer_of_a_step_may_be_taken_by_a_result_that_is_not_made_of_it(models: Path, tmp_path: Path) -> None:
    first, last = steps(models, "another model", "its tokenizer")
    between = {"name": "between", **linear(models / "a", "stage", base_model=str(models / "a"))}
    last["models"][1]["model"] = "between"
    in_one([first, between, last], tmp_path / "out")
    files = files_of(tmp_path / "out")
    assert files["tokenizer.json"] == json.loads((models / "b" / "tokenizer.json").read_text())
    assert files["generation_config.json"]["eos_token_id"] == ROWS + 1


@pytest.mark.parametrize("then", ["", "+lora"])
@pytest.mark.parametrize("first", ["union", "a union with rules", "another model", "the base", "no choice"])
def test_a_step_may_be_there_for_its_tokenizer_alone(first: str, then: str, models: Path, tmp_path: Path) -> None:
    stage = steps(models, first, "a copy")[0]
    name = f"stage+{models / 'lora'}" if then else "stage"  # an adapter has no tokenizer
    last = linear(models / "a", models / "c", base_model=str(models / "a"), tokenizer_source=name)
    report = in_one([stage, last], tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(apart([stage, last], tmp_path))
    assert any("stage" in note and "is none of the models that are merged" in note for note in report.planned.notes)


def test_a_step_that_is_misspelled_where_its_tokenizer_is_wanted_is_offered(models: Path, tmp_path: Path) -> None:
    stage = steps(models, "union", "a copy")[0]
    last = linear(models / "a", models / "c", base_model=str(models / "a"), tokenizer_source="stagge")
    with pytest.raises(ConfigError, match="no document uses `stage`, and one names a model `stagge`"):
        in_one([stage, last], tmp_path / "out")


IDLE = "`chat_template` of the step `stage` has no effect: the result does not have it"
OWN = "{{ messages[0].content }} of the step"


@pytest.mark.parametrize(
    ("template", "more", "found", "noted"),
    [
        (OWN, {}, OWN, False),
        (OWN, {"chat_template": "{{ messages[0].content }} of it"}, "{{ messages[0].content }} of it", True),
        (OWN, {"base_model": "a"}, "{{ messages[0].content }} of a", True),
        (OWN, {"base_model": "a", "tokenizer_source": "stage"}, OWN, False),
        (OWN, {"base_model": "a", "chat_template": "auto"}, OWN, False),
        ("auto", {}, "{{ messages[0].content }} of a", False),
    ],
)
def test_the_chat_template_of_a_step_goes_with_its_tokenizer(
    template: str, more: dict[str, str], found: str, noted: bool, models: Path, tmp_path: Path
) -> None:
    more = {"base_model": "stage", **more}
    if more["base_model"] == "a":
        more["base_model"] = str(models / "a")
    documents = [
        {"name": "stage", **linear(models / "a", base_model=str(models / "a"), chat_template=template)},
        linear("stage", models / "a", **more),
    ]
    report = in_one(documents, tmp_path / "out")
    assert chat_template_of(tmp_path / "out") == found
    assert (IDLE in report.planned.notes) == noted
    assert files_of(tmp_path / "out") == files_of(apart(documents, tmp_path))


def test_nothing_is_left_of_the_files_of_a_step(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    planned = plan_recipe("---\n".join(map(yaml.safe_dump, steps(models, "union", "an adapter"))))
    assert (planned.donor.directory / "tokenizer.json").is_file()
    report = in_one(steps(models, "union", "a union"), tmp_path / "out")
    papers = (tmp_path / "out" / "README.md").read_text() + (tmp_path / "out" / "mol_manifest.json").read_text()
    assert str(tmp_path) not in papers
    del planned, report
    gc.collect()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("kind", ["factors", "whole", "head"])
def test_an_adapter_with_rows_of_fewer_tokens_is_refused(kind: str, models: Path, tmp_path: Path) -> None:
    tensors = {
        "factors": embedding_factors(),
        "whole": {f"{EMBEDDING}.weight": draw(ROWS, HIDDEN)},
        "head": factors("lm_head", ROWS, HIDDEN),
    }
    save_adapter(tmp_path / "rows", tensors[kind])
    documents = steps(models, "union", "an adapter")
    documents[1]["models"][0]["model"] = f"stage+{tmp_path / 'rows'}"
    with pytest.raises(MergeError, match="has a vocabulary of its own; put the adapter on a model of that step"):
        in_one(documents, tmp_path / "out")


def test_an_adapter_that_knows_all_tokens_of_a_step_is_applied(models: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "rows", {f"{EMBEDDING}.weight": draw(ROWS + 2, HIDDEN)})
    documents = steps(models, "union", "an adapter")
    documents[1]["models"][0]["model"] = f"stage+{tmp_path / 'rows'}"
    in_one(documents, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(apart(documents, tmp_path))


def test_an_adapter_with_rows_that_may_be_of_other_tokens_is_refused(tmp_path: Path) -> None:
    """The step has as many rows as its base, and they are of other tokens."""
    make(tmp_path / "a", 1, TOKENS)
    make(tmp_path / "b", 2, TOKENS[::-1])
    save_adapter(tmp_path / "rows", embedding_factors())
    documents = [
        {
            "name": "stage",
            **linear(
                tmp_path / "a", tmp_path / "b", base_model=str(tmp_path / "a"), tokenizer_source=str(tmp_path / "b")
            ),
        },
        {"merge_method": "passthrough", "models": [{"model": f"stage+{tmp_path / 'rows'}"}]},
    ]
    with pytest.raises(MergeError, match="rows of stage are of other tokens than its base's"):
        in_one(documents, tmp_path / "out")
