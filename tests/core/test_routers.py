"""Routers: causal, blind to padding and batch mates, the same at once and token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mol.core.losses import compute_load_balancing_loss, compute_router_entropy
from mol.core.routers import (
    BaseRouter,
    RouterState,
    SimpleRouter,
    TokenLevelRouter,
    create_router,
    top_k_weights,
)
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, EXPERTS = 24, 5
KINDS: dict[str, Callable[..., BaseRouter]] = {
    "mean": lambda *a, **k: SimpleRouter(*a, pooling_type="mean", **k),
    "max": lambda *a, **k: SimpleRouter(*a, pooling_type="max", **k),
    "attention": lambda *a, **k: SimpleRouter(*a, pooling_type="attention", **k),
    "token": TokenLevelRouter,
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_k = pytest.mark.parametrize("top_k", [None, 1, 2, 5])


def router_of(
    kind: str, top_k: int | None = None, width: int = WIDTH, experts: int = EXPERTS, **more: float
) -> BaseRouter:
    """A router with weights as large as training makes them."""
    torch.manual_seed(3)
    router = KINDS[kind](width, experts, top_k=top_k, **more).eval()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(torch.randn_like(parameter) / (4.0 if parameter.dim() > 1 else 1.0))
    return router


def stream(batch: int, tokens: int, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(batch, tokens, 1, generator=generator) * 10 + 0.1
    return torch.randn(batch, tokens, width, generator=generator) * sizes


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=0.0, atol=1e-6)


def reference(router: BaseRouter, x: torch.Tensor) -> torch.Tensor:
    """Logits of one sequence (T, H) in float64, prefix by prefix."""

    def norm(v: torch.Tensor) -> torch.Tensor:
        return (v - v.mean(-1, keepdim=True)) / (v.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    n = norm(x.double())
    rows = []
    for t in range(1, len(n) + 1):
        seen = n[:t]
        if isinstance(router, TokenLevelRouter):
            rows.append(seen[-1])
            continue
        assert isinstance(router, SimpleRouter)
        if router.pooling_type == "max":
            pooled = seen.max(0).values
        elif router.attention is None:
            pooled = seen.mean(0)
        else:
            scores = (seen @ router.attention.weight.double().T / 20).tanh() * 20
            pooled = (scores.softmax(0) * seen).sum(0)
        rows.append(norm(pooled))
    features = torch.stack(rows)
    return (features @ router.classifier.weight.double().T + router.classifier.bias.double()) / router.temperature


@every_kind
@torch.no_grad()
def test_logits_and_weights_are_the_formula(kind: str) -> None:
    router, x = router_of(kind, temperature=0.7), stream(2, 9)
    weights, logits = router(x)
    for row in range(2):
        expected = reference(router, x[row])
        torch.testing.assert_close(logits[row].double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(weights[row].double(), expected.softmax(-1), rtol=1e-4, atol=1e-5)
    assert weights.shape == logits.shape == (2, 9, EXPERTS)


@every_kind
@every_k
@torch.no_grad()
def test_later_tokens_change_nothing(kind: str, top_k: int | None) -> None:
    router, x = router_of(kind, top_k), stream(2, 12)
    whole, _ = router(x)
    for cut in range(1, 12):
        other = x.clone()
        # Random, and as large as the scores of attention could ever be moved by.
        other[:, cut:] = stream(2, 12 - cut, seed=cut) * 1e4
        assert torch.equal(router(other)[0][:, :cut], whole[:, :cut])
        assert close(router(x[:, :cut])[0], whole[:, :cut])


@every_kind
@torch.no_grad()
def test_earlier_tokens_matter_where_they_should(kind: str) -> None:
    router, x = router_of(kind), stream(1, 6)
    other = x.clone()
    other[:, 0] = stream(1, 1, seed=9)[:, 0]
    assert close(router(other)[0][:, 1:], router(x)[0][:, 1:]) == (kind == "token")


@every_kind
@every_k
@torch.no_grad()
def test_padding_and_batch_mates_change_nothing(kind: str, top_k: int | None) -> None:
    router, x = router_of(kind, top_k), stream(1, 7)
    alone, _ = router(x)
    for side in ("left", "right"):
        for filler in (0.0, 1e6, float("nan"), float("inf")):
            padded, mask = torch.full((3, 10, WIDTH), filler), torch.zeros(3, 10, dtype=torch.long)
            here = slice(3, None) if side == "left" else slice(7)
            padded[1, here], mask[1, here] = x[0], 1
            padded[0], mask[0] = stream(1, 10, seed=5)[0], 1  # and row 2 is padding alone
            for given_mask in (mask, mask.bool(), mask.float()):
                weights, logits = router(padded, given_mask)
                assert close(weights[1, here], alone[0])
                assert not weights[mask == 0].any()
                assert bool(logits.isfinite().all())
                assert bool((weights[mask == 1] > 0).any(-1).all())


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    top_k=st.sampled_from([None, 1, 2]),
    cuts=st.sets(st.integers(1, 19)),
    pads=st.lists(st.integers(0, 8), min_size=3, max_size=3),
)
@torch.no_grad()
def test_chunks_with_a_state_are_the_whole(kind: str, top_k: int | None, cuts: set[int], pads: list[int]) -> None:
    router, x = router_of(kind, top_k), stream(3, 20, seed=1)
    mask = torch.arange(20) >= torch.tensor(pads)[:, None]
    whole, _, end = router(x, mask, remember=True)
    state: RouterState | None = None
    chunks = []
    for begin, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 20], strict=True):
        weights, _, state = router(x[:, begin:stop], mask[:, begin:stop], state=state, remember=True)
        chunks.append(weights)
    assert close(torch.cat(chunks, 1), whole)
    assert state is not None
    torch.testing.assert_close(state.pooled, end.pooled)
    torch.testing.assert_close(state.total, end.total)


@every_kind
@torch.no_grad()
def test_a_long_sequence_token_by_token(kind: str) -> None:
    router, x = router_of(kind), stream(1, 600)
    whole, _ = router(x)
    _, _, state = router(x[:, :100], remember=True)
    for t in range(100, 600):
        weights, _, state = router(x[:, t : t + 1], state=state, remember=True)
        assert close(weights[:, 0], whole[:, t])


@every_kind
@torch.no_grad()
def test_a_state_does_not_grow_with_the_text(kind: str) -> None:
    _, _, state = router_of(kind)(stream(2, 50), remember=True)
    for tensor in (state.pooled, state.total):
        assert tensor.untyped_storage().nbytes() == 4 * tensor.numel()


@every_kind
@torch.no_grad()
def test_beams_take_their_state_with_them(kind: str) -> None:
    router, x = router_of(kind), stream(3, 8)
    rows = torch.tensor([2, 0, 0, 1])
    _, _, state = router(x[:, :7], remember=True)
    state.select(rows)
    weights, _, _ = router(x[rows, 7:], state=state, remember=True)
    assert close(weights[:, 0], router(x)[0][rows, 7])


@every_kind
@torch.no_grad()
def test_a_state_is_not_changed_by_the_call_that_reads_it(kind: str) -> None:
    router, x = router_of(kind), stream(2, 8)
    _, _, state = router(x[:, :4], remember=True)
    first = router(x[:, 4:], state=state, remember=True)[0]
    assert torch.equal(router(x[:, 4:], state=state, remember=True)[0], first)


@every_kind
@torch.no_grad()
def test_top_k(kind: str) -> None:
    x = stream(2, 30)
    dense, logits = router_of(kind)(x)
    torch.testing.assert_close(dense, logits.softmax(-1), rtol=0.0, atol=0.0)
    assert torch.equal(router_of(kind, EXPERTS)(x)[0], dense)
    for k in range(1, EXPERTS):
        weights, _ = router_of(kind, k)(x)
        kept = weights > 0
        assert bool((kept.sum(-1) == k).all())
        least, most = dense.masked_fill(~kept, 2.0).min(-1).values, dense.masked_fill(kept, 0.0).max(-1).values
        assert bool((least >= most).all())
        expected = dense.masked_fill(~kept, 0.0)
        expected = expected if k == 1 else expected / expected.sum(-1, keepdim=True)
        torch.testing.assert_close(weights, expected)


def test_among_equals_the_first_are_chosen() -> None:
    assert top_k_weights(torch.zeros(3, 40), 2).tolist() == [[0.5, 0.5, *[0.0] * 38]] * 3
    assert top_k_weights(torch.zeros(40), 1).nonzero().tolist() == [[0]]


@every_kind
@every_k
def test_gradients_reach_every_parameter_and_the_stream(kind: str, top_k: int | None) -> None:
    router = router_of(kind, top_k).train()
    x = stream(2, 6).requires_grad_()
    mask = torch.ones(2, 6)
    mask[0, :2] = 0
    weights, _ = router(x, mask)
    (weights * torch.randn(2, 6, EXPERTS)).sum().backward()
    for tensor in (x, *router.parameters()):
        assert tensor.grad is not None
        assert bool(tensor.grad.isfinite().all())
        assert bool(tensor.grad.ne(0).any())
    assert x.grad is not None
    assert not x.grad[0, :2].any()


@every_kind
@torch.no_grad()
def test_one_expert_has_the_weight_one(kind: str) -> None:
    router, x = router_of(kind, experts=1), stream(2, 4) * 1e3
    assert torch.equal(router(x)[0], torch.ones(2, 4, 1))
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    assert torch.equal(router(x, mask)[0][..., 0], mask.float())
    assert torch.equal(router_of(kind, 1, experts=1)(x)[0], torch.ones(2, 4, 1))


@every_kind
@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_the_choice_is_made_in_float32(kind: str, autocast: bool) -> None:
    x = stream(2, 9).bfloat16()
    router = router_of(kind).bfloat16().float()  # parameters that bfloat16 holds exactly
    expected = router(x.float())
    for one in (router, router_of(kind).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            weights, logits, state = one(x, remember=True)
        assert {weights.dtype, logits.dtype, state.pooled.dtype, state.total.dtype} == {torch.float32}
        assert torch.equal(weights, expected[0])
        assert torch.equal(logits, expected[1])


def test_shapes_on_the_meta_device() -> None:
    router = KINDS["attention"](WIDTH, EXPERTS, top_k=2).to("meta")
    assert router(torch.empty(2, 3, WIDTH, device="meta"))[0].shape == (2, 3, EXPERTS)


@every_kind
@torch.no_grad()
def test_chance_plays_a_part_in_training_only(kind: str) -> None:
    router, x = router_of(kind, dropout_rate=0.3), stream(1, 5)
    assert torch.equal(router(x)[0], router(x)[0])
    router.train()
    assert not torch.equal(router(x)[0], router(x)[0])


@torch.no_grad()
def test_noise_has_its_size() -> None:
    x = stream(1, 2000)
    router = router_of("token", dropout_rate=0.0, noise_std=0.25)
    quiet = router(x)[1]
    noise = router.train()(x)[1] - quiet
    assert float(noise.std()) == pytest.approx(0.25, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)


@every_kind
@torch.no_grad()
def test_a_new_router_is_nearly_even_and_not_quite(kind: str) -> None:
    torch.manual_seed(0)
    router = KINDS[kind](256, 4).eval()
    weights, _ = router(stream(2, 10, width=256))
    assert 0.18 < float(weights.min()) < float(weights.max()) < 0.33
    assert weights.std() > 0.0
    assert not router.classifier.bias.any()
    assert float(router.classifier.weight.std()) == pytest.approx(0.1 / 256**0.5, rel=0.15)


@torch.no_grad()
def test_one_huge_token_does_not_blind_the_mean() -> None:
    router, x = router_of("mean"), stream(2, 8)
    x[:, 0] = x[0, 0] * 1e4
    weights, _ = router(x)
    assert float((weights[0, 2:] - weights[1, 2:]).abs().max()) > 0.05


@torch.no_grad()
def test_temperature() -> None:
    x = stream(1, 6)
    sharp, soft = (router_of("mean", temperature=t)(x)[0].max(-1).values for t in (0.1, 10.0))
    assert bool((sharp > soft).all())
    with torch.no_grad():
        assert torch.allclose(router_of("token", temperature=2.0)(x)[1] * 2.0, router_of("token")(x)[1])


def test_factory() -> None:
    options = {"pooling_type": "max", "temperature": 0.5, "dropout_rate": 0.0, "top_k": 2, "noise_std": 0.3}
    simple = create_router("simple", 8, 3, **options)
    assert isinstance(simple, SimpleRouter)
    assert (simple.pooling_type, simple.temperature, simple.top_k, simple.noise_std) == ("max", 0.5, 2, 0.0)
    for name in ("token", "token_level"):
        token = create_router(name, 8, 3, **options)
        assert isinstance(token, TokenLevelRouter)
        assert (token.hidden_dim, token.num_experts, token.noise_std, token.top_k) == (8, 3, 0.3, 2)
    with pytest.raises(TypeError, match="no router takes pooling, tau; there are dropout_rate, expert_bias, noise_std"):
        create_router("simple", 8, 3, tau=1.0, pooling="max")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: create_router("topmost", 4, 2), "'topmost' is not one of simple, token, token_level"),
        (lambda: SimpleRouter(4, 2, pooling_type="last"), "'last' is not one of mean, max, attention"),
        (lambda: SimpleRouter(4, 2, temperature=0.0), "temperature 0.0"),
        (lambda: TokenLevelRouter(4, 2, temperature=float("nan")), "temperature nan"),
        (lambda: TokenLevelRouter(4, 2, top_k=3), "top_k 3 is not 1 to 2"),
        (lambda: SimpleRouter(4, 2, top_k=0), "top_k 0"),
        (lambda: TokenLevelRouter(4, 2, noise_std=-1.0), "noise_std -1.0"),
        (lambda: SimpleRouter(4, 2, dropout_rate=1.0), "dropout_rate 1.0"),
        (lambda: SimpleRouter(4, 0), "num_experts 0"),
        (lambda: SimpleRouter(4, 2)(torch.zeros(1, 3, 6)), "6 wide, this SimpleRouter takes 4"),
        (lambda: TokenLevelRouter(4, 2)(torch.zeros(3, 4)), r"\(batch, tokens, 4\), not \(3, 4\)"),
        (lambda: SimpleRouter(4, 2)(torch.zeros(1, 3, 4), torch.ones(1, 5)), r"attention_mask is \(1, 5\)"),
    ],
)
def test_refusals(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert isinstance(caught.value, ConfigError)


def test_losses_are_found_here_too() -> None:
    from mol.core import routers

    assert routers.compute_router_entropy is compute_router_entropy
    assert routers.compute_load_balancing_loss is compute_load_balancing_loss
