"""Checks the state dict of any torch module: whether a SafeTensors file can hold it, and how it differs from one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


def checked_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a module.

    Raises:
        ConfigError: it has none, or a SafeTensors file cannot hold it.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise ConfigError(
            f"got a {type(model).__name__}, wanted a torch.nn.Module; safetensors.torch.save_file and load_file are "
            "for a dict of tensors"
        )
    problems = []
    state: dict[str, torch.Tensor] = model.state_dict()
    for name, value in state.items():
        if type(value) is not torch.Tensor:
            problems.append(f"{name} is a {type(value).__name__}, wanted a plain tensor with values")
        elif value.is_meta:
            problems.append(f"{name} is on the meta device, which holds no values: load or initialise the module first")
        elif value.layout is not torch.strided or value.is_quantized or value.dtype is torch.complex128:
            problems.append(f"{name} is {value.dtype}, {value.layout}, which SafeTensors has not")
        elif value.is_conj() or value.is_neg():
            problems.append(f"{name} is a conjugated or negated view: replace it by resolve_conj().resolve_neg() of it")
    if problems:
        raise ConfigError.listing(f"the state of {type(model).__name__} is not one of a SafeTensors file", problems)
    return state


def differences(
    state: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> tuple[list[str], list[str], list[str]]:
    """Return how names, dtypes and shapes of a file's tensors differ from those of a module."""
    # As safetensors has it: a tensor that fills its memory is stored for all others that are in the same memory.
    memory = {name: (tensor.device, tensor.untyped_storage().data_ptr()) for name, tensor in state.items()}
    both = [name for name in tensors if name in state]
    filled = {
        memory[name]: name
        for name in both
        if 0 < state[name].numel() * state[name].element_size() == state[name].untyped_storage().nbytes()
    }
    names = [f"{name} is missing" for name in state if name not in tensors and memory[name] not in filled]
    names += [f"{name} is not wanted" for name in tensors if name not in state]
    names += [
        f"{name} shares its values with {filled[memory[name]]} in the module, and not in the file"
        for name in both
        if filled.get(memory[name], name) != name
    ]
    dtypes = [
        f"{name} is {tensors[name].dtype}, wanted {state[name].dtype}"
        for name in both
        if tensors[name].dtype is not state[name].dtype
    ]
    shapes = [
        f"{name} is {list(tensors[name].shape)}, wanted {list(state[name].shape)}"
        for name in both
        if tensors[name].shape != state[name].shape
    ]
    return names, dtypes, shapes
