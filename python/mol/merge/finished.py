"""Whether a directory is already what a merge would write, so that an interrupted series of merges can go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mol.errors import MolError
from mol.io.layout import MANIFEST, SWEEP
from mol.merge.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mol.config import MergeConfig
    from mol.merge.options import MergeOptions
    from mol.merge.prepare import Result
    from mol.merge.run import MergeReport


def finished_merge(config: MergeConfig, out: Path, options: MergeOptions) -> MergeReport | None:
    """Return the report of a merge whose result is at `out` in full; None where something else, or nothing, is.

    Plan, recipe, version of mol, files and their sizes must be those that the merge would write, and no file of an
    input may have changed since. Contents are not read; `mol-merge verify` does that.

    Raises:
        MolError: with every reason why this cannot be merged, or why with `check_load` the result does not load.
        OSError: a file is missing or may not be read.
    """
    from mol import _rust
    from mol.config.model_reference import expanded
    from mol.merge.check_load import check_results
    from mol.merge.prepare import prepare
    from mol.merge.run import MergeReport

    directory = expanded(str(out)).resolve()
    if not (directory / MANIFEST).is_file() and not (directory / SWEEP).is_file():
        return None
    prepared = prepare(config, options, None)
    files: list[dict[str, Any]] = []
    for name, result in prepared.results.items():
        manifest = _read(directory / name)
        if manifest is None or not _is_of(manifest, directory / name, result, options):
            return None
        files += [
            {**entry, "name": f"{name}/{entry['name']}" if name else entry["name"]} for entry in manifest["files"]
        ]
    if options.check_load:
        code = options.trust_remote_code or prepared.planned.config.trust_remote_code
        check_results(directory, prepared.results, trust_remote_code=code)
    return MergeReport(
        out=directory,
        planned=prepared.planned,
        plan_digest=_rust.plan_digest(prepared.planned.plan.to_json()),
        files=tuple(files),
        bytes_read=0,
        bytes_written=0,
        resumed=len(prepared.planned.plan.tensors),
    )


def _read(directory: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(directory)
    except (MolError, OSError):  # what is there is no finished result of any merge
        return None


def _is_of(manifest: dict[str, Any], directory: Path, result: Result, options: MergeOptions) -> bool:
    from mol import _rust

    planned = result.planned
    made = (manifest.get("mol"), manifest.get("plan"), manifest.get("recipe"))
    others = {(file.name, file.size) for file in planned.side_files if file.name != MANIFEST}
    return (
        made == (_rust.__version__, _rust.plan_digest(planned.plan.to_json()), result.card.recipe)
        and {(entry["name"], entry["size"]) for entry in manifest["side_files"]} == others
        and all(options.digest is None or options.digest in tensor for tensor in manifest["tensors"])
        and all(_size(directory / entry["name"]) == entry["size"] for entry in manifest["files"])
        and all(_size(directory / name) == size for name, size in others)
        # The digest of a plan knows files by size and header only.
        and max(map(_changed, _inputs(result))) < (directory / MANIFEST).stat().st_mtime_ns
    )


def _inputs(result: Result) -> Iterator[Path]:
    """Yield what a result is made of: the directories of its inputs, and the files in them."""
    for directory in {*(part.directory for part in result.planned.parts()), result.tokenizer}:
        yield directory
        yield from directory.iterdir()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _changed(path: Path) -> int:
    """Return when a file was last written, replaced or linked; a modification time may be older, as `cp -p` sets it."""
    return path.stat().st_ctime_ns
