"""mol-merge verify: read a result again and name what is not as it was written."""

from __future__ import annotations

import json
import stat
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from mol.cli import units
from mol.cli.console import Console, field
from mol.cli.group import Verb
from mol.cli.options import ThreadCount, option, speaking
from mol.cli.progress import Progress
from mol.errors import CheckpointError
from mol.io.layout import MANIFEST
from mol.io.sha256 import sha256_of
from mol.io.side_files import is_read, list_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DIGESTS = ("blake3", "sha256")


class Damage(NamedTuple):
    """One thing that is not as the manifest says; `tensor` is None where it is the file as a whole."""

    file: str
    tensor: str | None
    problem: str


@click.command(
    "verify",
    cls=Verb,
    help=f"Read the files in DIR again and check them against its {MANIFEST}. Names each tensor and each file that is "
    "damaged or missing, and ends with 1 if there is one.",
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, readable=False))
@option("-j", "--threads", "--num-threads", "threads", type=ThreadCount(), metavar="N", default=None,
        help="Number of worker threads.  [default: all cores]")  # fmt: skip
@option("--check-load", is_flag=True, help="Also load it with transformers: its class, names and shapes.")
@speaking
def command(console: Console, directory: Path, threads: int | None, check_load: bool) -> int:
    """Check one directory, or each result of a sweep."""
    from mol.merge import check_load as loading
    from mol.merge.sweep import listed_results

    if check_load:
        loading.check_can_load()
    results = listed_results(directory)
    documents = [_verify(console, directory / name, threads) for name in results or ("",)]
    if check_load and not any(document["damage"] for document in documents):
        for name in results or ("",):
            console.status(field("loads", loading.check_load(directory / name).removeprefix("loads ")))
    console.document(documents if results else documents[0])
    return int(any(document["damage"] for document in documents))


def _verify(console: Console, directory: Path, threads: int | None) -> dict[str, Any]:
    """Check one result and say what was found."""
    started = time.monotonic()
    found = check_result(console, directory, threads)
    for name in found.unlisted:
        if not is_read(name):
            console.warning(f"{directory / name} is not in {MANIFEST}; it was not checked")
    total = sum(entry["size"] for entry in (*found.files.values(), *found.others.values()))
    document = {
        "directory": str(directory), "ok": not found.damage, "files": len(found.files), "tensors": found.tensors,
        "side_files": len(found.others), "bytes": total, "unlisted": found.unlisted,
        "damage": [one._asdict() for one in found.damage],
    }  # fmt: skip
    if found.damage:
        console.error(str(found.error()))
        return document
    console.status(field(
        "verified",
        f"{units.amount(found.tensors, 'tensor')} in {units.amount(len(found.files), 'file')}, "
        f"{units.amount(len(found.others), 'side file')}, {units.size(total)}, all as written "
        f"({units.seconds(time.monotonic() - started)})",
    ))  # fmt: skip
    return document


class Checked(NamedTuple):
    """A result that was compared with its manifest.

    Attributes:
        directory: of the result.
        files: entries of the weight files, by name.
        others: entries of the other files.
        tensors: how many the manifest lists.
        damage: what is not as the manifest says.
        unlisted: files that it does not list.
    """

    directory: Path
    files: dict[str, dict[str, Any]]
    others: dict[str, dict[str, Any]]
    tensors: int
    damage: list[Damage]
    unlisted: list[str]

    def error(self) -> CheckpointError:
        """Return the error that lists the damage."""
        return CheckpointError.listing(f"{self.directory} is damaged", [_line(one) for one in self.damage])


def check_result(console: Console, directory: Path, threads: int | None = None) -> Checked:
    """Compare a result with its manifest.

    Raises:
        FileNotFoundError: the directory, or the manifest in it, is missing.
        CheckpointError: the manifest is not one.
    """
    from mol.merge.manifest import read_manifest

    manifest = read_manifest(directory)
    files: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in manifest["files"]}
    others: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in manifest["side_files"]}
    damage = [*_check_side_files(directory, others)]
    with Progress(console, "verifying") as progress:
        damage += _check(directory, files, manifest["tensors"], threads, progress)
    unlisted = _unlisted(directory, {*files, *others, MANIFEST})
    damage += [Damage(name, None, f"is not in {MANIFEST}, but loaders read it") for name in unlisted if is_read(name)]
    return Checked(directory, files, others, len(manifest["tensors"]), damage, unlisted)


def _check_side_files(directory: Path, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Damage]:
    for name, entry in entries.items():
        path = directory / name
        if (problem := _not_there(path)) is not None:
            yield Damage(name, None, problem)
            continue
        if (found := path.stat().st_size) != entry["size"]:
            yield Damage(name, None, f"has {found:,} bytes, {entry['size']:,} were written")
            continue
        try:
            digest = sha256_of(path)
        except OSError as error:
            yield Damage(name, None, f"cannot be read: {error}")
            continue
        if digest != entry["sha256"]:
            yield Damage(name, None, "differs from what was written")


def _not_there(path: Path) -> str | None:
    """Return why there is no file to read, None if there is one; links, as in the Hub's cache, are followed."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "is missing"
    return None if stat.S_ISREG(mode) else "is no regular file"


def _unlisted(directory: Path, listed: set[str]) -> list[str]:
    """Name what is in the directory and not in the manifest; hidden files belong to tools."""
    return [name for name in list_files(directory) if name not in listed]


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
        if (problem := _not_there(path)) is not None:
            yield Damage(name, None, problem)
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
