"""Trackers get the numbers and the settings of a run; those that are not installed are skipped."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPORTS, EVALUATIONS = [2, 4, 6], [3, 6]

pytestmark = pytest.mark.timeout(180)


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


def follow(tracker: str, models: Path, out: Path) -> None:
    """Train in a process of its own: trackers read the environment when they are imported."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(out),
        "TRACKIO_DIR": str(out / "trackio"),
        "HOME": str(out),
    }
    command = [sys.executable, "-m", "tests.training.tracked_run", str(models), str(out), tracker]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@needs("tensorboard")
@pytest.mark.filterwarnings("default")
def test_tensorboard_has_the_curves(models: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    follow("tensorboard", models, tmp_path)
    events = EventAccumulator(str(tmp_path / "logs" / "first"))
    events.Reload()
    for name in ("train/total_loss", "train/lm_loss", "train/grad_norm", "train/tokens_per_second"):
        assert [event.step for event in events.Scalars(name)] == REPORTS
    assert [event.value for event in events.Scalars("train/learning_rate")] == [0.5] * 3
    assert [event.step for event in events.Scalars("eval/loss")] == EVALUATIONS


@needs("trackio")
def test_trackio_has_the_numbers_and_the_settings(models: Path, tmp_path: Path) -> None:
    follow("trackio", models, tmp_path)
    with sqlite3.connect(tmp_path / "trackio" / "mol.db") as kept:
        rows = kept.execute("select run_name, step, metrics from metrics order by id").fetchall()
        ((settings,),) = kept.execute("select config from configs").fetchall()
    found = [(name, step, json.loads(metrics)) for name, step, metrics in rows]
    assert {name for name, _, _ in found} == {"first"}
    assert [step for _, step, metrics in found if "train/lm_loss" in metrics] == REPORTS
    assert [step for _, step, metrics in found if "eval/lm_loss" in metrics] == EVALUATIONS
    assert json.loads(settings)["learning_rate"] == 0.5


@needs("wandb")
def test_wandb_has_the_numbers_and_the_settings(models: Path, tmp_path: Path) -> None:
    follow("wandb", models, tmp_path)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    kept = file.read_bytes()  # its reader is not public: records of name and value, in order
    assert all(word in kept for word in (b"mol", b"first", b"gradient_accumulation_steps", b"train/tokens_per_second"))
    assert kept.count(b"eval/lm_loss") >= len(EVALUATIONS)
    assert kept.count(b"train/lm_loss") >= len(REPORTS)
