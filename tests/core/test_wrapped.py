"""What wraps a part of a fused model acts: hooks, LoRA, copies to train and FSDP2, on layers, experts and below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from mol.core.adapters import LinearAdapter
from mol.core.linear import is_plain
from mol.errors import MolError
from tests.core.zoo import tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mol.core.mol_runtime import MoLRuntime
    from tests.core.conftest import Fuse

MODES = ("dense", "sequence", "token")
PARTS = ("layers.0", "layers.0.router", "layers.0.router.classifier", "layers.0.experts.1", "layers.0.experts.1.down",
         "layers.0.experts.1.up", "layers.0.experts.1.up.projection")  # fmt: skip


class Lora(nn.Module):
    """What PEFT replaces a linear layer with: it has the weight of the old one, and adds to what that returns."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 3, bias=False)
        self.lora_B = nn.Linear(3, base.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base_layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.base_layer(x) + self.lora_B(self.lora_A(x))
        return added

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        self.base_layer.weight += self.lora_B.weight @ self.lora_A.weight
        return self.base_layer


class Copied(nn.Module):
    """What PEFT replaces a module to train with: attributes are those of the old one, calls go to another."""

    def __init__(self, original: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.original_module = original
        self.other = other

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("original_module"), name)

    def forward(self, *args: object, **kwargs: object) -> object:
        return self.other(*args, **kwargs)


def runtime_of(fuse: Fuse, dispatch: str = "dense", **settings: object) -> MoLRuntime:
    settings = {"router_type": "token", "dispatch": dispatch, "router_prefix": 3, **settings}
    runtime = fuse("gpt2", "llama", layers=(1,), **settings)
    with torch.no_grad():
        for number, parameter in enumerate(runtime.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return runtime


def logits_of(runtime: MoLRuntime) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = runtime.as_causal_lm()(tokens_of(2, 8)).logits
    return logits


def replace(runtime: MoLRuntime, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(runtime.get_submodule(parent), name, new)


@pytest.mark.parametrize("dispatch", MODES)
@pytest.mark.parametrize("path", ["", *PARTS])
def test_hooks_fire_once_for_each_forward(path: str, dispatch: str, fuse: Fuse) -> None:
    runtime = runtime_of(fuse, dispatch)
    seen: list[object] = []
    runtime.get_submodule(path).register_forward_hook(lambda *_: seen.append(path))
    logits_of(runtime)
    assert seen == [path]


@pytest.mark.parametrize("path", PARTS)
def test_what_a_hook_returns_counts(path: str, fuse: Fuse) -> None:
    runtime = runtime_of(fuse)
    before = logits_of(runtime)

    def twice(_module: nn.Module, _args: object, output: object) -> object:
        if isinstance(output, torch.Tensor):
            return output * 2
        assert isinstance(output, tuple)
        return (output[0] * 2, *output[1:])

    handle = runtime.get_submodule(path).register_forward_hook(twice)
    assert not torch.allclose(logits_of(runtime), before, atol=1e-4)
    handle.remove()
    assert torch.equal(logits_of(runtime), before)


@pytest.mark.parametrize("adapter", ["linear", "bottleneck", "fitted"])
@pytest.mark.parametrize("dispatch", MODES)
def test_lora_acts_and_merging_it_changes_nothing(adapter: str, dispatch: str, fuse: Fuse) -> None:
    settings = {} if adapter == "fitted" else {"adapter_type": adapter}
    runtime = runtime_of(fuse, dispatch, router_type="simple", **settings)
    if adapter == "fitted":
        expert = runtime.layers[0].experts[1]
        expert.down = LinearAdapter.from_map(
            expert.down.projection.weight.detach(), torch.randn(expert.down.output_dim)
        )
        expert.up = LinearAdapter.from_map(expert.up.projection.weight.detach())
    before = logits_of(runtime)
    paths = [path for path, module in runtime.named_modules() if isinstance(module, nn.Linear)]
    assert len(paths) == (5 if adapter == "bottleneck" else 3)
    for path in paths:
        lora = Lora(runtime.get_submodule(path))  # type: ignore[arg-type]
        replace(runtime, path, lora)
        with torch.no_grad():
            lora.lora_B.weight.zero_()
        torch.testing.assert_close(logits_of(runtime), before)
        nn.init.normal_(lora.lora_B.weight)
        wrapped = logits_of(runtime)
        assert not torch.allclose(wrapped, before, atol=1e-4), path
        replace(runtime, path, lora.merged())
        before = logits_of(runtime)
        torch.testing.assert_close(wrapped, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dispatch", MODES)
@pytest.mark.parametrize("path", PARTS)
def test_a_copy_that_is_trained_runs_instead_of_the_original(path: str, dispatch: str, fuse: Fuse) -> None:
    runtime, other = runtime_of(fuse, dispatch), runtime_of(fuse, dispatch)
    with torch.no_grad():
        for parameter in other.get_submodule(path).parameters():
            parameter.mul_(-1.5)
    wanted, before = logits_of(other), logits_of(runtime)
    assert not torch.allclose(wanted, before, atol=1e-4)
    replace(runtime, path, Copied(runtime.get_submodule(path), other.get_submodule(path)))
    assert torch.equal(logits_of(runtime), wanted)
    assert "layer 1" in str(runtime)


def test_the_fused_product_is_left_where_something_is_hooked() -> None:
    adapter = LinearAdapter.from_map(torch.randn(4, 3), torch.randn(4))
    x = torch.randn(2, 3)
    assert is_plain(adapter.projection)
    plain = adapter(x)
    for hook in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        handle = getattr(adapter.projection, hook)(lambda *_: None)
        assert not is_plain(adapter.projection)
        torch.testing.assert_close(adapter(x), plain)
        handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not is_plain(adapter.projection)
    handle.remove()
    assert is_plain(adapter.projection)
    nn.utils.parametrizations.weight_norm(adapter.projection)
    assert not is_plain(adapter.projection)
    torch.testing.assert_close(adapter(x), plain)


class Int8(torch.Tensor):
    """Imitates the tensors of a library that quantizes."""


@pytest.mark.parametrize("path", [path for path in PARTS if path.endswith(("classifier", "projection"))])
def test_a_quantized_weight_is_refused_with_a_message(path: str, fuse: Fuse) -> None:
    runtime = runtime_of(fuse)
    before, linear = logits_of(runtime), runtime.get_submodule(path)
    quantized = linear.weight.detach().as_subclass(Int8)  # type: ignore[union-attr,operator]
    with pytest.raises(MolError, match=r"Int8.*stay floats.*blocks.*outside of the module tree"):
        linear.weight = nn.Parameter(quantized, requires_grad=False)
    assert torch.equal(logits_of(runtime), before)


@pytest.fixture
def one_process(tmp_path: object) -> Iterator[None]:
    distributed = pytest.importorskip("torch.distributed")
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("dispatch", MODES)
def test_fsdp2_shards_layers_experts_and_routers_and_trains_them_alike(dispatch: str, fuse: Fuse) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    from torch.distributed.device_mesh import init_device_mesh

    runtime = runtime_of(fuse, dispatch)
    model, ids = runtime.as_causal_lm(), tokens_of(2, 8)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}

    wanted, mesh = gradients(), init_device_mesh("cpu", (1,))
    assert wanted
    for path in ("layers.0.experts.1.up.projection", "layers.0.experts.1", "layers.0.router", "layers.0"):
        fsdp.fully_shard(runtime.get_submodule(path), mesh=mesh)
    fsdp.fully_shard(model, mesh=mesh)
    assert all(type(parameter).__name__ == "DTensor" for parameter in model.parameters())
    found = gradients()
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name])
