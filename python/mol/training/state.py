"""The state of a training run as one checked SafeTensors file: weights, optimiser, generators, position in the data."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from mol import _rust
from mol.core.safetensors_io import later_format, read_verified, save_model_safe, weights_file
from mol.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_KEY: Final = "mol_training"
_FORMAT: Final = 1
_WEIGHTS, _OPTIMIZER, _RANDOM = "weights", "optimizer", "random"
SUFFIX: Final = ".state"
"""Of the name of a checkpoint, for the file of its state."""

RandomState = dict[str, torch.Tensor]
"""The states of the generators of one process, by name."""


class TrainingState(NamedTuple):
    """All that a run needs to continue as if it had never ended.

    Attributes:
        progress: numbers, as JSON holds them: `global_step`, `current_epoch`, `batches`, ...
        weights: of adapters and routers, by name.
        optimizer: by name of a parameter, then of what the optimiser keeps of it.
        random: for each process, its generators now, and where the pass over the data began.
    """

    progress: dict[str, Any]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, dict[str, torch.Tensor]]
    random: list[tuple[RandomState, RandomState]]

    @classmethod
    def gather(
        cls,
        progress: dict[str, Any],
        weights: Mapping[str, torch.Tensor],
        optimizer: torch.optim.Optimizer | None,
        begun: RandomState | None,
    ) -> TrainingState:
        """Return the state of a run in this moment; every process calls this.

        Args:
            progress: as above.
            weights: of adapters and routers.
            optimizer: None before the first step.
            begun: the generators of this process where the pass over the data began; None: as they are now.
        """
        from accelerate.utils import gather_object

        now = random_state()
        states = gather_object([(now, begun or now)])
        kept = {} if optimizer is None else optimizer_state(optimizer)
        return cls(progress, {name: value.detach().cpu() for name, value in weights.items()}, kept, states)

    def write(self, checkpoint: Path) -> Path:
        """Write the file next to a checkpoint; one that was there is replaced in one step.

        Raises:
            OSError: it cannot be written.
        """
        tensors = {f"{_WEIGHTS}/{name}": value for name, value in self.weights.items()}
        for name, kept in self.optimizer.items():
            tensors |= {f"{_OPTIMIZER}/{key}/{name}": value for key, value in kept.items()}
        for rank, pair in enumerate(self.random):
            for when, states in zip(("now", "epoch"), pair, strict=True):
                tensors |= {f"{_RANDOM}/{rank}/{when}/{name}": value for name, value in states.items()}
        content = {**self.progress, "format": _FORMAT, "version": _rust.__version__}
        return save_model_safe(_Tensors(tensors), _file(checkpoint), {_KEY: json.dumps(content, sort_keys=True)})

    @classmethod
    def read(cls, checkpoint: Path) -> TrainingState:
        """Read the file next to a checkpoint, after its checksum is verified.

        Raises:
            CheckpointError: it is damaged, or nothing that a trainer wrote.
            ConfigError: a later version of mol wrote it.
            OSError: it is missing.
        """
        from safetensors.torch import load_file

        path = _file(checkpoint)
        file = weights_file(path)
        text = read_verified(file, path, "MoLTrainer.save_checkpoint").get(_KEY)
        if text is None:
            raise CheckpointError(f"{file} holds no state of a training run, so MoLTrainer did not write it")
        content = json.loads(text)
        if content["format"] != _FORMAT:
            raise later_format(file, content, _FORMAT)
        state = cls(content, {}, {}, [({}, {}) for _ in range(content["processes"])])
        for name, value in load_file(file).items():
            kind, rest = name.split("/", 1)
            if kind == _WEIGHTS:
                state.weights[rest] = value
            elif kind == _OPTIMIZER:
                key, parameter = rest.split("/", 1)
                state.optimizer.setdefault(parameter, {})[key] = value
            else:
                rank, when, generator = rest.split("/", 2)
                state.random[int(rank)][when == "epoch"][generator] = value
        return state


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """Return what an optimiser keeps of each parameter, by the names that its groups have."""
    return {
        name: {key: torch.as_tensor(value) for key, value in optimizer.state[parameter].items()}
        for name, parameter in _named(optimizer)
        if parameter in optimizer.state
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Load into an optimiser what `optimizer_state` returned."""
    for name, parameter in _named(optimizer):
        if name in state:
            # As torch's own load_state_dict: `step` stays on the CPU.
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in state[name].items()
            }


def random_state() -> RandomState:
    """Return the states of all generators of this process that something may draw from by default."""
    import numpy

    version, inner, gauss = random.getstate()
    of_numpy: Any = numpy.random.get_state(legacy=True)
    _, keys, position, has_gauss, cached = of_numpy
    state = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *inner], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor([*keys.tolist(), position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state |= {f"cuda{number}": value for number, value in enumerate(torch.cuda.get_rng_state_all())}
    return state


def restore_random(state: RandomState) -> None:
    """Set all generators to what `random_state` returned."""
    import numpy

    torch.set_rng_state(state["torch"])
    version, *inner = state["python"].tolist()
    gauss = state["python_gauss"].tolist()
    random.setstate((version, tuple(inner), gauss[0] if gauss else None))
    *keys, position, has_gauss = state["numpy"].tolist()
    cached = state["numpy_gauss"].item()
    numpy.random.set_state(("MT19937", numpy.array(keys, dtype=numpy.uint32), position, has_gauss, cached))
    saved = sum(name.startswith("cuda") for name in state)
    if saved and saved == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state[f"cuda{device}"] for device in range(saved)])


def _file(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + SUFFIX)


def _named(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, torch.Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


class _Tensors(torch.nn.Module):
    """Tensors under any names, as the state of a module."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._given = dict(tensors)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as in torch
        """Return the tensors."""
        return dict(self._given)
