"""The summary: its numbers against counts made another way, and that it loads and runs nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from transformers import AutoModel, AutoModelForCausalLM

from mol.core.mol_runtime import MoLConfig, MoLRuntime
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core.conftest import Fuse


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_parameters_are_those_of_the_models_that_run(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "bert", layers=(0, 2))
    host = AutoModelForCausalLM.from_pretrained("gpt2")
    bert = AutoModel.from_pretrained("bert").encoder.layer
    summary = runtime.summary()
    assert summary.frozen == count(host, bert[0], bert[2])
    assert summary.trained == count(runtime)
    assert (summary.unchanged, summary.skipped) == (1, 0)
    first = summary.layers[0]
    assert (first.position, first.router, first.top_k) == (0, "SimpleRouter", None)
    own, foreign = first.experts
    assert (own.name, own.width, own.frozen, own.adapters, own.trained) == (
        "gpt2[0]", 32, count(host.transformer.h[0]), "none", 0,
    )  # fmt: skip
    assert (foreign.name, foreign.width, foreign.frozen, foreign.adapters) == ("bert[0]", 48, count(bert[0]), "linear")
    assert foreign.bytes == 4 * foreign.frozen
    assert (own.made_causal, foreign.made_causal) == (False, True)
    parts = [first.trained, foreign.trained, summary.layers[1].trained, summary.layers[1].experts[1].trained]
    assert sum(parts) == summary.trained


def test_a_block_that_layers_share_counts_once(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "albert", layers=(0, 1, 2))
    shared = AutoModel.from_pretrained("albert").encoder.albert_layer_groups[0].albert_layers[0]
    summary = runtime.summary()
    assert summary.frozen == count(AutoModelForCausalLM.from_pretrained("gpt2"), shared)
    assert [layer.experts[1].frozen for layer in summary.layers] == [count(shared)] * 3
    runtime = fuse("gpt2", "albert", layers=())
    runtime.add_layer([("gpt2", 0), ("albert", range(3))], 0)
    assert runtime.summary().layers[0].experts[1].frozen == count(shared)


def test_host_layers_that_are_left_out_do_not_count(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=(1,), keep_host_layers=False)
    host = AutoModelForCausalLM.from_pretrained("gpt2")
    blocks = host.transformer.h
    llama = AutoModel.from_pretrained("llama").layers[1]
    summary = runtime.summary()
    assert summary.frozen == count(host, llama) - count(blocks[0], blocks[2])
    assert (summary.unchanged, summary.skipped) == (0, 2)
    assert "the host's 3: 1 fused, 0 unchanged, 2 left out" in str(summary)


def test_memory_is_what_the_tensors_hold(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=(0,), memory_efficient=False)
    tensors = [t for s in (runtime.host, runtime.source("llama")) for t in (*s.model.parameters(), *s.model.buffers())]
    tensors += runtime.parameters()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert runtime.summary().memory == {"cpu": sum(storages.values())}
    first = runtime.source("llama").blocks[0].mlp.up_proj
    before = runtime.summary().memory["cpu"]
    freed = first.weight.nbytes
    row = torch.full_like(first.weight[:1], torch.nan)
    first.weight = torch.nn.Parameter(row.expand(first.weight.shape), requires_grad=False)
    summary = runtime.summary()
    assert summary.memory["cpu"] == before - freed + row.nbytes
    assert [expert.device for expert in summary.layers[0].experts] == ["cpu", None]
    assert re.search(r"llama\[0\] .* disk ", str(summary))


def test_frozen_adapters_are_not_trained(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", layers=(0,))
    before = runtime.summary()
    assert runtime.layers[0].router is not None
    runtime.layers[0].router.requires_grad_(requires_grad=False)
    after = runtime.summary()
    assert before.trained - after.trained == after.frozen - before.frozen == before.layers[0].trained > 0
    assert after.layers[0].trained == 0


def test_caches_are_shown_once_they_are_known(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", "bert", layers=(0,))
    assert [expert.cache for expert in runtime.summary().layers[0].experts] == ["host", "?", "?"]
    runtime.generate(tokens_of(1, 4), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert [expert.cache for expert in runtime.summary().layers[0].experts] == ["host", "native", "replay"]


def test_printing_loads_nothing(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    runtime = MoLRuntime(MoLConfig(models=[missing, "also/missing"]))
    assert str(runtime).count("not loaded yet") == 2
    assert runtime.summary().memory == {}


def test_it_prints_within_80_columns(fuse: Fuse, models: Path) -> None:
    long = str(models / "." / "llama")
    runtime = fuse("gpt2", "bert", long, layers=(0, 1, 2), top_k_experts=1)
    said = str(runtime)
    assert said == str(runtime.summary()) == repr(runtime)
    assert max(map(len, said.splitlines())) <= 80
    assert "gpt2 (host): GPT2LMHeadModel, 3 layers, width 32, vocabulary 128" in said
    assert "bert: BertModel, 3 layers, width 48, float32, made causal" in said
    assert "layer 1: SimpleRouter, top 1, 99 parameters" in said
    assert re.search(r"^  \.\.\.\S*llama\[1\] +32 ", said, re.MULTILINE)
    summary = runtime.summary()
    assert f"{summary.frozen:,} frozen and {summary.trained:,} trained parameters" in " ".join(said.split())
    assert said in str(runtime.as_causal_lm()).replace("\n  ", "\n")
