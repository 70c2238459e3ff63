"""Adapters: the identity at the start, near it after a step, in any width, size and dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mol.core.adapters import (
    BaseAdapter,
    BottleneckAdapter,
    IdentityAdapter,
    LinearAdapter,
    create_adapter,
    fit_width,
    token_size,
)
from mol.core.selection import Whole
from mol.errors import ConfigError

Make = Callable[[int, int], BaseAdapter]

MAKERS: dict[str, Make] = {
    "linear": LinearAdapter,
    "linear-no-norm": lambda a, b: LinearAdapter(a, b, use_layer_norm=False),
    "linear-no-bias": lambda a, b: LinearAdapter(a, b, bias=False),
    "linear-bare": lambda a, b: LinearAdapter(a, b, use_layer_norm=False, use_residual=False),
    "bottleneck": BottleneckAdapter,
    "bottleneck-relu": lambda a, b: BottleneckAdapter(a, b, bottleneck_dim=24, activation="relu"),
}
WIDTHS = [(64, 64), (768, 768), (512, 768), (768, 512), (64, 1024), (1, 5), (5, 1)]
FIXED_BIAS = {"linear-no-norm", "linear-bare"}
every_kind = pytest.mark.parametrize("kind", MAKERS)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def trained(adapter: BaseAdapter) -> BaseAdapter:
    """Set every parameter to a value of its own, as training would."""
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return adapter.eval()


@every_kind
@pytest.mark.parametrize(("width_in", "width_out"), WIDTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("train", [False, True])
def test_starts_as_the_identity_cut_or_padded(
    kind: str, width_in: int, width_out: int, dtype: torch.dtype, train: bool
) -> None:
    x = (torch.randn(2, 3, width_in) * torch.tensor([1e-3, 1.0, 100.0])[:, None]).to(dtype)
    expected = torch.zeros(2, 3, width_out, dtype=dtype)
    kept = min(width_in, width_out)
    expected[..., :kept] = x[..., :kept]
    for adapter in (MAKERS[kind](width_in, width_out), MAKERS[kind](width_in, width_out).to(dtype)):
        result = adapter.train(train)(x)
        assert result.dtype == dtype
        # Parameters in float32 with wider states round what they hold; a residual is untouched by that.
        exact = "bare" not in kind or dtype != torch.float64 or next(adapter.parameters()).dtype == dtype
        assert torch.equal(result, expected) if exact else torch.allclose(result, expected, rtol=1e-6)


@every_kind
@pytest.mark.parametrize(("width_in", "width_out"), WIDTHS[:5])
@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("size", [0.02, 1.0, 50.0])
@pytest.mark.parametrize("lr", [1e-3, 1e-4])
def test_one_step_moves_the_output_by_less_than_a_hundredth(
    kind: str, width_in: int, width_out: int, tokens: int, size: float, lr: float
) -> None:
    adapter = MAKERS[kind](width_in, width_out)
    if kind in FIXED_BIAS:
        size = max(size, 0.1)  # a bias does not shrink with the stream
    x = torch.randn(tokens, width_in) * size
    before = adapter.eval()(x).detach()
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=lr)
    (adapter.train()(x) * torch.randn(tokens, width_out)).sum().backward()
    optimiser.step()
    after = adapter.eval()(x).detach()
    moved = float((after - before).norm() / before.norm())
    assert 0.0 < moved < 0.01
    assert float((after - before).norm(dim=-1).div(before.norm(dim=-1)).max()) < 0.0101


def test_the_step_that_the_seeds_layer_norm_took() -> None:
    """The law above fails for a norm behind a projection at zero, so the test would notice."""
    x = torch.randn(8, 768)
    projection, norm = torch.nn.Linear(768, 768), torch.nn.LayerNorm(768)
    torch.nn.init.zeros_(projection.weight)
    torch.nn.init.zeros_(projection.bias)
    optimiser = torch.optim.AdamW([*projection.parameters(), *norm.parameters()], lr=1e-4)
    ((x + norm(projection(x))) * torch.randn(8, 768)).sum().backward()
    optimiser.step()
    with torch.no_grad():
        assert float(norm(projection(x)).norm() / x.norm()) > 0.5


@every_kind
def test_gradients_reach_the_input_and_every_parameter(kind: str) -> None:
    adapter = trained(MAKERS[kind](16, 12)).train()
    x = torch.randn(4, 16, requires_grad=True)
    (adapter(x) * torch.randn(4, 12)).sum().backward()
    for tensor in (x, *adapter.parameters()):
        assert tensor.grad is not None
        assert bool(tensor.grad.ne(0).any())
        assert bool(tensor.grad.isfinite().all())


@pytest.mark.parametrize("kind", ["linear", "linear-no-bias", "bottleneck"])
@pytest.mark.parametrize("factor", [1e-2, 7.0])
def test_the_branch_scales_with_its_input(kind: str, factor: float) -> None:
    adapter = trained(MAKERS[kind](32, 24)).double()
    x = torch.randn(5, 32, dtype=torch.float64)
    torch.testing.assert_close(adapter(x * factor), adapter(x) * factor, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "linear-no-bias", "bottleneck"])
def test_nothing_comes_of_nothing(kind: str) -> None:
    adapter = trained(MAKERS[kind](32, 24))
    x = torch.zeros(2, 32, requires_grad=True)
    result = adapter(x)
    result.sum().backward()
    assert not result.any()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@settings(deadline=None, max_examples=40)
@given(width_in=st.integers(1, 40), width_out=st.integers(1, 40), seed=st.integers(0, 2**16), bias=st.booleans())
def test_a_fitted_map_is_held_bit_for_bit(width_in: int, width_out: int, seed: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(width_out, width_in, generator=generator, dtype=torch.float64)
    offset = torch.randn(width_out, generator=generator, dtype=torch.float64) if bias else None
    x = torch.randn(3, width_in, generator=generator)
    adapter = LinearAdapter.from_map(weight, offset)
    expected = torch.nn.functional.linear(x, weight.float(), None if offset is None else offset.float())
    assert torch.equal(adapter(x), expected)
    assert torch.equal(adapter.projection.weight * adapter.scale, weight.float())


@pytest.mark.parametrize("kind", [*MAKERS, "fitted"])
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_adding_is_a_weighted_sum_with_its_gradients(kind: str, parameters: torch.dtype, autocast: bool) -> None:
    make = MAKERS.get(kind, lambda a, b: LinearAdapter.from_map(torch.randn(b, a) / a**0.5))
    adapter = trained(make(48, 32)).to(parameters)
    base, weight = torch.randn(2, 5, 32), torch.rand(2, 5, 1)
    given = torch.randn(2, 5, 48)
    left = [tensor.clone().requires_grad_() for tensor in (base, given, weight)]
    right = [tensor.clone().requires_grad_() for tensor in (base, given, weight)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = left[0].clone()
        Whole().add_(found, adapter(left[1]).to(found.dtype), left[2])
        expected = right[0] + right[2] * adapter(right[1])
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(base)
    for one, other in zip(
        torch.autograd.grad(found, [*left, *adapter.parameters()], cotangent),
        torch.autograd.grad(expected, [*right, *adapter.parameters()], cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=2e-2 if parameters == torch.bfloat16 else 1e-4, atol=1e-4)


@pytest.mark.parametrize("lr", [1e-3, 1e-4])
def test_a_fitted_map_moves_by_less_than_a_hundredth(lr: float) -> None:
    adapter = LinearAdapter.from_map(torch.randn(384, 576) / 24, torch.randn(384))
    x = torch.randn(64, 576)
    before = adapter(x).detach()
    (adapter(x) * torch.randn(64, 384)).sum().backward()
    torch.optim.AdamW(adapter.parameters(), lr=lr).step()
    with torch.no_grad():
        assert 0.0 < float((adapter(x) - before).norm() / before.norm()) < 0.01


def test_a_map_can_be_set_again_and_without_bias() -> None:
    adapter = LinearAdapter.from_map(torch.randn(3, 4), torch.randn(3))
    weight = torch.randn(3, 4)
    adapter.set_map_(weight)
    x = torch.randn(2, 4)
    assert torch.equal(adapter(x), x @ weight.T)
    again = LinearAdapter(4, 3, use_layer_norm=False, use_residual=False)
    again.load_state_dict(adapter.state_dict())
    assert torch.equal(again(x), adapter(x))


@pytest.mark.parametrize(
    "adapter",
    [
        LinearAdapter(4, 3),
        LinearAdapter(4, 3, use_layer_norm=False),
        LinearAdapter(4, 3, use_layer_norm=False, use_residual=False, bias=False),
    ],
)
def test_a_form_that_cannot_hold_a_map_is_refused(adapter: LinearAdapter) -> None:
    with pytest.raises(ConfigError, match=r"cannot hold a given map.*from_map"):
        adapter.set_map_(torch.zeros(3, 4), torch.zeros(3))


def test_wrong_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"are \(4, 3\) and \(3,\), wanted \(3, 4\) and \(3,\)"):
        LinearAdapter(4, 3, use_layer_norm=False, use_residual=False).set_map_(torch.zeros(4, 3), torch.zeros(3))
    with pytest.raises(ConfigError, match="not finite"):
        LinearAdapter.from_map(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ConfigError, match=r"is \(4,\), wanted"):
        LinearAdapter.from_map(torch.zeros(4))


@pytest.mark.parametrize(
    "adapter",
    [
        LinearAdapter(256, 192, init_identity=False),
        LinearAdapter(256, 192, use_layer_norm=False, use_residual=False, init_identity=False),
        LinearAdapter(256, 192, use_residual=False, init_identity=False),
        BottleneckAdapter(256, 192, init_identity=False),
    ],
)
def test_without_the_identity_it_starts_at_random_and_of_the_inputs_size(adapter: BaseAdapter) -> None:
    x = torch.randn(32, 256) * 3.0
    with torch.no_grad():
        away = adapter.eval()(x) - (fit_width(x, 192) if "residual=False" not in str(adapter) else 0.0)
    ratio = float(token_size(away).mean() / token_size(x).mean())
    assert 0.3 < ratio < 1.5
    assert torch.linalg.matrix_rank(away) > 30


def test_mixed_precision() -> None:
    x = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    for kind in MAKERS:
        adapter = trained(MAKERS[kind](32, 24))
        exact = adapter(x.float())
        torch.testing.assert_close(adapter(x).float(), exact, rtol=0.02, atol=0.02)
        with torch.autocast("cpu", torch.bfloat16):
            assert adapter(x).dtype == torch.bfloat16
            torch.testing.assert_close(adapter(x.float()), exact, rtol=0.05, atol=0.05)


def test_identity_adapter() -> None:
    adapter = IdentityAdapter(7)
    x = torch.randn(2, 7)
    assert adapter(x) is x
    assert adapter.is_exact_identity
    assert not list(adapter.parameters())
    assert not LinearAdapter(7, 7).is_exact_identity


def test_factory_and_defaults() -> None:
    linear = create_adapter("linear", 8, 12, use_layer_norm=False)
    assert isinstance(linear, LinearAdapter)
    assert (linear.input_dim, linear.output_dim, linear.layer_norm) == (8, 12, None)
    for width_in, width_out, between in ((512, 768, 96), (8, 12, 64), (2048, 64, 256)):
        bottleneck = create_adapter("bottleneck", width_in, width_out)
        assert isinstance(bottleneck, BottleneckAdapter)
        assert bottleneck.bottleneck_dim == between
    assert create_adapter("bottleneck", 8, 12, bottleneck_dim=5, activation="silu").bottleneck_dim == 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: create_adapter("cubic", 4, 4), "'cubic' is not one of linear, bottleneck"),
        (lambda: BottleneckAdapter(4, 4, activation="tanh"), "'tanh' is not one of gelu, relu, silu"),
        (lambda: BottleneckAdapter(4, 4, bottleneck_dim=0), "bottleneck_dim 0"),
        (lambda: BottleneckAdapter(4, 4, dropout_rate=1.0), "dropout_rate 1.0"),
        (lambda: LinearAdapter(0, 4), "LinearAdapter: input_dim 0"),
        (lambda: LinearAdapter(4, 4, use_residual=False), "pass use_layer_norm=False, or init_identity=False"),
        (lambda: LinearAdapter(4, 3)(torch.zeros(2, 5)), "5 wide, this LinearAdapter takes 4"),
        (lambda: IdentityAdapter(4)(torch.zeros(2, 5)), "5 wide, this IdentityAdapter takes 4"),
    ],
)
def test_refusals(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="bottleneck_dim"):
        create_adapter("linear", 4, 4, bottleneck_dim=3)
