"""mol_manifest.json: what a merge was made from, what it holds, and the checksums that `mol-merge verify` re-reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mol.merge.card import Card
    from mol.merge.planned import PlannedMerge

MANIFEST_NAME: Final = "mol_manifest.json"
MANIFEST_FORMAT: Final = 1


def build_manifest(
    planned: PlannedMerge,
    executed: Mapping[str, Any],
    side_files: Mapping[str, Mapping[str, Any]],
    *,
    card: Card,
    version: str,
) -> dict[str, Any]:
    """Collect the manifest: no absolute path and no clock time, so the same work gives the same bytes.

    Args:
        planned: the merge.
        executed: the engine's report.
        side_files: relative path -> size and digest of each file beside the weights but the manifest itself.
        card: names of the inputs, recipe, and remarks of the plan.
        version: mol's version.
    """
    labels = card.labels
    tensors = {tensor.name: tensor for tensor in planned.plan.tensors}
    return {
        "format": MANIFEST_FORMAT,
        "mol": version,
        "plan": executed["plan_digest"],
        "seed": planned.plan.seed,
        "recipe": card.recipe,
        "sources": [
            {
                "name": labels.of(source),
                "revision": source.revision,
                "files": [
                    {"name": file.path.name, "size": file.size, "header_blake3": file.header} for file in source.files
                ],
            }
            for source in planned.sources
        ],
        "files": list(executed["files"]),
        "side_files": [{"name": name, **entry} for name, entry in sorted(side_files.items())],
        "tensors": [
            {
                "name": tensor["name"],
                "dtype": tensors[tensor["name"]].dtype,
                "shape": list(tensors[tensor["name"]].shape),
                **{key: value for key, value in tensor.items() if key != "name"},
            }
            for tensor in executed["tensors"]
        ],
        "copied": [labels.clean(line) for line in planned.copied],
        "dropped": [labels.clean(line) for line in planned.dropped],
        "notes": [labels.clean(line) for line in card.remarks],
    }


def manifest_size(planned: PlannedMerge, side_files: Iterable[str]) -> int:
    """Return the most bytes that manifest and index of a merge take, for the account of the disk."""
    # An entry holds the name, a shape, a checksum and perhaps a digest; the index the name and that of its file.
    tensors = sum(2 * len(tensor.name.encode("utf-8", "replace")) + 360 for tensor in planned.plan.tensors)
    files = sum(len(source.files) for source in planned.sources) + len(planned.plan.outputs)
    lines = (*planned.copied, *planned.dropped, *planned.warnings, *planned.notes)
    texts = sum(len(line.encode("utf-8", "replace")) + 10 for line in (*lines, *side_files))
    recipe = len((planned.config.source_text or planned.config.to_yaml()).encode("utf-8", "replace"))
    return tensors + 300 * files + 150 * len(tuple(side_files)) + 2 * texts + 2 * recipe + 1000


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """Write a manifest as JSON with one entry of a list on a line: short, and fit for `diff`."""
    members = []
    for key, value in manifest.items():
        if isinstance(value, list) and value:
            lines = ",\n  ".join(json.dumps(entry, ensure_ascii=False) for entry in value)
            members.append(f"{json.dumps(key)}: [\n  {lines}\n ]")
        else:
            members.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n " + ",\n ".join(members) + "\n}\n"
