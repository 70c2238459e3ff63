"""A finished model directory goes to the Hub in one commit, or into another directory as it would go there."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from mol.errors import CheckpointError, ConfigError
from mol.io.hub import checked_token
from mol.io.json_file import read_object
from mol.io.layout import CARD, CONFIG, INDEX, MANIFEST, RECIPE, is_saved_index, is_saved_weights
from mol.io.side_files import find_file, is_read, list_files, sort_side_files
from mol.io.weight_files import find_weights, no_config, refuse_unfinished
from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from huggingface_hub import HfApi

_PULL: Final = regex(r"refs/pr/\d+")
_LOG_IN: Final = "log in (`hf auth login`), set HF_TOKEN or give --token"


@dataclass(frozen=True, slots=True)
class Destination:
    """A repository on the Hub, and how to upload to it.

    Attributes:
        repo_id: `user/name`, or `name` in the namespace of the token.
        private: whether only its owner may read the repository. One that is public already is refused.
        create_pr: open a pull request instead of committing.
        revision: branch to commit to, created if it is missing; `main` if None. Also a pull request, `refs/pr/3`.
        commit_message: the first line of the commit's message.
        token: the Hub's token; that of the login or of HF_TOKEN if None. No message has it.
        endpoint: the address of the Hub, huggingface_hub's own if None.
    """

    repo_id: str
    private: bool = False
    create_pr: bool = False
    revision: str | None = None
    commit_message: str | None = None
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None


class Uploaded(NamedTuple):
    """What an upload left on the Hub.

    Attributes:
        repo_id: the repository, with its namespace.
        url: of the commit; of the pull request where one was opened.
        commit: its hash.
        removed: files of the model that was there before, deleted by the same commit.
    """

    repo_id: str
    url: str
    commit: str
    removed: tuple[str, ...]


def model_files(directory: Path) -> tuple[list[str], list[str]]:
    """Sort the files of a model directory into those of the model, and what stays here.

    For a directory without a manifest, which would list them: by what files of models are called, so that logs,
    trainer state and keys are never uploaded.

    Raises:
        CheckpointError: it is no finished model in SafeTensors.
        OSError: a file is missing or cannot be read.
    """
    refuse_unfinished(directory)
    if not directory.is_dir():
        directory.stat()  # the system's own words where it is missing or forbidden
        raise NotADirectoryError(f"{directory} is a file; name the directory of a model")
    if not (directory / CONFIG).exists():
        raise no_config(directory)
    config = read_object(directory / CONFIG)
    there = list_files(directory)
    side = sort_side_files(there)
    chosen = {CONFIG, *side.tokenizer, *side.other, *(name for name in (CARD, RECIPE, MANIFEST) if name in there)}
    save = config.get("mol_save")
    if isinstance(save, dict):  # a fusion, which may have no weights, and copies of its models
        copies = (path for path in directory.glob("models/*/*") if path.is_file())
        chosen.update(path.relative_to(directory).as_posix() for path in copies)
        chosen.update({INDEX, *(save.get("weights") or ())} & {*there})
        there = [name for name in there if not name.startswith("models/")]
    else:
        weights = find_weights(directory)
        chosen.update(weights.names, [INDEX] if weights.listed is not None else [])
    if "auto_map" in config:
        chosen.update(side.code)
    return sorted(chosen), [name for name in there if name not in chosen]


def check_new(out: Path) -> None:
    """Refuse a repository for the upload that holds something already.

    Raises:
        ConfigError: something is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not empty; name a new directory for what would be uploaded")


def copy_out(directory: Path, names: Sequence[str], out: Path) -> None:
    """Copy what would be uploaded.

    Args:
        directory: of the model.
        names: its files, relative.
        out: a new or empty directory.

    Raises:
        ConfigError: something is there.
        CheckpointError: a file is a link out of the directory, a pipe or a device.
        OSError: a file cannot be read or written.
    """
    check_new(out)
    for name in names:
        source = find_file(directory, name).path
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / name)


def check_destination(to: Destination) -> None:
    """Refuse what no upload can do, before anything is read or sent.

    Raises:
        ConfigError: options contradict each other, or the token cannot be one.
        PermissionError: there is no token.
    """
    if to.create_pr and to.revision not in (None, "main"):
        raise ConfigError(
            f"a pull request is opened against main, not against {to.revision!r}: leave out revision or create_pr"
        )
    _token(to)


def upload(directory: Path, names: Sequence[str], to: Destination, *, default_message: str) -> Uploaded:
    """Upload files of a model directory in one commit, which also removes what is left there of an earlier model.

    Large files that arrived in an upload that broke off are not sent again.

    Args:
        directory: of the model.
        names: its files, relative.
        to: the repository, created if it does not exist.
        default_message: the commit's message if none is given.

    Raises:
        ConfigError: options contradict each other, or the Hub refuses the name or the card.
        CheckpointError: a file is a link out of the directory, a pipe or a device.
        PermissionError: there is no token, or it may not write there.
        FileNotFoundError: a file, or the repository's revision, is missing.
        ConnectionError: the Hub failed, asks to wait, or the connection broke.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_destination(to)
    paths = {name: find_file(directory, name).path for name in names}
    api = HfApi(endpoint=to.endpoint, token=_token(to))
    with _errors_explained(to):
        repo_id = api.create_repo(to.repo_id, private=to.private or None, exist_ok=True).repo_id
        if to.revision not in (None, "main") and not _PULL.fullmatch(to.revision or ""):
            api.create_branch(repo_id, branch=to.revision or "", exist_ok=True)
        commit, removed = _look(api, repo_id, names, to)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in paths.items()
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in removed]
        done = api.create_commit(
            repo_id,
            operations,
            commit_message=to.commit_message or default_message,
            revision=to.revision,
            create_pr=to.create_pr,
            parent_commit=commit,
        )
    return Uploaded(repo_id, done.pr_url or done.commit_url, done.oid, tuple(removed))


def _look(api: HfApi, repo_id: str, names: Sequence[str], to: Destination) -> tuple[str | None, list[str]]:
    """Return the commit that the upload is for, and what loaders would read of the model that is there now."""
    info = api.model_info(repo_id, revision=to.revision)
    if to.private and info.private is False:
        raise ConfigError(
            f"{repo_id} exists and is public, and an upload does not change that; nothing was uploaded: make it "
            "private in its settings, name another repository, or leave out private (--private)"
        )
    there = sorted(sibling.rfilename for sibling in info.siblings or ())
    stale = [
        name
        for name in there
        if name not in set(names) and (is_read(name) or is_saved_weights(name) or is_saved_index(name))
    ]
    return info.sha, stale


def _token(to: Destination) -> str:
    from huggingface_hub import get_token

    token = checked_token(to.token or get_token())
    if token is None:
        raise PermissionError(f"an upload needs a token of the Hub that may write: {_LOG_IN}")
    return token


@contextmanager
def _errors_explained(to: Destination) -> Iterator[None]:
    """Context manager that turns errors of huggingface_hub into what they mean for whoever uploads."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ConfigError(f"{to.repo_id!r} is no name of a repository: {_said(error, to)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise ConnectionError(f"{to.repo_id}: HF_HUB_OFFLINE is set, so nothing is uploaded; unset it") from error
    except RuntimeError as error:  # an upload of one file without Xet
        broken = error.__cause__
        if not isinstance(broken, errors.HTTPError):  # type: ignore[attr-defined]
            raise
        raise _meaning(broken, to, f"{_said(error, to)} ") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]
        raise _meaning(error, to) from error
    except OSError as error:
        if error.errno is not None:
            raise  # a file here
        raise ConnectionError(
            f"{to.repo_id}: the upload broke off ({_said(error, to)}); check token and connection and run the same "
            "again, or set HF_HUB_DISABLE_XET=1 for a server that has no Xet: what arrived is not sent again"
        ) from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{to.repo_id}: the Hub refused the upload: {_said(error, to)}") from error


def _meaning(error: Exception, to: Destination, where: str = "") -> Exception:
    """Return what an answer of the Hub, or none, means."""
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    said = f"{where}{_said(error, to)}"
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return ConnectionError(
            f"{to.repo_id}: the connection to the Hub broke ({said}); run the same again: what arrived is not sent "
            "again, and a commit that arrived is not made twice"
        )
    status = error.response.status_code
    if status == 401:
        return PermissionError(f"{to.repo_id}: the Hub does not accept the token ({said}); {_LOG_IN}")
    if status == 403:
        return PermissionError(
            f"{to.repo_id}: the token may not write there ({said}); use one with the right to write, name a repository "
            "of your own, or open a pull request (--create-pr)"
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{to.repo_id}: the repository has no revision {to.revision!r}; name a branch")
    if status == 404:
        return FileNotFoundError(
            f"{to.repo_id}: no such repository, or none that the token may see ({said}); check the name and the token"
        )
    if status in (409, 412):
        return CheckpointError(
            f"{to.repo_id}: the repository changed during the upload ({said}); look at what came in between, and run "
            "the same again"
        )
    if status == 429:
        wait = error.response.headers.get("Retry-After")
        span = f" for {wait} seconds" if wait and wait.isdigit() else ""
        return ConnectionError(f"{to.repo_id}: the Hub asks to wait{span} ({said}); run the same again then")
    if status >= 500:
        return ConnectionError(
            f"{to.repo_id}: the Hub failed ({said}); run the same again later: what arrived is not sent again"
        )
    return ConfigError(f"{to.repo_id}: the Hub refused the upload: {said}")


def _said(error: Exception, to: Destination) -> str:
    """Return what an error says in one line, without the token, wherever it may have got in."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    server = getattr(error, "server_message", None)
    text = " ".join(lines) if isinstance(error, ValueError) else next(iter(lines), type(error).__name__)
    if server and server not in text:
        text = f"{text} {server}"
    return text.replace(_token(to), "[token]")
