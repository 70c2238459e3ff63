"""push_to_hf and `mol-merge push-hf` against a Hub on this machine: what arrives there loads again by its name."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from mol import MoLConfig, MoLMixture, MoLRuntime, push_mol_to_hf
from mol.cli import main
from mol.errors import CheckpointError, ConfigError, FusionError
from tests.core.tokenizers import byte_pairs
from tests.core.zoo import language_model_of, tokens_of
from tests.io.hub_server import COMMIT, READER, WRITER, Fault, Hub, serving, use
from tests.merge.models import contents_of

if TYPE_CHECKING:
    from collections.abc import Iterator

# huggingface_hub's own.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TEXTS = ["the cat sat on the mat and looked at the dog", "def f(x): return x + 1"]
LICENSES = {"org/base": "apache-2.0", "org/chat": "mit", "org/wide": "mit"}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Two Llamas of one shape and a wider one, as the Hub holds them, each with a license."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    for seed, (name, license_) in enumerate(LICENSES.items()):
        width = {"hidden_size": 48} if name == "org/wide" else {}
        language_model_of("llama", seed=seed, **sizes, **width).save_pretrained(root / name)
        byte_pairs(TEXTS, 300).save_pretrained(root / name)
        (root / name / "README.md").write_text(f"---\nlicense: {license_}\n---\n")
    return {name: contents_of(root / name) for name in LICENSES}


@pytest.fixture
def hub(repositories: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with the models, which is the one in use, an empty cache, and the token of a user."""
    with serving({name: dict(files) for name, files in repositories.items()}) as server:
        use(server, monkeypatch)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def fusion(hub: Hub) -> MoLRuntime:
    """A fusion of models of the Hub that differs from one that was just made."""
    torch.manual_seed(0)
    runtime = MoLRuntime(MoLConfig(models=["org/base", "org/chat", "org/wide"]))
    runtime.add_layer([("org/base", 1), ("org/wide", 0)], 1)
    with torch.no_grad():
        for parameter in runtime.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return runtime


def logits(model: Any) -> torch.Tensor:  # noqa: ANN401
    with torch.no_grad():
        return model(tokens_of(2, 7)).logits


def card_of(hub: Hub, name: str) -> tuple[dict[str, Any], str]:
    text = hub.repositories[name]["README.md"].decode()
    return yaml.safe_load(text.split("---\n")[1]), text


def test_a_runtime_comes_back_from_the_hub_bit_for_bit(hub: Hub, fusion: MoLRuntime) -> None:
    url = fusion.push_to_hf(repo_id="user/mol-model", fusion_type="runtime", commit_message="Upload MoL runtime")
    assert url == f"{hub.url}/user/mol-model/commit/{hub.commits['user/mol-model']}"
    assert hub.messages == ["Upload MoL runtime"]
    wanted = logits(fusion.as_causal_lm())
    assert torch.equal(logits(MoLRuntime.from_pretrained("user/mol-model").as_causal_lm()), wanted)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("user/mol-model")), wanted)
    commit = hub.commits["user/mol-model"]
    hub.repositories["user/mol-model@old"] = hub.repositories["user/mol-model"]
    assert torch.equal(logits(MoLRuntime.from_pretrained(f"user/mol-model@{commit}").as_causal_lm()), wanted)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("user/mol-model", revision="old")), wanted)
    # Adapters and routers only: a fraction of its models.
    sizes = {name: len(files["model.safetensors"]) for name, files in hub.repositories.items()}
    assert sizes["user/mol-model"] < sizes["org/wide"] / 4


def test_its_card_has_models_licenses_layers_and_how_to_load_it(hub: Hub, fusion: MoLRuntime) -> None:
    push_mol_to_hf(fusion, "user/mol-model", evaluation={"perplexity of test.txt": 9.88})
    front, card = card_of(hub, "user/mol-model")
    assert front["base_model"] == ["org/base", "org/wide"]
    assert "license" not in front  # two that differ
    assert "org/base: apache-2.0; org/wide: mit" in card
    assert f"`org/wide` at revision `{COMMIT}`" in card
    assert 'mol.MoLRuntime.from_pretrained("user/mol-model")' in card
    assert "| 1 | `org/base[1]`, `org/wide[0]` |" in card
    assert "## Evaluation\n\n- perplexity of test.txt: 9.88\n" in card


def test_a_bundle_needs_none_of_its_models(hub: Hub, fusion: MoLRuntime) -> None:
    fusion.push_to_hf("user/bundle", "bundle", private=True)
    wanted = logits(fusion.as_causal_lm())
    assert "user/bundle" in hub.private
    for name in LICENSES:
        del hub.repositories[name]
    hub.requests.clear()
    assert torch.equal(logits(MoLRuntime.from_pretrained("user/bundle").as_causal_lm()), wanted)
    assert not any("org" in path for _, path in hub.requests)
    with pytest.raises(FileNotFoundError, match="user/bundle: no such directory, and no such repository"):
        MoLRuntime.from_pretrained("user/bundle", token="hf_nobody", cache_dir="other")
    # As a directory too, by the command for directories.
    fusion.save_pretrained("saved", kind="bundle")
    assert main(["push", "saved", "user/again"]) == 0
    assert torch.equal(logits(MoLRuntime.from_pretrained("user/again").as_causal_lm()), wanted)


def test_what_is_on_the_hub_and_no_fusion_is_named_before_its_weights_are_fetched(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match="org/base on the Hub is not a fused model"):
        MoLRuntime.from_pretrained("org/base")
    assert "model.safetensors" not in hub.fetched


def test_a_damaged_repository_is_named(hub: Hub, fusion: MoLRuntime) -> None:
    fusion.push_to_hf("user/mol-model")
    weights = bytearray(hub.repositories["user/mol-model"]["model.safetensors"])
    weights[-1] ^= 1
    hub.repositories["user/mol-model"]["model.safetensors"] = bytes(weights)
    with pytest.raises(CheckpointError, match="its checksum differs"):
        MoLRuntime.from_pretrained("user/mol-model", cache_dir="other")


def test_a_fused_model_is_an_ordinary_one_and_its_card_states_its_loss(hub: Hub) -> None:
    runtime = MoLRuntime(MoLConfig(models=["org/base", "org/chat"]))
    runtime.add_layer([("org/base", 1), ("org/chat", 1)], 1)
    runtime.push_to_hf(
        repo_id="user/fused-model",
        fusion_type="fused",
        fusion_method="weighted_average",
        commit_message="Upload fused model",
        calibration=TEXTS,
    )
    model = AutoModelForCausalLM.from_pretrained("user/fused-model")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert torch.equal(logits(model), logits(runtime.create_fused_model()))
    front, card = card_of(hub, "user/fused-model")
    assert front["base_model"] == ["org/base", "org/chat"]
    assert "org/base: apache-2.0; org/chat: mit" in card
    assert "- layer 1: 0.500 of `org/base[1]`, 0.500 of `org/chat[1]`\n- loss in nats per token, " in card
    assert 'AutoModelForCausalLM.from_pretrained("user/fused-model")' in card
    # It is a merge, card included.
    (Path("copy")).mkdir()
    for name, content in hub.repositories["user/fused-model"].items():
        (Path("copy") / name).write_bytes(content)
    assert main(["verify", "copy"]) == 0


def test_models_of_this_machine(
    hub: Hub, repositories: dict[str, dict[str, bytes]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a path they are refused in a runtime and copied in a bundle; by a repository's name there is a warning."""
    secret = tmp_path / "secret" / "folder"
    for name in (secret / "base", Path("org") / "chat", secret / "other" / "base"):
        name.mkdir(parents=True)
        for file, content in repositories["org/chat"].items():
            (name / file).write_bytes(content)
    runtime = MoLRuntime(MoLConfig(models=[str(secret / "base"), "org/chat", str(secret / "other" / "base")]))
    runtime.add_layer([(str(secret / "base"), 0), ("org/chat", 1), (str(secret / "other" / "base"), 2)], 0)
    with pytest.raises(ConfigError, match=r"(?s)paths of this machine.*fusion_type='bundle'.*secret/folder/base"):
        runtime.push_to_hf("user/mol-model")
    runtime.push_to_hf("user/bundle", "bundle")
    assert not any(b"secret" in content for content in hub.repositories["user/bundle"].values())
    again = MoLRuntime.from_pretrained("user/bundle", cache_dir="other")
    assert again.config.models == ["base", "org/chat", "base-2"]
    assert torch.equal(logits(again.as_causal_lm()), logits(runtime.as_causal_lm()))

    named = MoLRuntime(MoLConfig(models=["org/chat"]))
    named.add_layer([("org/chat", 0)], 0)
    with caplog.at_level(logging.WARNING, "mol"):
        named.push_to_hf("user/named")
    assert "org/chat is a directory here: whoever loads the fusion gets the Hub's org/chat" in caplog.text
    assert "path" not in json.loads(hub.repositories["user/named"]["config.json"])["mol_save"]["models"]["org/chat"]
    for file in Path("org/chat").iterdir():
        file.unlink()
    Path("org/chat").rmdir()
    assert torch.equal(logits(MoLRuntime.from_pretrained("user/named").as_causal_lm()), logits(named.as_causal_lm()))
    hub.repositories["org/chat"] = hub.repositories["org/base"]
    with pytest.raises(CheckpointError, match=r"org/chat .* is not the model that the fusion was saved with"):
        MoLRuntime.from_pretrained("user/named", cache_dir="third")


def test_nothing_is_sent_where_something_is_wrong(
    hub: Hub, fusion: MoLRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.requests.clear()
    for options, error, said in (
        ({"fusion_type": "whole"}, ConfigError, "fusion_type is 'whole', wanted one of runtime, fused, bundle"),
        ({"fusion_type": "fused"}, FusionError, "is 48 wide and the host org/base 32"),
        ({"repo_id": "model"}, ConfigError, "'model' is no `user/name`"),
        ({"create_pr": True, "revision": "dev"}, ConfigError, "opened against main"),
    ):
        with pytest.raises(error, match=said):
            fusion.push_to_hf(**{"repo_id": "user/mol-model", **options})
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "none")
    with pytest.raises(PermissionError, match="an upload needs a token"):
        fusion.push_to_hf("user/mol-model")
    assert not any(method == "POST" for method, _ in hub.requests)


def test_a_push_that_fails_or_goes_elsewhere(hub: Hub, fusion: MoLRuntime) -> None:
    with pytest.raises(PermissionError, match="user/mol-model: the token may not write there") as caught:
        fusion.push_to_hf("user/mol-model", token=READER)
    assert READER not in str(caught.value)
    hub.faults = [Fault("POST", "/commit/", 0)]
    with pytest.raises(ConnectionError, match="the connection to the Hub broke"):
        fusion.push_to_hf("user/mol-model")
    url = fusion.push_to_hf("user/mol-model", create_pr=True)
    assert url.endswith("/user/mol-model/discussions/1")
    assert "config.json" not in hub.repositories["user/mol-model"]
    fusion.push_to_hf("user/mol-model", revision="try")
    assert "config.json" in hub.repositories["user/mol-model@try"]
    assert not any(WRITER.encode() in content for files in hub.repositories.values() for content in files.values())


def test_the_command_pushes_a_checkpoint_as_each_type(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = MoLRuntime(MoLConfig(models=["org/base", "org/chat"]))
    runtime.add_layer([("org/base", 1), ("org/chat", 1)], 1)
    runtime.save_checkpoint("./model", use_safetensors=True)
    wanted = logits(runtime.as_causal_lm())
    line = ["--mol-checkpoint", "./model.pt", "--fusion-type"]
    assert main(["push-hf", "user/mol-model", *line, "runtime"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "uploaded  the fusion as runtime, for user/mol-model",
        f"url       {hub.url}/user/mol-model/commit/{hub.commits['user/mol-model']}",
    ]
    assert torch.equal(logits(MoLRuntime.from_pretrained("user/mol-model").as_causal_lm()), wanted)
    Path("text.txt").write_text("\n".join(["", *TEXTS]))
    line = ["push-hf", "user/fused-model", *line, "fused", "--fusion-method"]
    assert main([*line, "learned_weights"]) == 1
    assert "give calibration" in capsys.readouterr().err
    assert main([*line, "learned_weights", "--calibration", "text.txt", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["repo"], document["fusion_type"]) == ("user/fused-model", "fused")
    assert type(AutoModelForCausalLM.from_pretrained("user/fused-model")).__name__ == "LlamaForCausalLM"
    monkeypatch.delenv("HF_TOKEN")
    assert main([*line, "weighted_average", "--dry-run", "dry"]) == 0
    assert (Path("dry") / "model.safetensors").is_file()
    assert main(["push-hf", "user/x", "--mol-checkpoint", "nothing"]) == 1
    assert "nothing.safetensors" in capsys.readouterr().err


def test_a_mixture_comes_back_from_the_hub(hub: Hub) -> None:
    mixture = MoLMixture.from_models(["org/base", "org/chat"])
    mixture.save_pretrained("mixed")
    assert main(["push", "mixed", "user/mixture"]) == 0
    assert torch.equal(logits(MoLMixture.from_pretrained("user/mixture")), logits(mixture))
