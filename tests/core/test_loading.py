"""Blocks are read when they run and no others; where they are changes nothing; what does not fit is refused."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from mol.config.mol_config import MoLConfig
from mol.core.mol_runtime import MoLRuntime
from mol.errors import ArchitectureError, CheckpointError, ConfigError, MolError
from tests.core.zoo import HOSTS, SOURCES, language_model_of, tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from mol.core.blocks.placement import Memory
    from mol.core.blocks.source import Source
    from tests.core.conftest import Fuse


def logits_of(runtime: MoLRuntime, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return runtime.as_causal_lm()(ids).logits


def bytes_in_memory(source: Source) -> int:
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in source.model.parameters()}
    return sum(storages.values())


def bytes_of_block(source: Source, index: int) -> int:
    return sum(parameter.nbytes for parameter in source.calls.forms[index].block.parameters())


def memory_of(runtime: MoLRuntime) -> Memory:
    return runtime._memory


@pytest.mark.parametrize("kind", SOURCES)
def test_blocks_read_alone_do_what_those_of_the_whole_model_do(kind: str, fuse: Fuse) -> None:
    ids = tokens_of(2, 9)
    alone, whole = fuse("gpt2", kind), fuse("gpt2", kind, memory_efficient=False)
    whole.load_state_dict(alone.state_dict())  # transformers draws numbers when it loads, so routers differ
    assert torch.equal(logits_of(alone, ids), logits_of(whole, ids))


@pytest.mark.parametrize("kind", HOSTS)
def test_a_host_read_in_parts_is_the_whole_host(kind: str, fuse: Fuse) -> None:
    ids = tokens_of(2, 9)
    alone, whole = fuse(kind, "bert", layers=(1,)), fuse(kind, "bert", layers=(1,), memory_efficient=False)
    whole.load_state_dict(alone.state_dict())  # transformers draws numbers when it loads, so routers differ
    assert torch.equal(logits_of(alone, ids), logits_of(whole, ids))


def test_only_what_runs_takes_memory(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=())
    runtime.add_layer([("llama", 2)], 1)
    logits_of(runtime, tokens_of(2, 9))
    source, host = runtime.source("llama"), runtime.host
    rows = 4 * 32 * sum(1 for _ in source.model.parameters())  # placeholders of parameters that are not loaded
    assert bytes_in_memory(source) <= bytes_of_block(source, 2) + rows
    assert source.calls.forms[0].block.mlp.up_proj.weight.isnan().all()
    kept = sum(p.nbytes for p in host.model.parameters()) - bytes_of_block(host, 1)
    assert bytes_in_memory(host) <= kept + rows


def test_moving_a_runtime_makes_no_room_for_what_is_not_loaded(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=(2,))
    before = bytes_in_memory(runtime.source("llama"))
    runtime.to(torch.float64)
    assert bytes_in_memory(runtime.source("llama")) == 2 * before
    assert logits_of(runtime, tokens_of(2, 9)).dtype == torch.float64


@pytest.mark.parametrize("kind", ["llama", "t5", "albert", "mixtral", "mamba"])
def test_blocks_on_disk_or_under_a_limit_give_the_same(kind: str, fuse: Fuse) -> None:
    ids = tokens_of(2, 9)
    wanted = fuse("gpt2", kind, layers=(0, 1, 2))
    limit = 3 * bytes_of_block(wanted.source(kind), 0) // 2
    limited = fuse("gpt2", kind, layers=(0, 1, 2), max_expert_memory=limit)
    on_disk = fuse("gpt2", kind, layers=(0, 1, 2), device_map={kind: "disk"})
    for _ in range(2):
        assert torch.equal(logits_of(limited, ids), logits_of(wanted, ids))
        assert memory_of(limited).used <= limit
        assert torch.equal(logits_of(on_disk, ids), logits_of(wanted, ids))
    own = {"input_ids": ids, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(limited.as_causal_lm().generate(**own), wanted.as_causal_lm().generate(**own))


def test_the_least_recently_used_block_is_evicted_first(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=())
    source, memory = runtime.source("llama"), memory_of(runtime)
    memory.limit = 2 * bytes_of_block(source, 0)
    hidden, tokens = source.driver.random_hidden(4)
    context = source.context(tokens)
    for index in (0, 1, 0, 2):
        source.run_block(index, hidden, context, live={})
    loaded = [not source.calls.forms[i].block.mlp.up_proj.weight.isnan().any().item() for i in range(3)]
    assert loaded == [True, False, True]
    assert memory.reads == 3


def test_a_limit_changes_no_gradient(fuse: Fuse) -> None:
    ids = tokens_of(2, 9)
    gradients = []
    for settings in ({}, {"max_expert_memory": 40_000}):
        runtime = fuse("gpt2", "llama", layers=(0, 1, 2), **settings)
        runtime.as_causal_lm()(ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in runtime.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_each_model_has_the_dtype_that_it_is_given(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", "bert", dtype={"llama": "bfloat16"})
    assert [runtime.source(name).dtype for name in ("gpt2", "llama", "bert")] == [
        torch.float32,
        torch.bfloat16,
        torch.float32,
    ]
    assert logits_of(runtime, tokens_of(2, 9)).dtype == torch.float32
    with pytest.raises(ConfigError, match="'int8', wanted float32, bfloat16 or float16"):
        fuse("gpt2", dtype="int8")


def test_attention_is_the_requested_one(fuse: Fuse) -> None:
    ids = tokens_of(2, 9)
    eager, usual = fuse("gpt2", "llama", attn_implementation="eager"), fuse("gpt2", "llama")
    assert eager.source("llama").model.config._attn_implementation == "eager"
    torch.testing.assert_close(logits_of(eager, ids), logits_of(usual, ids), rtol=0, atol=1e-4)


def test_files_in_shards_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = language_model_of("llama")
    model.save_pretrained("sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    runtime = MoLRuntime(MoLConfig(models=["sharded"]))
    runtime.add_layer([("sharded", 0)], 0)
    ids = tokens_of(2, 9)
    with torch.no_grad():
        assert torch.equal(logits_of(runtime, ids), model(ids).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", r"`model\.layers\.1\.mlp\.up_proj\.weight` is not in the files"),
        ("reshape", r"`model\.layers\.1\.mlp\.up_proj\.weight` is \[64, 31\] in the files, \[64, 32\] by the config"),
    ],
)
def test_files_that_do_not_hold_a_block_are_refused(
    change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    language_model_of("llama").save_pretrained("damaged")
    tensors = load_file("damaged/model.safetensors")
    damaged = tensors.pop("model.layers.1.mlp.up_proj.weight")
    if change == "reshape":
        tensors["model.layers.1.mlp.up_proj.weight"] = damaged[:, 1:].contiguous()
    save_file(tensors, "damaged/model.safetensors", metadata={"format": "pt"})
    runtime = MoLRuntime(MoLConfig(models=["damaged"]))
    runtime.add_layer([("damaged", 0)], 0)
    with pytest.raises(CheckpointError, match=message):
        logits_of(runtime, tokens_of(1, 4))


def test_code_of_a_model_is_not_run_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    config = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (tmp_path / "own/config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(1)}, tmp_path / "own/model.safetensors")
    with pytest.raises(ArchitectureError, match=r"auto_map: configuration_own.OwnConfig.*trust_remote_code=True"):
        MoLRuntime(MoLConfig(models=["own"])).setup_embeddings()


def test_quantized_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    language_model_of("llama").save_pretrained("codes")
    config = json.loads((tmp_path / "codes/config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "codes/config.json").write_text(json.dumps(config))
    for efficient in (True, False):
        with pytest.raises(CheckpointError, match=r"quant_method 'gptq'.*not supported"):
            MoLRuntime(MoLConfig(models=["codes"], memory_efficient=efficient)).setup_embeddings()


def test_devices_that_are_not_available_are_refused(fuse: Fuse) -> None:
    with pytest.raises(MolError, match="'cuda:99', which this machine does not have"):
        fuse("gpt2", "llama", device_map={"llama": "cuda:99"})
    with pytest.raises(ConfigError, match="it is the host, which runs as a whole"):
        fuse("gpt2", "llama", device_map={"gpt2[1]": "disk"})
    with pytest.raises(ConfigError, match=r"device_map names 'bert\[0\]', which is not one of models"):
        fuse("gpt2", "llama", device_map={"bert[0]": "disk"})
    with pytest.raises(MolError, match=r"takes [\d,]+ bytes, and max_expert_memory is 1,000"):
        fuse("gpt2", "llama", max_expert_memory=1000)
    with pytest.raises(ConfigError, match="takes memory_efficient=True"):
        fuse("gpt2", "llama", device_map={"llama": "disk"}, memory_efficient=False)


def test_models_of_the_cache_are_warned_of_once_when_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("mol.core.models.loading._offline", set())
    for number, name in enumerate(("a", "b")):
        cached, commit = tmp_path / f"models--org--{name}", str(number) * 40
        language_model_of("gpt2", seed=number).save_pretrained(cached / "snapshots" / commit)
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(commit)
    with caplog.at_level(logging.INFO, logger="mol"):
        for _ in range(2):
            runtime = MoLRuntime(MoLConfig(models=["org/a", "org/b"], cache_dir=str(tmp_path)))
            runtime.add_layer([("org/a", 0), ("org/b", 0)])
    said = [(record.levelname, record.getMessage()) for record in caplog.records if "offline" in record.getMessage()]
    assert [level for level, _ in said] == ["WARNING", "INFO"]
    assert "000000000000 of org/a; for other models this is logged at level INFO" in said[0][1]
    assert "111111111111 of org/b" in said[1][1]
