"""mol-merge push: upload a finished model directory to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mol.cli import units
from mol.cli.console import field, listing
from mol.cli.group import Verb
from mol.cli.options import PATH, ThreadCount, option, speaking
from mol.cli.verify import check_result
from mol.io.json_file import read_object
from mol.io.layout import CARD, CONFIG, MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mol.cli.console import Console
    from mol.io.upload import Destination, Uploaded

SHOWN = 6


def uploading(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about where on the Hub a directory goes, and how."""
    for decorate in reversed([
        option("--private", is_flag=True, section="Hub", help="Only you, or your organization, may read REPO."),
        option("--create-pr", is_flag=True, section="Hub", help="Open a pull request instead of a commit."),
        option("--revision", metavar="BRANCH", default=None, section="Hub",
               help="Branch to commit to, created if it is missing.  [default: main]"),
        option("--commit-message", metavar="TEXT", default=None, section="Hub", help="The commit's message."),
        option("--token", metavar="TOKEN", default=None, section="Hub",
               help="The Hub's token; others on this machine can see it in the list of processes, and HF_TOKEN not."
               "  [default: HF_TOKEN, or that of `hf auth login`]"),
        option("--dry-run", type=PATH, metavar="DIR", default=None, section="Hub",
               help="Write what would be uploaded into a new directory; upload nothing, and need no token."),
    ]):  # fmt: skip
        function = decorate(function)
    return function


@click.command(
    "push",
    cls=Verb,
    help="Upload the model in DIR to the repository REPO (`user/name`) of the Hugging Face Hub, in one commit. A merge "
    f"is first compared with its {MANIFEST}, as `mol-merge verify` does, and only files that it lists are uploaded; of "
    "other directories, only files of a model. Files of a model that is in REPO already are replaced.",
)
@click.argument("directory", metavar="DIR", type=PATH)
@click.argument("repo", metavar="REPO")
@uploading
@option("-j", "--threads", "--num-threads", "threads", type=ThreadCount(), metavar="N", default=None,
        help="Number of worker threads that verify.  [default: all cores]")  # fmt: skip
@speaking
def command(
    console: Console,
    directory: Path,
    repo: str,
    threads: int | None,
    dry_run: Path | None,
    **given: Any,  # noqa: ANN401
) -> int:
    """Upload one directory."""
    from mol.io.upload import Destination, check_destination

    if not directory.exists() and Path(repo).is_dir():
        raise click.UsageError(f"DIR comes first, then REPO: `mol-merge push {repo} {directory}`")
    to = Destination(repo, **given)
    if dry_run is None:
        check_destination(to)
    names, left = _choose(console, directory, threads)
    if left:
        shown = ", ".join(left[:SHOWN]) + (f" and {len(left) - SHOWN} more" if len(left) > SHOWN else "")
        console.note(f"not uploaded, since they are no files of the model: {shown}")
    if "mol_save" in read_object(directory / CONFIG):
        console.note(
            f"{directory} is a fusion: `mol-merge push-hf {repo} --mol-checkpoint {directory}` also writes a card for "
            f"{repo}, and leaves out paths of this machine"
        )
    if CARD not in names:
        console.note(f"{directory} has no {CARD}: the repository will have no model card")
    send(console, directory, names, to, dry_run)
    return 0


def send(console: Console, directory: Path, names: Sequence[str], to: Destination, dry_run: Path | None) -> None:
    """Upload files of a directory, or copy them where `dry_run` says, and report it."""
    from mol import _rust
    from mol.io.upload import copy_out, upload

    sizes = {name: (directory / name).stat().st_size for name in names}
    total = f"{units.amount(len(names), 'file')}, {units.size(sum(sizes.values()))}"
    done: Uploaded | None = None
    if dry_run is not None:
        copy_out(directory, names, dry_run)
        console.status(field("written", f"{total}, to {dry_run}: what would be uploaded to {to.repo_id}"))
    else:
        done = upload(directory, names, to, default_message=f"Upload by mol-merge {_rust.__version__}")
        console.status(field("uploaded", f"{total}, to {done.repo_id}"))
        limit = None if console.verbose else SHOWN
        for line in listing("removed", [f"{name}, of the model before" for name in done.removed], limit=limit):
            console.status(line)
        console.status(field("url", done.url))
    console.document({
        "repo": to.repo_id if done is None else done.repo_id, "url": None if done is None else done.url,
        "commit": None if done is None else done.commit, "dry_run": None if dry_run is None else str(dry_run),
        "files": [{"name": name, "bytes": size} for name, size in sizes.items()],
        "removed": [] if done is None else list(done.removed),
    })  # fmt: skip


def _choose(console: Console, directory: Path, threads: int | None) -> tuple[list[str], list[str]]:
    """Return the files to upload, and those that stay here; a merge is verified first.

    Raises:
        CheckpointError: the directory is damaged, or holds no finished model.
    """
    from mol.io.upload import model_files

    if not (directory / MANIFEST).exists():
        return model_files(directory)
    found = check_result(console, directory, threads)
    # The card may have been edited since; any other file that differs is not what was merged.
    edited = [one for one in found.damage if one.file == CARD and (directory / CARD).is_file()]
    damage = [one for one in found.damage if one not in edited]
    if damage:
        raise found._replace(damage=damage).error()
    if edited:
        console.note(f"{CARD} was edited since the merge, and is uploaded as it is")
    names = {*found.files, *found.others, MANIFEST}
    if CARD in found.unlisted:
        names.add(CARD)
    return sorted(names), [name for name in found.unlisted if name not in names]
