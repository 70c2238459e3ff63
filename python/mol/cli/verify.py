"""mol-merge verify: read a result again and name what is not as it was written."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mol.cli import units
from mol.cli.console import Console, field
from mol.cli.group import Verb
from mol.cli.options import option, speaking
from mol.cli.progress import Progress
from mol.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MANIFEST = "mol_manifest.json"
DIGESTS = ("blake3", "sha256")


class Damage(NamedTuple):
    """One thing that is not as the manifest says; `tensor` is None where it is the file as a whole."""

    file: str
    tensor: str | None
    problem: str


@click.command(
    "verify",
    cls=Verb,
    short_help="Check a result against its manifest; names damaged tensors.",
    help=f"Read the weights in DIR again and check them against its {MANIFEST}. Names each tensor that is damaged, "
    "and ends with 1 if there is one.",
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, readable=False))
@option("-j", "--threads", "--num-threads", "threads", type=click.IntRange(min=1), metavar="N", default=None,
        help="Size of the pool.  [default: all cores]")  # fmt: skip
@speaking
def command(console: Console, directory: Path, threads: int | None) -> int:
    """Check one directory."""
    started = time.monotonic()
    manifest = read_manifest(directory)
    files: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in manifest["files"]}
    with Progress(console, "verifying") as progress:
        damage = list(_check(directory, files, manifest["tensors"], threads, progress))
    for name in sorted(path.name for path in directory.glob("*.safetensors") if path.name not in files):
        console.warning(f"{directory / name} is not in {MANIFEST}; it was not checked")
    total = sum(entry["size"] for entry in files.values())
    console.document({
        "directory": str(directory), "ok": not damage, "files": len(files), "tensors": len(manifest["tensors"]),
        "bytes": total, "damage": [one._asdict() for one in damage],
    })  # fmt: skip
    if damage:
        console.error(str(CheckpointError.listing(f"{directory} is damaged", [_line(one) for one in damage])))
        return 1
    console.status(field(
        "verified",
        f"{units.amount(len(manifest['tensors']), 'tensor')} in {units.amount(len(files), 'file')}, "
        f"{units.size(total)}, all as written ({units.seconds(time.monotonic() - started)})",
    ))  # fmt: skip
    return 0


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read a manifest and check the parts that `verify` relies on.

    Raises:
        FileNotFoundError: The directory, or the manifest in it, is missing.
        CheckpointError: The manifest is not one, or is of a format that this version does not read.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; only what mol has written can be verified")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); it was damaged or written by something else") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise CheckpointError(f"{path}: is not a manifest of mol: it has no `format`")
    if manifest["format"] != 1:
        raise CheckpointError(
            f"{path}: is of format {manifest['format']!r}, this mol reads 1; use the mol that wrote it"
        )
    wanted: dict[str, dict[str, type]] = {
        "files": {"name": str, "size": int, "crc64nvme": str},
        "tensors": {"name": str, "file": str, "crc64nvme": str},
    }
    for part, keys in wanted.items():
        entries = manifest.get(part)
        if not isinstance(entries, list) or not all(_has(entry, keys) for entry in entries):
            raise CheckpointError(f"{path}: `{part}` is not a list of entries with {', '.join(keys)}")
    listed = {entry["name"] for entry in manifest["files"]}
    for entry in manifest["files"]:
        if "/" in entry["name"] or "\\" in entry["name"] or entry["name"] in ("", ".", ".."):
            raise CheckpointError(f"{path}: the file name {entry['name']!r} leaves the directory")
    for entry in manifest["tensors"]:
        if entry["file"] not in listed:
            raise CheckpointError(
                f"{path}: tensor `{entry['name']}` is said to be in {entry['file']}, which is not listed"
            )
    return manifest


def _has(entry: object, keys: Mapping[str, type]) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in keys.items())


def _check(
    directory: Path,
    files: dict[str, dict[str, Any]],
    tensors: list[dict[str, Any]],
    threads: int | None,
    progress: Progress,
) -> Iterator[Damage]:
    from mol import _rust

    total = sum(entry["size"] for entry in files.values())
    before = 0
    digest = next((kind for kind in DIGESTS if any(kind in tensor for tensor in tensors)), None)
    for name, entry in files.items():
        start = before
        before += entry["size"]
        expected = {tensor["name"]: tensor for tensor in tensors if tensor["file"] == name}
        path = directory / name
        if not path.is_file():
            yield Damage(name, None, "is missing")
            continue
        if (found := path.stat().st_size) != entry["size"]:
            yield Damage(name, None, f"has {found:,} bytes, {entry['size']:,} were written")
        try:
            report = json.loads(
                _rust.checksum(
                    str(path),
                    digest=digest,
                    threads=threads,
                    on_progress=partial(_after, progress, start, total),
                )
            )
        except (CheckpointError, OSError) as error:
            yield Damage(name, None, f"cannot be read: {error}")
            continue
        damaged = list(_compare(name, expected, {tensor["name"]: tensor for tensor in report["tensors"]}, digest))
        yield from damaged
        if not damaged and report["crc64nvme"] != entry["crc64nvme"]:
            yield Damage(name, None, "differs from what was written outside its tensors, in the header")


def _after(progress: Progress, before: int, total: int, read: int, _: int) -> None:
    """Report one file's progress as that of all files."""
    progress(before + read, total)


def _compare(
    file: str, expected: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]], digest: str | None
) -> Iterator[Damage]:
    for name, tensor in expected.items():
        if name not in found:
            yield Damage(file, name, "is missing")
        elif any(key in tensor and tensor[key] != found[name].get(key) for key in ("crc64nvme", digest) if key):
            yield Damage(file, name, "differs from what was written")
    for name in found:
        if name not in expected:
            yield Damage(file, name, f"is not in {MANIFEST}")


def _line(one: Damage) -> str:
    return f"{one.file}: {one.problem}" if one.tensor is None else f"{one.file}: tensor `{one.tensor}` {one.problem}"
