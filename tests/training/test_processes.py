"""Two processes train like one with the same global batch."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file

from tests.training.toolkit import apart, assert_same

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


def run(processes: int, models: Path, out: Path, kind: str) -> dict[str, Any]:
    """Train in so many processes with gloo, and return the losses of all steps, evaluations and weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.training.process", str(models), str(out), str(processes), kind]
    started = []
    for rank in range(processes):
        own = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        env = shared if processes == 1 else {**shared, **{name: str(value) for name, value in own.items()}}
        started.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True))
    ended = [(one.communicate()[1], one.returncode) for one in started]
    assert all(code == 0 for _, code in ended), "\n".join(said[-3000:] for said, _ in ended)
    found: dict[str, Any] = json.loads((out / "said.json").read_text())
    return {**found, "weights": load_file(out / "final_checkpoint.safetensors")}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["dense", "top_1", "bias"])
def test_two_processes_train_like_one_with_the_same_global_batch(
    kind: str, tmp_path: Path, models: Path, fuse: Callable[..., Any]
) -> None:
    del fuse  # it moves here to where the models are; so do the processes
    one = run(1, models, tmp_path / "one", kind)
    two = run(2, models, tmp_path / "two", kind)
    assert len(one["losses"]) == 5
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["entropies"] == pytest.approx(one["entropies"], rel=1e-4)
    assert two["balances"] == pytest.approx(one["balances"], rel=1e-4)
    assert two["eval"] == pytest.approx(one["eval"], rel=1e-4)
    assert apart(two["weights"], one["weights"]) < 1e-4
    biases = [value for name, value in one["weights"].items() if name.endswith("expert_bias")]
    assert len(biases) == (2 if kind == "bias" else 0)
    assert all(value.any() for value in biases)  # as many moves up as down are not possible in five steps


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_go_on_bit_for_bit(tmp_path: Path, models: Path, fuse: Callable[..., Any]) -> None:
    del fuse
    whole = run(2, models, tmp_path / "whole", "bias")
    (tmp_path / "rest").mkdir()
    for file in (tmp_path / "whole").glob("checkpoint_step_4.*"):  # one batch into the second epoch
        shutil.copy(file, tmp_path / "rest")
    rest = run(2, models, tmp_path / "rest", "bias")
    assert rest["losses"] == whole["losses"][4:]
    assert_same(rest["weights"], whole["weights"])
