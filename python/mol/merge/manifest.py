"""mol_manifest.json: what a merge was made from, what it holds, and the checksums that `mol-merge verify` re-reads."""

from __future__ import annotations

import json
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from mol.errors import CheckpointError
from mol.io.json_file import read_json, read_object
from mol.io.layout import CONFIG, MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from mol.merge.card import Card
    from mol.merge.planned import PlannedMerge

_FORMAT: Final = 1


def build_manifest(
    planned: PlannedMerge,
    executed: Mapping[str, Any],
    side_files: Mapping[str, Mapping[str, Any]],
    *,
    card: Card,
    version: str,
) -> dict[str, Any]:
    """Collect the manifest: no absolute path and no clock time, so the same work gives the same bytes.

    `plan` is a digest of the operations, in which files count by size and header alone: which models they read is in
    `recipe` and `sources`.

    Args:
        planned: the merge.
        executed: the engine's report.
        side_files: relative path -> size and digest of each other file than weights and the manifest itself.
        card: names of the inputs, recipe, and remarks of the plan.
        version: mol's version.
    """
    labels = card.labels
    tensors = {tensor.name: tensor for tensor in planned.plan.tensors}
    return {
        "format": _FORMAT,
        "mol": version,
        "plan": executed["plan_digest"],
        "seed": planned.plan.seed,
        "recipe": card.recipe,
        "sources": [
            {
                "name": labels.of(part),
                **({"role": part.role} if part.role else {}),
                "revision": part.revision,
                "files": [
                    {"name": file.path.name, "size": file.size, "header_blake3": file.header} for file in part.files
                ],
                **({"sha256": dict(part.digests)} if part.digests else {}),
            }
            for part in planned.parts()
        ],
        "files": list(executed["files"]),
        "side_files": [{"name": name, **entry} for name, entry in sorted(side_files.items())],
        "tensors": [
            {
                "name": tensor["name"],
                "dtype": tensors[tensor["name"]].dtype,
                "shape": list(tensors[tensor["name"]].shape),
                **({"rule": planned.ruled[tensor["name"]]} if tensor["name"] in planned.ruled else {}),
                **{key: value for key, value in tensor.items() if key != "name"},
            }
            for tensor in executed["tensors"]
        ],
        "copied": [labels.clean(line) for line in planned.copied],
        "dropped": [labels.clean(line) for line in planned.dropped],
        "notes": [labels.clean(line) for line in card.remarks],
    }


def put_side_file(directory: Path, name: str, content: bytes) -> None:
    """Replace or add a file of a result that is no weights, and what its manifest says of it."""
    import hashlib

    manifest = read_manifest(directory)
    entries = {entry["name"]: entry for entry in manifest["side_files"]}
    entries[name] = {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["side_files"] = [entries[each] for each in sorted(entries)]
    (directory / name).write_bytes(content)
    (directory / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")


def manifest_size(planned: PlannedMerge, side_files: Iterable[str]) -> int:
    """Return the most bytes that manifest and index of a merge take, for the account of the disk."""
    # An entry holds the name, a shape, a checksum and perhaps a digest; the index the name and that of its file.
    tensors = sum(2 * len(tensor.name.encode("utf-8", "replace")) + 360 for tensor in planned.plan.tensors)
    files = sum(len(part.files) + len(part.digests) for part in planned.parts()) + len(planned.plan.outputs)
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


def listed_files(directory: Path) -> tuple[set[str], set[str]]:
    """Return the weight files and the other files that a directory's manifest lists; none where it has no sound one."""
    try:
        manifest = read_object(directory / MANIFEST) if (directory / MANIFEST).is_file() else {}
    except CheckpointError:
        return set(), set()
    weights, others = (manifest.get(part) for part in ("files", "side_files"))
    return _listed(weights), _listed(others)


def _listed(entries: object) -> set[str]:
    return (
        {str(entry.get("name")) for entry in entries if isinstance(entry, dict)} if isinstance(entries, list) else set()
    )


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a directory and check the parts that `mol-merge verify` relies on.

    Raises:
        FileNotFoundError: The directory, or the manifest in it, is missing.
        NotADirectoryError: It is a file.
        CheckpointError: The manifest is not one, is of a format that this version does not read, or lists so little
            that nothing could be verified by it.
    """
    path = directory / MANIFEST
    if directory.is_file():
        raise NotADirectoryError(f"{directory} is a file; name the directory of a result")
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path}: no such file; only what mol has written can be verified")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointError(f"{path}: is not a manifest of mol: it has no `format`")
    if manifest["format"] != _FORMAT:
        raise CheckpointError(
            f"{path}: is of format {manifest['format']!r}, this mol reads {_FORMAT}; use the mol that wrote it"
        )
    files = _entries(path, manifest, "files", {"name": str, "size": int, "crc64nvme": str})
    tensors = _entries(path, manifest, "tensors", {"name": str, "file": str, "crc64nvme": str})
    listed = _names(path, files)
    for entry in tensors:
        if entry["file"] not in listed:
            raise CheckpointError(
                f"{path}: tensor `{entry['name']}` is said to be in {entry['file']}, which is not listed"
            )
    others = _entries(path, manifest, "side_files", {"name": str, "size": int, "sha256": str})
    missing = [part for part, entries in (("weights", files), ("tensors", tensors)) if not entries]
    missing += [CONFIG] * (CONFIG not in _names(path, others))
    if missing:
        raise CheckpointError(
            f"{path}: lists no {' and no '.join(missing)}, which every merge has, so {directory} cannot be verified"
        )
    return manifest


def _entries(path: Path, manifest: Mapping[str, Any], part: str, keys: Mapping[str, type]) -> list[dict[str, Any]]:
    entries = manifest.get(part)
    if not isinstance(entries, list) or not all(_has(entry, keys) for entry in entries):
        raise CheckpointError(f"{path}: `{part}` is not a list of entries with {', '.join(keys)}")
    return entries


def _names(path: Path, entries: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the names of entries, each of which must be that of another file inside the directory."""
    names: set[str] = set()
    for name in (entry["name"] for entry in entries):
        if (
            PurePosixPath(name).as_posix() != name
            or name in ("", ".")
            or {"", ".."} & {*name.split("/")}
            or {"\\", "\0"} & {*name}
        ):
            raise CheckpointError(f"{path}: the file name {name!r} leaves the directory")
        if name in names:
            raise CheckpointError(f"{path}: lists {name} twice")
        names.add(name)
    return names


def _has(entry: object, keys: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in keys.items())
