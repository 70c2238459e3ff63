"""The linear layers of adapters and routers: PEFT, hooks and FSDP2 may wrap them; quantizing them is refused."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as _modules

from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping

_of_peft: Final[WeakSet[nn.Module]] = WeakSet()
"""Wrappers of PEFT that were checked."""
_SCALES: Final[Mapping[str, str]] = {"boft": "BOFT", "hra": "HRA", "ia3": "IA3", "oft": "OFT"}
"""Tuners of PEFT that multiply what a weight computes, by their modules."""


class TrainedLinear(nn.Linear):
    """A linear layer that is trained, so its parameters stay floats.

    It is used by calling it: wrappers (LoRA, hooks, FSDP2) act in its call, and not in its weight.
    """

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse a quantized tensor as parameter; `torchao.quantization.quantize_` would put one here.

        Raises:
            FusionError: it is one.
        """
        # DTensor, of FSDP2 and tensor parallelism, is torch's own.
        if param is not None and not type(param).__module__.startswith("torch."):
            raise FusionError(
                f"{type(param).__name__} was given as `{name}` of an adapter or router: these are trained and stay "
                "floats, and the blocks, nearly all of the memory, are outside of the module tree, where quantization "
                'does not reach them; dtype="bfloat16", max_expert_memory or device_map save memory'
            )
        super().register_parameter(name, param)


class FloatLinear(TrainedLinear):
    """The same, computed in float32 whatever the dtype of its parameters."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (..., in_features), float32, to (..., out_features)."""
        bias: torch.Tensor | None = self.bias
        return functional.linear(input, self.weight.float(), None if bias is None else bias.float())


def is_plain(linear: nn.Module) -> bool:
    """Return whether calling a linear layer is the product with its weight and nothing else, so it may be fused."""
    return (
        type(linear) is TrainedLinear
        and type(linear.weight) is nn.Parameter
        and "forward" not in linear.__dict__  # where accelerate puts its hooks
        and not (linear._forward_pre_hooks or linear._forward_hooks)
        and not (linear._backward_pre_hooks or linear._backward_hooks)
        and not (_modules._global_forward_pre_hooks or _modules._global_forward_hooks)
        and not (_modules._global_backward_pre_hooks or _modules._global_backward_hooks)
    )


def _is_unchecked(module: nn.Module) -> bool:
    """Return whether a module is one of PEFT's that was not found to work yet."""
    return type(module).__module__.startswith("peft.") and module not in _of_peft


def check_wrapper(linear: Any) -> None:  # noqa: ANN401 - has attributes of PEFT
    """Refuse what PEFT makes of a weight that is 0, as those of adapters that start as the identity are.

    Raises:
        FusionError: it would divide by the weight, or multiply it alone, so that nothing is trained.
    """
    if not _is_unchecked(linear):
        return
    home = type(linear).__module__
    rows = linear.weight.ne(0).any(1)
    if any(getattr(linear, "use_dora", {}).values()) and not rows.all():
        problem = "DoRA (use_dora) divides by the norms of a weight's rows: the result would be NaN"
    elif rows.any() or any(parameter.any() for parameter in linear.parameters() if home.split(".")[2] not in _SCALES):
        _of_peft.add(linear)
        return
    else:
        name = _SCALES.get(home.split(".")[2], "this start (init_lora_weights)")
        problem = f"{name} multiplies what the weight computes: nothing would be trained"
    raise FusionError(
        f"PEFT wraps a weight of an adapter that is 0, as it is in one that starts as the identity, and {problem}; fit "
        'the adapter (adapter_init="lstsq") or train it itself first, or take plain LoRA'
    )


def check_norm(norm: Any, linear: nn.Module) -> None:  # noqa: ANN401 - has attributes of PEFT
    """Refuse what PEFT trains of a norm where the linear layer behind it is 0 and stays so.

    Args:
        norm: of an adapter.
        linear: the layer whose product is added to the input.

    Raises:
        FusionError: gradients of the norm would be 0.
    """
    if not _is_unchecked(norm):
        return
    if any(parameter.requires_grad or parameter.any() for parameter in linear.parameters()):
        _of_peft.add(norm)
        return
    raise FusionError(
        "PEFT trains the norm of an adapter alone, before a weight that is 0, as it is in one that starts as the "
        'identity: nothing would be trained; fit the adapter (adapter_init="lstsq") or train it itself first, or name '
        "its linear layers (projection, outer), for plain LoRA"
    )


def dtype_of(module: nn.Module, default: torch.dtype) -> torch.dtype:
    """Return the dtype that a module, wrapped or not, is computed in: that of its first float parameter."""
    if type(module) is TrainedLinear:  # the common case
        return module.weight.dtype
    return next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), default)


def no_autocast(device: torch.device) -> torch.autocast | nullcontext[None]:
    """Return a context that keeps products in float32 under autocast; a device without autocast needs none."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
