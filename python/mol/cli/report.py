"""The words of a plan and of a finished merge: what is merged how, copied, dropped, aligned, read and written."""

from __future__ import annotations

import resource
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mol.cli import units
from mol.cli.console import Console, field, listing
from mol.io.layout import MANIFEST
from mol.merge.plan import sweeps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.merge.options import MergeOptions
    from mol.merge.planned import OutputFile, PlannedMerge
    from mol.merge.run import MergeReport

SHOWN = 6
_DONE = {"copy": "copied", "scale": "scaled"}


def plan_lines(
    console: Console, planned: PlannedMerge, text: str, recipe: Path, out: Path | None, options: MergeOptions
) -> list[str]:
    """Describe a plan, and its JSON `text`, for people: everything that a merge would do, and what it would cost."""
    plan = planned.plan
    dtypes = ", ".join(dtype for dtype, _ in Counter(tensor.dtype for tensor in plan.tensors).most_common())
    where = f"{out}: " if out is not None else ""
    cost = _cost(planned, text, out, options)
    lines = [
        field("recipe", f"{recipe} ({planned.config.method})"),
        *listing("inputs", [_input(planned, i) for i in range(len(planned.sources))], limit=None),
        field("output", f"{where}{dtypes} in {units.amount(len(plan.outputs), 'file')}, "
                        f"{units.size(planned.bytes_written)}"),
        *listing("results", tuple(planned.results), limit=None),
        *listing("files", _side_files(planned), limit=None),
        field("tensors", f"{len(plan.tensors):,}: {_by_method(planned.methods)}{_dropped(planned)}"),
        *_details(console, planned),
        field("cost", f"read {units.size(planned.bytes_read)}{_again(planned.methods)}, "
                      f"write {units.size(planned.bytes_written)}"),
        field("memory", f"about {units.size(cost['bytes_of_memory'])}, whatever the sizes of the tensors"),
        field("disk", f"{units.size(cost['bytes_needed'])} needed{_steps(cost['bytes_of_steps'])}, "
                      f"{units.size(cost['bytes_free'])} free"),
    ]  # fmt: skip
    if (short := cost["bytes_needed"] - cost["bytes_free"]) > 0:
        lines.append(field("warning", f"the disk is too small by {units.size(short)}"))
    return lines


def plan_document(
    planned: PlannedMerge, text: str, recipe: Path, out: Path | None, options: MergeOptions
) -> dict[str, object]:
    """Return a plan for programs: its account, without its JSON `text`."""
    from mol import _rust

    return {
        "recipe": str(recipe),
        "out": None if out is None else str(out),
        "method": planned.config.method,
        "digest": _rust.plan_digest(text),
        "donor": planned.donor.name,
        **_account(planned),
        "bytes_read": planned.bytes_read,
        "bytes_written": planned.bytes_written,
        "side_files": [{"name": file.name, "bytes": file.size, "source": file.source} for file in planned.side_files],
        **_cost(planned, text, out, options),
        "config": planned.model_config,
    }


def merge_text(console: Console, report: MergeReport, out: Path, span: float) -> list[str]:
    """Describe a finished merge: `out` as it was typed, `span` in seconds; notes were printed while it was planned."""
    planned = report.planned
    rate = f" ({units.size((report.bytes_read + report.bytes_written) / span)}/s)"
    resumed = f"; {units.amount(report.resumed, 'tensor')} were there already" if report.resumed else ""
    return [
        field("merged", f"{units.amount(len(planned.plan.tensors), 'tensor')}: "
                        f"{_by_method(planned.methods)}{_dropped(planned)}{resumed}"),
        *listing("results", tuple(planned.results), limit=None),
        *_lists(console, planned),
        field("bytes", f"read {units.size(report.bytes_read)}, wrote {units.size(report.bytes_written)} "
                       f"in {units.seconds(span)}{rate}"),
        field("output", str(out)),
    ]  # fmt: skip


def merge_document(report: MergeReport, recipe: Path, span: float) -> dict[str, object]:
    """Return a finished merge for programs, after `span` seconds."""
    return {
        "recipe": str(recipe),
        "out": str(report.out),
        "method": report.planned.config.method,
        "digest": report.plan_digest,
        "donor": report.planned.donor.name,
        **_account(report.planned),
        "bytes_read": report.bytes_read,
        "bytes_written": report.bytes_written,
        "seconds": round(span, 3),
        "resumed": report.resumed,
        "files": [dict(file) for file in report.files],
    }


def _cost(planned: PlannedMerge, plan: str, out: Path | None, options: MergeOptions) -> dict[str, int]:
    """Return what running a plan takes: peak memory of this process so far, and the engine's heap."""
    import shutil

    from mol import _rust

    files, steps, heap = _rust.plan_cost(plan, threads=options.workers, tile=options.tile, memory=options.memory)
    return {
        "bytes_needed": files + steps + sum(file.size for file in planned.side_files),
        "bytes_of_steps": steps,
        "bytes_free": shutil.disk_usage(_existing(out or Path.cwd())).free,
        "bytes_of_memory": _peak() + heap,
    }


def _peak() -> int:
    """Return the peak memory of this process so far, in bytes."""
    try:
        # `ru_maxrss` of Linux begins with that of the process which started this one.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _account(planned: PlannedMerge) -> dict[str, object]:
    return {
        **({"results": list(planned.results)} if planned.results else {}),
        "inputs": [{"name": source.name, "revision": source.revision} for source in planned.sources],
        "tensors": len(planned.plan.tensors),
        "methods": dict(planned.methods),
        "copied": list(planned.copied),
        "dropped": list(planned.dropped),
        "notes": list(planned.notes),
        "warnings": list(planned.warnings),
    }


def _input(planned: PlannedMerge, index: int) -> str:
    source = planned.sources[index]
    role = " (gives config and tokenizer)" if source is planned.donor else ""
    commit = f" at {source.revision[:12]}" if source.revision else ""
    return f"{source.name}{commit}{role}"


def _side_files(planned: PlannedMerge) -> list[str]:
    """Describe the files other than the weights; of a sweep those of its first result, since all have the same."""
    if not planned.results:
        return [_side_file(file) for file in planned.side_files]
    first = next(iter(planned.results.values()))
    return ["in each result:", *(f"  {_side_file(file)}" for file in first.side_files)]


def _side_file(file: OutputFile) -> str:
    origin = "written anew" if file.source is None else f"copied from {file.source}"
    most = "at most " if file.name == MANIFEST else ""
    return f"{file.name}: {most}{units.size(file.size)}, {origin}"


def _by_method(methods: Mapping[str, int]) -> str:
    methods_first = sorted(methods.items(), key=lambda item: item[0] in _DONE)
    return ", ".join(f"{count:,} {_DONE.get(name, f'by {name}')}" for name, count in methods_first)


def _steps(size: int) -> str:
    return f" ({units.size(size)} of it while steps are merged)" if size else ""


def _again(methods: Mapping[str, int]) -> str:
    """Name the methods that read tensors more than once, to measure them first; how often depends on the data."""
    several = [name for name in methods if sweeps(name) > 1]
    return f" (more than once by {' and '.join(several)})" if several else ""


def _dropped(planned: PlannedMerge) -> str:
    return f"; {planned.dropped_tensors:,} dropped" if planned.dropped else ""


def _lists(console: Console, planned: PlannedMerge) -> list[str]:
    limit = None if console.verbose else SHOWN
    return [
        *listing("copied", planned.copied, limit=limit),
        *listing("dropped", planned.dropped, limit=limit),
    ]


def _details(console: Console, planned: PlannedMerge) -> list[str]:
    return [
        *_lists(console, planned),
        *listing("note", planned.notes, limit=None),
        *listing("warning", planned.warnings, limit=None),
    ]


def _existing(path: Path) -> Path:
    """Return the nearest directory above a path that exists, to query its disk."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.is_dir())
