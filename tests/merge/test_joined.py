"""Models of several vocabularies: every token's row of the output is the method's result for that token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mol.errors import MergeError
from mol.merge import plan_recipe, run_merge
from tests import reference
from tests.merge.models import llama_config, llama_tensors, weights_of
from tests.merge.toolkit import linear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.merge.planned import PlannedMerge
    from mol.merge.run import MergeReport

Rows = np.ndarray[Any, Any]
HIDDEN = 8
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# A base whose embedding is padded, one that adds tokens in the padding, and one that numbers its tokens otherwise.
A = {f"token{i}": i for i in range(10)} | {"<s>": 10, "</s>": 11}
B = A | {"<|im_start|>": 12, "<|im_end|>": 13}
C = {f"token{i}": 9 - i for i in range(0, 10, 2)} | {"<s>": 10, "</s>": 0, "<|im_end|>": 4, "new": 2}
SIZES = {"a": 14, "b": 16, "c": 11}
TOKENS = {"a": A, "b": B, "c": C}


def tokenizer(ids: Mapping[str, int], **model: Any) -> dict[str, Any]:  # noqa: ANN401
    """A tokenizer.json whose tokens in angles are added ones; apart from the vocabulary where they stand behind it."""
    special = {token: number for token, number in ids.items() if token.startswith("<")}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    apart = sorted(special.values()) == list(range(len(ids) - len(special), len(ids)))
    return {
        "model": {
            "type": "BPE",
            "vocab": {t: i for t, i in ids.items() if not (apart and t in special)},
            "merges": [],
            **model,
        },
        "added_tokens": [{"id": number, "content": token, **flags} for token, number in special.items()],
    }


def make(
    directory: Path,
    ids: Mapping[str, int],
    rows: int,
    *,
    tied: bool = False,
    dtype: str = "float32",
    config: dict[str, Any] | None = None,
    files: dict[str, Any] | None = None,
    extra: dict[str, Rows] | None = None,
) -> Path:
    """Write a model with a vocabulary; its rows are random."""
    directory.mkdir(parents=True)
    seed = sum(directory.name.encode())
    tensors = llama_tensors(seed, dtype=dtype)
    random = np.random.default_rng(seed + 1000)
    tensors |= {name: random.standard_normal((rows, HIDDEN)).astype(dtype) for name in (EMBEDDING, HEAD)}
    tensors |= extra or {}
    if tied:
        del tensors[HEAD]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    settings = llama_config() | {"vocab_size": rows, "tie_word_embeddings": tied} | (config or {})
    contents = {"config.json": settings, "tokenizer.json": tokenizer(ids), **(files or {})}
    for name, content in contents.items():
        (directory / name).write_text(json.dumps(content))
    return directory


def models(tmp_path: Path, **options: Any) -> list[str]:  # noqa: ANN401
    return [str(make(tmp_path / name, TOKENS[name], SIZES[name], **options)) for name in "abc"]


def gathered(mine: str, tensor: str, paths: Mapping[str, str], ids: Mapping[str, int], size: int) -> Rows:
    """Rows of a model by the output's ids, in float64, as the rule reads; `a` is the base."""
    stored = {name: stored_rows(Path(path), tensor) for name, path in paths.items()}
    names = {number: token for token, number in ids.items()}
    made = np.zeros((size, HIDDEN))
    for row in range(size):
        found = {name: row_of(TOKENS[name], names.get(row), row) for name in stored}
        owners = [name for name, at in found.items() if 0 <= at < len(stored[name])]
        chosen = [mine] if mine in owners else ["a"] if "a" in owners else owners
        if chosen:
            made[row] = np.mean([stored[name][found[name]] for name in chosen], axis=0)
    return made


def row_of(tokens: Mapping[str, int], token: str | None, row: int) -> int:
    """The row of a token in a model, or of padding; -1 where it has none."""
    if token is not None:
        return tokens.get(token, -1)
    return -1 if row in tokens.values() else row


def stored_rows(path: Path, tensor: str) -> Rows:
    tensors = weights_of(path)
    return tensors.get(tensor, tensors[EMBEDDING]).astype(np.float64)


UNION = A | {"<|im_start|>": 12, "<|im_end|>": 13, "new": 14}
METHODS: dict[str, tuple[dict[str, Any], Any]] = {
    "linear": ({"merge_method": "linear"}, lambda a, b, c: reference.linear([a, b, c], [0.5, 0.3, 0.4])),
    "task_arithmetic": (
        {"merge_method": "task_arithmetic", "base_model": "a"},
        lambda a, b, c: reference.task_arithmetic([a, b, c], [0.3, 0.4]),
    ),
    "ties": (
        {"merge_method": "ties", "base_model": "a", "parameters": {"normalize": False}},
        lambda a, b, c: reference.ties([a, b, c], [0.3, 0.4], [1.0, 1.0], normalize=False, precision=np.float32),
    ),
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("source", "ids", "size"), [("base", A, 14), ("union", UNION, 15), ("b", B, 16), ("c", C, 11)])
@pytest.mark.parametrize("method", METHODS)
def test_every_row_is_the_methods_result_for_its_token(
    tmp_path: Path, method: str, source: str, ids: dict[str, int], size: int, tied: bool
) -> None:
    recipe, merge = METHODS[method]
    named = dict(zip("abc", models(tmp_path, tied=tied), strict=True))
    weights = {"a": 0.5, "b": 0.3, "c": 0.4}
    listed = "abc" if method == "linear" else "bc"
    merged = run_merge(
        {
            **recipe,
            "base_model": named["a"],
            "models": [{"model": named[name], "parameters": {"weight": weights[name]}} for name in listed],
            "tokenizer_source": named.get(source, source),
        },
        tmp_path / "out",
    )
    tensors = weights_of(merged.out)
    for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
        inputs = [gathered(mine, name, named, ids, size).ravel() for mine in "abc"]
        np.testing.assert_allclose(tensors[name], merge(*inputs).reshape(size, HIDDEN), rtol=2e-6, atol=2e-6)
    config = json.loads((merged.out / "config.json").read_text())
    assert config["vocab_size"] == size
    assert merged.bytes_read == merged.planned.bytes_read
    written = json.loads((merged.out / "tokenizer.json").read_text())
    found = written["model"]["vocab"] | {entry["content"]: entry["id"] for entry in written["added_tokens"]}
    assert found == ids


def planned(tmp_path: Path, *names: str, **recipe: Any) -> PlannedMerge:  # noqa: ANN401
    return plan_recipe(linear(*[0.5] * len(names), names=[str(tmp_path / name) for name in names], **recipe))


def averaged(tmp_path: Path, *names: str, out: str = "out", **recipe: Any) -> MergeReport:  # noqa: ANN401
    paths = [str(tmp_path / name) for name in names]
    return run_merge(linear(*[0.5] * len(names), names=paths, **recipe), tmp_path / out)


def embedding(tmp_path: Path, *names: str, **recipe: Any) -> Rows:  # noqa: ANN401
    return weights_of(averaged(tmp_path, *names, **recipe).out)[EMBEDDING]


def test_a_padded_vocabulary_stays_as_it_is(tmp_path: Path) -> None:
    for name, rows in (("a", 16), ("c", 16)):
        make(tmp_path / name, A, rows)
    plain = planned(tmp_path, "a", "c")
    for source in ("base", "union", str(tmp_path / "c")):
        assert planned(tmp_path, "a", "c", tokenizer_source=source).plan == plain.plan
    make(tmp_path / "b", B, 16)
    assert planned(tmp_path, "a", "b", tokenizer_source="union").model_config["vocab_size"] == 16


def test_unequal_sizes_without_a_tokenizer_are_paired_by_the_tokens_of_the_base(tmp_path: Path) -> None:
    models(tmp_path)
    found = planned(tmp_path, "a", "b", "c")
    assert found.plan == planned(tmp_path, "a", "b", "c", tokenizer_source="base").plan
    (warning,) = [line for line in found.warnings if "chooses no tokenizer" in line]
    assert "b, c" not in warning
    assert "as with `tokenizer_source: base`" in warning


def test_unequal_sizes_without_tokens_are_refused(tmp_path: Path) -> None:
    models(tmp_path)
    (tmp_path / "b" / "tokenizer.json").rename(tmp_path / "b" / "tokenizer.model")
    with pytest.raises(MergeError, match=r"b has tokenizer.model, whose format is not read here, so .* differ in size"):
        planned(tmp_path, "a", "b")


def test_ids_that_mean_other_tokens_are_paired_by_token(tmp_path: Path) -> None:
    swapped = A | {"token3": 4, "token4": 3}
    make(tmp_path / "a", A, 12)
    make(tmp_path / "b", swapped, 12)
    with pytest.raises(MergeError, match=r"with `tokenizer_source: base` .* rows are paired by token"):
        planned(tmp_path, "a", "b")
    a, b = (stored_rows(tmp_path / name, EMBEDDING) for name in "ab")
    found = embedding(tmp_path, "a", "b", tokenizer_source="base")
    np.testing.assert_allclose(found[3:6], (a[3:6] + b[[4, 3, 5]]) / 2, rtol=1e-6)


def test_a_token_behind_the_embedding_is_one_that_the_model_lacks(tmp_path: Path) -> None:
    make(tmp_path / "a", B, 16)
    make(tmp_path / "b", B, 13)
    a, b = (stored_rows(tmp_path / name, EMBEDDING) for name in "ab")
    found = embedding(tmp_path, "a", "b", tokenizer_source="base")
    np.testing.assert_allclose(found[12:], [(a[12] + b[12]) / 2, *a[13:]], rtol=1e-6)
    assert any("b: 1 of its tokens have no row" in line for line in planned(tmp_path, "a", "b").warnings)


def test_an_id_of_two_names_is_found_by_either(tmp_path: Path) -> None:
    make(tmp_path / "a", A | {"<pad>": 9}, 12)
    make(tmp_path / "b", {token: 11 - i for token, i in A.items()}, 12)
    a, b = (stored_rows(tmp_path / name, EMBEDDING) for name in "ab")
    found = embedding(tmp_path, "a", "b", tokenizer_source="base")
    np.testing.assert_allclose(found, (a + b[::-1]) / 2, rtol=1e-6)


def test_tokens_of_another_kind_are_refused(tmp_path: Path) -> None:
    spelled = tokenizer(A) | {"decoder": {"type": "ByteLevel"}}
    fallback = tokenizer(A, byte_fallback=True)
    for name, content in (("a", spelled), ("b", fallback), ("c", tokenizer(A, type="WordPiece"))):
        make(tmp_path / f"k{name}", A, 12, files={"tokenizer.json": content})
    with pytest.raises(MergeError) as caught:
        planned(tmp_path, "ka", "kb", "kc", tokenizer_source="union")
    assert "kb: its tokens are of another kind (SentencePiece; byte-level in" in str(caught.value)
    assert "kc: its tokens are of another kind (WordPiece; byte-level in" in str(caught.value)


def test_embeddings_of_unequal_dtypes_are_rounded_once(tmp_path: Path) -> None:
    make(tmp_path / "a", A, 14, dtype="float16")
    make(tmp_path / "b", B, 16)
    found = embedding(tmp_path, "a", "b", tokenizer_source="union")
    a, b = (stored_rows(tmp_path / name, EMBEDDING) for name in "ab")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found[:12], ((a[:12].astype("f4") + b[:12].astype("f4")) / 2).astype("f2"))
    np.testing.assert_array_equal(found[12:], b[12:14].astype("f2"))


def test_the_head_of_a_tied_base_comes_from_a_model_with_its_own(tmp_path: Path) -> None:
    make(tmp_path / "a", A, 14, tied=True)
    make(tmp_path / "b", B, 16)
    out = averaged(tmp_path, "a", "b", tokenizer_source="union").out
    a, b = stored_rows(tmp_path / "a", EMBEDDING), stored_rows(tmp_path / "b", HEAD)
    np.testing.assert_allclose(weights_of(out)[HEAD], [*((a[:12] + b[:12]) / 2), *b[12:14]], rtol=1e-6)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_bias_of_the_head_follows(tmp_path: Path) -> None:
    for name, tokens, rows in (("a", A, 14), ("b", C, 11)):
        make(tmp_path / name, tokens, rows, extra={"lm_head.bias": np.arange(rows, dtype="f4")})
    out = averaged(tmp_path, "a", "b", tokenizer_source="union").out
    wanted = [(i + C.get(token, i)) / 2 for token, i in A.items()]
    np.testing.assert_allclose(weights_of(out)["lm_head.bias"], [*wanted, C["new"], C["<|im_end|>"]])


def test_a_head_of_an_rwkv_follows(tmp_path: Path) -> None:
    for name, tokens, rows in (("a", A, 14), ("b", C, 11)):
        path = make(tmp_path / name, tokens, rows)
        tensors = weights_of(path)
        save_file(tensors | {"head.weight": tensors.pop(HEAD)}, path / "model.safetensors", metadata={"format": "pt"})
    names = [str(tmp_path / name) for name in "ab"]
    out = run_merge(linear(0, 1, names=names, tokenizer_source="base"), tmp_path / "out").out
    head, b = (weights_of(path)["head.weight"] for path in (out, tmp_path / "b"))
    np.testing.assert_array_equal(head[[0, 8, 10, 11]], b[[9, 1, 10, 0]])


def test_a_table_of_tokens_for_each_layer_follows(tmp_path: Path) -> None:
    """Gemma 3n and 4 have one."""
    table, key = "model.embed_tokens_per_layer.weight", "vocab_size_per_layer_input"
    for name in "ab":
        rows = len(TOKENS[name])
        numbers = np.arange(rows, dtype="float32").repeat(2).reshape(rows, 2) + 100 * (name == "b")
        make(tmp_path / name, TOKENS[name], rows, config={key: rows}, extra={table: numbers})
    out = averaged(tmp_path, "a", "b", tokenizer_source="union").out
    found = weights_of(out)[table]
    assert found.shape == (14, 2)
    assert found[[3, B["<|im_end|>"]], 0].tolist() == [(3 + 103) / 2, 100 + B["<|im_end|>"]]
    assert json.loads((out / "config.json").read_text())[key] == 14


def test_an_adapter_on_an_embedding_is_gathered_with_it(tmp_path: Path) -> None:
    models(tmp_path)
    adapter = tmp_path / "lora"
    adapter.mkdir()
    random = np.random.default_rng(5)
    a, b = (random.standard_normal(shape).astype("f4") for shape in ((4, 16), (HIDDEN, 4)))
    start = "base_model.model.model.embed_tokens."
    save_file({f"{start}lora_embedding_A": a, f"{start}lora_embedding_B": b}, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    out = averaged(tmp_path, "a", f"b+{adapter}", tokenizer_source="union")
    of_a = stored_rows(tmp_path / "a", EMBEDDING)
    of_b = stored_rows(tmp_path / "b", EMBEDDING) + 2 * (a.T @ b.T)
    wanted = [*(of_a[:12] + of_b[:12]) / 2, *of_b[12:14]]
    np.testing.assert_allclose(weights_of(out.out)[EMBEDDING], wanted, rtol=1e-5, atol=1e-6)
    assert out.bytes_read == out.planned.bytes_read


def rules(tmp_path: Path, tokens: dict[str, Any], **section: Any) -> tuple[Rows, dict[str, Any], list[str]]:  # noqa: ANN401
    """Merge a and b by a section `tokenizer`; give the embedding, the tokenizer and the warnings."""
    report = averaged(tmp_path, "a", "b", tokenizer={"source": "base", "tokens": tokens, **section})
    assert report.bytes_read == report.planned.bytes_read
    content = json.loads((report.out / "tokenizer.json").read_text())
    return weights_of(report.out)[EMBEDDING], content, list(report.planned.warnings)


def test_a_rule_says_where_the_row_of_a_token_comes_from(tmp_path: Path) -> None:
    names = dict(zip("abc", models(tmp_path), strict=True))
    found, content, warnings = rules(
        tmp_path,
        {
            "<|im_start|>": {"source": names["b"]},  # only b has it
            "</s>": {"source": {"kind": "model_token", "model": names["b"], "token": "<|im_end|>"}, "force": True},
            "token1": {"source": {"kind": "zero"}},  # all have it
            "token2": {"source": {"kind": "zero"}, "force": True},
            "<pad>": {"source": {"kind": "zero"}},
            "<y>": {"source": {"kind": "model_token", "model": names["c"], "token_id": 2}},  # c is not merged
        },
    )
    a, b, c = (stored_rows(tmp_path / name, EMBEDDING) for name in "abc")
    wanted = (a[:12] + b[:12]) / 2
    wanted[A["</s>"]] = b[B["<|im_end|>"]]
    wanted[2] = 0
    np.testing.assert_allclose(found, [*wanted, b[12], np.zeros(HIDDEN), c[2]], rtol=1e-6, atol=1e-7)
    added = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    assert [added[token] for token in ("<|im_start|>", "<pad>", "<y>")] == [12, 13, 14]
    assert not [line for line in warnings if "zeros" in line]


def test_rules_that_name_nothing_are_refused_together(tmp_path: Path) -> None:
    models(tmp_path)
    b = str(tmp_path / "b")
    with pytest.raises(MergeError) as caught:
        rules(
            tmp_path,
            {
                "<x>": {"source": {"kind": "model_token", "model": b, "token": "<|im_strat|>"}},
                "<y>": {"source": b},
                "<z>": {"source": {"kind": "model_token", "model": b, "token_id": 16}},
            },
        )
    assert list(caught.value.problems) == [
        f"`tokens`: {b} has no token '<|im_strat|>'; did you mean `<|im_start|>`?",
        f"`tokens`: {b} has no token '<y>'; did you mean `<s>`?",
        f"`tokens`: {b} has 16 rows, so none of the id 16",
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_padding_is_the_mean_of_all_rows(tmp_path: Path, dtype: str) -> None:
    for name in "ab":
        make(tmp_path / name, TOKENS[name], SIZES[name], dtype=dtype)
    found, _, _ = rules(tmp_path, {}, source="union", pad_to_multiple_of=8)
    assert len(found) == 16
    a, b = (stored_rows(tmp_path / name, EMBEDDING) for name in "ab")
    of_a = [*a[:12], *b[12:14], b[14], b[15]]  # what a lacks is that of b, padding too
    np.testing.assert_allclose(found, (np.array(of_a) + b) / 2, rtol=1e-3, atol=1e-4)


def test_a_smaller_multiple_takes_padding_off(tmp_path: Path) -> None:
    for name in "ac":
        make(tmp_path / name, A, 40)
    for multiple, rows in ((1, 12), (5, 15), (64, 64)):
        padded = {"source": "base", "pad_to_multiple_of": multiple}
        report = averaged(tmp_path, "a", "c", out=f"out{multiple}", tokenizer=padded)
        assert report.planned.model_config["vocab_size"] == rows
        a, c = (stored_rows(tmp_path / name, EMBEDDING) for name in "ac")
        mean = (a[:12].mean(axis=0) + c[:12].mean(axis=0)) / 2
        wanted = [*(a + c)[:rows] / 2, *[mean] * (rows - 40)]
        np.testing.assert_allclose(weights_of(report.out)[EMBEDDING], wanted, rtol=1e-5, atol=1e-6)
        assert report.bytes_read == report.planned.bytes_read


def test_a_tokenizer_alone_is_enough(tmp_path: Path) -> None:
    models(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(tokenizer(C)))
    (other / "config.json").write_text(json.dumps({"vocab_size": 12}))
    found = embedding(tmp_path, "a", "b", tokenizer_source=str(other))
    a, b = (stored_rows(tmp_path / name, EMBEDDING) for name in "ab")
    assert found.shape == (12, HIDDEN)
    np.testing.assert_allclose(found[9], (a[0] + b[0]) / 2, rtol=1e-6)
    np.testing.assert_allclose(found[4], b[13], rtol=1e-6)
    np.testing.assert_array_equal(found[2], np.zeros(HIDDEN))  # no model has `new`
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == tokenizer(C)
