"""`model+adapter` in a recipe, against float64 by peft's formula: all of an adapter is applied, or it is refused."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mol import run_merge
from mol.cli.local import find
from mol.config import ModelReference
from mol.errors import CheckpointError, ConfigError, MergeError
from mol.io.adapter import Adapter
from mol.io.arrays import read_arrays
from mol.io.checkpoint import Checkpoint
from mol.merge.adapters import with_adapter
from mol.merge.run import plan_recipe
from mol.merge.surviving import surviving
from tests.merge.loras import (
    ALPHA,
    DOWN,
    EMBEDDING,
    HEAD,
    HIDDEN,
    PLAIN,
    Q0,
    Q1,
    RANK,
    added,
    draw,
    embedded,
    embedding_factors,
    factors,
    merged,
    of_magnitude,
    save_adapter,
)
from tests.merge.models import ROWS, llama_config, llama_tensors, make_llama, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.merge.loras import Tensors

RANKS = factors(Q0, HIDDEN, HIDDEN, 2) | factors(Q1, HIDDEN, HIDDEN) | factors(DOWN, HIDDEN, 16, 4)
DORA = PLAIN | {f"{Q0}.lora_magnitude_vector": np.abs(draw(HIDDEN)), f"{DOWN}.lora_magnitude_vector": draw(HIDDEN)}
WHOLE = factors(Q0, HIDDEN, HIDDEN) | {f"{HEAD}.weight": draw(ROWS, HIDDEN), "model.norm.weight": draw(HIDDEN)}
BOTH = embedding_factors() | {f"{EMBEDDING}.base_layer.weight": draw(ROWS, HIDDEN)}

# Name -> tensors of the adapter, its settings, and what becomes of the model's tensors that change.
CASES: dict[str, tuple[Tensors, dict[str, Any], Callable[[Tensors], dict[str, Any]]]] = {
    "LoRA": (PLAIN, {}, lambda w: {m: added(w[f"{m}.weight"], PLAIN, m) for m in (Q0, DOWN)}),
    "rsLoRA": (
        PLAIN,
        {"use_rslora": True},
        lambda w: {m: added(w[f"{m}.weight"], PLAIN, m, ALPHA / math.sqrt(RANK)) for m in (Q0, DOWN)},
    ),
    "patterns": (
        RANKS,
        {"rank_pattern": {"0.self_attn.q_proj": 2, "down_proj": 4}, "alpha_pattern": {r"1\.mlp.*": 6, "q_proj": 7}},
        lambda w: {
            m: added(w[f"{m}.weight"], RANKS, m, scale) for m, scale in ((Q0, 7 / 2), (Q1, 7 / 3), (DOWN, 6 / 4))
        },
    ),
    "DoRA": (
        DORA,
        {"use_dora": True},
        lambda w: {
            m: of_magnitude(added(w[f"{m}.weight"], DORA, m), DORA[f"{m}.lora_magnitude_vector"]) for m in (Q0, DOWN)
        },
    ),
    "tensors as a whole": (
        WHOLE,
        {"modules_to_save": ["lm_head", "norm"]},
        lambda w: {
            Q0: added(w[f"{Q0}.weight"], WHOLE, Q0),
            HEAD: WHOLE["lm_head.weight"],
            "model.norm": WHOLE["model.norm.weight"],
        },
    ),
    "an embedding": (BOTH, {}, lambda _: {EMBEDDING: embedded(BOTH[f"{EMBEDDING}.base_layer.weight"], BOTH)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_applied_within_one_rounding(case: str, tmp_path: Path) -> None:
    tensors, settings, reference = CASES[case]
    model = make_llama(tmp_path / "model", 1)
    out = merged(model, save_adapter(tmp_path / "adapter", tensors, **settings), tmp_path / "out")
    before = weights_of(model)
    changed = {f"{module}.weight": value for module, value in reference(before).items()}
    assert out.keys() == before.keys()
    for name, value in out.items():
        np.testing.assert_array_max_ulp(value, changed.get(name, before[name]).astype(np.float32), maxulp=1)


def gpt2_tensors() -> dict[str, np.ndarray[Any, Any]]:
    shapes = {"wte.weight": (ROWS, HIDDEN), "wpe.weight": (4, HIDDEN), "ln_f.weight": (HIDDEN,), "ln_f.bias": (HIDDEN,)}
    for part, columns in (("c_attn", 3 * HIDDEN), ("c_proj", HIDDEN)):
        shapes |= {f"h.0.attn.{part}.weight": (HIDDEN, columns), f"h.0.attn.{part}.bias": (columns,)}
    return {name: draw(*shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("stated", [False, True])
def test_matrices_that_are_kept_turned_and_names_with_another_beginning(
    dora: bool, stated: bool, tmp_path: Path
) -> None:
    """GPT-2 keeps [in, out], whatever the settings say, and its files may lack the `transformer.` of its modules."""
    model = tmp_path / "model"
    model.mkdir()
    before = gpt2_tensors()
    save_file(before, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": HIDDEN}))
    tensors: dict[str, Any] = {}
    for part, rows in (("c_attn", 3 * HIDDEN), ("c_proj", HIDDEN)):
        module = f"transformer.h.0.attn.{part}"
        tensors |= factors(module, rows, HIDDEN)
        tensors |= {f"{module}.lora_magnitude_vector": np.abs(draw(rows))} if dora else {}
    adapter = save_adapter(tmp_path / "adapter", tensors, fan_in_fan_out=stated, use_dora=dora)
    out = merged(model, adapter, tmp_path / "out")
    for part in ("c_attn", "c_proj"):
        module = f"transformer.h.0.attn.{part}"
        wanted = added(before[f"h.0.attn.{part}.weight"].T, tensors, module)
        if dora:
            wanted = of_magnitude(wanted, tensors[f"{module}.lora_magnitude_vector"])
        np.testing.assert_array_max_ulp(out[f"h.0.attn.{part}.weight"], wanted.T.astype(np.float32), maxulp=1)
    (note,) = [note for note in plan_recipe(passthrough(model, adapter)).notes if "aligned" in note]
    assert note == f"names of {adapter} are aligned with {model}: `transformer.*` is `*`"


def passthrough(model: Path, adapter: Path) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": f"{model}+{adapter}"}]}


def test_whether_a_square_matrix_is_turned_is_not_guessed(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", 1)
    square = save_adapter(tmp_path / "square", factors(Q0, HIDDEN, HIDDEN), fan_in_fan_out=True)
    with pytest.raises(
        MergeError, match="is square: whether it is kept turned, as `fan_in_fan_out` says, cannot be seen"
    ):
        plan_recipe(passthrough(model, square))
    shown = save_adapter(tmp_path / "shown", PLAIN, fan_in_fan_out=True)  # down_proj is not square, and not turned
    out = merged(model, shown, tmp_path / "out")
    wanted = added(weights_of(model)[f"{Q0}.weight"], PLAIN, Q0)
    np.testing.assert_array_max_ulp(out[f"{Q0}.weight"], wanted.astype(np.float32), maxulp=1)


def tied_llama(directory: Path) -> Path:
    make_llama(directory, 1, config__json=llama_config() | {"tie_word_embeddings": True})
    tensors = llama_tensors(1)
    del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors")
    return directory


ENDS = {
    "the embedding": (
        embedding_factors(), {},
        lambda w, t: (embedded(w, t), w),
    ),
    "the head": (
        factors(HEAD, ROWS, HIDDEN), {},
        lambda w, t: (w, added(w, t, HEAD)),
    ),
    "both": (
        embedding_factors() | factors(HEAD, ROWS, HIDDEN), {},
        lambda w, t: (embedded(w, t), added(w, t, HEAD)),
    ),
    "the embedding, and the head with it": (
        embedding_factors(), {"ensure_weight_tying": True},
        lambda w, t: (embedded(w, t), None),
    ),
    "neither": (
        factors(Q0, HIDDEN, HIDDEN), {},
        lambda w, _: (w, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_of_tied_ends_only_what_the_adapter_changes_changes(case: str, tmp_path: Path) -> None:
    tensors, settings, reference = ENDS[case]
    model = tied_llama(tmp_path / "model")
    out = merged(model, save_adapter(tmp_path / "adapter", tensors, **settings), tmp_path / "out")
    embedding, head = reference(weights_of(model)[f"{EMBEDDING}.weight"], tensors)
    np.testing.assert_array_max_ulp(out[f"{EMBEDDING}.weight"], embedding.astype(np.float32), maxulp=1)
    tied = json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert tied is (head is None)
    if head is None:
        assert "lm_head.weight" not in out
    else:
        np.testing.assert_array_max_ulp(out["lm_head.weight"], head.astype(np.float32), maxulp=1)


def test_a_merge_of_a_model_with_and_without_adapters_reads_it_once(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", 1)
    other = factors(Q0, HIDDEN, HIDDEN)
    adapters = [save_adapter(tmp_path / "a", PLAIN), save_adapter(tmp_path / "b", other)]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(model),
        "models": [{"model": f"{model}+{adapter}", "parameters": {"weight": 0.5}} for adapter in adapters],
    }
    planned = plan_recipe(recipe)
    assert [file.path for file in planned.plan.inputs] == [
        str(model / "model.safetensors"), *(str(adapter / "adapter_model.safetensors") for adapter in adapters),
    ]  # fmt: skip
    report = run_merge(recipe, tmp_path / "out")
    assert report.bytes_read == planned.bytes_read
    w = weights_of(model)[f"{Q0}.weight"]
    parts = [added(w, tensors, Q0).astype(np.float32) - w.astype(np.float64) for tensors in (PLAIN, other)]
    wanted = w + 0.5 * parts[0] + 0.5 * parts[1]
    np.testing.assert_allclose(weights_of(tmp_path / "out")[f"{Q0}.weight"], wanted, rtol=3e-7, atol=3e-7)


def test_the_plan_says_what_is_applied_and_the_output_by_what(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", 1)
    adapter = save_adapter(tmp_path / "tuned", WHOLE, base_model_name_or_path="org/other", use_rslora=True)
    planned = plan_recipe(passthrough(model, adapter))
    assert (
        f"all 4 tensors of {adapter} are applied to {model}: rsLoRA of rank 3 and scale 2.88675 on 1 modules "
        "(q_proj 1); 2 tensors as a whole: `lm_head.weight`, `model.norm.weight`"
    ) in planned.notes
    assert any("was trained on org/other, and is applied to" in line for line in planned.warnings)
    merged(model, adapter, tmp_path / "out")
    digest = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- `model`\n- `tuned` (adapter), SHA-256 `{digest}`\n" in card
    assert str(tmp_path) not in card
    sources = json.loads((tmp_path / "out" / "mol_manifest.json").read_text())["sources"]
    assert [(source["name"], source.get("role")) for source in sources] == [("model", None), ("tuned", "adapter")]
    assert sources[1]["sha256"]["adapter_model.safetensors"] == digest
    assert sources[1]["sha256"].keys() == {"adapter_model.safetensors", "adapter_config.json"}


@pytest.mark.parametrize("name", ["model", "MODEL@main", "/home/somebody/model/"])
def test_an_adapter_of_the_model_itself_is_not_warned_of(name: str, tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", 1)
    adapter = save_adapter(tmp_path / "adapter", PLAIN, base_model_name_or_path=name)
    assert not any("trained on" in line for line in plan_recipe(passthrough(model, adapter)).warnings)


def test_one_adapter_under_two_names_is_one_model(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", 1)
    adapter = save_adapter(tmp_path / "adapter", PLAIN)
    (tmp_path / "link").symlink_to(adapter)
    recipe = {
        "merge_method": "slerp", "base_model": f"{model}+{adapter}", "parameters": {"t": 0.5},
        "models": [{"model": f"{model}+{adapter}"}, {"model": f"{model}+{tmp_path / 'link'}"}],
    }  # fmt: skip
    assert len(plan_recipe(recipe).sources) == 1


MISFITS: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "an unknown tensor": (PLAIN | {f"{Q0}.lora_B.bias": draw(HIDDEN)}, {}, "lora_B.bias`: not known, and every tensor"),
    "half of a pair": ({f"{Q0}.lora_A.weight": draw(RANK, HIDDEN)}, {}, f"`{Q0}` has lora_A, wanted lora_A, lora_B"),
    "a magnitude too many": (DORA, {}, "has lora_A, lora_B, lora_magnitude_vector, wanted lora_A, lora_B"),
    "a magnitude too few": (PLAIN, {"use_dora": True}, "has lora_A, lora_B, wanted lora_A, lora_B, lora_magnitude"),
    "another rank": (PLAIN, {"r": 8}, f"`{Q0}` has rank 3, and adapter_config.json says 8: its scale is not certain"),
    "a convolution": (
        {f"{Q0}.lora_A.weight": draw(3, 8, 1, 1), f"{Q0}.lora_B.weight": draw(8, 3, 1, 1)}, {}, "as of a convolution",
    ),
    "DoRA of an embedding": (
        embedding_factors() | {f"{EMBEDDING}.lora_magnitude_vector": draw(HIDDEN)}, {"use_dora": True},
        "DoRA of an embedding is not applied",
    ),
    "another kind": (PLAIN, {"peft_type": "IA3"}, "`peft_type` is 'IA3': of the adapters of peft, LORA is applied"),
    "biases": (PLAIN, {"bias": "all"}, "`bias: all`: biases that were trained along are not applied"),
    "PiSSA": (PLAIN, {"init_lora_weights": "pissa_niter_4"}, "`init_lora_weights: pissa_niter_4`: peft changes"),
    "fused experts": (PLAIN, {"target_parameters": ["experts.down_proj"]}, "fused experts, which come later"),
    "layers twice": (PLAIN, {"layer_replication": [[0, 2]]}, "`layer_replication`: layers that are used twice"),
    "an unknown setting": (PLAIN, {"use_newra": True}, "`use_newra` is set, and this mol does not know"),
    "a pattern that may never end": (PLAIN, {"rank_pattern": {"(a+)+b": 4}}, "no pattern that can be searched"),
    "a pattern without a number": (PLAIN, {"alpha_pattern": {"q_proj": "7"}}, "`alpha_pattern` is no map from names"),
    "no number": (PLAIN, {"lora_alpha": None}, "`lora_alpha` is None, wanted a number"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_an_adapter_that_cannot_be_applied_whole_is_refused(case: str, tmp_path: Path) -> None:
    tensors, settings, message = MISFITS[case]
    with pytest.raises(CheckpointError) as caught:
        Adapter.open(save_adapter(tmp_path / "adapter", tensors, **settings))
    assert "cannot be applied; merge it with peft (merge_and_unload)" in str(caught.value)
    assert message in " ".join(caught.value.problems) + str(caught.value)


STRANGERS: dict[str, tuple[Tensors, str]] = {
    "a deeper model": (factors(Q0.replace("0", "7"), HIDDEN, HIDDEN), "`model.layers.7.self_attn.q_proj.weight`: the"),
    "another width": (factors(Q0, HIDDEN, 9), f"`{Q0}` has factors for a matrix [8, 9], the model's is [8, 8]"),
    "experts": (factors("model.layers.0.mlp.experts.3.w1", 4, 8), "the model has no such tensor (an expert"),
    "tokens added": ({f"{EMBEDDING}.weight": draw(ROWS + 1, HIDDEN)}, "has shape [13, 8], the model's [12, 8] (tokens"),
    "a head of classes": (PLAIN | {"score.weight": draw(2, HIDDEN)}, "`score.weight`: the model has no such tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGERS)
def test_an_adapter_of_another_model_is_refused_with_all_that_does_not_fit(case: str, tmp_path: Path) -> None:
    tensors, message = STRANGERS[case]
    model = make_llama(tmp_path / "model", 1)
    adapter = save_adapter(tmp_path / "adapter", tensors | factors("model.layers.9.x", 2, 2))
    with pytest.raises(MergeError) as caught:
        plan_recipe(passthrough(model, adapter))
    assert "every tensor of an adapter has to be applied" in str(caught.value)
    assert message in str(caught.value)
    assert "model.layers.9.x.weight" in str(caught.value)


def test_directories_without_an_adapter_are_refused(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", 1)
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json; the directory of an adapter"):
        plan_recipe(passthrough(model, model))
    adapter = save_adapter(tmp_path / "adapter", PLAIN)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled \(adapter_model.bin\), which is not supported; load and save"):
        plan_recipe(passthrough(model, adapter))
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
        plan_recipe(passthrough(model, adapter))


def test_what_is_not_on_disk_is_not_requested(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "model", 1)
    adapter = save_adapter(tmp_path / "adapter", PLAIN)
    found = find(ModelReference.parse(f"{model}+{adapter}"))
    assert found is not None
    assert [part.role for part in found.directories()] == ["", "adapter"]
    assert find(ModelReference.parse(f"{model}+org/lora"), tmp_path / "empty") is None
    assert find(ModelReference.parse(f"org/model+{adapter}"), tmp_path / "empty") is None


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", PLAIN)
    with pytest.raises(CheckpointError, match=r"write it as MODEL\+ADAPTER"):
        plan_recipe({"merge_method": "passthrough", "models": [{"model": str(adapter)}]})
    with pytest.raises(ConfigError, match="a model takes one adapter"):
        ModelReference.parse({"model": "a+b", "lora": "c"})


@pytest.mark.parametrize(("size", "share"), [(1e-4, "0%"), (0.5, "100%")])
def test_how_much_of_the_change_rounding_leaves_is_said(size: float, share: str, tmp_path: Path) -> None:
    """Weights of 1 in bf16 lie 2^-7 apart: what is less than half of that is lost, and halves are kept."""
    model = tmp_path / "model"
    make_llama(model, 1)
    save_file({name: np.ones_like(w) for name, w in weights_of(model).items()}, model / "model.safetensors")
    tensors = {f"{Q0}.lora_A.weight": np.ones((1, HIDDEN)), f"{Q0}.lora_B.weight": np.full((HIDDEN, 1), size)}
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    adapter = save_adapter(tmp_path / "adapter", tensors, r=1, lora_alpha=1)
    planned = plan_recipe(passthrough(model, adapter) | {"dtype": "bfloat16"})
    said = [*planned.notes, *planned.warnings]
    wanted = f"of what {adapter} changes in {model}, rounding to BF16 leaves about {share} (q_proj {share}; 4 rows of "
    (line,) = [line for line in said if line.startswith(wanted)]
    assert (line in planned.warnings) == (share == "0%")
    (line,) = [line for line in plan_recipe(passthrough(model, adapter)).notes if line.startswith("of what")]
    assert "rounding to F32 leaves about 100%" in line


@pytest.mark.parametrize("dora", [False, True])
def test_what_rounding_leaves_is_what_the_result_shows(dora: bool, tmp_path: Path) -> None:
    """The share is measured along the change; a result in bf16 has it, in the rows that are looked at."""
    model = make_llama(tmp_path / "model", 1)
    tensors = {name: value * np.float32(0.05) for name, value in PLAIN.items()}
    if dora:
        tensors |= {f"{module}.lora_magnitude_vector": np.ones(HIDDEN, np.float32) for module in (Q0, DOWN)}
    adapter = save_adapter(tmp_path / "adapter", tensors, use_dora=dora)
    plain = Checkpoint.open(model)
    shares = surviving(with_adapter(plain, Adapter.open(adapter)), plain, "BF16")
    assert shares.keys() == {f"{Q0}.weight", f"{DOWN}.weight"}
    alone = {"merge_method": "passthrough", "models": [{"model": str(model)}]}
    results = []
    for number, recipe in enumerate((alone, passthrough(model, adapter))):
        for dtype in ("float64", "bfloat16"):
            run_merge({**recipe, "dtype": dtype}, tmp_path / f"{number}-{dtype}")
            results.append(read_arrays(tmp_path / f"{number}-{dtype}" / "model.safetensors"))
    for name, share in shares.items():
        before, rounded_before, after, rounded = (result[name][2:6].astype(np.float64) for result in results)
        change = after - before
        along = ((rounded - rounded_before) * change).sum() / (change * change).sum()
        assert share == pytest.approx(min(max(along, 0), 1), abs=1e-5)
