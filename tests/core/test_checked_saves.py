"""A save that is damaged, half replaced, of a later mol, hostile, or of models that changed is not loaded as it is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from mol.auto import MoLForCausalLM
from mol.config.mol_config import MoLConfig
from mol.core.mol_runtime import MoLRuntime
from mol.core.pretrained.mixture import MoLMixture
from mol.errors import CheckpointError, ConfigError, MolError
from tests.core.tokenizers import word_pieces
from tests.core.zoo import language_model_of, tokens_of

if TYPE_CHECKING:
    from tests.core.conftest import Fuse

IDS = tokens_of(2, 8)
ROOT = Path(__file__).parents[2]


def edited(directory: Path, **changes: Any) -> None:  # noqa: ANN401
    """Change fields of config.json; those of `fusion` by the names of settings after `fusion__`."""
    path = directory / "config.json"
    content = json.loads(path.read_text())
    for name, value in changes.items():
        field, _, setting = name.partition("__")
        if setting:
            content[field][setting] = value
        else:
            content[field] = value
    path.write_text(json.dumps(content))


def randomly_trained(model: MoLForCausalLM) -> MoLForCausalLM:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture
def saved(fuse: Fuse, models: Path, tmp_path: Path) -> Path:
    """A save of gpt2 and llama, next to copies of them that a test may change."""
    for name in ("gpt2", "llama"):
        shutil.copytree(models / name, tmp_path / name)
    model = fuse(str(tmp_path / "gpt2"), str(tmp_path / "llama"))
    randomly_trained(model.as_causal_lm()).save_pretrained(tmp_path / "fused")
    return tmp_path / "fused"


@pytest.mark.parametrize(
    "kind", ["runtime", pytest.param("bundle", marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_a_save_that_is_killed_anywhere_leaves_the_old_or_the_new_one(kind: str, models: Path, tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "tests.core.killed_saves", str(models), str(tmp_path), kind],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert set(said) == {"old", "new"}
    assert said == sorted(said, reverse=True)  # old until the one moment, new from then on
    assert len(said) > 20


@pytest.mark.parametrize("where", [0, 9, 200, -1])
def test_a_flipped_bit_of_the_weights_is_refused(where: int, saved: Path) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)
    with pytest.raises(MolError, match=r"model\.safetensors|not those that its config describes"):
        MoLForCausalLM.from_pretrained(saved)


def test_a_description_that_was_changed_is_refused(saved: Path) -> None:
    edited(saved, fusion__temperature=2.0)
    with pytest.raises(CheckpointError, match=r"if the edit is yours, remove `described` from its `mol_save`"):
        MoLForCausalLM.from_pretrained(saved)
    record = json.loads((saved / "config.json").read_text())["mol_save"]
    edited(saved, mol_save={name: value for name, value in record.items() if name != "described"})
    assert MoLForCausalLM.from_pretrained(saved).runtime.config.temperature == 2.0


def test_weights_of_another_save_are_refused(saved: Path, fuse: Fuse, tmp_path: Path) -> None:
    other = randomly_trained(fuse(str(tmp_path / "gpt2"), str(tmp_path / "llama"), seed=1).as_causal_lm())
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other/model.safetensors", saved)
    with pytest.raises(CheckpointError, match=r"is not the file that was saved with this config\.json"):
        MoLForCausalLM.from_pretrained(saved)


def test_a_later_format_is_named(saved: Path) -> None:
    edited(saved, mol_save__format=2, mol_save__version="9.0.0")
    with pytest.raises(ConfigError, match=r"format 2, written by mol 9\.0\.0; this is mol .* upgrade mol-merge"):
        MoLForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fusion__capacity_factor": 1.5}, "`capacity_factor` is no setting of this version of mol"),
        ({"fusion__temperature": "warm"}, "`temperature` is 'warm'"),
        ({"fusion__models": 5}, "`models` is 5"),
        ({"fusion__stacks": {"gpt2": 3}}, "`stacks` is"),
        ({"fusion__load_balancing_coeff": [1]}, "`load_balancing_coeff` is"),
        ({"fusion": "gpt2"}, "describes no fusion"),
        ({"fusion": {}}, "`models` is missing"),
        ({"fused_layers": {}}, "describes no fusion"),
        ({"fused_layers": [{}]}, r"`fused_layers\[0\]` is not a `position`"),
        ({"fused_layers": [{"position": 0, "experts": [{"model": "gpt2"}]}]}, "an expert that is not one of"),
        ({"fused_layers": [{"position": True, "experts": []}]}, "is not a `position`"),
        ({"host": "mistral"}, "`host` is 'mistral'"),
        ({"fusion__cache_dir": "/tmp/elsewhere"}, "`cache_dir` belongs to whoever loads"),
        ({"fusion__token": "hf_x"}, "`token` belongs to whoever loads"),
        ({"fusion__device_map": {"gpt2": "disk"}}, "`device_map` belongs to whoever loads"),
        ({"fusion__paths": {"gpt2": "/etc"}}, "`paths` belongs to whoever loads"),
        ({"fusion__attn_implementation": "org/kernel"}, "may be fetched and run as code"),
        ({"mol_save__weights": {"../model.safetensors": {}}}, "does not name the weight files"),
        ({"mol_save": None}, "was not written by save_pretrained of mol"),
        ({"id2label": 5}, "holds what no config can"),
        ({"dtype": [1]}, "holds what no config can"),
    ],
)
def test_a_malformed_config_is_refused_with_a_message(changes: dict[str, Any], says: str, saved: Path) -> None:
    edited(saved, **changes)
    with pytest.raises(MolError, match=says):
        AutoModelForCausalLM.from_pretrained(saved)


def test_attention_outside_of_the_settings_is_not_taken_from_a_file(saved: Path) -> None:
    edited(saved, _attn_implementation="org/kernel", attn_implementation="org/kernel")
    assert AutoModelForCausalLM.from_pretrained(saved).runtime.config.attn_implementation is None


def test_a_kernel_of_the_hub_in_the_config_of_a_model_is_refused(saved: Path, tmp_path: Path) -> None:
    edited(tmp_path / "llama", attn_implementation="org/kernel")
    with pytest.raises(ConfigError, match="a kernel of the Hub, which is run as code"):
        MoLForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize("changed", ["llama", "gpt2"])
def test_a_model_that_changed_on_disk_is_named_with_what_changed(changed: str, saved: Path, tmp_path: Path) -> None:
    language_model_of(changed, seed=5).save_pretrained(tmp_path / changed)
    with pytest.raises(CheckpointError, match=rf"{changed}.* is not the model .* saved with: the weights of block 0"):
        MoLForCausalLM.from_pretrained(saved)
    MoLForCausalLM.from_pretrained(saved, allow_changed_models=True)


def test_what_a_fusion_does_not_use_of_a_model_may_change(saved: Path, tmp_path: Path) -> None:
    wanted = MoLForCausalLM.from_pretrained(saved)(IDS).logits
    weights = load_file(tmp_path / "llama/model.safetensors")
    weights["lm_head.weight"] = torch.zeros_like(weights["lm_head.weight"])
    weights["model.layers.1.mlp.up_proj.weight"] *= 2
    save_file(weights, tmp_path / "llama/model.safetensors", metadata={"format": "pt"})
    assert torch.equal(MoLForCausalLM.from_pretrained(saved)(IDS).logits, wanted)


def test_a_config_that_changed_is_named(saved: Path, tmp_path: Path) -> None:
    edited(tmp_path / "llama", rms_norm_eps=0.1)
    with pytest.raises(CheckpointError, match=r"saved with: its config\.json changed"):
        MoLForCausalLM.from_pretrained(saved)


def test_relative_names_are_found_from_the_save(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(models / "gpt2", tmp_path / "here/gpt2")
    shutil.copytree(models / "llama", tmp_path / "here/llama")
    (tmp_path / "elsewhere").mkdir()
    language_model_of("llama", seed=5).save_pretrained(tmp_path / "elsewhere/llama")  # must not be taken
    monkeypatch.chdir(tmp_path / "here")
    runtime = MoLRuntime(MoLConfig(models=["gpt2", "llama"]))
    runtime.add_layer([("gpt2", 0), ("llama", 0)], 0)
    wanted = runtime.as_causal_lm()(IDS).logits
    runtime.as_causal_lm().save_pretrained("fused")
    assert str(tmp_path) not in (tmp_path / "here/fused/config.json").read_text()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(MoLForCausalLM.from_pretrained("../here/fused")(IDS).logits, wanted)
    (tmp_path / "here").rename(tmp_path / "moved")
    assert torch.equal(MoLForCausalLM.from_pretrained(tmp_path / "moved/fused")(IDS).logits, wanted)
    (tmp_path / "moved/fused").rename(tmp_path / "fused")
    # Seen from here, `../gpt2` is nothing, and `llama` is another one, in the working directory.
    with pytest.raises(FileNotFoundError, match=r"gpt2: was in .* when the fusion was saved.*paths=\{'gpt2': \.\.\.\}"):
        MoLForCausalLM.from_pretrained(tmp_path / "fused")
    with pytest.raises(CheckpointError, match=r"^llama .* is not the model that the fusion was saved with"):
        MoLForCausalLM.from_pretrained(tmp_path / "fused", paths={"gpt2": str(tmp_path / "moved/gpt2")})
    paths = {name: str(tmp_path / "moved" / name) for name in ("gpt2", "llama")}
    again = MoLForCausalLM.from_pretrained(tmp_path / "fused", paths=paths)
    assert torch.equal(again(IDS).logits, wanted)
    assert again.runtime.host_name == "gpt2"


def test_a_mixture_is_checked_in_the_same_way(models: Path, tmp_path: Path) -> None:
    tokenizer = word_pieces(["a few words"], 60)
    for name in ("gpt2", "llama"):
        shutil.copytree(models / name, tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    names = [str(tmp_path / name) for name in ("gpt2", "llama")]
    mixture = MoLMixture.from_models(names, weights="router")
    mixture.save_pretrained(tmp_path / "mix")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "mix", dtype="auto", local_files_only=True)
    assert torch.equal(again(IDS).logits, mixture(IDS).logits)
    path = tmp_path / "mix/model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="is not the file that was saved"):
        MoLMixture.from_pretrained(tmp_path / "mix")
    path.write_bytes(content)
    edited(tmp_path / "mix", mixture_weights="uniform")
    with pytest.raises(CheckpointError, match="describes another model"):
        MoLMixture.from_pretrained(tmp_path / "mix")
    edited(tmp_path / "mix", mixture_weights="median")
    with pytest.raises(ConfigError, match="wanted one of uniform, posterior, router"):
        MoLMixture.from_pretrained(tmp_path / "mix")
    edited(tmp_path / "mix", mixture_weights="router")
    language_model_of("llama", seed=5).save_pretrained(tmp_path / "llama")
    with pytest.raises(CheckpointError, match=re.escape(f"{names[1]}")):
        MoLMixture.from_pretrained(tmp_path / "mix")


def test_the_tokenizer_of_the_host_is_saved_with_the_model_and_a_users_own_is_left_alone(
    saved: Path, tmp_path: Path
) -> None:
    word_pieces(["a few words"], 60).save_pretrained(tmp_path / "gpt2")
    model = MoLForCausalLM.from_pretrained(saved)
    model.save_pretrained(saved)
    written = (saved / "tokenizer.json").read_bytes()
    assert written == (tmp_path / "gpt2/tokenizer.json").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.add_tokens(["<mine>"])
    tokenizer.save_pretrained(saved)
    mine = (saved / "tokenizer.json").read_bytes()
    assert mine != written
    model.save_pretrained(saved)
    assert (saved / "tokenizer.json").read_bytes() == mine


def test_saving_over_a_save_leaves_nothing_of_it_and_all_else(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    model = MoLForCausalLM.from_pretrained(saved)
    model.save_pretrained(saved, max_shard_size="10KB")
    assert len(list(saved.glob("*.safetensors"))) > 1
    model.save_pretrained(saved)
    files = ["README.md", "config.json", "generation_config.json", "model.safetensors", "notes.txt"]
    assert sorted(file.name for file in saved.iterdir()) == files


def test_only_local_files_are_wanted_of_a_fusion_with_models_of_the_hub(saved: Path) -> None:
    MoLForCausalLM.from_pretrained(saved, local_files_only=True)
    models = json.loads((saved / "config.json").read_text())["fusion"]["models"]
    record = json.loads((saved / "config.json").read_text())["mol_save"]
    record.pop("described")
    edited(saved, fusion__models=[*models, "org/other"], mol_save=record)
    with pytest.raises(MolError, match="org/other may have to be fetched from the Hub: set HF_HUB_OFFLINE=1"):
        MoLForCausalLM.from_pretrained(saved, local_files_only=True)


def test_pushing_while_saving_is_refused_with_a_message(saved: Path) -> None:
    model = MoLForCausalLM.from_pretrained(saved)
    with pytest.raises(MolError, match="push_to_hub would upload a part: model"):
        model.save_pretrained(saved, push_to_hub=True)


def test_the_body_is_loaded_by_auto_model(saved: Path) -> None:
    body, model = AutoModel.from_pretrained(saved), MoLForCausalLM.from_pretrained(saved)
    hidden = body(IDS).last_hidden_state
    assert torch.equal(hidden, model.base_model(input_ids=IDS).last_hidden_state)
    assert torch.allclose(model.get_output_embeddings()(hidden), model(IDS).logits, atol=1e-5)
