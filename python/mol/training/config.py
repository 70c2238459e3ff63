"""TrainingConfig: the settings of a training run, checked."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from mol.config.mol_config import BIAS_UPDATE_RATE
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["no", "bf16"]
Tracker = Literal["wandb", "tensorboard", "trackio"]

_FROM_0: Final = (
    "learning_rate", "router_learning_rate", "weight_decay", "z_loss_coeff", "early_stopping_threshold",
    "mutual_information_coeff", "domain_loss_coeff", "distillation_coeff", "bias_update_rate",
)  # fmt: skip
_COUNTS: Final = {
    "batch_size": 1, "max_epochs": 1, "warmup_steps": 0, "logging_steps": 1, "gradient_accumulation_steps": 1,
    "seed": 0, "dense_steps": 0,
}  # fmt: skip
_COUNTS_OR_NONE: Final = ("max_steps", "eval_steps", "save_steps", "save_total_limit", "early_stopping_patience")


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training run, checked; `dataclasses.replace` makes a changed copy.

    The loss is that of the host's head plus, averaged over the layers whose router has a choice, each coefficient here
    times its term; see `mol.core.losses` for the terms.

    Attributes:
        learning_rate: of adapters.
        router_learning_rate: of routers.
        weight_decay: of the matrices of adapters; biases, norms and routers have none.
        batch_size: rows per process and forward, where the trainer is given rows or texts; a DataLoader has its own.
        max_epochs: passes over the data; training ends at this or at `max_steps`, whichever comes first.
        max_steps: optimiser steps; no limit if None.
        warmup_steps: over which both rates rise from 0. If the run has no more steps than that, a tenth of them.
        lr_scheduler_type: what both rates do after that: "linear" or "cosine" to 0 at the last step, or "constant".
        gradient_accumulation_steps: batches per process and optimiser step; each counts by its tokens, so that several
            train like one.
        logging_steps: optimiser steps between two reports.
        eval_steps: optimiser steps between two evaluations; if None there is one at the end alone.
        save_steps: optimiser steps between two checkpoints; if None there are the final and the best one alone.
        save_total_limit: the most periodic checkpoints to keep, the oldest are removed; all if None.
        gradient_clip_norm: the largest norm of all gradients together; they are not clipped if None.
        load_balancing_coeff: of the load balancing loss, which keeps experts in use; as in `MoLConfig` if None, where
            `balance` "bias" makes it 0.
        entropy_penalty_coeff: of the mean entropy of the routers' choices, which makes choices sharp; as in `MoLConfig`
            if None.
        z_loss_coeff: of the squared log-partition of the routers' logits, which keeps them small.
        mutual_information_coeff: of the information of a token about its expert, in nats, which is subtracted: it grows
            where each choice is sharp and all experts are in use.
        bias_update_rate: how far each step moves the biases of `MoLConfig(balance="bias")`, in logits; see
            `MoLRuntime.update_expert_biases`.
        domain_loss_coeff: of the cross entropy between choices and the `domains` (B,) of a batch, for each row the
            number of the expert that it belongs to, -100 for none.
        distillation_coeff: of the divergence between what the teacher of a row's domain predicts and what the fusion
            does; see `MoLTrainer`.
        dense_steps: steps over which the number of experts of a token falls from all to `MoLConfig.top_k_experts`.
        freeze_experts: must be True.
        use_gradient_checkpointing: run the blocks again in the backward pass instead of keeping what they computed.
        mixed_precision: "bf16" computes in bfloat16 where that is safe; what is trained stays float32. As
            `accelerate launch` says, else "no", if None.
        use_safetensors: must be True.
        output_dir: where checkpoints are written.
        run_name: of this run, in trackers.
        use_wandb: the same as "wandb" in `report_to`.
        report_to: trackers that get the metrics: "wandb", "tensorboard", "trackio".
        early_stopping_patience: end after so many evaluations in a row without a lower loss; never if None.
        early_stopping_threshold: by how much a loss must be lower to count.
        seed: of the order of shuffled data, and of dropout and noise.
    """

    learning_rate: float = 1e-4
    router_learning_rate: float = 1e-5
    weight_decay: float = 0.01
    batch_size: int = 8
    max_epochs: int = 10
    max_steps: int | None = None
    warmup_steps: int = 100
    logging_steps: int = 10
    eval_steps: int | None = 100
    save_steps: int | None = 500
    gradient_clip_norm: float | None = 1.0
    entropy_penalty_coeff: float | None = None
    load_balancing_coeff: float | None = None
    freeze_experts: bool = True
    use_gradient_checkpointing: bool = False
    use_safetensors: bool = True
    output_dir: str = "./mol_checkpoints"
    run_name: str | None = None
    use_wandb: bool = False
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: Schedule = "linear"
    mixed_precision: Precision | None = None
    save_total_limit: int | None = None
    report_to: tuple[Tracker, ...] = ()
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    z_loss_coeff: float = 0.0
    mutual_information_coeff: float = 0.0
    bias_update_rate: float = BIAS_UPDATE_RATE
    domain_loss_coeff: float = 0.0
    distillation_coeff: float = 0.0
    dense_steps: int = 0
    seed: int = 42

    def __post_init__(self) -> None:
        """Check all values.

        Raises:
            ConfigError: lists everything that is wrong.
        """
        problems = [*self._wrong_values(), *self._not_supported()]
        if problems:
            raise ConfigError.listing("this training cannot be configured", problems)
        object.__setattr__(self, "output_dir", str(self.output_dir))
        object.__setattr__(self, "report_to", tuple(self.report_to))

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of all trackers, each once."""
        return tuple(dict.fromkeys((*(("wandb",) if self.use_wandb else ()), *self.report_to)))

    def check_trackers(self) -> None:
        """Check that the trackers are installed.

        Raises:
            ConfigError: one is not.
        """
        missing = [name for name in self.trackers if not _is_installed(name)]
        if missing:
            raise ConfigError(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: `pip install "
                f"{' '.join(missing)}`, or leave out of TrainingConfig what asks for it (use_wandb, report_to)"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them."""
        return {
            item.name: list(value) if isinstance(value := getattr(self, item.name), tuple) else value
            for item in fields(self)
        }

    def _wrong_values(self) -> Iterator[str]:
        """Yield what is of another type or out of range."""
        for name in _FROM_0:
            value = getattr(self, name)
            if not _is_number(value) or not 0.0 <= value < math.inf:
                yield f"{name} is {value!r}, wanted a number of 0 or more"
        for name in ("entropy_penalty_coeff", "load_balancing_coeff"):
            value = getattr(self, name)
            if value is not None and (not _is_number(value) or not math.isfinite(value)):
                yield f"{name} is {value!r}, wanted a finite number, or None for the one in MoLConfig"
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                yield f"{name} is {value!r}, wanted a whole number of at least {least}"
        for name in _COUNTS_OR_NONE:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                yield f"{name} is {value!r}, wanted a whole number of at least 1, or None"
        clip = self.gradient_clip_norm
        if clip is not None and (not _is_number(clip) or not clip > 0.0):
            yield f"gradient_clip_norm is {clip!r}, wanted a number above 0, or None to clip nothing"
        if self.lr_scheduler_type not in get_args(Schedule):
            yield f"lr_scheduler_type is {self.lr_scheduler_type!r}, wanted one of {', '.join(get_args(Schedule))}"
        for name in ("freeze_experts", "use_gradient_checkpointing", "use_safetensors", "use_wandb"):
            if type(getattr(self, name)) is not bool:
                yield f"{name} is {getattr(self, name)!r}, wanted True or False"
        output: object = self.output_dir
        if not isinstance(output, str | os.PathLike):
            yield f"output_dir is {self.output_dir!r}, wanted the name of a directory"
        run: object = self.run_name
        if run is not None and not isinstance(run, str):
            yield f"run_name is {self.run_name!r}, wanted a name, or None"
        known, trackers = get_args(Tracker), cast("Any", self.report_to)
        if isinstance(trackers, str) or not all(name in known for name in trackers):
            yield f"report_to is {self.report_to!r}, wanted some of {', '.join(known)}, in a list or tuple"

    def _not_supported(self) -> Iterator[str]:
        """Yield what mol does not do, each with the reason."""
        if self.freeze_experts is False:
            yield (
                "freeze_experts is False, and the models of a fusion are neither trained nor saved with it: fine-tune "
                "a model by itself, save it, and fuse that"
            )
        if self.use_safetensors is False:
            yield (
                "use_safetensors is False, and mol writes no pickles, which run code when they are loaded: leave it out"
            )
        precision: object = self.mixed_precision
        if precision == "fp16":
            yield (
                "mixed_precision is 'fp16', and the losses of routers and the small gradients of adapters do not fit "
                'its range: use "bf16"'
            )
        elif precision is not None and precision not in get_args(Precision):
            yield f"mixed_precision is {self.mixed_precision!r}, wanted 'no' or 'bf16', or None"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_installed(tracker: str) -> bool:
    names = ("tensorboard", "tensorboardX") if tracker == "tensorboard" else (tracker,)
    return any(importlib.util.find_spec(name) is not None for name in names)
