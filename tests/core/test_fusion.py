"""Laws of a fused model: what experts do to it, and what nothing may do."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from mol.core.mol_layer import MoLLayer
from tests.core.zoo import HOSTS, SOURCES, T5_DECODER, tokens_of

if TYPE_CHECKING:
    from mol.core.mol_runtime import MoLRuntime
    from tests.core.conftest import Fuse

PAIRS = (
    [("gpt2", kind) for kind in (*SOURCES, T5_DECODER)]
    + [("llama", kind) for kind in ("gpt2", "bert", "t5", "mamba", "vit")]
    + [("mamba", "bert"), ("jamba", "gemma3n_text")]
)


def logits_of(runtime: MoLRuntime, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return runtime.as_causal_lm()(ids, attention_mask=mask).logits


@pytest.mark.parametrize("kind", HOSTS)
def test_experts_that_are_the_hosts_own_blocks_give_the_host_bit_for_bit(kind: str, fuse: Fuse) -> None:
    runtime = fuse(kind, layers=(0, 1, 2))
    ids = tokens_of(2, 9)
    # torch.matmul takes another way to the same product, with other rounding, where a weight asks for its gradient.
    host = AutoModelForCausalLM.from_pretrained(kind).requires_grad_(requires_grad=False)
    with torch.no_grad():
        wanted = host(ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.equal(logits_of(runtime, ids), wanted)


@pytest.mark.parametrize(("host", "kind"), PAIRS)
def test_every_expert_matters(host: str, kind: str, fuse: Fuse) -> None:
    """Other weights in any block of a layer give another output; other weights in unused blocks give the same."""
    runtime = fuse(host, kind)
    ids = tokens_of(2, 9)
    before = logits_of(runtime, ids)
    for name in {host, kind}:
        source = runtime.source(name)
        block = source.calls.forms[2].block
        kept = {key: value.clone() for key, value in block.state_dict().items()}
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
        assert not torch.allclose(logits_of(runtime, ids), before, atol=1e-4), f"a block of {name} does not matter"
        block.load_state_dict(kept)
    assert torch.equal(logits_of(runtime, ids), before)


@pytest.mark.parametrize(("host", "kind"), PAIRS)
def test_later_tokens_never_change_earlier_outputs(host: str, kind: str, fuse: Fuse) -> None:
    runtime = fuse(host, kind)
    ids = tokens_of(2, 9)
    other = torch.cat([ids[:, :5], tokens_of(2, 4, seed=9)], 1)
    torch.testing.assert_close(logits_of(runtime, ids)[:, :5], logits_of(runtime, other)[:, :5], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("host", "kind"), PAIRS)
def test_padding_and_batch_mates_never_change_a_row(host: str, kind: str, fuse: Fuse) -> None:
    runtime = fuse(host, kind)
    short, long = tokens_of(1, 5), tokens_of(1, 8, seed=3)
    alone = logits_of(runtime, short)[0]
    gap, ones = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 5, dtype=torch.long)
    left = torch.cat([torch.cat([gap, short], 1), long]), torch.cat([torch.cat([gap, ones], 1), torch.ones_like(long)])
    right = torch.cat([torch.cat([short, gap], 1), long]), torch.cat([torch.cat([ones, gap], 1), torch.ones_like(long)])
    torch.testing.assert_close(logits_of(runtime, *right)[0, :5], alone, rtol=0, atol=1e-5)
    if kind not in NO_LEFT_PADDING and host not in NO_LEFT_PADDING:
        torch.testing.assert_close(logits_of(runtime, *left)[0, 3:], alone, rtol=0, atol=1e-5)


NO_LEFT_PADDING: set[str] = {"vit"}


@pytest.mark.parametrize(("host", "kind"), PAIRS)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_a_cache_changes_nothing(host: str, kind: str, options: dict[str, int], fuse: Fuse) -> None:
    model = fuse(host, kind).as_causal_lm()
    ids = tokens_of(2, 6)
    mask = torch.ones_like(ids)
    if kind not in NO_LEFT_PADDING:
        ids[1, :2], mask[1, :2] = 0, 0
    settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}
    cached = model.generate(ids, eos_token_id=None, **settings)
    again = model.generate(ids, eos_token_id=None, use_cache=False, **settings)
    assert cached.shape == (2, 12)
    assert torch.equal(cached, again)


def test_generation_computes_the_logits_of_last_tokens_only(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama")
    lengths: list[int] = []
    head = runtime.host.model.get_output_embeddings()
    head.register_forward_hook(lambda _module, given, _result: lengths.append(given[0].shape[1]))
    for use_cache in (True, False):
        settings = {"max_new_tokens": 3, "do_sample": False, "use_cache": use_cache, "eos_token_id": None}
        runtime.generate(tokens_of(2, 6), **settings)  # probes the host too
        lengths.clear()
        runtime.generate(tokens_of(2, 6), **settings)
        assert lengths == [1] * 3


@pytest.mark.parametrize("host", ["gpt2", "llama", "mamba"])
def test_blocks_in_a_row_are_one_expert(host: str, fuse: Fuse) -> None:
    runtime, ids = fuse(host, layers=(), keep_host_layers=False), tokens_of(2, 7)
    runtime.add_layer([(host, range(len(runtime.source(host))))], 0)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(host).eval()(ids).logits
    torch.testing.assert_close(logits_of(runtime, ids), expected, rtol=0, atol=1e-5)
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(runtime.generate(ids, **settings), runtime.generate(ids, use_cache=False, **settings))


def test_a_streamer_gets_each_token_as_it_is_generated(fuse: Fuse) -> None:
    class Kept(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    kept = Kept()
    written = fuse("gpt2").generate(tokens_of(1, 6), max_new_tokens=4, do_sample=False, streamer=kept)
    assert kept.ended
    assert kept.tokens == written[0].tolist()


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.8}, {"temperature": 0.7}])
def test_sampling_goes_by_the_seed(options: dict[str, float], fuse: Fuse) -> None:
    runtime, ids = fuse("gpt2"), tokens_of(2, 6)
    torch.manual_seed(3)
    first = runtime.generate(ids, max_new_tokens=8, **options)
    torch.manual_seed(3)
    assert torch.equal(runtime.generate(ids, max_new_tokens=8, **options), first)
    assert not torch.equal(runtime.generate(ids, max_new_tokens=8, **options), first)


def test_a_host_layer_without_fused_layer_runs_unless_it_is_not_kept(fuse: Fuse) -> None:
    ids = tokens_of(2, 7)
    kept = fuse("gpt2", layers=(1,))
    with torch.no_grad():
        assert torch.equal(logits_of(kept, ids), AutoModelForCausalLM.from_pretrained("gpt2")(ids).logits)
    only = fuse("gpt2", layers=(1,), keep_host_layers=False)
    all_three = fuse("gpt2", layers=(0, 1, 2), keep_host_layers=False)
    assert not torch.allclose(logits_of(only, ids), logits_of(kept, ids), atol=1e-3)
    assert torch.equal(logits_of(all_three, ids), logits_of(kept, ids))


def test_gradients_reach_every_adapter_and_router_and_no_expert(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", "bert").train()
    model = runtime.as_causal_lm()
    # Adapters start as identities whose inner halves are at zero: two steps reach all of them.
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = tokens_of(2, 9)
    for _ in range(2):
        optimiser.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimiser.step()
    names = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert names == set()
    for name in ("gpt2", "llama", "bert"):
        assert all(parameter.grad is None for parameter in runtime.source(name).model.parameters())


def test_hidden_states_and_head_are_the_logits(fuse: Fuse) -> None:
    for kind in ("gpt2", "llama", "gemma2", "opt"):
        runtime = fuse(kind, "bert")
        runtime.setup_embeddings()
        runtime.setup_lm_head()
        ids = tokens_of(2, 7)
        with torch.no_grad():
            hidden, stats = runtime(ids, torch.ones_like(ids), return_router_stats=True)
            assert runtime.lm_head is not None
            logits = runtime.lm_head(hidden)
        assert torch.equal(logits, logits_of(runtime, ids)), kind
        assert stats is not None
        assert stats["layer_0"]["expert_weights"].shape == (2, 7, 2)
        assert stats["layer_0"]["num_experts"] == 2


def test_two_runtimes_and_two_threads_do_not_leak(fuse: Fuse) -> None:
    first, second = fuse("gpt2", "llama"), fuse("gpt2", "bert", "t5")
    inputs = [tokens_of(2, 5 + i, seed=i) for i in range(6)]
    wanted = [[logits_of(runtime, ids) for ids in inputs] for runtime in (first, second)]
    failures: list[tuple[int, int]] = []

    def work(which: int) -> None:
        for _ in range(3):
            for i, ids in enumerate(inputs):
                if not torch.equal(logits_of((first, second)[which % 2], ids), wanted[which % 2][i]):
                    failures.append((which, i))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5", "mamba", "mixtral"])
def test_bf16_runs_and_generates(kind: str, fuse: Fuse) -> None:
    runtime = fuse("llama", kind, dtype="bfloat16").to(torch.bfloat16)
    ids = tokens_of(2, 6)
    logits = logits_of(runtime, ids)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    model = runtime.as_causal_lm()
    assert model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None).shape == (2, 10)


def test_top_k_skips_experts_that_no_token_chose(fuse: Fuse) -> None:
    runtime = fuse("gpt2", "llama", "bert", layers=(1,), top_k_experts=1, router_type="token")
    layer = runtime.layers[0]
    assert isinstance(layer, MoLLayer)
    hidden, mask = torch.randn(2, 5, runtime.host.width), torch.ones(2, 5, dtype=torch.long)
    called: list[int] = []
    runs = [lambda _seen, h, n=n: (called.append(n), h)[1] for n in range(3)]
    with torch.no_grad():
        _, routing, _ = layer(hidden, mask, runs)
    assert set(called) == set(routing.weights.flatten(0, 1).argmax(-1).tolist())
    assert (routing.weights > 0).sum(-1).eq(1).all()
