"""What `pip install mol-merge` gives: a command that merges in an environment without torch, from one wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "rust" / "target"))
    run(sys.executable, "-m", "maturin", "build", "--release", "--locked", "--out", out, CARGO_TARGET_DIR=target)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def plain(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a virtual environment that holds the wheel and what it requires."""
    venv = tmp_path_factory.mktemp("plain") / "venv"
    uv = shutil.which("uv")
    if uv is None:
        run(sys.executable, "-m", "venv", venv)
        run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
    else:
        run(uv, "venv", "--quiet", "--python", sys.executable, venv)
        run(uv, "pip", "install", "--quiet", "--python", venv / "bin" / "python", wheel)
    return venv / "bin"


def write_checkpoint(directory: Path, seed: int) -> dict[str, np.ndarray]:
    """A two-layer checkpoint with the names of a Llama."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (16, 8), "model.norm.weight": (8,), "lm_head.weight": (16, 8)}
    shapes |= {f"model.layers.{layer}.mlp.up_proj.weight": (24, 8) for layer in range(2)}
    tensors = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "vocab_size": 16}
    (directory / "config.json").write_text(json.dumps(config))
    return tensors


def test_a_merge_needs_no_torch(plain: Path, tmp_path: Path) -> None:
    missing = "import importlib.util as u; print([n for n in ('torch', 'transformers') if u.find_spec(n)])"
    assert run(plain / "python", "-c", missing).strip() == "[]"
    first, second = (write_checkpoint(tmp_path / name, seed) for seed, name in enumerate(("first", "second")))
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: linear\n"
        "models:\n"
        f"  - {{model: {tmp_path / 'first'}, parameters: {{weight: 0.5}}}}\n"
        f"  - {{model: {tmp_path / 'second'}, parameters: {{weight: 0.5}}}}\n"
    )
    run(plain / "mol-merge", recipe, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert merged.keys() == first.keys()
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor, (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-7, err_msg=name)
    run(plain / "mol-merge", "verify", tmp_path / "out")


def test_the_wheel_holds_the_types_the_licence_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    data = {"mol/_rust.abi3.so", "mol/_rust.pyi", "mol/py.typed", "mol/core/reports/routing_report.html.in"}
    assert {"mol/__init__.py", *data} <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith(("mol/", "mol_merge-"))]


def test_requirements_lists_what_pyproject_lists() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert listed == project["dependencies"] + project["optional-dependencies"]["fusion"]
