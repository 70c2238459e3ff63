"""What a start costs: the modules that are loaded, and memory; `benches/bench_merge.py start` times it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mol.cli import cli

HEAVY = (
    "torch",
    "transformers",
    "huggingface_hub",
    "numpy",
    "yaml",
    "safetensors",
    "tqdm",
    "rich",
    "requests",
    "httpx",
)
PROBE = """
import json, sys
from pathlib import Path
from mol.cli import main
code = main(sys.argv[1:])
sys.stdout.flush()
status = Path("/proc/self/status")
peak = int(status.read_text().split("VmHWM:")[1].split()[0]) if status.exists() else 0
print(json.dumps([code, sorted(sys.modules), peak]), file=sys.stderr)
"""


def start(*line: str) -> tuple[int, set[str], int]:
    """Run a command in a new process: exit code, modules loaded, kB at the peak (0 where it is not reported)."""
    done = subprocess.run([sys.executable, "-c", PROBE, *line], capture_output=True, text=True, check=True)
    code, modules, peak = json.loads(done.stderr.splitlines()[-1])
    return code, set(modules), peak


@pytest.mark.parametrize("line", [["--help"], ["merge", "--help"], ["diff", "-h"], ["--version"]])
def test_help_loads_nothing_heavy(line: list[str]) -> None:
    code, modules, peak = start(*line)
    assert code == 0
    assert modules.isdisjoint(HEAVY)
    assert peak <= 60_000


@pytest.mark.parametrize("line", [["validate", "ties.yml"], ["plan", "ties.yml"], ["ties.yml", "out"]])
def test_local_models_need_yaml_and_the_engine_only(line: list[str], recipe: Path) -> None:
    code, modules, peak = start(*line)
    assert code == 0
    assert modules.isdisjoint(set(HEAVY) - {"yaml"})
    assert peak <= 60_000


def test_a_recipe_of_models_that_are_not_at_hand_needs_no_plan(tmp_path: Path) -> None:
    recipe = tmp_path / "c.yml"
    recipe.write_text("merge_method: linear\nmodels:\n  - {model: nobody/a, parameters: {weight: 1.0}}\n")
    code, modules, _ = start("validate", str(recipe), "--cache-dir", str(tmp_path))
    assert code == 0
    assert modules & {*HEAVY, "mol._rust", "hashlib", "difflib"} == {"yaml"}
    assert {name for name in modules if name.startswith(("mol.merge", "mol.structure"))} == {
        "mol.merge",
        "mol.merge.options",
    }


@pytest.mark.parametrize("line", [["validate", "ties.yml"], ["plan", "ties.yml"]])
def test_a_plan_of_weights_alone_loads_neither_openssl_nor_temporary_files(line: list[str], recipe: Path) -> None:
    _, modules, _ = start(*line)
    assert modules.isdisjoint({"hashlib", "difflib", "tempfile"})


def test_validate_reads_no_row_of_an_adapter(family: Path) -> None:
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (family / "lora").mkdir()
    (family / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    factors = {
        f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{kind}.weight": np.ones(shape, np.float32)
        for i in range(2)
        for kind, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    save_file(factors, family / "lora" / "adapter_model.safetensors")
    (family / "c.yml").write_text("merge_method: passthrough\nmodels: [{model: ./base+./lora}]\n")
    for verb, reads in (("validate", False), ("plan", True)):
        code, modules, _ = start(verb, "c.yml")
        assert code == 0
        assert ("mol.merge.surviving" in modules) == reads


def test_a_pipe_that_is_closed_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "mol.cli", "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
        )
    assert "Traceback" not in done.stderr


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("mol-merge")
    if not command.exists():
        pytest.skip("mol-merge is not installed next to this Python; `make build` does it")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mol-merge ")


def test_a_verb_loads_no_other(tmp_path: Path) -> None:
    verbs = {f"mol.cli.{name.replace('-', '_')}" for name in cli.commands}
    _, modules, _ = start("--help")
    assert modules.isdisjoint(verbs)
    _, modules, _ = start("methods", "linear")
    assert modules & verbs == {"mol.cli.methods"}
    (tmp_path / "c.yml").write_text("merge_method: linear\n")
    _, modules, _ = start(str(tmp_path / "c.yml"), str(tmp_path / "out"))
    assert modules & verbs == {"mol.cli.merge"}
