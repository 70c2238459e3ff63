"""Estimates how much of what an adapter changes is left when the model is rounded to the dtype of the output."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mol import _rust
from mol.io.arrays import read_arrays
from mol.io.expressions import Expr, Leaf
from mol.merge.plan import InputFile, MergePlan, OutputTensor, Task, sweeps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mol.io.checkpoint import Checkpoint

_ROWS: Final = 4  # of each matrix
_LISTED: Final = 8
_LITTLE: Final = 0.5
_FILE: Final = "model.safetensors"
_AS_IT_IS: Final = {"scale": {"factor": 1.0}}


def with_surviving(model: Checkpoint, plain: Checkpoint, adapter: str, dtype: str | None) -> Checkpoint:
    """Return a model with an adapter that says how much of the change is left in the dtype of the output.

    Args:
        model: with the adapter.
        plain: without it.
        adapter: what the user calls the adapter.
        dtype: of the output; None keeps that of each tensor.

    Raises:
        MolError: a file changed, or cannot be read.
        OSError: the same, or nothing can be written for a while.
    """
    shares = surviving(model, plain, dtype)
    if not shares:
        whole = any(True for _ in _added(model, plain))
        line = (
            f"what rounding leaves of {adapter} in {plain.name} is not estimated, since {plain.name} is made of "
            "whole tensors, which a plan does not read"
        )
        return replace(model, notes=(*model.notes, line)) if whole else model
    words = sorted({dtype or plain.tensors[name].dtype for name in shares})
    parts: dict[str, list[float]] = {}
    for name, share in shares.items():
        parts.setdefault(name.removesuffix(".weight").rpartition(".")[2], []).append(share)
    listed = [f"{part} {_range(found)}" for part, found in list(parts.items())[:_LISTED]]
    listed += [f"{len(parts) - _LISTED} other names"] if len(parts) > _LISTED else []
    line = (
        f"of what {adapter} changes in {plain.name}, rounding to {' and '.join(words)} leaves about "
        f"{_range([*shares.values()])} ({', '.join(listed)}; {_ROWS} rows of each module were looked at)"
    )
    if min(shares.values()) >= _LITTLE:
        return replace(model, notes=(*model.notes, line))
    return replace(model, warnings=(*model.warnings, f"{line}; `dtype: float32` keeps it"))


def surviving(model: Checkpoint, plain: Checkpoint, dtype: str | None) -> dict[str, float]:
    """Return by tensor the share of the change, measured along it, by which the rounded tensors differ.

    It is 1 where nothing is lost, and 0 where the model would be the same without the adapter. The rows are those in
    the middle of a matrix.
    """
    tensors: list[OutputTensor] = []
    tasks: list[Task] = []
    names = []
    for name, before, expr in _added(model, plain):
        if not _by_rows(before):
            continue
        names.append(name)
        rows, columns = plain.tensors[name].shape
        first = max((rows - _ROWS) // 2, 0)
        count = min(_ROWS, rows)
        own = plain.tensors[name].dtype
        for kind, of in (("without", before), ("with", expr)):
            part: Expr = {"rows": {"of": of, "from": first, "to": first + count}}
            for stored in ("F64" if own == "F64" else "F32", dtype or own):
                task = len(tensors)
                tensors.append(OutputTensor(f"{len(names)} {kind} {len(tensors) % 2}", stored, (count, columns), 0))
                tasks.append(Task(task, _AS_IT_IS, (part,)))
    if not names:
        return {}
    inputs = tuple(InputFile(str(file.path), file.size, file.mtime_ns, file.header) for file in model.files)
    plan = MergePlan(inputs, (_FILE,), tuple(tensors), tuple(tasks), model.tables, allow_nonfinite=True)
    with tempfile.TemporaryDirectory(prefix="mol-") as directory:
        partial = Path(directory) / "rows.partial"
        _rust.execute(plan.to_json(), str(partial))
        found = read_arrays(partial / _FILE)
    return {name: _share(found, number) for number, name in enumerate(names, 1)}


def _share(found: Mapping[str, Any], number: int) -> float:
    without, rounded_without, changed, rounded = (
        found[f"{number} {kind} {which}"].astype("f8") for kind in ("without", "with") for which in (0, 1)
    )
    change = changed - without
    size = float((change * change).sum())
    share = float(((rounded - rounded_without) * change).sum()) / size if size else 1.0
    return min(max(share, 0.0), 1.0)


def _added(model: Checkpoint, plain: Checkpoint) -> Iterator[tuple[str, Expr, Expr]]:
    """Yield the matrices of the model that factors are added to, with the expressions of them and of the sum."""
    for name, made in model.made.items():
        if name not in plain.tensors:
            continue
        before: Any = plain.made[name].of[0] if name in plain.made else Leaf(plain.tensors[name].file, name)
        inner: Any = made.of[0]
        while inner != before and isinstance(inner, dict) and ("transpose" in inner or "lora" in inner):
            inner = inner["transpose"] if "transpose" in inner else inner["lora"]["of"]
        if inner == before and made.of[0] != before:
            yield name, before, made.of[0]


def _by_rows(expr: Any) -> bool:  # noqa: ANN401 - any part of an expression
    """Return whether a few rows are made without reading the whole tensor: no step needs to know anything of it."""
    if isinstance(expr, Leaf) or not isinstance(expr, (Mapping, list, tuple)):
        return True
    if isinstance(expr, Mapping):
        method = expr.get("by")
        if method is not None and any(sweeps(kind) > 1 for kind in method):
            return False
        return all(_by_rows(part) for key, part in expr.items() if key != "by")
    return all(map(_by_rows, expr))


def _range(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low.removesuffix('%')} to {high}"
