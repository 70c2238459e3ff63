"""Continues a training run from a checkpoint: position in the data, what must be equal, and which files there are."""

from __future__ import annotations

import re
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mol.core.state_dicts import differences
from mol.errors import CheckpointError, ConfigError
from mol.training.state import SUFFIX, RandomState, TrainingState, random_state, restore_random

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

    from mol.core.runtime import Runtime
    from mol.training.config import TrainingConfig

_PERIODIC: Final = re.compile(r"checkpoint_step_(\d+)")
_FILE: Final = ".safetensors"
_FIXED: Final = ("batch_size", "gradient_accumulation_steps", "seed")
"""Settings that the position in the data depends on."""


class Position:
    """The position of a run in its data.

    Attributes:
        per_epoch: batches of this process in a pass over the data, None if that is not known.
        batches: those of the current pass that were trained on.
        random: the generators of this process where the current pass began; None before the first.
    """

    def __init__(self, per_epoch: int | None = None) -> None:
        """Start before the first pass."""
        self.per_epoch = per_epoch
        self.batches = 0
        self.random: RandomState | None = None

    def check(self, state: TrainingState) -> None:
        """Compare the data with those of a checkpoint.

        Raises:
            ConfigError: they have another number of batches.
        """
        before = state.progress["per_epoch"]
        if before != self.per_epoch:
            raise ConfigError(
                f"the checkpoint was written in data of {before} batches, and these have {self.per_epoch}: continue "
                "with the same data and batch size"
            )

    def start(self, loader: Any, epoch: int, ahead: int, state: TrainingState | None) -> Iterator[Any]:  # noqa: ANN401
        """Begin a pass, or continue within one; return the batches to train on.

        Args:
            loader: from accelerate.
            epoch: the number of the pass.
            ahead: batches of an optimiser step.
            state: of a checkpoint in this pass, None to begin it.
        """
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(epoch)
        if state is None:
            self.batches, self.random = 0, random_state()
            return iter(loader)
        from accelerate import skip_first_batches
        from accelerate.state import PartialState

        now, self.random = state.random[PartialState().process_index]
        self.batches = state.progress["batches"]
        restore_random(self.random)  # the order of the data is drawn from it
        rest = skip_first_batches(loader, self.batches)
        if hasattr(rest, "set_epoch"):
            rest.set_epoch(epoch)
        batches = iter(rest)
        first = list(islice(batches, ahead))
        restore_random(now)
        return chain(first, batches)


def settings_apart(progress: Mapping[str, Any], config: TrainingConfig, processes: int) -> list[str]:
    """Return what of a run differs from a checkpoint such that it cannot go on."""
    problems = [
        f"{name} was {progress['settings'].get(name)!r} and is {getattr(config, name)!r}"
        for name in _FIXED
        if progress["settings"].get(name) != getattr(config, name)
    ]
    if progress["processes"] != processes:
        problems.append(f"it was written by {progress['processes']} processes, and this run has {processes}")
    return problems


def load_trained(runtime: Runtime, weights: Mapping[str, torch.Tensor], called: str) -> None:
    """Load adapters and routers, in the dtypes that they were saved in.

    Raises:
        CheckpointError: they are of another fusion; nothing was changed.
    """
    names, _, shapes = differences(runtime.state_dict(), weights)
    if names or shapes:
        raise CheckpointError.listing(f"{called} is of another fusion than this one", [*names, *shapes])
    for name, parameter in runtime.named_parameters():
        parameter.data = parameter.data.to(weights[name].dtype)
    runtime.load_state_dict(weights)


def checkpoint_named(path: str | Path) -> Path:
    """Return the name of a checkpoint, of which one of its files may be given."""
    name = Path(path).name.removesuffix(_FILE).removesuffix(SUFFIX)
    return Path(path).with_name(name)


def periodic(directory: Path) -> list[Path]:
    """Return the periodic checkpoints of a directory that can be continued, the oldest first."""
    found = {}
    for file in directory.glob(f"checkpoint_step_*{SUFFIX}{_FILE}"):
        path = checkpoint_named(file)
        step = _PERIODIC.fullmatch(path.name)
        if step is not None:
            found[int(step[1])] = path
    return [found[step] for step in sorted(found)]


def remove_old(directory: Path, limit: int | None) -> None:
    """Remove the oldest periodic checkpoints, all but so many; none if that is None."""
    for path in periodic(directory)[: -limit if limit is not None else 0]:
        for end in (f"{SUFFIX}{_FILE}", _FILE):
            path.with_name(path.name + end).unlink(missing_ok=True)
