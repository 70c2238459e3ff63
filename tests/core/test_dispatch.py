"""Laws of the modes in which an expert sees a part of the batch: rows that chose it, or tokens that did."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from mol.core.blocks.source import Source
from mol.core.fusion import choosing
from mol.core.losses import compute_load_balancing_loss, compute_router_entropy
from mol.core.mol_layer import MoLLayer
from mol.errors import MolError
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mol.core.mol_runtime import MoLRuntime
    from tests.core.conftest import Fuse

HOSTS = ("gpt2", "llama")
KINDS = ("gpt2", "llama", "bert", "t5", "mamba")
PAIRS = [(host, kind) for host in HOSTS for kind in KINDS if host != kind]
PREFIX = 4
MODES = ("sequence", "token")


def scattered(fuse: Fuse, *names: str, dispatch: str, **settings: object) -> MoLRuntime:
    """Fuse with an expert of each name per layer, of which one is chosen, by routers that split a batch."""
    settings = {"top_k_experts": 1, "router_prefix": PREFIX, "router_type": "token", **settings}
    runtime = fuse(*names, dispatch=dispatch, **settings)
    generator = torch.Generator().manual_seed(1)
    for layer in runtime.layers:
        assert isinstance(layer, MoLLayer)
        assert layer.router is not None
        with torch.no_grad():
            weight = layer.router.classifier.weight
            weight.copy_(torch.randn(weight.shape, generator=generator))
            for expert in layer.experts:
                for parameter in expert.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model = runtime.as_causal_lm()
    with torch.no_grad():
        for position, layer in sorted(zip(runtime.positions, runtime.layers, strict=True), key=lambda pair: pair[0]):
            model(tokens_of(16, 12, seed=7))
            layer.router.classifier.bias.sub_(model.routings[position].logits.flatten(0, 1).mean(0))
    return runtime


def logits_of(
    runtime: MoLRuntime, ids: torch.Tensor, mask: torch.Tensor | None = None, prompt: int | None = None
) -> torch.Tensor:
    with torch.no_grad():
        return runtime.as_causal_lm()(ids, attention_mask=mask, prompt_length=prompt).logits


@contextmanager
def counted_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int, int]]]:
    """Note (model, rows, tokens of a row) of each block that runs outside of the host's own call."""
    runs: list[tuple[str, int, int]] = []
    run = Source.run_block

    def noted(self: Source, index: int, hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        runs.append((self.name, *hidden.shape[:2]))
        return run(self, index, hidden, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "run_block", noted)
        yield runs


def choices_of(runtime: MoLRuntime, ids: torch.Tensor, position: int = 0) -> torch.Tensor:
    """Return which experts each token weighs, (B, T, E)."""
    _, stats = runtime(ids, return_router_stats=True)
    assert stats is not None
    weights: torch.Tensor = stats[f"layer_{position}"]["expert_weights"]
    return weights.ne(0)


@pytest.mark.parametrize("dispatch", MODES)
@pytest.mark.parametrize(("host", "kind"), PAIRS)
def test_later_tokens_never_change_earlier_outputs(host: str, kind: str, dispatch: str, fuse: Fuse) -> None:
    runtime = scattered(fuse, host, kind, dispatch=dispatch)
    ids = tokens_of(8, 9)
    if dispatch == "sequence":
        assert choices_of(runtime, ids).any(1).any(0).all()
    first = PREFIX - 1 if dispatch == "sequence" else 0
    for kept in (5, 7):
        other = torch.cat([ids[:, :kept], tokens_of(8, 9 - kept, seed=9)], 1)
        before, after = logits_of(runtime, ids), logits_of(runtime, other)
        torch.testing.assert_close(after[:, first:kept], before[:, first:kept], rtol=0, atol=1e-5)
        assert not torch.allclose(after[:, kept:], before[:, kept:], atol=1e-3)


@pytest.mark.parametrize("dispatch", MODES)
@pytest.mark.parametrize(("host", "kind"), PAIRS)
def test_padding_and_batch_mates_never_change_a_row(host: str, kind: str, dispatch: str, fuse: Fuse) -> None:
    runtime = scattered(fuse, host, kind, dispatch=dispatch)
    short, long = tokens_of(1, 6), tokens_of(2, 9, seed=3)
    alone = logits_of(runtime, short)[0]
    gap, ones = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 6, dtype=torch.long)
    full = torch.ones_like(long)
    left = torch.cat([torch.cat([gap, short], 1), long]), torch.cat([torch.cat([gap, ones], 1), full])
    right = torch.cat([torch.cat([short, gap], 1), long]), torch.cat([torch.cat([ones, gap], 1), full])
    torch.testing.assert_close(logits_of(runtime, *right)[0, :6], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_of(runtime, *left)[0, 3:], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("dispatch", MODES)
@pytest.mark.parametrize(("host", "kind"), PAIRS)
def test_a_cache_changes_nothing(host: str, kind: str, dispatch: str, options: dict[str, int], fuse: Fuse) -> None:
    """Whatever the prompt's length next to `router_prefix`, with left padding, and with rows that choose apart."""
    runtime = scattered(fuse, host, kind, dispatch=dispatch)
    for length in (3, 7):
        ids = tokens_of(3, length)
        mask = torch.ones_like(ids)
        ids[1, :2], mask[1, :2] = 0, 0
        settings = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}
        model = runtime.as_causal_lm()
        cached = model.generate(ids, eos_token_id=None, **settings)
        again = model.generate(ids, eos_token_id=None, use_cache=False, **settings)
        assert cached.shape == (3, length + 6)
        assert torch.equal(cached, again)


@pytest.mark.parametrize("dispatch", MODES)
@pytest.mark.parametrize(("host", "kind"), PAIRS)
def test_chunks_with_a_cache_give_the_logits_of_the_whole(host: str, kind: str, dispatch: str, fuse: Fuse) -> None:
    runtime = scattered(fuse, host, kind, "gpt2" if host == "llama" else "llama", dispatch=dispatch)
    model = runtime.as_causal_lm()
    ids = tokens_of(4, 12)
    mask = torch.ones_like(ids)
    ids[2, :3], mask[2, :3] = 0, 0
    cache, chunks = model.new_cache(), []
    with torch.no_grad():
        for start, end in ((0, 5), (5, 6), (6, 7), (7, 10), (10, 11), (11, 12)):
            chunks.append(model(ids[:, start:end], attention_mask=mask[:, :end], cache=cache).logits)
    whole = logits_of(runtime, ids, mask, prompt=5)
    seen = mask.bool()
    torch.testing.assert_close(torch.cat(chunks, 1)[seen], whole[seen], rtol=0, atol=2e-5)


@pytest.mark.parametrize("dispatch", MODES)
def test_rows_of_a_cache_can_be_chosen_and_repeated(dispatch: str, fuse: Fuse) -> None:
    runtime = scattered(fuse, "gpt2", "llama", "bert", dispatch=dispatch)
    model = runtime.as_causal_lm()
    ids = tokens_of(4, 6)
    order = torch.tensor([3, 1, 1, 0])
    with torch.no_grad():
        cache = model.new_cache()
        model(ids, cache=cache)
        cache.reorder_cache(order)
        new = tokens_of(4, 1, seed=2)
        found = model(new, cache=cache).logits[:, 0]
        cache.batch_select_indices(torch.tensor([2]))
        cache.batch_repeat_interleave(3)
        last = model(new[:3], cache=cache).logits[:, 0]
    rows = torch.cat([ids[order], new], 1)
    torch.testing.assert_close(found, logits_of(runtime, rows, prompt=6)[:, -1], rtol=0, atol=2e-5)
    rows = torch.cat([rows[2:3].expand(3, -1), new[:3]], 1)
    torch.testing.assert_close(last, logits_of(runtime, rows, prompt=6)[:, -1], rtol=0, atol=2e-5)


def test_an_expert_runs_on_the_rows_that_chose_it(fuse: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = scattered(fuse, "gpt2", "llama", "bert", "t5", dispatch="sequence", layers=(1,))
    ids = tokens_of(8, 9)
    chosen = choices_of(runtime, ids, 1)[:, 0]
    assert chosen.sum(1).eq(1).all()
    assert chosen.any(0).sum() > 2
    with counted_runs(monkeypatch) as runs:
        logits_of(runtime, ids)
    rows = {name: rows for name, rows in zip(runtime.layers[0].specs, chosen.sum(0).tolist(), strict=True) if rows}
    assert {(name, count) for name, count, _ in runs} == {(spec.model, count) for spec, count in rows.items()}
    assert sum(count for _, count, _ in runs) == 8
    with counted_runs(monkeypatch) as runs:  # a step of decoding too
        runtime.as_causal_lm().generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert sum(count for _, count, _ in runs) == 16


def test_an_expert_runs_on_the_tokens_that_chose_it(fuse: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = scattered(fuse, "gpt2", "llama", "bert", "t5", dispatch="token", layers=(1,))
    ids = tokens_of(3, 16)
    counts = choices_of(runtime, ids, 1).sum(1)  # (B, E)
    with counted_runs(monkeypatch) as runs:
        logits_of(runtime, ids)
    wanted = {
        (spec.model, int(each.count_nonzero()), int(each.max()))
        for spec, each in zip(runtime.layers[0].specs, counts.T, strict=True)
        if each.any()
    }
    assert set(runs) == wanted
    assert len(runs) > 2
    assert sum(rows * length for _, rows, length in runs) < 2 * ids.numel()


def test_rows_that_all_choose_the_hosts_block_run_in_its_own_call(fuse: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a prelude, a second cache or a copy."""
    runtime = fuse("gpt2", "llama", dispatch="sequence", top_k_experts=1, layers=(0, 1, 2))
    for layer in runtime.layers:
        with torch.no_grad():
            layer.router.classifier.bias.copy_(torch.tensor([200.0, 0.0]))
    ids = tokens_of(2, 9)
    with counted_runs(monkeypatch) as runs, torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained("gpt2")(ids).logits
        found = logits_of(runtime, ids)
    assert runs == []
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dispatch", MODES)
def test_a_single_expert_is_exact(dispatch: str, fuse: Fuse) -> None:
    runtime = fuse("gpt2", dispatch=dispatch, layers=(0, 1, 2), top_k_experts=1)
    ids = tokens_of(2, 9)
    with torch.no_grad():
        assert torch.equal(logits_of(runtime, ids), AutoModelForCausalLM.from_pretrained("gpt2")(ids).logits)


def test_all_experts_for_all_tokens_is_dense(fuse: Fuse) -> None:
    ids = tokens_of(2, 9)
    dense, token = (fuse("gpt2", "llama", dispatch=dispatch) for dispatch in ("dense", "token"))
    assert torch.equal(logits_of(token, ids), logits_of(dense, ids))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_token_dispatch_is_a_run_on_the_chosen_tokens_at_their_true_positions(kind: str, fuse: Fuse) -> None:
    from mol.core.blocks.inputs import Tokens

    runtime = scattered(fuse, "gpt2", kind, dispatch="token", layers=(0,), keep_host_layers=False)
    ids = tokens_of(1, 10)
    layer = runtime.layers[0]
    chosen = choices_of(runtime, ids)[0, :, 1]
    picked = chosen.nonzero()[:, 0]
    assert 1 < len(picked) < 10
    with torch.no_grad():
        stream = fuse("gpt2", layers=(), keep_host_layers=False)(ids)[0]
        weights, _ = layer.router(stream, torch.ones_like(ids))
        source = runtime.source(kind)
        mask = torch.ones(1, len(picked), dtype=torch.long)
        tokens = Tokens(mask, picked[None], len(picked), stream.device, stream.dtype)
        context = source.context(tokens)
        part = stream[:, picked]
        result = layer.experts[1](part, lambda inner: source.run_block(0, inner, context, live={}))
        wanted = part + weights[:, picked, 1:] * (result - part)
        found = runtime(ids)[0][:, picked]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_which_blocks_take_a_cache_with_gaps(fuse: Fuse) -> None:
    """Those that go by positions or masks do; those that go by distance in the cache, or remember, are run again."""
    runtime = fuse("gpt2", "llama", "gpt_neox", "mamba", "t5", "mistral", layers=())
    found = {name: runtime.source(name).keeps_gaps(1) for name in runtime.config.models}
    assert found["gpt2"]
    assert found["llama"]
    assert found["gpt_neox"]
    assert not found["mamba"]
    assert not found["mistral"]


@pytest.mark.parametrize("router_type", ["simple", "token"])
@pytest.mark.parametrize("dispatch", ["dense", *MODES])
def test_gradients_reach_every_router_and_no_expert(dispatch: str, router_type: str, fuse: Fuse) -> None:
    """With one expert the weight is its probability, so its router learns from the task alone."""
    settings = {"router_type": router_type, "load_balancing_coeff": 0.0, "entropy_penalty_coeff": 0.0}
    runtime = scattered(fuse, "gpt2", "llama", "bert", dispatch=dispatch, **settings).train()
    model = runtime.as_causal_lm()
    ids = tokens_of(6, 12)
    model(ids, labels=ids).loss.backward()
    for layer in runtime.layers:
        for parameter in layer.router.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 1e-7
    reached = [p for layer in runtime.layers for p in layer.experts.parameters() if p.grad is not None and p.grad.any()]
    assert reached
    for name in ("gpt2", "llama", "bert"):
        assert all(parameter.grad is None for parameter in runtime.source(name).model.parameters())


@pytest.mark.parametrize("dispatch", MODES)
@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5", "mamba"])
def test_bf16_runs_and_generates(kind: str, dispatch: str, fuse: Fuse) -> None:
    runtime = scattered(fuse, "llama", kind, dispatch=dispatch, dtype="bfloat16").to(torch.bfloat16)
    ids = tokens_of(3, 6)
    logits = logits_of(runtime, ids)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    model = runtime.as_causal_lm()
    assert model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None).shape == (3, 10)


def test_the_tokens_that_a_row_chooses_by() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 0, 1, 1, 0]])
    assert choosing(mask, 2, None).tolist() == [
        [False, False, True, True, False, False],
        [True, True, False, False, False, False],
        [False, True, False, True, False, False],
    ]
    assert choosing(mask, 2, 3).long().tolist() == [[0, 0, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("router_type", ["simple", "token"])
def test_a_row_chooses_by_its_first_tokens_and_by_nothing_else(router_type: str, fuse: Fuse) -> None:
    runtime = scattered(fuse, "gpt2", "llama", dispatch="sequence", layers=(0,), router_type=router_type)
    layer = runtime.layers[0]
    ids = tokens_of(2, 9)
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = 0, 0
    _, stats = runtime(ids, mask, return_router_stats=True)
    assert stats is not None
    weights = stats["layer_0"]["expert_weights"]
    for row, first in ((0, 0), (1, 3)):
        alone = ids[row : row + 1, first : first + PREFIX]
        stream = fuse("gpt2", layers=(), keep_host_layers=False)(alone)[0]
        wanted, _ = layer.router(stream, torch.ones_like(alone), rows=True)
        torch.testing.assert_close(weights[row, first:], wanted.expand(9 - first, -1), rtol=0, atol=1e-6)
        assert not weights[row, :first].any()


def test_labels_among_the_tokens_that_a_row_chooses_by_do_not_count(fuse: Fuse) -> None:
    runtime = scattered(fuse, "gpt2", "llama", dispatch="sequence")
    model = runtime.as_causal_lm()
    ids = tokens_of(2, 9)
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    labels = ids.masked_fill(mask.eq(0), -100)
    with torch.no_grad():
        output = model(ids, attention_mask=mask, labels=labels)
    counted = labels.clone()
    counted[0, :PREFIX], counted[1, : PREFIX + 2] = -100, -100
    wanted = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), counted[:, 1:].flatten())
    torch.testing.assert_close(output.loss, wanted)
    with pytest.raises(MolError, match=r"no label is left to count.*first 4 tokens.*shorten router_prefix"):
        model(ids[:, :4], labels=ids[:, :4])
    with pytest.raises(MolError, match=r"no label is left to count.*all of the prompt.*leave out the cache"):
        model(ids, labels=ids, use_cache=True)


@pytest.mark.parametrize("dispatch", ["dense", *MODES])
def test_training_adds_what_the_routers_cost(dispatch: str, fuse: Fuse) -> None:
    coefficients = {"load_balancing_coeff": 0.5, "entropy_penalty_coeff": 0.25}
    runtime = scattered(fuse, "gpt2", "llama", dispatch=dispatch, router_type="simple", **coefficients)
    for layer in runtime.layers:
        layer.router.dropout.p = 0.0
    runtime.add_layer([("gpt2", 1)], 1)  # which has nothing to choose, and does not count
    model = runtime.as_causal_lm()
    ids = tokens_of(4, 9)
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    labels = ids.masked_fill(mask.eq(0), -100)
    plain = model(ids, attention_mask=mask, labels=labels).loss
    model.train()
    for expert in (expert for layer in runtime.layers for expert in layer.experts):
        expert.train(mode=False)
    trained = model(ids, attention_mask=mask, labels=labels).loss
    parts = [
        0.5 * compute_load_balancing_loss(said.weights, mask, probabilities=said.logits.softmax(-1))
        + 0.25 * compute_router_entropy(said.logits, mask)
        for said in model.routings.values()
        if said.logits is not None
    ]
    assert len(parts) == 2
    torch.testing.assert_close(trained - plain, (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-5)
    (trained - plain).backward()
    assert all(layer.router.classifier.weight.grad.any() for layer in runtime.layers if layer.router is not None)
