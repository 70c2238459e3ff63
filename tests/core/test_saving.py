"""What save_pretrained writes, from_pretrained gives back; the options that it takes; Trainer in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, Trainer, TrainingArguments

from mol import MoLRuntime
from mol.auto import MoLForCausalLM
from mol.core.cache import CACHE_NAME
from mol.errors import ConfigError, MolError
from tests.core.zoo import tokens_of
from tests.io.hub_server import COMMIT, serving
from tests.merge.models import contents_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core.conftest import Fuse


def test_what_was_saved_is_loaded_exactly(fuse: Fuse, tmp_path: Path) -> None:
    runtime = fuse("gpt2", "llama", "bert", layers=(0, 2))
    runtime.add_layer([("gpt2", 0), ("llama", range(1, 3)), ("llama", range(0, 3, 2))], 1)
    model = runtime.as_causal_lm()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ids = tokens_of(2, 8)
    wanted = model(ids).logits
    model.save_pretrained(tmp_path / "fused")
    assert sorted(file.name for file in (tmp_path / "fused").iterdir()) == [
        "README.md", "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "fused")
    assert torch.equal(again(ids).logits, wanted)
    written = [m.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0) for m in (model, again)]
    assert torch.equal(*written)


def test_weights_that_do_not_fit_the_config_are_refused(fuse: Fuse, tmp_path: Path) -> None:
    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = sorted(weights)[0]
    weights["other"] = weights.pop(name)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MolError, match=r"(?s)not those that its config describes.*is missing.*other is not wanted"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_what_is_neither_a_directory_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({}) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        with pytest.raises(FileNotFoundError, match="some/model: no such directory, and no such repository on the Hub"):
            MoLForCausalLM.from_pretrained("some/model")
    with pytest.raises(MolError, match="/no/such/model: no such directory; a fused model is loaded from what"):
        MoLForCausalLM.from_pretrained("/no/such/model")


def test_shards_are_read(fuse: Fuse, tmp_path: Path) -> None:
    model, ids = fuse("gpt2", "llama", "bert").as_causal_lm(), tokens_of(2, 8)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_a_fusion_with_nothing_to_train_is_saved_too(fuse: Fuse, tmp_path: Path) -> None:
    model, ids = fuse("gpt2").as_causal_lm(), tokens_of(2, 8)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_layers_that_were_added_later_are_saved_too(fuse: Fuse, tmp_path: Path) -> None:
    runtime, ids = fuse("gpt2", "llama", layers=(0,)), tokens_of(2, 8)
    model = runtime.as_causal_lm()
    runtime.add_layer([("gpt2", 1), ("llama", 1)], 1)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_a_cast_model_is_loaded_as_it_was_cast(fuse: Fuse, tmp_path: Path) -> None:
    model, ids = fuse("gpt2", "bert").as_causal_lm().to(torch.bfloat16), tokens_of(2, 8)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.runtime.source("bert").dtype == torch.bfloat16
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("whole", [False, True])
def test_settings_of_generate_stay_with_the_fusion(whole: bool, fuse: Fuse, tmp_path: Path) -> None:
    runtime = fuse("gpt2", "gpt2")
    model = runtime.as_causal_lm()
    if whole:
        model.generation_config = GenerationConfig(max_new_tokens=3, eos_token_id=[2, 7])
    else:
        model.generation_config.update(max_new_tokens=3, eos_token_id=[2, 7])
    model.save_pretrained(tmp_path / "saved")
    loaded = MoLRuntime.from_pretrained(tmp_path / "saved")
    file = loaded.save_checkpoint(tmp_path / "one")
    loaded.push_to_hf("user/model", dry_run=tmp_path / "runtime")
    runtime.push_to_hf("user/model", "fused", dry_run=tmp_path / "fused")
    for found in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved"),
        MoLRuntime.load_checkpoint(file).as_causal_lm(),
        AutoModelForCausalLM.from_pretrained(tmp_path / "runtime"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "fused"),
        runtime.create_fused_model(),
    ):
        assert (found.generation_config.max_new_tokens, found.generation_config.eos_token_id) == (3, [2, 7])
    assert loaded.generate(tokens_of(1, 4), pad_token_id=0).shape[1] <= 7
    assert fuse("gpt2").as_causal_lm().generation_config.max_new_tokens is None


def test_settings_can_be_given_instead_of_those_that_were_saved(fuse: Fuse, tmp_path: Path) -> None:
    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, device_map={"llama": "disk"}, attn_implementation="eager", token="secret"
    )
    assert model.dtype == model.runtime.source("llama").dtype == torch.bfloat16
    assert model.runtime.config.devices == {"llama": "disk"}
    assert model.runtime.host.model.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path / "again")
    saved = (tmp_path / "again/config.json").read_text()
    assert "secret" not in saved
    assert "disk" not in saved


def test_models_of_the_hub_are_loaded_from_the_commit_they_were_of(models: Path, tmp_path: Path) -> None:
    code = f"""
import torch
from mol.auto import MoLForCausalLM
from mol import MoLConfig, MoLRuntime
runtime = MoLRuntime(MoLConfig(["org/gpt2", "org/llama", {str(models / "opt")!r}]))
runtime.add_layer([("org/llama", 0), ({str(models / "opt")!r}, 0)], 0)
model, ids = runtime.as_causal_lm(), torch.arange(6)[None]
model.save_pretrained({str(tmp_path / "fused")!r})
assert torch.equal(MoLForCausalLM.from_pretrained({str(tmp_path / "fused")!r})(ids).logits, model(ids).logits)
"""
    with serving({f"org/{name}": contents_of(models / name) for name in ("gpt2", "llama")}) as hub:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    saved = json.loads((tmp_path / "fused/config.json").read_text())["fusion"]["revisions"]
    assert saved == {"org/gpt2": COMMIT, "org/llama": COMMIT}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"force_download": True}, "does not take force_download; it takes attn_implementation, cache_dir, dev"),
        ({"use_safetensors": False, "colour": "red"}, "does not take colour"),
        ({"device_map": "auto"}, "mol chooses no devices by itself"),
        ({"device_map": 99}, "device_map names 'cuda:99', which this machine does not have"),
        ({"colour": False}, "does not take colour"),
        ({"vocab_size": 12}, "vocab_size is 12, and was saved as 128"),
        ({"output_attentions": True, "num_labels": 5}, "(?s)output_attentions is True.*num_labels is 5"),
        ({"attn_implementation": {"text_config": "eager"}}, "wanted one name for all models"),
    ],
)
@pytest.mark.parametrize("kind", [AutoModelForCausalLM, MoLForCausalLM])
def test_options_that_are_not_honoured_are_refused(
    kind: Any,  # noqa: ANN401
    options: dict,
    says: str,
    fuse: Fuse,
    tmp_path: Path,
) -> None:
    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path)
    with pytest.raises(MolError, match=says):
        kind.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("kind", [AutoModelForCausalLM, MoLForCausalLM])
def test_attributes_of_the_config_are_options_as_in_transformers(kind: Any, fuse: Fuse, tmp_path: Path) -> None:  # noqa: ANN401
    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path)
    plain = kind.from_pretrained(tmp_path)(tokens_of(1, 4))
    assert CACHE_NAME in plain
    assert plain.hidden_states is None
    model = kind.from_pretrained(tmp_path, use_cache=False, output_hidden_states=True)
    output = model(tokens_of(1, 4))
    assert CACHE_NAME not in output
    assert len(output.hidden_states) == 4
    model.save_pretrained(tmp_path / "again")
    assert CACHE_NAME not in kind.from_pretrained(tmp_path / "again")(tokens_of(1, 4))


def test_a_save_in_a_subfolder_is_loaded_and_one_that_is_missing_named(fuse: Fuse, tmp_path: Path) -> None:
    model, ids = fuse("gpt2", "llama").as_causal_lm(), tokens_of(1, 4)
    model.save_pretrained(tmp_path / "runs/last")
    for kind in (AutoModelForCausalLM, MoLForCausalLM):
        again = kind.from_pretrained(tmp_path / "runs", subfolder="last")
        assert torch.equal(again(ids).logits, model(ids).logits)
    with pytest.raises(FileNotFoundError, match=r"runs/first holds no config\.json, so a fused model was not"):
        MoLForCausalLM.from_pretrained(tmp_path / "runs", subfolder="first")
    with pytest.raises(MolError, match="subfolder is 'last', and some/model is no directory here"):
        MoLForCausalLM.from_pretrained("some/model", subfolder="last")


def test_what_was_saved_does_not_say_that_code_is_trusted(fuse: Fuse, tmp_path: Path) -> None:
    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["fusion"]["trust_remote_code"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"call from_pretrained\(..., trust_remote_code=True\)"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="bring code of their own"):
        MoLForCausalLM(MoLForCausalLM.config_class.from_pretrained(tmp_path))
    trusting = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert trusting.runtime.config.trust_remote_code


def test_trainer_trains_adapters_and_routers_and_resumes_from_its_checkpoints(fuse: Fuse, tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in tokens_of(8, 9)]

    def trained(steps: int, *, resume: bool = False) -> MoLForCausalLM:
        model = fuse("gpt2", "llama").as_causal_lm()
        model(tokens_of(1, 4))  # has the blocks in memory
        frozen = [p for name in ("gpt2", "llama") for p in model.runtime.source(name).model.parameters()]
        before = [parameter.clone() for parameter in frozen]
        arguments = TrainingArguments(
            str(tmp_path), max_steps=steps, per_device_train_batch_size=2, lr_scheduler_type="constant", save_steps=2,
            learning_rate=1e-3, report_to=[], use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
        assert all(torch.equal(*map(torch.nan_to_num, pair)) for pair in zip(before, frozen, strict=True))
        return model

    start = fuse("gpt2", "llama").as_causal_lm().state_dict()
    trained(2)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert any(not torch.equal(again[name], value) for name, value in start.items())
    resumed, straight = trained(4, resume=True).state_dict(), trained(4).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())


def test_a_fusion_is_no_part_of_another(fuse: Fuse, tmp_path: Path) -> None:
    fuse("gpt2", "llama").as_causal_lm().save_pretrained(tmp_path / "fused")
    with pytest.raises(MolError, match="is a fusion or a mixture itself"):
        fuse(str(tmp_path / "fused"), "gpt2")
