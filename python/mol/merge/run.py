"""Carries a recipe out: the plan is made and run, and the output appears by one rename."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mol.config.model_reference import expanded
from mol.errors import CheckpointError, ConfigError, MergeCancelled, MergeError
from mol.io.layout import INDEX
from mol.merge.open_files import enough_open_files
from mol.merge.options import MergeOptions
from mol.merge.prepare import prepare

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from typing_extensions import Unpack

    from mol import _rust
    from mol.config import MergeConfig, ModelReference
    from mol.io.checkpoint import Checkpoint
    from mol.merge.options import OptionFields
    from mol.merge.planned import PlannedMerge
    from mol.merge.prepare import Prepared

    Recipe = MergeConfig | Mapping[str, Any] | str | Path
    Progress = Callable[[int, int, int, int], object]

_log = logging.getLogger("mol")


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a run did.

    Attributes:
        out: the output directory, with links followed.
        planned: the merge, its copied and dropped tensors, notes and warnings.
        plan_digest: digest of the operations, in which files count by size and header (see `_rust.plan_digest`).
        files: name, size and checksum of each weight file, as in the manifest.
        bytes_read: bytes of weights read by this run.
        bytes_written: bytes of weights written by this run.
        resumed: tensors that an earlier run had finished.
    """

    out: Path
    planned: PlannedMerge = field(repr=False)
    plan_digest: str
    files: tuple[Mapping[str, Any], ...]
    bytes_read: int
    bytes_written: int
    resumed: int


def plan_recipe(
    recipe: Recipe,
    options: MergeOptions | None = None,
    *,
    checkpoints: Mapping[ModelReference, Checkpoint] | None = None,
) -> PlannedMerge:
    """Plan a merge from headers and recipe, without writing a byte; of weights only heads that may be tied are read.

    Args:
        recipe: path of a YAML file or its text, a mapping as YAML gives it, or a MergeConfig.
        options: see MergeOptions.
        checkpoints: the models, if they have been opened already.

    Raises:
        MolError: with every reason why this cannot be merged.
        OSError: a file is missing or may not be read.
    """
    from mol.config.recipe import load_recipe

    options = options or MergeOptions()
    return prepare(load_recipe(recipe), options, checkpoints).planned


def run_merge(
    recipe: Recipe,
    out: Path | str | None = None,
    options: MergeOptions | None = None,
    *,
    out_path: Path | str | None = None,
    on_progress: Progress | None = None,
    cancel: threading.Event | None = None,
    checkpoints: Mapping[ModelReference, Checkpoint] | None = None,
    **option_fields: Unpack[OptionFields],
) -> MergeReport:
    """Merge models into a new directory.

    The work is done in `OUT.partial`; a run that was interrupted leaves it there, and running the same merge
    again resumes. `OUT` appears complete or not at all.

    Args:
        recipe: path of a YAML file or its text, a mapping as YAML gives it, or a MergeConfig.
        out: the output directory, the recipe's `output_path` if None.
        options: see MergeOptions.
        out_path: the same as `out`, as mergekit calls it.
        on_progress: called about every 100 ms on this thread with bytes read, to read, written and to write;
            what it raises cancels the run.
        cancel: the run stops soon after this is set.
        checkpoints: the models, if they have been opened already.
        option_fields: single fields of MergeOptions, e.g. `threads=4` or `overwrite=True`, or options as mergekit
            calls them.

    Raises:
        ConfigError: the recipe or an option does not hold.
        CheckpointError: a model is damaged or of a format that is not supported.
        MergeError: the models do not fit together, or weights hold or give NaN or infinity.
        MergeCancelled: `cancel` was set.
        OSError: a file is missing or may not be read, or the disk failed or is full.
    """
    from mol import _rust
    from mol.config.recipe import load_recipe
    from mol.merge.option_names import read_options
    from mol.merge.output import partial_of, resolve_output

    options = replace(options or MergeOptions(), **read_options(option_fields))
    if options.check_load:
        from mol.merge.check_load import check_can_load

        check_can_load()
    config = load_recipe(recipe)
    target = _target(out, out_path, config)
    named = config.inputs()
    names = [reference.name for pair in named for reference in (pair, pair.adapter) if reference is not None]
    local = (expanded(name) for name in names)
    directory = resolve_output(Path(target), inputs=filter(Path.is_dir, local))
    # Kept from the first look at what is there until the new model is in OUT.
    with closing(_rust.PartialLock(partial_of(directory), directory)) as lock:
        return _merge(config, directory, lock, options, _Watch(partial_of(directory), cancel, on_progress), checkpoints)


def _target(out: Path | str | None, out_path: Path | str | None, config: MergeConfig) -> Path | str:
    if out is not None and out_path is not None and Path(out) != Path(out_path):
        raise ConfigError(f"`out` is {str(out)!r} and `out_path` {str(out_path)!r}; give one of them")
    target = next((path for path in (out, out_path, config.output_path) if path is not None), None)
    if target is None:
        raise ConfigError("where should the merged model go? give `out`, or `output_path` in the recipe")
    if not str(target).strip() or "\0" in str(target):
        raise ConfigError(f"the output path, {str(target)!r}, is no path; name a directory")
    return target


def _merge(
    config: MergeConfig,
    directory: Path,
    lock: _rust.PartialLock,
    options: MergeOptions,
    watch: _Watch,
    checkpoints: Mapping[ModelReference, Checkpoint] | None,
) -> MergeReport:
    from mol import _rust
    from mol.merge.output import check_apart, check_replaceable

    may = {"overwrite": options.overwrite, "overwrite_all": options.overwrite_all}
    check_replaceable(directory, **may)
    prepared = prepare(config, options, checkpoints)
    inputs = [source.directory for source in prepared.planned.sources]
    inputs += [file.path.parent for source in prepared.planned.sources for file in source.files]
    check_apart(directory, [*inputs, *(result.tokenizer for result in prepared.results.values())])
    for line in prepared.planned.notes:
        _log.info("%s", line)
    for line in prepared.planned.warnings:
        _log.warning("%s", line)

    if watch.cancel is not None and watch.cancel.is_set():
        raise MergeCancelled("the merge was cancelled before it began; nothing was written")
    plan = prepared.planned.plan.to_json()
    found = _rust.preflight(
        plan,
        str(watch.partial),
        discard_partial=options.discard_partial,
        threads=options.workers,
        mmap=options.mmap,
        lock=lock,
    )
    _check_space(directory, prepared.planned, found)
    # Planning may have taken hours of downloads, in which another merge may have ended here.
    check_replaceable(directory, **may)
    with enough_open_files(len(prepared.planned.results)):
        executed = _execute(prepared, plan, directory, lock, options, watch)
    return MergeReport(
        out=directory,
        planned=prepared.planned,
        plan_digest=executed["plan_digest"],
        files=tuple(executed["files"]),
        bytes_read=executed["bytes_read"],
        bytes_written=executed["bytes_written"],
        resumed=executed["resumed"],
    )


@dataclass(frozen=True, slots=True)
class _Watch:
    """Passes progress on and turns the caller's wish to stop into an exception."""

    partial: Path
    cancel: threading.Event | None
    on_progress: Progress | None

    @property
    def resume(self) -> str:
        return f"what is done is kept in {self.partial}: run the same merge again to resume, or delete it to give up"

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise MergeCancelled(f"the merge was cancelled; {self.resume}")

    def __call__(self, read: int, read_total: int, written: int, written_total: int) -> None:
        self.check()
        if self.on_progress is not None:
            self.on_progress(read, read_total, written, written_total)


def _execute(
    prepared: Prepared, plan: str, directory: Path, lock: _rust.PartialLock, options: MergeOptions, watch: _Watch
) -> dict[str, Any]:
    from mol import _rust
    from mol.merge.output import check_replaceable

    partial = watch.partial

    try:
        executed: dict[str, Any] = json.loads(
            _rust.execute(
                plan,
                str(partial),
                threads=options.workers,
                memory=options.memory,
                mmap=options.mmap,
                tile=options.tile,
                simd=options.simd,
                digest=options.digest,
                sync=options.sync,
                on_progress=watch,
                lock=lock,
            )
        )
        if lock.warning is not None:
            _log.warning("%s", lock.warning)
        _check_written(partial, executed)
        _write_side_files(partial, prepared, executed, options)
        if options.check_load:
            _check_load(prepared, options, watch)
        watch.check()
        check_replaceable(directory, overwrite=options.overwrite, overwrite_all=options.overwrite_all)
        overwrite = options.overwrite or options.overwrite_all
        left = _rust.commit(str(partial), str(directory), overwrite=overwrite, sync=options.sync, lock=lock)
        if left is not None:
            _log.warning("%s", left)
    except OSError as error:
        if not partial.exists():
            raise
        message = f"{error.strerror or error}; {watch.resume}"
        raise OSError(error.errno, message, error.filename) if error.errno else OSError(message) from error
    return executed


def _check_written(partial: Path, executed: Mapping[str, Any]) -> None:
    """Refuse a result of which a file was removed or cut off while others were written."""
    problems = []
    for entry in executed["files"]:
        path = partial / entry["name"]
        found = path.stat().st_size if path.is_file() else None
        if found != entry["size"]:
            problems.append(
                f"{path}: {'is gone' if found is None else f'has {found:,} bytes'}, {entry['size']:,} were written"
            )
    folders = [Path(entry["name"]).parent for entry in executed["files"]]
    indices = (partial / folder / INDEX for folder in dict.fromkeys(folders) if folders.count(folder) > 1)
    problems += [f"{path}: is gone" for path in indices if not path.is_file()]
    if problems:
        raise MergeError.listing(
            "what was merged was changed by another program; let nothing write there and run the same merge again",
            problems,
        )


def _write_side_files(partial: Path, prepared: Prepared, executed: Mapping[str, Any], options: MergeOptions) -> None:
    from mol import _rust
    from mol.merge.side_files import write_side_files
    from mol.merge.sweep import part_of, write_list

    digests = {"": executed["plan_digest"]}
    if prepared.planned.results:
        digests = {name: _rust.plan_digest(one.plan.to_json()) for name, one in prepared.planned.results.items()}
        write_list(partial, prepared.planned.config, digests, _rust.__version__)
    for directory, result in prepared.results.items():
        write_side_files(
            partial / directory,
            result.planned,
            result.side,
            part_of(executed, directory, digests[directory]),
            card=result.card,
            options=options,
            version=_rust.__version__,
        )


def _check_load(prepared: Prepared, options: MergeOptions, watch: _Watch) -> None:
    """Load what is finished with transformers, before it replaces anything."""
    from mol.merge.check_load import check_results

    code = options.trust_remote_code or prepared.planned.config.trust_remote_code
    try:
        check_results(watch.partial, prepared.results, trust_remote_code=code)
    except CheckpointError as error:
        kept = f"the result is kept in {watch.partial}: the same merge without --check-load moves it to OUT"
        if not error.problems:
            raise MergeError(f"{error}; {kept}") from error
        header = str(error).partition(":\n")[0]
        raise MergeError.listing(f"{header}; {kept}", error.problems) from error


def _check_space(directory: Path, planned: PlannedMerge, preflight: str) -> None:
    """Refuse a disk on which the weights fit, but not the other files."""
    found = json.loads(preflight)
    others = sum(file.size for file in planned.side_files)
    if found["bytes_needed"] + others > found["bytes_free"]:
        raise MergeError(
            f"{directory}: the merge needs {found['bytes_needed']:,} bytes for weights and {others:,} for the files "
            f"next to them, the disk has {found['bytes_free']:,} free; free some or choose another OUT"
        )
