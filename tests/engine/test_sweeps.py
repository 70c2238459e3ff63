"""Several results of one reading: the bytes of tasks apart, each claimed by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mol.errors import MolError
from tests.engine.toolkit import (
    Case,
    encode,
    execute,
    linear,
    outputs,
    plan_of,
    preflight,
    read_header,
    shard_bytes,
    slerp,
    task_arithmetic,
    ties,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.toolkit import Method, Plan

RECIPES: dict[str, tuple[Method, str]] = {
    "ties": (ties([1.0], [0.3], rescale=True), "BF16"),
    "wide": (task_arithmetic(0.7), "F32"),
    "arc": (slerp(0.3), "F16"),
}
TENSORS = 7


def plan_for(directory: Path, *recipes: str, apart: bool = False) -> Plan:
    """Each recipe's tensors in a file of its own, made by tasks of one reading or apart."""
    drawn = np.random.default_rng(3)
    shapes = [(3 + i, 9000) for i in range(TENSORS)]
    sources = [tuple(encode(drawn.normal(0, 1, shape), dtype) for dtype in ("BF16", "F32")) for shape in shapes]
    one = plan_of(directory, {f"w{i}": Case(linear(1.0, 1.0), pair, "F32") for i, pair in enumerate(sources)})
    tensors = [
        {"name": f"{name}.w{i}", "dtype": RECIPES[name][1], "shape": list(shape), "output": output}
        for output, name in enumerate(recipes)
        for i, shape in enumerate(shapes)
    ]
    read = [task["of"] for task in one["tasks"]]
    targets = [[{"tensor": TENSORS * output + i, "row": 0} for output in range(len(recipes))] for i in range(TENSORS)]
    methods = [RECIPES[name][0] for name in recipes]
    tasks: list[dict[str, Any]] = [{"to": to, "by": methods, "of": of} for to, of in zip(targets, read, strict=True)]
    if apart:
        tasks = [
            {"to": [targets[i][output]], "by": by, "of": of}
            for output, by in enumerate(methods)
            for i, of in enumerate(read)
        ]
    return one | {"outputs": outputs(*(f"{name}.safetensors" for name in recipes)), "tensors": tensors, "tasks": tasks}


@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"threads": 5, "tile": 1 << 16, "simd": "off"}], ids=str)
def test_results_of_one_reading_are_the_bytes_of_tasks_apart(tmp_path: Path, options: dict[str, Any]) -> None:
    reports = [
        execute(plan_for(tmp_path, *RECIPES, apart=apart), tmp_path / f"{apart}.partial", **options)
        for apart in (False, True)
    ]
    assert reports[0] == reports[1]
    assert shard_bytes(tmp_path / "False.partial") == shard_bytes(tmp_path / "True.partial")


def test_each_output_of_a_sweep_can_be_run_by_itself(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, *RECIPES)
    execute(plan, tmp_path / "whole.partial")
    for output in (2, 0, 1):
        assert execute(plan, tmp_path / "apart.partial", outputs=[output])["resumed"] == 0
    assert execute(plan, tmp_path / "apart.partial")["resumed"] == 3 * TENSORS
    assert shard_bytes(tmp_path / "apart.partial") == shard_bytes(tmp_path / "whole.partial")


def test_a_sweep_that_grows_keeps_what_is_finished_of_it(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    small, grown = plan_for(tmp_path, "ties", "arc", apart=True), plan_for(tmp_path, *RECIPES)
    execute(small | {"inputs": grown["inputs"]}, partial)  # which were written twice
    assert preflight(grown, partial)["resumable"] == 2 * TENSORS
    assert execute(grown, partial)["resumed"] == 2 * TENSORS
    execute(grown, tmp_path / "fresh.partial")
    assert shard_bytes(partial) == shard_bytes(tmp_path / "fresh.partial")


def test_what_is_read_together_is_done_together(tmp_path: Path) -> None:
    """A run that fails at the fourth reading has the first three of every recipe."""
    plan = plan_for(tmp_path, *RECIPES)
    shard = tmp_path / "model-1.safetensors"
    header, start = read_header(shard)
    with shard.open("r+b") as file:
        file.seek(start + header["w3"]["data_offsets"][0])
        file.write(np.float32(np.nan).tobytes())
    info = shard.stat()
    plan["inputs"][1] |= {"mtime_ns": info.st_mtime_ns}
    with pytest.raises(MolError, match="`w3` holds NaN"):
        execute(plan, tmp_path / "out.partial", threads=1)
    done = [
        (tmp_path / "out.partial" / f"{name}.safetensors.journal").read_text().count("crc64nvme") for name in RECIPES
    ]
    assert done == [3, 3, 3]
