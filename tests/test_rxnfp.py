"""The published family of examples/rxnfp end to end: merged by the command, reloaded, checked by hand."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.fenced import fenced

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = [pytest.mark.fusion, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "rxnfp"
GUIDE = ROOT / "docs" / "merging.md"
PACKAGE = ROOT / "build" / "rxnfp"
BASE = "bert_pretrained"


def load_prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rxnfp_prepare", EXAMPLE / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which the recipes' `build/rxnfp` holds the three checkpoints."""
    pytest.importorskip("torch", reason="the extra mol-merge[fusion] is not installed")
    pytest.importorskip("transformers", reason="the extra mol-merge[fusion] is not installed")
    prepare = load_prepare()
    here = tmp_path_factory.mktemp("rxnfp")
    try:
        prepare.prepare(here / "build" / "rxnfp", PACKAGE)
    except prepare.FetchError as error:
        pytest.skip(str(error))
    return here


@pytest.fixture(scope="module")
def demo(family: Path) -> str:
    """What the demo prints; its merges are left in the family's directory."""
    command = [sys.executable, str(EXAMPLE / "demo.py"), "--package", str(PACKAGE)]
    done = subprocess.run(command, cwd=family, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def weights(family: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(family / "build" / "rxnfp" / name / "model.safetensors")


def test_the_demo_prints_a_loss_for_all_seven(demo: str) -> None:
    lines = demo.split("masked-token loss")[1].splitlines()[1:]
    losses = {line.rsplit(maxsplit=1)[0].strip(): float(line.rsplit(maxsplit=1)[1]) for line in lines if line.strip()}
    assert len(losses) == 7
    # An untrained model of 591 tokens stands at ln 591 = 6.4 nats.
    assert all(0 < loss < 6.4 for loss in losses.values()), losses


def test_linear_is_the_mean_of_the_three_and_keeps_the_heads_of_the_base(family: Path, demo: str) -> None:
    merged, base, bare, prefixed = (
        weights(family, name) for name in ("merged/linear", BASE, "bert_ft", "bert_ft_10k_25s")
    )
    assert set(merged) == set(base)
    shared = [name for name in base if name.startswith("bert.")]
    assert len(shared) == 199
    for name in shared:
        mean = sum(m.astype(np.float64) for m in (base[name], bare[name.removeprefix("bert.")], prefixed[name])) / 3
        np.testing.assert_allclose(merged[name], mean, rtol=1e-6, atol=1e-7, err_msg=name)
    for name in base.keys() - set(shared):
        np.testing.assert_array_equal(merged[name], base[name], err_msg=name)


def test_task_arithmetic_adds_half_of_each_task_vector(family: Path, demo: str) -> None:
    merged, base, bare, prefixed = (
        weights(family, name) for name in ("merged/task_arithmetic", BASE, "bert_ft", "bert_ft_10k_25s")
    )
    for name in (name for name in base if name.startswith("bert.")):
        b = base[name].astype(np.float64)
        wanted = b + 0.5 * (bare[name.removeprefix("bert.")] - b) + 0.5 * (prefixed[name] - b)
        np.testing.assert_allclose(merged[name], wanted, rtol=1e-6, atol=1e-6, err_msg=name)


def test_ties_moves_only_where_a_trimmed_task_vector_is_left(family: Path, demo: str) -> None:
    merged, base = weights(family, "merged/ties"), weights(family, BASE)
    moved = [
        np.mean(merged[name] != base[name]) for name in base if name.startswith("bert.") and base[name].size > 9999
    ]
    # At most the union of two halves; well over nothing.
    assert all(0.3 < share < 1.0 for share in moved), moved


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
def test_a_merge_has_what_a_directory_needs(family: Path, demo: str, method: str) -> None:
    out = family / "build" / "rxnfp" / "merged" / method
    present = {path.name for path in out.iterdir()}
    assert present >= {"config.json", "model.safetensors", "mol_manifest.json", "mergekit_config.yml", "README.md"}
    assert present >= {"tokenizer.json", "tokenizer_config.json"}
    assert (out / "mergekit_config.yml").read_text() == (EXAMPLE / f"{method}.yml").read_text()
    verify = subprocess.run([str(Path(sys.executable).with_name("mol-merge")), "verify", str(out)], check=False)
    assert verify.returncode == 0


def test_the_dropped_head_is_reported(family: Path, demo: str) -> None:
    """The classifier of `bert_ft_10k_25s` matches nothing in the base: dropped, as the card says."""
    card = (family / "build" / "rxnfp" / "merged" / "linear" / "README.md").read_text()
    assert "classifier.weight" in card
    assert "classifier.bias" in card


def shape(line: str) -> str:
    """A printed line without what depends on the machine: times, speeds, free space."""
    return re.sub(r"\d+(\.\d+)? ?(s|ms|[kMG]?B(/s)?)\b", "N", line.strip())


def test_the_guide_shows_what_its_commands_print(family: Path) -> None:
    guide = GUIDE.read_text(encoding="utf-8")
    shutil.copytree(EXAMPLE, family / "examples" / "rxnfp")
    for text in fenced(guide, "console"):
        command, *shown = text.removeprefix("$ mol-merge ").splitlines()
        done = run_command(family, *command.split())
        printed = iter([shape(line) for line in done.splitlines()])
        for line in shown:
            assert line == "..." or shape(line) in printed, f"mol-merge {command} does not print, or not there: {line}"
    recipes = fenced(guide, "yaml")
    assert len(recipes) >= 3
    for number, recipe in enumerate(recipes):
        (family / f"{number}.yml").write_text(recipe, encoding="utf-8")
        assert "tensors   " in run_command(family, "plan", f"{number}.yml")
    ranges = (
        run_command(family, f"{len(recipes) - 1}.yml", "stacked") and (family / "stacked" / "config.json").read_text()
    )
    assert '"num_hidden_layers": 18' in ranges


def run_command(family: Path, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("mol-merge")), *arguments]
    env = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(command, cwd=family, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
