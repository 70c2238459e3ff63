"""MoLTrainer: trains the adapters and routers of a fusion, on accelerate."""

from __future__ import annotations

import logging
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from mol.core.expert_loads import check_biased
from mol.core.pretrained.fused_model import FusedModel
from mol.core.runtime import Runtime
from mol.errors import ConfigError, InternalError
from mol.training.accelerating import end_trackers, make_accelerator, prepare_loader, start_trackers
from mol.training.annealing import Annealing
from mol.training.best import BestSoFar
from mol.training.config import TrainingConfig
from mol.training.data import create_simple_dataset, length_of, make_loader
from mol.training.evaluation import evaluate
from mol.training.objective import NAMES, Objective
from mol.training.optimization import parameter_groups, steps_of_run
from mol.training.progress import Progress
from mol.training.resume import Position, checkpoint_named, load_trained, periodic, remove_old, settings_apart
from mol.training.state import TrainingState
from mol.training.stepper import Stepper, StepResult, sum_over_processes
from mol.training.supervision import Teachers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mol.core.mol_runtime import MoLRuntime
    from mol.training.callbacks import TrainingCallback

__all__ = ["MoLTrainer", "TrainingConfig", "create_simple_dataset"]

_log: Final = logging.getLogger("mol")


class MoLTrainer:
    """Trains the adapters and routers of a fusion; its models stay frozen and in eval mode.

    Devices, precision, processes and trackers are accelerate's: `accelerate launch` starts several processes, and each
    step then trains on the batches of all of them as on one. What is trained is kept in float32.

    Attributes:
        mol: the fusion.
        model: the same as a transformers model, which is what checkpoints hold.
        config: the settings.
        global_step: optimiser steps so far.
        current_epoch: the number of the pass over the data, from 0.
        output_dir: where checkpoints are written.
        should_stop: set by a callback, ends training after the current step.
        accelerator: of accelerate.
    """

    def __init__(
        self,
        mol_runtime: MoLRuntime | FusedModel,
        config: TrainingConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        callbacks: Sequence[TrainingCallback] = (),
        teachers: Mapping[int, PreTrainedModel] | None = None,
    ) -> None:
        """Prepare to train a fusion; nothing is written, and it is not changed.

        Args:
            mol_runtime: the fusion, with its layers.
            config: the settings; the defaults if None.
            tokenizer: of texts that `train` is given; the host's if None.
            callbacks: are called while it trains, in their order.
            teachers: whole models by domain; with `distillation_coeff`, a row of `domains` learns from its own.

        Raises:
            ConfigError: it is no fusion or has nothing to train, or a tracker is not installed.
        """
        runtime = mol_runtime.runtime if isinstance(mol_runtime, FusedModel) else mol_runtime
        if not isinstance(runtime, Runtime):
            raise ConfigError(
                f"MoLTrainer trains a MoLRuntime, not a {type(runtime).__name__}; transformers' Trainer trains other "
                "models, a mixture too"
            )
        self.config = TrainingConfig() if config is None else config
        self.config.check_trackers()
        self.mol: MoLRuntime = runtime  # type: ignore[assignment]
        self.model = self.mol.as_model()
        self.callbacks = tuple(callbacks)
        self.output_dir = Path(self.config.output_dir)
        self.global_step = self.current_epoch = 0
        self.should_stop = False
        parameter_groups(self.model.named_parameters(), self.config)  # to refuse early
        self._tokenizer = tokenizer
        self.accelerator = make_accelerator(self.config, self.mol)
        if self.mol.config.balance == "bias":
            check_biased(self.mol.fusion().layers)
        self._teachers = Teachers.checked(teachers, self.config.distillation_coeff, self.mol)
        self._annealing = Annealing(self.mol, self.config.dense_steps)
        self._objective = self._make_objective()
        self._stepper: Stepper | None = None
        self._best = BestSoFar()
        self._position = Position()
        self._resumed: TrainingState | None = None

    @property
    def best_loss(self) -> float:
        """The lowest `eval_loss` so far."""
        return self._best.loss

    @property
    def optimizer(self) -> Any:  # noqa: ANN401 - as accelerate wraps it
        """The optimiser; None until `setup_optimization`."""
        return None if self._stepper is None else self._stepper.optimizer

    @property
    def scheduler(self) -> torch.optim.lr_scheduler.LambdaLR | None:
        """The schedule of the learning rates; None until `setup_optimization`."""
        return None if self._stepper is None else self._stepper.scheduler

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The one that was given, else the host's."""
        return self.mol.tokenizer if self._tokenizer is None else self._tokenizer

    def freeze_experts(self) -> None:
        """Freeze all models, as they always are: neither trained nor in training mode."""
        for source in self.mol.fusion().sources.values():
            source.model.requires_grad_(requires_grad=False).eval()

    def setup_optimization(self, steps: int | None = None) -> None:
        """Make optimiser and schedule; `train` does so itself.

        Args:
            steps: of the whole run; `max_steps` if None. Without either the rates are constant after the warm-up.
        """
        self.freeze_experts()
        self.accelerator.free_memory()
        self._objective = self._make_objective()
        # A fusion with devices of its own stays where it is.
        move = self.mol.config.device_map is None
        steps = self.config.max_steps if steps is None else steps
        self._stepper = Stepper(self.accelerator, self._objective, self.config, steps, move=move)

    def compute_loss(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of one batch, with its gradient, and its terms; nothing is trained.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 for padding, which never counts.
            labels: (B, T), -100 for what does not count; the tokens if None.

        Returns:
            The loss (), and `lm_loss`, of the host's head; `load_balance_loss`, 1 where experts share tokens alike;
            `router_entropy`, in nats; `entropy_penalty`, that times its coefficient; and `total_loss`.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        batch = self._objective.prepared({name: value for name, value in given.items() if value is not None})
        self._objective.start_step()
        with self.accelerator.autocast():
            loss, terms = self._objective(batch, *self._objective.counts(batch).clamp(min=1.0))
        return loss, self._objective.named(terms)

    def train_step(self, batch: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Train on one batch, and return what `compute_loss` does, with `learning_rate` and `grad_norm`.

        Raises:
            FusionError: loss or gradients are not finite; nothing was changed.
        """
        if self._stepper is None:
            self.setup_optimization()
        made = self._step([batch])
        return self._stepped.metrics(made.terms, made.norm)

    def train(
        self,
        train_dataloader: DataLoader[Any] | Any,  # noqa: ANN401 - rows and texts too
        eval_dataloader: DataLoader[Any] | Any | None = None,  # noqa: ANN401
        *,
        resume_from_checkpoint: bool | str | Path = False,
    ) -> None:
        """Train, and write a `final_checkpoint`, and a `best_checkpoint` if there are data to evaluate on.

        Args:
            train_dataloader: of batches, dictionaries with `input_ids` (B, T), `attention_mask` and `labels`; or rows,
                a dataset or list of such dictionaries of one row each; or texts, as `create_simple_dataset` takes them.
            eval_dataloader: the same, to evaluate on.
            resume_from_checkpoint: what `load_checkpoint` is to load first; True for the latest periodic checkpoint in
                `output_dir`, if there is one.

        Raises:
            ConfigError: the data are something else, or settings do not go together with them.
            FusionError: loss or gradients are not finite, or a batch does not fit the models.
            OSError: a checkpoint cannot be written.
        """
        if eval_dataloader is None and self.config.early_stopping_patience is not None:
            raise ConfigError("early_stopping_patience is set, and there are no data to evaluate on")
        given = resume_from_checkpoint
        found = (periodic(self.output_dir)[-1:] if given is True else [given]) if given else []
        for path in found:
            self.load_checkpoint(path)
        loader = self._loader(train_dataloader, shuffle=True)
        checked = None if eval_dataloader is None else self._loader(eval_dataloader, shuffle=False)
        per_epoch = length_of(loader)
        steps = steps_of_run(self.config, per_epoch)
        self._position = Position(per_epoch)
        if self._resumed is not None:
            self._position.check(self._resumed)
        self.setup_optimization(steps)
        self._begin()
        before = self.mol.training
        progress = Progress(steps, self.global_step, shown=self.accelerator.is_local_main_process)
        try:
            start_trackers(self.accelerator, self.config)
            self._call("on_train_begin")
            self._run(loader, checked, steps, progress)
            if checked is not None and self._best.evaluated != self.global_step:
                self._evaluate_and_keep(checked, progress)
            self.save_checkpoint(is_final=True)
            self._call("on_train_end")
        finally:
            progress.close()
            end_trackers(self.accelerator)
            self._annealing.end()
            self.model.train(before)

    def evaluate(self, dataloader: DataLoader[Any] | Any) -> dict[str, float]:  # noqa: ANN401 - rows and texts too
        """Return means over all tokens of some data, in eval mode: dropout and noise are off.

        Args:
            dataloader: as `train` takes it.

        Returns:
            `eval_lm_loss`, of the host's head; `eval_router_entropy`; and `eval_loss`, with the terms of the routers.

        Raises:
            ConfigError: there is no label to count in the data.
        """
        return evaluate(self.accelerator, self._objective, self._loader(dataloader, shuffle=False))

    def save_checkpoint(self, is_best: bool = False, is_final: bool = False) -> Path:
        """Write `best_checkpoint`, `final_checkpoint` or else `checkpoint_step_N` in `output_dir`, and return its name.

        `NAME.safetensors` is what `MoLRuntime.save_checkpoint` writes; `NAME.state.safetensors` is all that
        `load_checkpoint` needs to go on. Each is replaced in one step, so that a kill leaves whole files.

        Raises:
            OSError: it cannot be written.
        """
        name = "final_checkpoint" if is_final else f"checkpoint_step_{self.global_step}"
        path = self.output_dir / ("best_checkpoint" if is_best else name)
        state = self._state()  # from all processes
        if self.accelerator.is_main_process:
            self.mol.save_checkpoint(path)
            state.write(path)
            if not is_best and not is_final:
                remove_old(self.output_dir, self.config.save_total_limit)
        self.accelerator.wait_for_everyone()
        self._call("on_save", path)
        return path

    def load_checkpoint(self, path: str | Path) -> None:
        """Load a checkpoint into the fusion; `train` then continues where it was written, bit for bit.

        Args:
            path: as `save_checkpoint` returned it; the names of its files are taken too.

        Raises:
            CheckpointError: it is damaged, something else wrote it, or it is of another fusion; nothing was changed.
            ConfigError: the number of processes, or a setting that the position in the data depends on, is another.
            OSError: it is missing.
        """
        state = TrainingState.read(checkpoint_named(path))
        problems = settings_apart(state.progress, self.config, self.accelerator.num_processes)
        if problems:
            raise ConfigError.listing(f"{path} cannot be continued", problems)
        load_trained(self.mol, state.weights, str(path))
        self._resumed = state
        self.global_step, self.current_epoch = state.progress["global_step"], state.progress["current_epoch"]
        self._best = BestSoFar.read(state.progress)

    def _state(self) -> TrainingState:
        progress = {
            "processes": self.accelerator.num_processes,
            "global_step": self.global_step,
            "current_epoch": self.current_epoch,
            "batches": self._position.batches,
            "per_epoch": self._position.per_epoch,
            **self._best.progress(),
            "settings": self.config.to_dict(),
        }
        optimizer = None if self.optimizer is None else self.optimizer.optimizer
        return TrainingState.gather(progress, self.mol.state_dict(), optimizer, self._position.random)

    def _loader(self, data: Any, *, shuffle: bool) -> Any:  # noqa: ANN401 - in and out, whatever is given
        loader = make_loader(data, self.config.batch_size, lambda: self.tokenizer, shuffle=shuffle)
        return prepare_loader(self.accelerator, loader, even=shuffle)

    def _begin(self) -> None:
        from accelerate.utils import set_seed

        self.should_stop = False
        if self._resumed is None:
            set_seed(self.config.seed)
            self.global_step = self.current_epoch = 0
            self._best = BestSoFar()
            return
        self._stepped.go_on(self._resumed.optimizer, self.global_step)

    def _run(self, loader: Any, checked: Any, steps: int | None, progress: Progress) -> None:  # noqa: ANN401
        since = torch.zeros(len(NAMES), device=self.accelerator.device)
        count, accumulated = 0, self.config.gradient_accumulation_steps
        for epoch in range(self.current_epoch, self.config.max_epochs):
            self.current_epoch = epoch
            batches = self._position.start(loader, epoch, accumulated, self._resumed)
            self._resumed = None
            while self.global_step != steps and (group := list(islice(batches, accumulated))):
                made = self._step(group)
                self._position.batches += len(group)
                since += made.terms
                count += 1
                progress.step(made.tokens)
                if self.callbacks:
                    self._call("on_step_end", self._stepped.metrics(made.terms, made.norm))
                done = self.should_stop or self.global_step == steps
                if done or self.global_step % self.config.logging_steps == 0:
                    self._report(self._stepped.metrics(since / count, made.norm), progress)
                    since.zero_()
                    count = 0
                if checked is not None and self._is_due(self.config.eval_steps):
                    self._evaluate_and_keep(checked, progress)
                if self._is_due(self.config.save_steps):
                    self.save_checkpoint()
                if self.should_stop:
                    return
            if self.global_step == steps:
                return

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.global_step % every == 0

    @property
    def _stepped(self) -> Stepper:
        if self._stepper is None:
            raise InternalError("a step was requested before setup_optimization")
        return self._stepper

    def _step(self, batches: Sequence[Any]) -> StepResult:
        """Train on the batches of one optimiser step."""
        self._annealing.set_for(self.global_step)
        self.mol.loads.clear()
        before = self.mol.gradient_checkpointing
        self.mol.gradient_checkpointing = before or self.config.use_gradient_checkpointing
        try:
            made = self._stepped.step(batches, self.global_step + 1)
        finally:
            self.mol.gradient_checkpointing = before
        if self.mol.config.balance == "bias":
            self.mol.update_expert_biases(self.config.bias_update_rate)
        self.global_step += 1
        return made

    def _make_objective(self) -> Objective:
        made = Objective(self.model, self.config, partial(sum_over_processes, self.accelerator), self._teachers)
        self.mol.watch_shares(made.coefficients["load_balance_loss"], made.coefficients["router_entropy"])
        return made

    def _report(self, metrics: dict[str, float], progress: Progress) -> None:
        rate = progress.report(metrics)
        logged = {f"train/{name}": value for name, value in metrics.items()}
        self.accelerator.log({**logged, "train/tokens_per_second": rate}, step=self.global_step)

    def _evaluate_and_keep(self, checked: Any, progress: Progress) -> None:  # noqa: ANN401 - a loader
        """Evaluate, write the best checkpoint if it is, and decide whether to stop early."""
        metrics = self.evaluate(checked)
        loss = metrics["eval_loss"]
        progress.write(f"step {self.global_step}: eval_loss {loss:.4f}, eval_lm_loss {metrics['eval_lm_loss']:.4f}")
        self.accelerator.log({f"eval/{name[5:]}": value for name, value in metrics.items()}, step=self.global_step)
        if self._best.see(loss, self.global_step, self.config.early_stopping_threshold):
            self.save_checkpoint(is_best=True)
        patience = self.config.early_stopping_patience
        if patience is not None and self._best.without_gain >= patience:
            progress.write(f"step {self.global_step}: {patience} evaluations without a lower loss, training ends")
            self.should_stop = True
        self._call("on_evaluate", metrics)

    def _call(self, what: str, *given: object) -> None:
        for callback in self.callbacks:
            getattr(callback, what)(self, *given)
