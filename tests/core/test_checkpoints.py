"""A runtime in one file: what save_checkpoint wrote, load_checkpoint gives back exactly, or says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, AutoModelForMaskedLM

from mol import MoLConfig, MoLMixture, MoLRuntime, load_model_safe, save_model_safe
from mol.errors import CheckpointError, ConfigError, FusionError, MolError
from tests.core.zoo import config_of, language_model_of, randomised, tokens_of
from tests.io.hub_server import COMMIT, serving
from tests.merge.models import contents_of

if TYPE_CHECKING:
    from tests.core.conftest import Fuse

IDS = tokens_of(2, 8)


def shaken(runtime: MoLRuntime) -> MoLRuntime:
    """Change all adapters and routers at random, so that none is as it was built."""
    with torch.no_grad():
        for parameter in runtime.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return runtime


def outputs(runtime: MoLRuntime) -> list[torch.Tensor]:
    """Hidden states and the weights of every layer's router."""
    with torch.no_grad():
        hidden, stats = runtime(IDS, return_router_stats=True)
    return [hidden, *(layer["expert_weights"] for layer in stats.values())]


def assert_same(runtime: MoLRuntime, other: MoLRuntime) -> None:
    assert runtime.positions == other.positions
    assert [layer.specs for layer in runtime.fused] == [layer.specs for layer in other.fused]
    mine, theirs = runtime.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert theirs[name].dtype == value.dtype
        assert torch.equal(theirs[name], value)
    for here, there in zip(outputs(runtime), outputs(other), strict=True):
        assert torch.equal(here, there)


@pytest.fixture
def saved(fuse: Fuse, models: Path, tmp_path: Path) -> Path:
    """A checkpoint of gpt2 and llama, next to copies of them that a test may change."""
    for name in ("gpt2", "llama"):
        shutil.copytree(models / name, tmp_path / name)
    return shaken(fuse(str(tmp_path / "gpt2"), str(tmp_path / "llama"))).save_checkpoint(tmp_path / "model")


@pytest.mark.parametrize(
    "layers",
    [
        [([("gpt2", 0), ("llama", 2)], 2), ([("llama", 0)], 0)],  # added out of order, unequal numbers of experts
        [([("llama", 1), ("gpt2", 1), ("llama", 1), ("llama", 1)], 1)],  # a block again and again, the host's not first
        [([("llama", range(3)), ("bert", [2, 0, 2]), ("gpt2", 2)], 0), ([("bert", 1)], 1), ([("gpt2", 0)] * 2, 2)],
        [],
    ],
)
@pytest.mark.parametrize("router_type", ["simple", "token_level"])
def test_odd_layers_come_back_exactly(layers: list[Any], router_type: str, fuse: Fuse, tmp_path: Path) -> None:
    runtime = fuse("gpt2", "llama", "bert", layers=(), router_type=router_type, adapter_type="bottleneck")
    for specs, position in layers:
        runtime.add_layer(specs, position)
    shaken(runtime).save_checkpoint(tmp_path / "model")
    assert_same(runtime, MoLRuntime.load_checkpoint(tmp_path / "model"))


@pytest.mark.parametrize(
    "settings",
    [
        {"keep_host_layers": False, "temperature": 0.5},
        {"dispatch": "token", "top_k_experts": 1, "router_type": "token"},
        {"dispatch": "sequence", "top_k_experts": 1, "router_prefix": 3},
        {"dtype": "bfloat16"},
        {"dtype": {"llama": "bfloat16"}, "memory_efficient": False},
    ],
)
def test_settings_come_back(settings: dict[str, Any], fuse: Fuse, tmp_path: Path) -> None:
    runtime = shaken(fuse("gpt2", "llama", **settings))
    runtime.save_checkpoint(tmp_path / "model")
    again = MoLRuntime.load_checkpoint(tmp_path / "model")
    assert_same(runtime, again)
    assert {**again.config.to_dict(), "dtype": None} == {**runtime.config.to_dict(), "dtype": None}


def test_the_host_that_was_chosen_its_head_and_the_mode_come_back(fuse: Fuse, tmp_path: Path) -> None:
    runtime = fuse("llama", "gpt2", layers=())
    runtime.setup_embeddings("gpt2")
    runtime.setup_lm_head()
    runtime.add_layer([("llama", 0), ("gpt2", 0)], 0)
    shaken(runtime).train().save_checkpoint(tmp_path / "model")
    again = MoLRuntime.load_checkpoint(tmp_path / "model")
    assert again.host_name == "gpt2"
    assert not again.training
    assert again.lm_head is not None
    assert runtime.lm_head is not None
    assert_same(runtime.eval(), again)
    assert torch.equal(runtime.lm_head(outputs(runtime)[0]), again.lm_head(outputs(again)[0]))
    written = [each.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0) for each in (runtime, again)]
    assert torch.equal(*written)


def test_trained_parts_that_were_cast_keep_their_dtype(fuse: Fuse, tmp_path: Path) -> None:
    runtime = shaken(fuse("gpt2", "bert"))
    runtime.layers.to(torch.float64)
    runtime.save_checkpoint(tmp_path / "model")
    again = MoLRuntime.load_checkpoint(tmp_path / "model")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float64}
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in runtime.state_dict().items())


@pytest.mark.parametrize("host", ["bert", "vit"])
def test_hosts_that_generate_nothing_are_saved_too(host: str, tmp_path: Path) -> None:
    kind = AutoModelForMaskedLM if host == "bert" else AutoModelForImageClassification
    randomised(kind.from_config(config_of(host)), seed=0).save_pretrained(tmp_path / host)
    runtime = MoLRuntime(MoLConfig([str(tmp_path / host)]))
    runtime.add_layer([(str(tmp_path / host), 0), (str(tmp_path / host), 1)], 0)
    shaken(runtime).save_checkpoint(tmp_path / "model")
    again = MoLRuntime.load_checkpoint(tmp_path / "model")
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32)} if host == "vit" else {"input_ids": IDS}
    assert torch.equal(runtime(**inputs)[0], again(**inputs)[0])


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("./model", "model.safetensors"),
        ("./model.pt", "model.safetensors"),
        ("model.safetensors", "model.safetensors"),
        ("run.v1.0", "run.v1.0.safetensors"),
        ("runs/a.b/step_10.pt", "runs/a.b/step_10.safetensors"),
    ],
)
def test_a_path_names_one_file_with_any_suffix(
    path: str, file: str, fuse: Fuse, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = fuse(str(models / "gpt2"))
    wanted = outputs(runtime)
    monkeypatch.chdir(tmp_path)
    assert runtime.save_checkpoint(path, use_safetensors=True) == Path(file)
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [tmp_path / file]
    stem = file.removesuffix(".safetensors")
    for same in (path, Path(path), stem, f"{stem}.pt", file):
        assert torch.equal(outputs(MoLRuntime.load_checkpoint(same))[0], wanted[0])


def test_a_pickle_is_neither_written_nor_read(fuse: Fuse, tmp_path: Path) -> None:
    runtime = fuse("gpt2")
    with pytest.raises(ConfigError, match=r"would be a pickle, which runs code when it is loaded.*ends in \.pt"):
        runtime.save_checkpoint(tmp_path / "model", use_safetensors=False)
    with pytest.raises(ConfigError, match="names a pickle"):
        runtime.save_checkpoint(tmp_path / "model.bin")
    assert not list(tmp_path.iterdir())
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"model\.pt is there, and is not read: only SafeTensors files are"):
        MoLRuntime.load_checkpoint(tmp_path / "model.pt")


def test_only_trained_parts_are_in_the_file_and_all_of_it_is_safetensors_and_json(saved: Path) -> None:
    with safe_open(str(saved), framework="pt") as file:
        content = json.loads(file.metadata()["mol_runtime"])
        assert all(name.startswith("layers.") for name in file.keys())  # noqa: SIM118 - a handle, no dict
    assert content["fused_layers"][0] == {
        "position": 0,
        "experts": [{"model": model, "blocks": [0]} for model in content["fusion"]["models"]],
    }
    assert content["models"].keys() == set(content["fusion"]["models"])


def test_damage_at_either_end_and_in_the_middle_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for damaged in (
        content[:-1], content[: len(content) // 2], content[:7], b"", content + b"\0",
        *(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in (3, 40, len(content) // 2, -2)),
    ):  # fmt: skip
        saved.write_bytes(damaged)
        with pytest.raises(MolError, match=r"model\.safetensors"):
            MoLRuntime.load_checkpoint(saved)


def test_what_something_else_wrote_is_named(saved: Path, tmp_path: Path) -> None:
    save_file(load_file(saved), tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"plain\.safetensors has no checksum.*save_checkpoint did not write it"):
        MoLRuntime.load_checkpoint(tmp_path / "plain")
    save_model_safe(torch.nn.Linear(2, 2), tmp_path / "module", {"mol": "x"})
    with pytest.raises(CheckpointError, match=r"holds the state of a module.*load_model_safe loads it"):
        MoLRuntime.load_checkpoint(tmp_path / "module")
    for text in ("[]", "5", "{", "[" * 100_000):
        save_model_safe(torch.nn.Linear(2, 2), tmp_path / "module", {"mol_runtime": text})
        with pytest.raises(CheckpointError, match="describes no fusion, so save_checkpoint did not write it"):
            MoLRuntime.load_checkpoint(tmp_path / "module")


def resealed(saved: Path, **changes: Any) -> None:  # noqa: ANN401
    """Change the description in a checkpoint, and its checksum, as a later version of mol or an attacker would."""
    runtime = MoLRuntime.load_checkpoint(saved)
    with safe_open(str(saved), framework="pt") as file:
        content = json.loads(file.metadata()["mol_runtime"])
    for name, value in changes.items():
        field, _, setting = name.partition("__")
        if setting:
            content[field][setting] = value
        else:
            content[field] = value
    save_model_safe(runtime, saved, {"mol_runtime": json.dumps(content)})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2, "version": "9.0.0"}, r"format 2, written by mol 9\.0\.0; this is mol .* upgrade mol-merge"),
        ({"fusion__capacity_factor": 1.5}, "`capacity_factor` is no setting of this version of mol"),
        ({"fusion__temperature": "warm"}, "`temperature` is 'warm'"),
        ({"fusion__paths": {"gpt2": "/etc"}}, "`paths` belongs to whoever loads"),
        ({"fusion__trust_remote_code": True}, "bring code of their own"),
        ({"fusion": 3}, r"model\.safetensors describes no fusion"),
        ({"fused_layers": [{"position": 0, "experts": []}]}, "is not a `position`"),
        ({"fused_layers": []}, r"(?s)its weights are not those that its description describes.*is not wanted"),
        ({"host": "mistral"}, "`host` is 'mistral'"),
    ],
)
def test_a_malformed_description_is_refused_with_a_message(changes: dict[str, Any], says: str, saved: Path) -> None:
    resealed(saved)
    MoLRuntime.load_checkpoint(saved)
    resealed(saved, **changes)
    with pytest.raises(MolError, match=says):
        MoLRuntime.load_checkpoint(saved)


@pytest.mark.parametrize("changed", ["llama", "gpt2"])
def test_a_model_that_changed_is_named_with_what_changed(changed: str, saved: Path, tmp_path: Path) -> None:
    language_model_of(changed, seed=5).save_pretrained(tmp_path / changed)
    with pytest.raises(CheckpointError, match=rf"{changed}.* is not the model .* saved with: the weights of block 0"):
        MoLRuntime.load_checkpoint(saved)
    MoLRuntime.load_checkpoint(saved, allow_changed_models=True)


def test_models_are_found_from_the_file_and_by_paths(saved: Path, tmp_path: Path) -> None:
    wanted = outputs(MoLRuntime.load_checkpoint(saved))
    (tmp_path / "there").mkdir()
    for name in ("gpt2", "llama", "model.safetensors"):
        shutil.move(tmp_path / name, tmp_path / "there" / name)
    assert torch.equal(outputs(MoLRuntime.load_checkpoint(tmp_path / "there/model"))[0], wanted[0])
    shutil.move(tmp_path / "there/llama", tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"llama: was in .* paths=\{'.*llama': \.\.\.\}"):
        MoLRuntime.load_checkpoint(tmp_path / "there/model")
    again = MoLRuntime.load_checkpoint(
        tmp_path / "there/model", paths={str(tmp_path / "llama"): str(tmp_path / "away")}
    )
    assert torch.equal(outputs(again)[0], wanted[0])


def test_options_replace_settings_and_others_are_refused(saved: Path) -> None:
    again = MoLRuntime.load_checkpoint(saved, dtype=torch.bfloat16, device_map="cpu", max_expert_memory="1GB")
    assert again.host.dtype == torch.bfloat16
    assert again.config.max_expert_memory == "1GB"
    with pytest.raises(FusionError, match="load_checkpoint does not take colour; it takes attn_implementation"):
        MoLRuntime.load_checkpoint(saved, colour="red")


def test_models_of_the_hub_are_loaded_from_the_commit_they_were_of(models: Path, tmp_path: Path) -> None:
    code = f"""
import torch
from mol import MoLConfig, MoLRuntime
mol = MoLRuntime(MoLConfig(["org/gpt2", "org/llama"]))
mol.add_layer([("org/llama", 0), ("org/gpt2", 0)], 0)
ids = torch.arange(6)[None]
file = mol.save_checkpoint({str(tmp_path / "fused.pt")!r})
assert torch.equal(MoLRuntime.load_checkpoint(file)(ids)[0], mol(ids)[0])
"""
    with serving({f"org/{name}": contents_of(models / name) for name in ("gpt2", "llama")}) as hub:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secret"}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    with safe_open(str(tmp_path / "fused.safetensors"), framework="pt") as file:
        text = file.metadata()["mol_runtime"]
    assert json.loads(text)["fusion"]["revisions"] == {"org/gpt2": COMMIT, "org/llama": COMMIT}
    assert "hf_secret" not in text
    assert str(tmp_path) not in text


def test_a_checkpoint_replaces_an_older_one_whole(saved: Path, fuse: Fuse) -> None:
    runtime = shaken(fuse("gpt2", "llama", seed=3, layers=(1,)))
    runtime.save_checkpoint(saved)
    assert_same(runtime, MoLRuntime.load_checkpoint(saved))
    assert not [path for path in saved.parent.iterdir() if path.name.startswith(".mol")]


def test_a_checkpoint_and_a_saved_directory_hold_the_same(fuse: Fuse, tmp_path: Path) -> None:
    runtime = shaken(fuse("gpt2", "llama"))
    runtime.save_pretrained(tmp_path / "fused")
    again = MoLRuntime.from_pretrained(tmp_path / "fused")
    assert_same(runtime, again)
    assert_same(runtime, MoLRuntime.load_checkpoint(tmp_path / "fused.pt"))
    again.save_checkpoint(tmp_path / "one")
    assert_same(runtime, MoLRuntime.load_checkpoint(tmp_path / "one"))
    load_model_safe(fuse("gpt2", "llama", seed=4), tmp_path / "one")
    runtime.save_checkpoint(tmp_path / "fused")
    with pytest.raises(ConfigError, match=r"both are saves: write .*fused\.safetensors or .*fused/$"):
        MoLRuntime.load_checkpoint(tmp_path / "fused")
    for one in (tmp_path / "fused.safetensors", f"{tmp_path}/fused/"):
        assert_same(runtime, MoLRuntime.load_checkpoint(one))


def test_a_mixture_is_no_runtime(models: Path, tmp_path: Path) -> None:
    MoLMixture.from_models([language_model_of("gpt2")]).save_pretrained(tmp_path / "mixture")
    with pytest.raises(ConfigError, match=r"holds a mixture, which MoLMixture\.from_pretrained loads"):
        MoLRuntime.from_pretrained(tmp_path / "mixture")
