"""Checks one model type in a process of its own, and writes what it finds as it goes."""

from __future__ import annotations

import json
import os
import resource
import time
import warnings
from typing import TYPE_CHECKING, Any, Final

import checks
import torch
import transformers
from tiny_configs import tiny_config
from transformers.utils import logging

from mol.architecture.classes import find_kind
from mol.architecture.family import find_family, find_inputs
from mol.core.blocks.source import Source
from mol.core.blocks.stacks import find_stacks
from mol.errors import MolError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

MEMORY: Final = 8 << 30
"""Bytes of address space that a worker may have; torch itself maps about 3 GiB."""
_WORDS: Final = 160


def judge(model_type: str, path: Path) -> None:
    """Run every check of a type.

    Args:
        model_type: its name.
        path: the JSON that is written after each check, so that what a dying process knew is kept.
    """
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    Judge(model_type, path).run()


class Judge:
    """One type's row in the making."""

    def __init__(self, model_type: str, path: Path) -> None:
        """Start an empty row."""
        self._path = path
        self._started = time.monotonic()
        self.row: dict[str, Any] = {
            "type": model_type,
            "transformers": transformers.__version__,
            "stage": "config",
            "checks": {},
        }
        self._save()

    def run(self) -> None:
        """Fill the row."""
        self._judge()
        self.row["stage"] = "done"
        self._save()

    def _judge(self) -> None:
        try:
            config = tiny_config(self.row["type"])
            kind = find_kind(config)
            self.row["family"] = str(find_family(config, kind))
            self.row["reads"] = sorted(find_inputs(config, kind))
            self._enter("model")
            model = checks.build(config)
        except checks.FAILURES as error:
            self.row |= {"failed": line_of(error), "failed_in": self.row["stage"]}
            return
        self._enter("trace")
        try:
            source = self._source(model)
        except checks.FAILURES as error:
            self.row |= {"failed": line_of(error), "failed_in": self.row["stage"]}
            return
        self.row |= {
            "stack": source.stack,
            "way": str(source.driver.inputs.way),
            "fixed": source.driver.is_fixed,
        }
        self._check("source", lambda: checks.replay(source))
        self._enter("content")
        try:
            self.row["content"] = source.sees_content()
        except checks.FAILURES:
            self.row["content"] = None  # its preludes fail, which the check above has reported
        self._check("host", lambda: checks.host(model, source))
        self._enter("causal source")
        try:
            causal = self._causal_source(model, source.stack)
        except checks.FAILURES as error:
            self.row["fused"] = line_of(error)
            return
        self.row |= {"fused_stack": causal.stack, "made_causal": causal.made_causal}
        for host_type in checks.HOSTS:
            try:
                for name, check in checks.fused_checks(host_type, causal):
                    self._check(f"{name} {host_type}", check)
            except checks.FAILURES as error:
                self.row["fused"] = line_of(error)

    def _source(self, model: PreTrainedModel) -> Source:
        """Trace the stack that mol takes by itself, else the first that can be traced."""
        name = self.row["type"]
        try:
            return Source(model, name)
        except MolError as error:
            first = error
        for stack in find_stacks(model):
            try:
                source = Source(model, name, stack=stack.path)
            except MolError:
                continue
            self.row["named"] = line_of(first)
            return source
        raise first

    def _causal_source(self, model: PreTrainedModel, preferred: str) -> Source:
        """Trace the same stack for the checks next to a host, or the first other one that can be made causal."""
        name = self.row["type"]
        first = Source(model, name, stack=preferred)
        if first.make_causal():
            return first
        for stack in find_stacks(model):
            try:
                other = Source(model, name, stack=stack.path)
                if other.make_causal():
                    return other
            except MolError:
                continue
        return first

    def _enter(self, stage: str) -> None:
        self.row["stage"] = stage
        self._save()

    def _check(self, name: str, check: Any) -> None:  # noqa: ANN401 - a check without arguments
        self._enter(name)
        try:
            note = check()
        except (checks.Failed, *checks.FAILURES) as error:
            self.row["checks"][name] = {"holds": False, "note": line_of(error)}
        else:
            self.row["checks"][name] = {"holds": True, "note": note or ""}
        self._save()

    def _save(self) -> None:
        self.row["seconds"] = round(time.monotonic() - self._started, 1)
        partial = self._path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(self.row, indent=1))
        partial.replace(self._path)


def line_of(error: Exception) -> str:
    """Return an error as one line."""
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, (checks.Failed, MolError)) else f"{type(error).__name__}: "
    return f"{kind}{text}"[: _WORDS * 4]
