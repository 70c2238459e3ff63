"""A run continues from a checkpoint as if it had never ended, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from mol.core.mol_runtime import MoLRuntime
from mol.errors import CheckpointError, ConfigError
from mol.training import MoLTrainer, TrainingCallback, TrainingConfig
from mol.training.data import collate_rows
from mol.training.state import TrainingState, optimizer_state, random_state
from tests.core.test_safe_writes import STEPS, in_a_process_of_its_own
from tests.core.zoo import tokens_of
from tests.training.toolkit import assert_same, rows_of, weights_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.core.conftest import Fuse
    from tests.training.conftest import Train

# Six batches an epoch, three steps of two: the steps below end one, two and four batches into an epoch.
ROWS = rows_of(*[5, 9, 7, 6] * 5, 8, 4)
RUN: dict[str, Any] = {
    "batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 24, "learning_rate": 1e-2, "warmup_steps": 3,
    "router_learning_rate": 1e-2, "lr_scheduler_type": "cosine",
}  # fmt: skip
NOISY = {"router_type": "token", "adapter_type": "bottleneck"}


class SaveAt(TrainingCallback):
    """Writes checkpoints after some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_step_end(self, trainer: MoLTrainer, metrics: Mapping[str, float]) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint()


def left_by(made: MoLTrainer) -> dict[str, torch.Tensor]:
    """All that a run leaves: weights, what the optimiser keeps, generators."""
    kept = optimizer_state(made.optimizer.optimizer)
    optimizer = {f"{name}/{key}": value for name, one in kept.items() for key, value in one.items()}
    return {**weights_of(made.mol), **optimizer, **random_state()}


@pytest.mark.parametrize("own", [False, True])
def test_a_run_continues_bit_for_bit_after_1_7_and_20_steps(own: bool, trainer: Train, tmp_path: Path) -> None:
    def data() -> Any:  # noqa: ANN401
        if not own:
            return ROWS
        # A loader that draws its order from a generator of its own.
        generator = torch.Generator().manual_seed(5)
        return DataLoader(ROWS, batch_size=4, shuffle=True, generator=generator, collate_fn=collate_rows)

    whole = trainer(fusion=NOISY, **RUN, options={"callbacks": [SaveAt(1, 7, 20)]})
    whole.train(data(), rows_of(6))
    wanted = left_by(whole)
    for steps in (1, 7, 20):
        torch.manual_seed(steps)
        again = trainer(fusion={**NOISY, "seed": 9}, **RUN)
        again.load_checkpoint(tmp_path / "out" / f"checkpoint_step_{steps}")
        assert again.global_step == steps
        again.train(data(), rows_of(6))
        assert again.global_step == 24
        assert again.best_loss == whole.best_loss
        assert_same(left_by(again), wanted)


def test_a_longer_run_continues_from_a_final_checkpoint(trainer: Train, tmp_path: Path) -> None:
    settings = {**RUN, "lr_scheduler_type": "constant"}
    whole = trainer(**settings)
    whole.train(ROWS)
    trainer(**{**settings, "max_steps": 10}).train(ROWS)
    again = trainer(**settings)
    again.train(ROWS, resume_from_checkpoint=tmp_path / "out" / "final_checkpoint.safetensors")
    assert_same(left_by(again), left_by(whole))


def test_a_checkpoint_is_what_load_checkpoint_of_a_runtime_reads(trainer: Train, tmp_path: Path) -> None:
    made = trainer(max_steps=2, batch_size=4, save_steps=1)
    made.train(ROWS, rows_of(6))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    ends = (".safetensors", ".state.safetensors")
    stems = ("checkpoint_step_1", "checkpoint_step_2", "best_checkpoint", "final_checkpoint")
    assert names == {stem + end for stem in stems for end in ends}
    loaded = MoLRuntime.load_checkpoint(tmp_path / "out" / "final_checkpoint")
    assert_same(weights_of(loaded), weights_of(made.mol))
    ids = tokens_of(2, 7)
    with torch.no_grad():
        assert torch.equal(loaded(ids)[0], made.mol(ids)[0])


def test_only_the_newest_periodic_checkpoints_are_kept(trainer: Train, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint_step_mine.state.safetensors").touch()
    trainer(max_steps=5, batch_size=4, save_steps=1, save_total_limit=2).train(ROWS)
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if "state" in path.name)
    assert names == [f"{name}.state.safetensors" for name in (
        "checkpoint_step_4", "checkpoint_step_5", "checkpoint_step_mine", "final_checkpoint",
    )]  # fmt: skip
    assert not (tmp_path / "out" / "checkpoint_step_3.safetensors").exists()


def test_the_latest_checkpoint_is_found(trainer: Train, tmp_path: Path) -> None:
    first = trainer(**{**RUN, "save_steps": 2}, options={"callbacks": [StopAt(11)]})
    first.train(ROWS)
    again, whole = trainer(**RUN), trainer(**RUN, options={"callbacks": [StopAt(11)]})
    again.train(ROWS, resume_from_checkpoint=True)
    whole.train(ROWS)
    assert again.global_step == 24
    fresh = trainer(**{**RUN, "output_dir": str(tmp_path / "elsewhere")})
    fresh.train(ROWS, resume_from_checkpoint=True)  # there is none: it begins
    assert_same(left_by(again), left_by(fresh))


class StopAt(TrainingCallback):
    """Ends training after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: MoLTrainer, metrics: Mapping[str, float]) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 2}, "batch_size was 4 and is 2"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps was 2 and is 1"),
        ({"seed": 1}, "seed was 42 and is 1"),
    ],
)
def test_settings_that_the_position_in_the_data_depends_on_must_be_equal(
    settings: dict[str, int], says: str, trainer: Train, tmp_path: Path
) -> None:
    trainer(**{**RUN, "max_steps": 1}).train(ROWS)
    again = trainer(**{**RUN, **settings})
    before = weights_of(again.mol)
    with pytest.raises(ConfigError, match=says):
        again.load_checkpoint(tmp_path / "out" / "final_checkpoint")
    assert_same(weights_of(again.mol), before)


def test_other_data_are_refused(trainer: Train, tmp_path: Path) -> None:
    trainer(**{**RUN, "max_steps": 1}).train(ROWS)
    again = trainer(**RUN)
    again.load_checkpoint(tmp_path / "out" / "final_checkpoint")
    with pytest.raises(ConfigError, match="was written in data of 6 batches, and these have 3"):
        again.train(ROWS[:12])


def test_damaged_and_foreign_checkpoints_are_refused(trainer: Train, fuse: Fuse, tmp_path: Path) -> None:
    trainer(**{**RUN, "max_steps": 1}).train(ROWS)
    name, file = tmp_path / "out" / "final_checkpoint", tmp_path / "out" / "final_checkpoint.state.safetensors"
    other = MoLTrainer(fuse("gpt2", "llama", layers=(1,)), TrainingConfig(**{**RUN, "output_dir": str(tmp_path)}))
    with pytest.raises(CheckpointError, match="is of another fusion than this one"):
        other.load_checkpoint(name)
    with pytest.raises(FileNotFoundError, match=r"other\.state\.safetensors is missing"):
        other.load_checkpoint(tmp_path / "other")
    (tmp_path / "alone.state.safetensors").write_bytes((tmp_path / "out" / "final_checkpoint.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="holds no state of a training run, so MoLTrainer did not write it"):
        other.load_checkpoint(tmp_path / "alone")
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(CheckpointError, match="it is damaged or edited"):
        trainer(**RUN).load_checkpoint(name)


def test_a_later_format_is_named(trainer: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("mol.training.state._FORMAT", 2)
        trainer(**{**RUN, "max_steps": 1}).train(ROWS)
    with pytest.raises(
        ConfigError, match=r"final_checkpoint\.state\.safetensors is in format 2, written by mol .* reads"
    ):
        trainer(**RUN).load_checkpoint(tmp_path / "out" / "final_checkpoint")


def test_a_save_that_is_killed_at_any_step_leaves_the_old_or_the_new_state(trainer: Train, tmp_path: Path) -> None:
    made, batch = trainer(fusion=NOISY, learning_rate=1e-2, lr_scheduler_type="constant"), collate_rows(ROWS[:4])
    made.train_step(batch)
    path = made.save_checkpoint(is_best=True)
    old, before = TrainingState.read(path), {file.name: file.read_bytes() for file in path.parent.iterdir()}
    made.train_step(batch)
    found, died = [], True
    while died:
        for name, content in before.items():
            (path.parent / name).write_bytes(content)
        left = [len(found)]

        def watch(event: str, arguments: tuple[object, ...], left: list[int] = left) -> None:
            if event in STEPS and str(path.parent) in str(arguments[0]):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

        def save(watch: Callable[[str, tuple[object, ...]], None] = watch) -> None:
            sys.addaudithook(watch)
            made.save_checkpoint(is_best=True)

        died = in_a_process_of_its_own(save) == 9
        state, weights = TrainingState.read(path), load_file(path.with_suffix(".safetensors"))
        # Weights, optimiser and numbers are of one step, and so is the file for MoLRuntime.load_checkpoint.
        for kept, step in ((state.weights, state.progress["global_step"]), (weights, None)):
            is_old = all(map(torch.equal, kept.values(), old.weights.values()))
            assert step in (None, 1 if is_old else 2)
            if not is_old:
                assert_same(kept, weights_of(made.mol))
        found.append(state.progress["global_step"])
    assert set(found) == {1, 2}
    assert found == sorted(found)
    assert len(found) > 16


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_killed_run_continues_bit_for_bit(trainer: Train, tmp_path: Path) -> None:
    whole = trainer(fusion=NOISY, **RUN)
    whole.train(ROWS)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.training.killed_run", str(Path.cwd()), str(out)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) as run:
        while not (out / "checkpoint_step_9.state.safetensors").exists() and run.poll() is None:
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert not (out / "final_checkpoint.safetensors").exists()
    again = trainer(fusion={**NOISY, "seed": 9}, **{**RUN, "output_dir": str(out)})
    again.train(ROWS, resume_from_checkpoint=True)
    assert again.global_step == 24
    assert_same(left_by(again), left_by(whole))
