"""What the configuration's tests are written with: small recipes to spoil, their refusals, and a count of calls."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest

from mol.config import MergeConfig
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

SLERP = "merge_method: slerp\nbase_model: a\nmodels:\n  - model: a\n  - model: b\nparameters:\n  t: 0.5\n"
LINEAR = "merge_method: linear\nmodels:\n  - model: a\n  - model: b\nparameters:\n  weight: 1\n"
TIES = "merge_method: ties\nbase_model: a\nmodels:\n  - model: b\nparameters:\n  weight: 1\n"
PASSTHROUGH = "merge_method: passthrough\nslices:\n  - sources:\n      - {model: a, layer_range: [0, 2]}\n"


def refusal(text: str) -> tuple[str, ...]:
    """Return every problem of a recipe, after checking that the message lists them all."""
    with pytest.raises(ConfigError) as caught:
        MergeConfig.from_yaml(text, "config.yml")
    lines = [f"  - {problem}" for problem in caught.value.problems]
    assert str(caught.value) == "\n".join(["invalid recipe config.yml:", *lines])
    return caught.value.problems


def calls(act: Callable[[], object]) -> int:
    """Count the functions that are called, of Python and of C: what an act costs, the same on any machine."""
    count = 0

    def on_event(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before, collecting = sys.getprofile(), gc.isenabled()
    gc.disable()  # a collection runs callbacks and finalizers of whatever else is in the process
    sys.setprofile(on_event)
    try:
        act()
    finally:
        sys.setprofile(before)
        if collecting:
            gc.enable()
    return count
