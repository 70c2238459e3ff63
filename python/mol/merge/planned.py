"""PlannedMerge: what a recipe comes to before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mol.config.merge_config import MergeConfig
    from mol.io.checkpoint import Checkpoint, Part
    from mol.merge.joined import Joined
    from mol.merge.plan import MergePlan


class OutputFile(NamedTuple):
    """One file of the output other than its weights.

    Attributes:
        name: its relative path.
        size: its bytes; for the manifest, the most that it can take.
        source: name of the input that it is copied from, None if it is written anew.
    """

    name: str
    size: int
    source: str | None


class PlannedMerge(NamedTuple):
    """A plan, and what there is to say about it.

    Attributes:
        plan: what Rust runs.
        config: the recipe.
        donor: the checkpoint whose names, config and tokenizer the output has.
        sources: every checkpoint of the recipe, in its order.
        model_config: the output's config.json.
        methods: number of tensors by what is done to them.
        copied: "name: reason" of each tensor that is copied although the method would merge it.
        dropped: "name: reason" of each input tensor that does not go into the output; whole layers share a line.
        dropped_tensors: number of them.
        notes: what was aligned, filled in or ignored.
        warnings: what may well surprise.
        bytes_read: sum of the sources of all tasks, twice for a method that needs statistics; a run from the start
            reports the same.
        bytes_written: sum of the output's tensors.
        joined: the vocabulary of the output, where rows are paired by token; None where they are by number.
        side_files: every other file of the output than its weights; empty until these are planned.
        ruled: which of the recipe's rules made a tensor of the output, counted from 1, by its name.
        results: where the recipe has a sweep, the merge of each directory of the output; what is said here is then of
            all of them.
    """

    plan: MergePlan
    config: MergeConfig
    donor: Checkpoint
    sources: tuple[Checkpoint, ...]
    model_config: dict[str, Any]
    methods: dict[str, int]
    copied: tuple[str, ...]
    dropped: tuple[str, ...]
    dropped_tensors: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    bytes_read: int
    bytes_written: int
    joined: Joined | None = None
    side_files: tuple[OutputFile, ...] = ()
    ruled: Mapping[str, int] = {}
    results: Mapping[str, PlannedMerge] = {}

    def parts(self) -> tuple[Part, ...]:
        """Return every directory that the sources are made of, once, in their order."""
        found: dict[Path, Part] = {}
        for source in self.sources:
            for part in source.directories():
                found.setdefault(part.directory, part)
        return tuple(found.values())
