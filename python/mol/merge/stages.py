"""A planned merge as a model of the next one: its tensors are made while they are read, and none is written."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mol.dtypes import BYTES
from mol.io.checkpoint import Checkpoint, CheckpointFile, Made, TensorInfo
from mol.io.expressions import Leaf, with_tables
from mol.io.json_file import read_object
from mol.io.layout import CONFIG
from mol.merge.plan import COPY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.io.expressions import Expr
    from mol.io.step_files import StepFiles
    from mol.merge.plan import Method, Task
    from mol.merge.planned import PlannedMerge

# Methods that compute in f32 where the result is f32; the others do so in f64, as `WIDE` of the engine's says.
_IN_F32: Final = frozenset({
    "ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear", "sce",
    "consensus_ta", "consensus_ties", "magmax", "localize_and_stitch", "pcb", "cabs", "mergekit",
})  # fmt: skip


def as_checkpoint(name: str, planned: PlannedMerge, own_files: StepFiles | None) -> Checkpoint:
    """Return the result of a stage as a model, with the same bytes as if it had been written and read.

    Args:
        name: what the recipe calls it.
        planned: the stage.
        own_files: what is next to its weights; None where it has the files of its base.
    """
    plan = planned.plan
    files = tuple(CheckpointFile(Path(file.path), file.size, file.mtime_ns, file.header) for file in plan.inputs)
    stored = _stored(planned)
    tensors: dict[str, TensorInfo] = {}
    made: dict[str, Made] = {}
    tasks = {number: list(group) for number, group in groupby(plan.tasks, key=lambda task: task.tensor)}
    for number, tensor in enumerate(plan.tensors):
        dtype = tensor.dtype
        size = math.prod(tensor.shape) * _bytes_of(dtype)
        tensors[tensor.name] = TensorInfo(dtype, tensor.shape, size, 0)
        of = tasks[number][0].of
        if dtype in BYTES:
            exprs = [_rounded(task, planned, stored, dtype) for task in tasks[number]]
            expr: Expr = exprs[0] if len(exprs) == 1 else {"stack": exprs}
            of = (with_tables(expr, f"{name}:") if plan.tables else expr,)
        made[tensor.name] = Made(of, size * len(of))
    counted = ", ".join(f"{count} by {method}" for method, count in planned.methods.items())
    return Checkpoint(
        name,
        planned.donor.directory if own_files is None else own_files.directory,
        None,
        files,
        tensors,
        planned.model_config if own_files is None else read_object(own_files.directory / CONFIG),
        tuple(f"{name}: {line}" for line in planned.warnings),
        (
            f"{name} is made while it is read, and not written: {len(tensors)} tensors ({counted})",
            *(f"{name}: {line}" for line in (*planned.notes, *planned.copied, *planned.dropped)),
        ),
        made,
        {f"{name}:{table}": rows for table, rows in plan.tables.items()},
        planned.parts(),
        own_files or planned.donor.own_files,
    )


def _rounded(task: Task, planned: PlannedMerge, stored: Mapping[tuple[str, str], str], dtype: str) -> Expr:
    """Return what a task makes, rounded as it would be in a file."""
    name, shape = planned.plan.tensors[task.tensor].name, planned.plan.tensors[task.tensor].shape
    start = task.row * (shape[-1] if len(shape) > 1 else 1)
    # As the engine calls a task whose rows do not begin the tensor; what a step draws does not change with its user.
    drawn_as = f"{name}[{start}]" if start else name
    of = [_drawn_as(expr, drawn_as) for expr in task.of]
    expr: Expr = of[0] if task.by is COPY else _drawn_as(computed(task.by, of, dtype), drawn_as)
    path = planned.plan.inputs[expr.input].path if isinstance(expr, Leaf) else ""
    if isinstance(expr, Leaf) and stored.get((path, expr.tensor)) == dtype:
        return expr
    return {"cast": {"of": expr, "to": dtype}}


def _drawn_as(expr: Expr, name: str) -> Expr:
    """Return the result of a method, or what is scaled of it, with the name by which the method draws if it does."""
    if isinstance(expr, Leaf) or "merged" not in expr or "drawn_as" in expr["merged"]:
        return expr
    draws = any("models" in numbers for numbers in expr["merged"]["by"].values())
    return {"merged": {**expr["merged"], "drawn_as": name}} if draws else expr


def computed(by: Method, of: Sequence[Expr], dtype: str) -> Expr:
    """Return the result of a method, computed as precisely as for a tensor of a dtype that is written."""
    if made_in_f64(by, dtype):
        of = [{"cast": {"of": expr, "to": "F64"}} for expr in of]
    return {"merged": {"by": by, "of": list(of)}}


def made_in_f64(by: Method, dtype: str) -> bool:
    """Return whether a method computes a tensor of a dtype in f64 though no source is."""
    return dtype == "F64" or (dtype == "F32" and _IN_F32.isdisjoint(by))


def _stored(planned: PlannedMerge) -> dict[tuple[str, str], str]:
    """Return the dtypes of the tensors of files, by file and name."""
    return {
        (str(source.files[info.file].path), name): info.dtype
        for source in planned.sources
        for name, info in source.tensors.items()
        if name not in source.made
    }


def _bytes_of(dtype: str) -> int:
    return 1 if dtype == "BOOL" else int(dtype.lstrip("BFIU")) // 8
