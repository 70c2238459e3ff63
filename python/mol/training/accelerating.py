"""Makes the accelerator of a training run, and starts and ends its trackers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mol.errors import ConfigError

if TYPE_CHECKING:
    from mol.core.runtime import Runtime
    from mol.training.config import TrainingConfig


def make_accelerator(config: TrainingConfig, runtime: Runtime) -> Any:  # noqa: ANN401 - its types follow its releases
    """Make an accelerator.

    Raises:
        ConfigError: `accelerate launch` was given a precision or a way of sharing work that mol does not train in.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, parse_choice_from_env

    wanted = config.mixed_precision or parse_choice_from_env("ACCELERATE_MIXED_PRECISION", "no")
    if AcceleratorState._shared_state and wanted != AcceleratorState().mixed_precision:
        AcceleratorState._reset_state()  # of an earlier trainer, with which it would be refused
    logs = Path(config.output_dir) / "logs"
    accelerator = Accelerator(
        mixed_precision=wanted,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(config.output_dir, logging_dir=str(logs)),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.seed),
        # Adapters of experts that no token chose get no gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=_leaves_experts_out(runtime))],
    )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ConfigError(f"accelerate was given mixed_precision={accelerator.mixed_precision!r}; wanted no or bf16")
    check_distribution(accelerator.distributed_type.value)
    # All accelerators of a process share one state; without a copy, the next trainer would change this one's precision.
    accelerator.state.__dict__ = dict(accelerator.state.__dict__)
    return accelerator


def check_distribution(way: str) -> None:
    """Refuse ways of accelerate to share the work that split parameters or optimiser between processes.

    Raises:
        ConfigError: it is one.
    """
    if way in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA"):
        raise ConfigError(
            f"accelerate was set to use {way}, and checkpoints of training hold whole parameters: what is trained "
            "is small, so start processes without it, each with all of it (DistributedDataParallel)"
        )


def start_trackers(accelerator: Any, config: TrainingConfig) -> None:  # noqa: ANN401
    """Start the trackers of a config, with its settings."""
    if not config.trackers:
        return
    settings = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in config.to_dict().items()
    }
    named = {} if config.run_name is None else {"name": config.run_name}
    options = {name: named for name in config.trackers if name != "tensorboard"}
    # TensorBoard has no names of runs but directories.
    project = config.run_name if config.run_name is not None and not options else "mol"
    accelerator.init_trackers(project, config=settings, init_kwargs=options)


def end_trackers(accelerator: Any) -> None:  # noqa: ANN401
    """End all trackers; the process group, which `end_training` would destroy, stays."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers.clear()


def _leaves_experts_out(runtime: Runtime) -> bool:
    dispatch = runtime.config.dispatch
    return any(
        layer.router is not None
        and (layer.mode(dispatch) != "dense" or layer.router.top_k not in (None, len(layer.built)))
        for layer in runtime.fused
    )


def prepare_loader(accelerator: Any, loader: Any, *, even: bool) -> Any:  # noqa: ANN401
    """Share a loader's batches out to the processes.

    Args:
        accelerator: of accelerate.
        loader: the loader.
        even: give all processes the same number of batches, for which some rows may come twice; they train together.
    """
    from accelerate.data_loader import prepare_data_loader

    if even:
        return accelerator.prepare_data_loader(loader)
    state = accelerator.state
    return prepare_data_loader(
        loader, state.device, state.num_processes, state.process_index, put_on_device=True, even_batches=False
    )
