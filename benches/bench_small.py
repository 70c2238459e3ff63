"""pytest-benchmark: whole merges of models of 63M parameters, each against a copy of one and the same sum in torch.

The figures in brackets are ratios within a group, taken in one run: they are what to read. `make bench-small` runs it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import recipes
from mol import run_merge

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 7


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    script = Path(__file__).with_name("make_family.py")
    subprocess.run([sys.executable, str(script), str(root), "--shape", "small"], check=True)
    return root


def fresh(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("method", recipes.TIMED)
def test_mol(benchmark: BenchmarkFixture, family: Path, tmp_path: Path, method: str) -> None:
    benchmark.group = method
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(recipes.text(method, family))
    out = tmp_path / "out"
    # Not synced, since neither the copy nor the sum is.
    kwargs = {"sync": False}
    benchmark.pedantic(
        run_merge, args=(recipe, out), kwargs=kwargs, setup=lambda: fresh(out), rounds=ROUNDS, warmup_rounds=1
    )


@pytest.mark.parametrize("method", recipes.TIMED)
def test_copy_of_one_model(benchmark: BenchmarkFixture, family: Path, tmp_path: Path, method: str) -> None:
    benchmark.group = method
    out = tmp_path / "out"
    benchmark.pedantic(
        shutil.copytree, args=(family / "base", out), setup=lambda: fresh(out), rounds=ROUNDS, warmup_rounds=1
    )


def test_plain_torch(benchmark: BenchmarkFixture, family: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the extra mol-merge[fusion] is not installed")
    from safetensors.torch import load_file, save_file

    benchmark.group = "linear"
    out = tmp_path / "out.safetensors"

    def merge() -> None:
        first, second = (load_file(family / name / "model.safetensors") for name in ("base", "tuned_a"))
        half = torch.tensor(0.5)
        merged = {name: ((first[name].float() + second[name].float()) * half).bfloat16() for name in first}
        save_file(merged, out, metadata={"format": "pt"})

    benchmark.pedantic(merge, setup=lambda: out.unlink(missing_ok=True), rounds=ROUNDS, warmup_rounds=1)
