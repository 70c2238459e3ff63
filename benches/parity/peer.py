"""Runs mergekit by its command alone, many recipes in one process, and says of each whether it made a model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

VERSION: Final = "0.1.5"
_LIMIT: Final = 900.0  # seconds that one process may take
_OPTIONS: Final = ("--no-write-model-card", "-j", "1", "--random-seed", "0", "--quiet")


def install(venv: Path) -> Path:
    """Make a virtual environment with mergekit in it, unless it is there, and return its directory of commands."""
    if not (venv / "bin" / "mergekit-multi").exists():
        uv = shutil.which("uv")
        make = [uv, "venv", "--quiet", "--python"] if uv else [sys.executable, "-m", "venv"]
        subprocess.run([*make, sys.executable, str(venv)] if uv else [*make, str(venv)], check=True)
        python = str(venv / "bin" / "python")
        pip = (
            [uv, "pip", "install", "--quiet", "--python", python] if uv else [python, "-m", "pip", "install", "--quiet"]
        )
        subprocess.run([*pip, f"mergekit=={VERSION}"], check=True)
    return venv / "bin"


@dataclass
class Peer:
    """mergekit, and what it has made.

    Attributes:
        commands: the directory of its commands.
        made: where results lie, each in a directory named by recipe and inputs, so that none is made twice.
        inputs: a digest of what the recipes read.
    """

    commands: Path
    made: Path
    inputs: str

    def directory_of(self, name: str, recipe: Mapping[str, Any]) -> Path:
        """Where the result of a recipe lies, or will."""
        text = json.dumps([recipe, self.inputs, VERSION], sort_keys=True)
        return self.made / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def run(self, recipes: Mapping[str, Mapping[str, Any]]) -> None:
        """Make what is not there; a recipe that fails leaves the end of its output in `failed.txt` of its directory."""
        waiting = {self.directory_of(name, recipe): recipe for name, recipe in recipes.items()}
        todo = [
            directory for directory in waiting if not _is_there(directory) and not (directory / "failed.txt").exists()
        ]
        for with_tokenizer in (False, True):
            self._all(
                [p for p in todo if ("tokenizer_source" in waiting[p]) == with_tokenizer], waiting, with_tokenizer
            )

    def _all(
        self, directories: Sequence[Path], recipes: Mapping[Path, Mapping[str, Any]], with_tokenizer: bool
    ) -> None:
        """One process for all. What stops it is run alone, and the rest continues; if nothing came of it, by halves."""
        while directories:
            said = self._once(directories, recipes, with_tokenizer)
            left = [directory for directory in directories if not _is_there(directory)]
            print(f"mergekit made {len(directories) - len(left)} of {len(directories)}", flush=True)
            if len(directories) == 1 and left:
                shutil.rmtree(directories[0], ignore_errors=True)
                directories[0].mkdir(parents=True)
                (directories[0] / "failed.txt").write_text(said, encoding="utf-8")
                return
            if len(left) == len(directories):
                self._all(left[: len(left) // 2], recipes, with_tokenizer)
                directories = left[len(left) // 2 :]
                continue
            if left:
                self._all(left[:1], recipes, with_tokenizer)
            directories = left[1:]

    def _once(
        self, directories: Iterable[Path], recipes: Mapping[Path, Mapping[str, Any]], with_tokenizer: bool
    ) -> str:
        self.made.mkdir(parents=True, exist_ok=True)
        documents = [{"name": directory.name, **recipes[directory]} for directory in directories]
        file = self.made / "recipes.yml"
        file.write_text(yaml.safe_dump_all(documents, sort_keys=False), encoding="utf-8")
        command = [str(self.commands / "mergekit-multi"), str(file), "-I", str(self.made), *_OPTIONS]
        tokenizer = [] if with_tokenizer else ["--no-copy-tokenizer"]
        own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": "", "PYTHONWARNINGS": "ignore"}
        own["PYTHONHASHSEED"] = "0"  # it numbers the tokens of a union in the order of a set
        done = subprocess.run(
            [*command, *tokenizer],
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_LIMIT,
        )
        return done.stdout[-4000:]


def _is_there(directory: Path) -> bool:
    # config.json is what it writes last.
    return any(directory.glob("*.safetensors")) and (directory / "config.json").exists()
