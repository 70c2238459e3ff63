"""A recipe of several documents gives the bytes of its documents run one after the other, and writes only the last."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from mol import run_merge
from mol.config.methods import METHODS
from mol.errors import MergeError
from tests.merge.loras import HIDDEN, PLAIN, Q1, draw, embedding_factors, factors, merged, save_adapter
from tests.merge.models import ROWS, contents_of, llama_config, make_llama, weights_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        make_llama(root / name, seed, layers=3)
    save_adapter(root / "lora", PLAIN)
    return root


def each(root: Path, *names: str, **parameters: float) -> list[dict[str, Any]]:
    return [{"model": name if "stage" in name else str(root / name), "parameters": parameters} for name in names]


def staged(root: Path, method: str, *names: str, name: str | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """A document; `weight` and `density` are each model's."""
    of_model = {key: more.pop(key) for key in ("weight", "density") if key in more}
    named = {} if name is None else {"name": name}
    return {**named, "merge_method": method, "models": each(root, *names, **of_model), **more}


def in_one(documents: Sequence[dict[str, Any]], out: Path, **options: Any) -> Any:  # noqa: ANN401
    return run_merge("---\n".join(yaml.safe_dump(document) for document in documents), out, **options)


def one_by_one(documents: Sequence[dict[str, Any]], root: Path, **options: Any) -> Path:  # noqa: ANN401
    """Run each document, into directories that replace its name in those after it."""
    for document in documents:
        name = document.get("name", "result")
        text = json.dumps(document)
        for earlier in documents:
            if (stage := earlier.get("name")) is not None:
                text = text.replace(f'"{stage}"', json.dumps(str(root / stage)))
        run_merge(json.loads(text) | {"name": None}, root / name, **options)
    return root / "result"


def recipes(root: Path) -> dict[str, list[dict[str, Any]]]:
    base = {"base_model": str(root / "a")}
    mixed = staged(root, "linear", "a", "b", name="stage", weight=0.7)
    sliced = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": "stage", "layer_range": [0, 2]}]},
            {"sources": [{"model": str(root / "c"), "layer_range": [1, 3]}]},
            {"sources": [{"model": "stage", "layer_range": [0, 1]}]},
        ],
    }
    return {
        "linear, then slerp": [mixed, staged(root, "slerp", "stage", "c", parameters={"t": 0.3}, base_model="stage")],
        "ties, then ties": [
            staged(root, "ties", "b", "c", name="stage", weight=0.6, density=0.4, **base),
            staged(root, "ties", "stage", "b", weight=1.0, density=0.5, **base),
        ],
        "slerp, then linear": [
            staged(root, "slerp", "a", "b", name="stage", parameters={"t": 0.4}, **base),
            staged(root, "linear", "stage", "c", weight=1.0),
        ],
        "task arithmetic, then a copy": [
            staged(root, "task_arithmetic", "b", "c", name="stage", weight=0.5, **base),
            staged(root, "passthrough", "stage"),
        ],
        "dare, then nuslerp": [
            staged(root, "dare_linear", "b", "c", name="stage", weight=0.5, density=0.5, **base),
            staged(root, "nuslerp", "stage", "c", weight=1.0),
        ],
        "three stages": [
            mixed,
            staged(root, "slerp", "stage", "c", name="next-stage", parameters={"t": 0.2}, base_model="stage"),
            staged(root, "ties", "stage", "next-stage", weight=1.0, density=0.6, **base),
        ],
        "slices of a stage": [mixed, sliced],
        "dare, then slices": [
            staged(root, "dare_linear", "b", "c", name="stage", weight=0.5, density=0.5, **base),
            sliced,
        ],
        "della scaled by depth, then slices": [
            staged(
                root, "della_linear", "b", "c", name="stage", weight=0.5, density=0.5,
                parameters={"depth_scale": [0.2, 1.0]}, **base,
            ),
            sliced,
        ],
        "an adapter in a stage": [
            staged(root, "passthrough", "a+lora", name="stage"),
            staged(root, "linear", "stage", "b", weight=1.0),
        ],
    }  # fmt: skip


CASES = (
    "linear, then slerp", "ties, then ties", "slerp, then linear", "task arithmetic, then a copy", "dare, then nuslerp",
    "three stages", "slices of a stage", "dare, then slices", "della scaled by depth, then slices",
    "an adapter in a stage",
)  # fmt: skip


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((case, dtype) for case in CASES for dtype in ("float32", "bfloat16")),
        *(("three stages", dtype) for dtype in ("float16", "float64")),
    ],
)
def test_documents_in_one_give_the_bytes_of_one_after_the_other(
    case: str, dtype: str, models: Path, tmp_path: Path
) -> None:
    documents = recipes(models)[case]
    for document in documents:
        document["dtype"] = dtype
    if case == "an adapter in a stage":
        documents[0]["models"][0]["model"] = f"{models / 'a'}+{models / 'lora'}"
    report = in_one(documents, tmp_path / "out")
    result = one_by_one(documents, tmp_path)
    kept = {name for name in contents_of(result) if name.endswith(".safetensors") or name == "config.json"}
    assert {name: contents_of(tmp_path / "out")[name] for name in kept} == {
        name: contents_of(result)[name] for name in kept
    }
    assert report.bytes_read == report.planned.bytes_read


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_of_any_method_is_as_precise_as_one_in_a_file(method: str, models: Path, tmp_path: Path) -> None:
    spec = METHODS[method]
    names = ["b"] if spec.max_models == 1 else ["b", "c"]
    of_model = {key: 0.5 for key in ("weight", "density") if key in spec.parameters}
    document = staged(models, method, *names, name="stage", dtype="float32", **of_model)
    if spec.base == "required":
        document |= {"base_model": str(models / "b" if spec.max_models == 2 else models / "a")}
    if "t" in spec.parameters:
        document["parameters"] = {"t": 0.3}
    documents = [document, staged(models, "linear", "stage", "a", weight=1.0)]
    in_one(documents, tmp_path / "out")
    result = one_by_one(documents, tmp_path)
    assert contents_of(result)["model.safetensors"] == contents_of(tmp_path / "out")["model.safetensors"]


def test_a_stage_has_the_dtype_that_it_would_have_in_a_file(models: Path, tmp_path: Path) -> None:
    """A stage in bfloat16 under a result in float32: the rounding between them stays."""
    documents = recipes(models)["linear, then slerp"]
    documents[0]["dtype"] = "bfloat16"
    in_one(documents, tmp_path / "out", dtype="float32")
    result = one_by_one([documents[0], documents[1] | {"dtype": "float32"}], tmp_path)
    assert contents_of(result)["model.safetensors"] == contents_of(tmp_path / "out")["model.safetensors"]


def test_only_the_result_is_written_and_says_what_it_is_made_of(models: Path, tmp_path: Path) -> None:
    documents = recipes(models)["three stages"]
    in_one(documents, tmp_path / "new" / "out")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    manifest = json.loads((tmp_path / "new" / "out" / "mol_manifest.json").read_text())
    assert [source["name"] for source in manifest["sources"]] == ["a", "b", "c"]
    card = (tmp_path / "new" / "out" / "README.md").read_text()
    assert "stage is made while it is read, and not written: 30 tensors (30 by linear)" in card
    assert str(models) not in card


def adapted(root: Path, name: str = "stage", lora: str = "lora") -> dict[str, Any]:
    return {"model": f"{name}+{root / lora}", "parameters": {"weight": 1.0}}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "passthrough"])
def test_an_adapter_on_a_stage_is_applied_to_what_it_makes(
    method: str, dtype: str, models: Path, tmp_path: Path
) -> None:
    of_method: dict[str, dict[str, Any]] = {
        "linear": {"weight": 0.5},
        "slerp": {"parameters": {"t": 0.3}, "base_model": str(models / "a")},
        "ties": {"weight": 0.6, "density": 0.4, "base_model": str(models / "a")},
        "passthrough": {},
    }
    names = "a" if method == "passthrough" else "ab"
    first = staged(models, method, *names, name="stage", dtype=dtype, **of_method[method])
    second = staged(models, "linear", "c", weight=1.0, dtype=dtype)
    second["models"].insert(0, adapted(models))
    report = in_one([first, second], tmp_path / "out")
    run_merge({**first, "name": None}, tmp_path / "stage")
    second["models"][0] = adapted(models, str(tmp_path / "stage"))
    run_merge(second, tmp_path / "result")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "result" / name).read_bytes()
    said = "\n".join([*report.planned.notes, *report.planned.warnings])
    assert f"all 4 tensors of {models / 'lora'} are applied to stage" in said
    known = method in ("linear", "passthrough")
    looked_at = f"of what {models / 'lora'} changes in stage, rounding to "
    not_read = (
        f"what rounding leaves of {models / 'lora'} in stage is not estimated, since stage is made of whole tensors"
    )
    assert (looked_at in said, not_read in said) == (known, not known)


def test_an_adapter_that_does_not_fit_a_stage_is_refused_by_name(models: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "lora", factors("model.layers.7.self_attn.q_proj", HIDDEN, HIDDEN))
    documents = [
        staged(models, "linear", "a", "b", name="stage", weight=1.0),
        {"merge_method": "passthrough", "models": [{"model": f"stage+{tmp_path / 'lora'}"}]},
    ]
    with pytest.raises(MergeError, match="does not fit stage") as caught:
        in_one(documents, tmp_path / "out")
    assert "model.layers.7.self_attn.q_proj" in str(caught.value)


def test_an_adapter_on_a_stage_that_is_missing_is_found_in_the_recipe(models: Path, tmp_path: Path) -> None:
    first = staged(models, "linear", "a", "b", name="stage", weight=1.0)
    text = f"{yaml.safe_dump(first)}---\nmerge_method: passthrough\nmodels:\n  - model: stage+{tmp_path / 'none'}\n"
    (tmp_path / "recipe.yml").write_text(text)
    line = text.splitlines().index(f"  - model: stage+{tmp_path / 'none'}") + 1
    with pytest.raises(FileNotFoundError, match=rf"recipe\.yml:{line}: .*none: no such directory"):
        run_merge(tmp_path / "recipe.yml", tmp_path / "out")


def test_an_adapter_on_a_stage_that_is_missing_is_listed_with_models_that_are(models: Path, tmp_path: Path) -> None:
    first = staged(models, "linear", "a", str(tmp_path / "gone"), name="stage", weight=1.0)
    of_last = [{"model": f"stage+{tmp_path / name}"} for name in ("none", "nor")]
    last = {"merge_method": "karcher", "models": of_last}
    with pytest.raises(MergeError, match="models of the recipe cannot be used") as caught:
        in_one([first, last], tmp_path / "out")
    names = ("gone", "none", "nor")
    assert len(caught.value.problems) == len(names)
    assert all(f"{name}: no such directory" in said for name, said in zip(names, caught.value.problems, strict=True))


@pytest.mark.parametrize("kind", ["DoRA", "of the embedding"])
def test_an_adapter_of_any_kind_goes_on_a_stage(kind: str, models: Path, tmp_path: Path) -> None:
    """Norms of DoRA are those of what the stage makes."""
    magnitude = {f"{Q1}.lora_magnitude_vector": np.abs(draw(HIDDEN)) + 1}
    dora = factors(Q1, HIDDEN, HIDDEN) | magnitude
    save_adapter(tmp_path / "lora", dora if kind == "DoRA" else embedding_factors(), use_dora=kind == "DoRA")
    first = staged(models, "slerp", "a", "b", name="stage", parameters={"t": 0.3}, base_model=str(models / "a"))
    in_one(
        [first, {"merge_method": "passthrough", "models": [{"model": f"stage+{tmp_path / 'lora'}"}]}], tmp_path / "out"
    )
    run_merge({**first, "name": None}, tmp_path / "stage")
    merged(tmp_path / "stage", tmp_path / "lora", tmp_path / "result")
    assert contents_of(tmp_path / "out")["model.safetensors"] == contents_of(tmp_path / "result")["model.safetensors"]


def test_integer_tensors_of_stages_must_be_equal_in_all_inputs(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for seed, name in enumerate("abc"):
        make_llama(tmp_path / name, seed)
        ids = np.arange(4, dtype=np.int64) + (name == "c")
        save_file(weights_of(tmp_path / name) | {"model.position_ids": ids}, tmp_path / name / "model.safetensors")
    documents = [
        staged(tmp_path, "linear", "a", "b", name="stage", weight=1.0),
        staged(tmp_path, "linear", "stage", "a", weight=1.0),
    ]
    in_one(documents, tmp_path / "out")
    assert weights_of(tmp_path / "out")["model.position_ids"].tolist() == [0, 1, 2, 3]
    documents[0]["models"] = each(tmp_path, "a", "c", weight=1.0)
    with pytest.raises(MergeError, match=r"model\.position_ids"):
        in_one(documents, tmp_path / "other")


def test_a_stage_that_cannot_be_made_is_named(models: Path, tmp_path: Path) -> None:
    make_llama(tmp_path / "deep", 4, layers=4)
    documents = [
        staged(models, "linear", "a", name="stage", weight=1.0),
        staged(models, "linear", "stage", weight=1.0),
    ]
    documents[0]["models"] += each(tmp_path, "deep", weight=1.0)
    with pytest.raises(MergeError, match="the stage stage cannot be made") as caught:
        in_one(documents, tmp_path / "out")
    assert "has 4 layers" in str(caught.value)


def test_a_chat_template_of_a_stage_is_that_of_the_result(models: Path, tmp_path: Path) -> None:
    documents = [
        staged(
            models, "linear", "a", "b", name="stage", weight=1.0, chat_template="{{ messages[0].content }} and more"
        ),
        staged(models, "linear", "stage", "c", weight=1.0),
    ]
    in_one(documents, tmp_path / "out")
    result = one_by_one(documents, tmp_path)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages[0].content }} and more"
    for name in ("model.safetensors", "chat_template.jinja"):
        assert contents_of(result)[name] == contents_of(tmp_path / "out")[name]


def test_heads_that_a_stage_unties_stay_so(tmp_path: Path) -> None:
    make_llama(tmp_path / "a", 1)
    make_llama(tmp_path / "b", 2, config__json=llama_config() | {"tie_word_embeddings": True})
    documents = [
        staged(tmp_path, "linear", "a", "b", name="stage", weight=1.0),
        staged(tmp_path, "linear", "stage", "a", weight=1.0),
    ]
    in_one(documents, tmp_path / "out")
    result = one_by_one(documents, tmp_path)
    for name in ("model.safetensors", "config.json"):
        assert contents_of(result)[name] == contents_of(tmp_path / "out")[name]


def test_a_stage_may_pair_its_rows_by_token(tmp_path: Path) -> None:
    """Tables of gathers of stages and of the result stand next to each other in the plan."""
    names = [f"token{i}" for i in range(ROWS)]
    for seed, (name, tokens) in enumerate({"a": names, "b": names[::-1], "c": [*names[1:], names[0]]}.items()):
        vocabulary = {"model": {"vocab": {token: i for i, token in enumerate(tokens)}}, "added_tokens": []}
        make_llama(tmp_path / name, seed, tokenizer__json=vocabulary)
    chosen = {"base_model": str(tmp_path / "a"), "tokenizer_source": "base"}
    documents = [
        staged(tmp_path, "task_arithmetic", "b", name="stage", weight=0.5, **chosen),
        staged(tmp_path, "task_arithmetic", "stage", "c", weight=1.0, **chosen),
    ]
    in_one(documents, tmp_path / "out")
    result = one_by_one(documents, tmp_path)
    assert contents_of(result)["model.safetensors"] == contents_of(tmp_path / "out")["model.safetensors"]


def test_then_is_a_document_in_another_spelling(models: Path, tmp_path: Path) -> None:
    first = staged(models, "ties", "b", "c", weight=0.6, density=0.4, base_model=str(models / "a"))
    second = staged(
        models, "slerp", "merged", "a", parameters={"t": 0.3}, base_model=str(models / "a"), dtype="bfloat16"
    )
    second["models"][0]["model"] = "merged"
    run_merge({**first, "then": second}, tmp_path / "then")
    in_one([{**first, "name": "merged"}, second], tmp_path / "documents")
    one_by_one([{**first, "name": "merged"}, second], tmp_path)
    weights = [contents_of(tmp_path / name)["model.safetensors"] for name in ("then", "documents", "result")]
    assert weights[0] == weights[1] == weights[2]


def test_then_may_be_several_steps(models: Path, tmp_path: Path) -> None:
    first = staged(models, "linear", "a", "b", weight=0.5)
    second = {"merge_method": "linear", "models": each(models, "c", weight=1.0)}
    second["models"].append({"model": "merged", "parameters": {"weight": 2.0}})
    third = {"merge_method": "slerp", "base_model": "merged", "parameters": {"t": 0.2}}
    third["models"] = [{"model": "merged"}, {"model": "merged2"}]
    run_merge({**first, "then": [second, third]}, tmp_path / "then")
    in_one([{**first, "name": "merged"}, {**second, "name": "merged2"}, third], tmp_path / "documents")
    assert (tmp_path / "then" / "model.safetensors").read_bytes() == (
        tmp_path / "documents" / "model.safetensors"
    ).read_bytes()


def test_a_directory_that_is_called_merged_is_not_what_then_means(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = staged(models, "linear", "a", "b", weight=0.5)
    recipe["then"] = {"merge_method": "passthrough", "models": [{"model": "merged"}]}
    run_merge(recipe, tmp_path / "alone")
    shutil.copytree(models / "c", tmp_path / "merged")
    monkeypatch.chdir(tmp_path)
    run_merge(recipe, "out")
    made = [contents_of(tmp_path / name)["model.safetensors"] for name in ("alone", "out", "merged")]
    assert made[0] == made[1] != made[2]
