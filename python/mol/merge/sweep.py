"""Several results of one reading: the plans of a sweep joined into one, and what lies at the top of its output."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.errors import CheckpointError, MergeError
from mol.io.expressions import Leaf, renumbered, with_tables
from mol.io.json_file import read_object
from mol.io.layout import JOURNAL, SCRATCH, SWEEP
from mol.merge.plan import MergePlan, OutputTensor, Result, Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mol.config import MergeConfig
    from mol.io.expressions import Expr
    from mol.merge.plan import InputFile
    from mol.merge.planned import PlannedMerge

_FORMAT: Final = 1


class _Part(NamedTuple):
    """A result of a task of one of the plans: its tensor in the joined plan, its method and its sources there."""

    tensor: int
    task: Task
    of: tuple[Expr, ...]


def join(config: MergeConfig, results: Mapping[str, PlannedMerge]) -> PlannedMerge:
    """Join the plans of a sweep: each result in a directory, and every tensor of the inputs read for all of them.

    Args:
        config: the recipe with the sweep.
        results: the merges by directory, all of the same tensors.

    Raises:
        MergeError: two results are the same, so the sweep is not what it seems.
    """
    planned = list(results.values())
    _refuse_alike(results)
    first = planned[0]
    methods: Counter[str] = Counter()
    for merge in planned:
        methods.update(merge.methods)
    return first._replace(
        plan=_join_plans({name: merge.plan for name, merge in results.items()}),
        config=config,
        sources=tuple({id(source): source for merge in planned for source in merge.sources}.values()),
        methods=dict(sorted(methods.items())),
        copied=_once(merge.copied for merge in planned),
        dropped=_once(merge.dropped for merge in planned),
        dropped_tensors=max(merge.dropped_tensors for merge in planned),
        notes=_once(merge.notes for merge in planned),
        warnings=_once(merge.warnings for merge in planned),
        bytes_read=sum(merge.bytes_read for merge in planned),
        bytes_written=sum(merge.bytes_written for merge in planned),
        side_files=tuple(
            file._replace(name=f"{name}/{file.name}") for name, merge in results.items() for file in merge.side_files
        ),
        results=dict(results),
    )


def _once(several: Any) -> tuple[Any, ...]:  # noqa: ANN401 - an iterable of tuples of one kind
    found: dict[Any, None] = {}
    for one in several:
        found.update(dict.fromkeys(one))
    return tuple(found)


def _refuse_alike(results: Mapping[str, PlannedMerge]) -> None:
    problems = []
    for name, merge in results.items():
        # The whole plan: its digest knows inputs by size and header only.
        other = next(other for other, earlier in results.items() if earlier.plan == merge.plan)
        if other != name:
            problems.append(f"{other} and {name}")
    if problems:
        raise MergeError.listing(
            "results of the sweep are the same model, since the value that differs decides nothing: a model or a slice "
            "gives its own, or a filter fits no tensor",
            problems,
        )


def _join_plans(plans: Mapping[str, MergePlan]) -> MergePlan:
    inputs: dict[str, InputFile] = {}
    for plan in plans.values():
        inputs.update((file.path, file) for file in plan.inputs)
    numbers = {path: number for number, path in enumerate(inputs)}
    outputs: list[str] = []
    tensors: list[OutputTensor] = []
    tables: dict[str, Mapping[str, Any]] = {}
    parts: dict[tuple[str, int], list[_Part]] = {}
    for directory, plan in plans.items():
        number = [numbers[file.path] for file in plan.inputs]
        prefix = (
            ""
            if all(tables.get(word, rows) == rows for word, rows in _renumbered_tables(plan, number).items())
            else f"{directory}:"
        )
        tables.update((prefix + word, rows) for word, rows in _renumbered_tables(plan, number).items())
        of_old: dict[int, tuple[Expr, ...]] = {}
        for task in plan.tasks:
            of = of_old.get(id(task.of))
            if of is None:
                of = of_old[id(task.of)] = tuple(_moved(expr, number, prefix) for expr in task.of)
            name = plan.tensors[task.tensor].name
            parts.setdefault((name, task.row), []).append(_Part(len(tensors) + task.tensor, task, of))
        tensors += [tensor._replace(output=tensor.output + len(outputs)) for tensor in plan.tensors]
        outputs += [f"{directory}/{name}" for name in plan.outputs]
    first = next(iter(plans.values()))
    return MergePlan(
        inputs=tuple(inputs.values()),
        outputs=tuple(outputs),
        tensors=tuple(tensors),
        tasks=tuple(sorted((_task(found) for found in parts.values()), key=lambda task: (task.tensor, task.row))),
        tables=tables,
        seed=first.seed,
        allow_nonfinite=first.allow_nonfinite,
    )


def _renumbered_tables(plan: MergePlan, number: Sequence[int]) -> dict[str, Any]:
    return {word: renumbered(rows, number.__getitem__) for word, rows in plan.tables.items()}


def _moved(expr: Expr, number: Sequence[int], prefix: str) -> Expr:
    if isinstance(expr, Leaf):
        return Leaf(number[expr.input], expr.tensor)
    moved = renumbered(expr, number.__getitem__)
    return with_tables(moved, prefix) if prefix else moved


def _task(parts: Sequence[_Part]) -> Task:
    """Make one task of the same rows of a tensor in several results: its sources are what all of them are made of."""
    of: list[Expr] = []
    for part in parts:
        of += [expr for expr in part.of if expr not in of]
    chosen = [tuple(of.index(expr) for expr in part.of) for part in parts]
    whole = tuple(range(len(of)))
    own = [None if choice == whole else choice for choice in chosen]
    (tensor, task, _), *others = parts
    also = [
        Result(other.tensor, other.task.by, other.task.row, choice)
        for other, choice in zip(others, own[1:], strict=True)
    ]
    return Task(tensor, task.by, tuple(of), task.row, task.reads, tuple(also), own[0])


def part_of(executed: Mapping[str, Any], directory: str, digest: str) -> Mapping[str, Any]:
    """Return what the engine reports of one result, as if that had been merged alone; `digest` is that of its plan."""
    if not directory:
        return executed
    start = f"{directory}/"
    files = [entry for entry in executed["files"] if entry["name"].startswith(start)]
    tensors = [entry for entry in executed["tensors"] if entry["file"].startswith(start)]
    return {
        **executed,
        "plan_digest": digest,
        "files": [{**entry, "name": entry["name"].removeprefix(start)} for entry in files],
        "tensors": [{**entry, "file": entry["file"].removeprefix(start)} for entry in tensors],
    }


def write_list(partial: Path, config: MergeConfig, digests: Mapping[str, str], version: str) -> None:
    """Write what the output of a sweep holds: its directories, the values of their parameters, digests of the plans.

    What an earlier attempt with other options may have left next to the directories is removed.
    """
    for path in partial.iterdir():
        if path.name not in {JOURNAL, SCRATCH, *digests}:
            path.unlink()
    listed = [
        {"directory": name, "values": dict(config.sweep[name].values), "plan": digest}
        for name, digest in digests.items()
    ]
    lines = ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in listed)
    text = f'{{\n "format": {_FORMAT},\n "mol": {json.dumps(version)},\n "results": [\n  {lines}\n ]\n}}\n'
    with (partial / SWEEP).open("xb") as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def listed_results(out: Path) -> list[str]:
    """Return the directories that the sweep in an output lists; none where there is no sound list of one."""
    if not (out / SWEEP).is_file():
        return []
    try:
        found = read_object(out / SWEEP).get("results")
    except CheckpointError:
        return []
    names = (
        [str(entry.get("directory")) for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    )
    return [name for name in names if name not in ("", ".", "..") and "/" not in name]
