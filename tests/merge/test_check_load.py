"""--check-load: a result loads with transformers before it appears, or what does not fit is listed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mol import run_merge
from mol.cli import main
from mol.errors import CheckpointError, ConfigError, MergeError
from mol.merge.check_load import check_load

torch = pytest.importorskip("torch", reason="needs the extra: pip install 'mol-merge[fusion]'")
transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'mol-merge[fusion]'")

from safetensors.torch import load_file, save_file  # noqa: E402 - it needs torch

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.fusion

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}


def make(directory: Path, seed: int, config: Any = None) -> Path:  # noqa: ANN401
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**SIZES) if config is None else config
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def linear(*models: Path) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": str(m)} for m in models], "parameters": {"weight": 1}}


def spoil(directory: Path) -> None:
    """Take a tensor away, add one and give one another shape."""
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.extra.weight"] = torch.zeros(2)
    tensors["model.norm.weight"] = torch.zeros(17)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "config",
    [
        None,
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
        transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2),
        transformers.Qwen3MoeConfig(**SIZES, num_key_value_heads=2, num_experts=2, moe_intermediate_size=8, head_dim=8),
    ],
    ids=["llama", "tied", "mixtral", "qwen3-moe"],
)
@pytest.mark.parametrize("layout", ["single", "fused"])
def test_what_loads_becomes_the_output(tmp_path: Path, config: Any, layout: Any) -> None:  # noqa: ANN401
    a, b = (make(tmp_path / name, seed, config) for seed, name in enumerate("ab"))
    run_merge(linear(a, b), tmp_path / "out", check_load=True, expert_layout=layout)
    assert "all names and shapes are as its class has them" in check_load(tmp_path / "out")


def test_everything_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    spoil(make(tmp_path / "a", 0))
    with pytest.raises(CheckpointError) as caught:
        check_load(tmp_path / "a")
    assert str(caught.value).startswith(f"{tmp_path / 'a'} does not load as LlamaForCausalLM of transformers ")
    assert caught.value.problems == (
        "`model.layers.1.mlp.up_proj.weight` is missing in the weights",
        "`model.extra.weight` is in the weights, and the class has no such tensor",
        "`model.norm.weight` has shape [17], wanted [16]",
    )


def test_a_result_that_does_not_load_is_kept_where_it_was_made(tmp_path: Path) -> None:
    a, b = (make(tmp_path / name, seed) for seed, name in enumerate("ab"))
    for path in (a, b):
        tensors = load_file(path / "model.safetensors")
        save_file({**tensors, "model.extra.weight": torch.zeros(2)}, path / "model.safetensors")
    with pytest.raises(MergeError, match="the same merge without --check-load moves it to OUT") as caught:
        run_merge(linear(a, b), tmp_path / "out", check_load=True)
    assert caught.value.problems == ("`model.extra.weight` is in the weights, and the class has no such tensor",)
    assert not (tmp_path / "out").exists()
    report = run_merge(linear(a, b), tmp_path / "out")
    assert report.resumed == len(report.planned.plan.tensors)


def test_a_class_that_is_not_known_is_named(tmp_path: Path) -> None:
    make(tmp_path / "a", 0)
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["GreatForCausalLM"]}))
    with pytest.raises(CheckpointError, match="names the class GreatForCausalLM, which transformers"):
        check_load(tmp_path / "a")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": None}))
    with pytest.raises(CheckpointError, match="names no class in `architectures`"):
        check_load(tmp_path / "a")


def test_a_setting_of_the_wrong_kind_is_named(tmp_path: Path) -> None:
    """Version 5 of transformers checks each by the type that its class declares."""
    path = make(tmp_path / "a", 0) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": "wide"}))
    with pytest.raises(CheckpointError, match=r"does not load with transformers .*hidden_size.*wide"):
        check_load(tmp_path / "a")


def test_without_transformers_it_is_refused_before_a_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="and transformers is not installed: pip install 'mol-merge"):
        run_merge(linear(tmp_path / "none"), tmp_path / "out", check_load=True)


def test_a_result_is_checked_by_verify_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_merge(linear(make(tmp_path / "a", 0)), tmp_path / "out")
    assert main(["verify", str(tmp_path / "out"), "--check-load"]) == 0
    assert "as LlamaForCausalLM of" in " ".join(capsys.readouterr().out.split())


def test_of_a_series_finished_results_are_loaded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = linear(make(tmp_path / "a", 1), make(tmp_path / "b", 2))
    (tmp_path / "mean.yml").write_text(json.dumps(recipe))
    line = ["merge", "mean.yml", "--out-dir", "results"]
    assert main(line) == 0
    capsys.readouterr()
    assert main([*line, "--check-load"]) == 0
    said = capsys.readouterr()
    assert "were there already" in said.out
    assert "loads as LlamaForCausalLM" in said.err
