"""A model name becomes a local directory at a fixed revision: a local path, else the Hub's cache, else a download."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict

from mol.config.model_reference import ModelReference, expanded, nearby
from mol.errors import CheckpointError, ConfigError
from mol.io.hub_cache import cached_commits, cached_snapshot, hub_origin
from mol.io.layout import ADAPTER, ADAPTER_CONFIG, CARD, CONFIG, INDEX, SINGLE, read_shard_names
from mol.io.side_files import sort_side_files
from mol.io.weight_files import counted_shards, missing_files
from mol.regex import regex
from mol.text import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Unpack

_log = logging.getLogger("mol")

_HUB_ID: Final = regex(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
_TOKEN: Final = regex(r"[!-~]+")
_CONVERTER: Final = "SFconvertbot"
_CONVERSION: Final = "Adding `safetensors` variant of this model"


class Wanted(TypedDict, total=False):
    """What is wanted of a model, and where from.

    Attributes:
        cache_dir: the Hub cache, huggingface_hub's own if None.
        token: the Hub token, huggingface_hub's own if None.
        endpoint: the address of the Hub, huggingface_hub's own if None.
        weights: fetch SafeTensors too, not just the files next to them; so it is without this.
        code: fetch Python files too.
        adapter: it is an adapter: fetch its settings, its weights and its card, and nothing else.
        copies: it is a save of mol, which may have no weights of its own; fetch the models in this folder of it too.
        offline: takes what is to be said of a model that came from the cache because the Hub is unreachable, for a
            caller that says it of several models at once; None logs it as a warning.
    """

    cache_dir: Path | str | None
    token: str | None
    endpoint: str | None
    weights: bool
    code: bool
    adapter: bool
    copies: str | None
    offline: list[str] | None


class Located(NamedTuple):
    """A model that is there.

    Attributes:
        directory: where it is, None where it has to be fetched.
        commit: its commit hash if it comes from the Hub.
        fetch: returns the directory, after a download of what it lacks.
    """

    directory: Path | None
    commit: str | None
    fetch: Callable[[], Path]


def resolve(reference: ModelReference, **wanted: Unpack[Wanted]) -> tuple[Path, str | None]:
    """Find the directory of a model, downloading what the merge needs of it and nothing else.

    The Hub is queried for the commit of a revision; files of that commit that are in its cache are not fetched
    again. Offline (`HF_HUB_OFFLINE=1`, or no connection) the cached snapshot of the revision is used.
    `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME` and the rest of huggingface_hub's settings hold.

    Args:
        reference: a local directory, or the id of a repository on the Hub with an optional revision.
        wanted: see Wanted.

    Returns:
        The directory, and the commit hash if it came from the Hub.

    Raises:
        FileNotFoundError: no such directory, and no such repository.
        NotADirectoryError: the name is a file.
        PermissionError: the repository is gated or the token may not read it.
        CheckpointError: no such revision, no SafeTensors in it, or neither connection nor complete cache.
        ConfigError: the token cannot be one.
    """
    found = look_up(reference, **wanted)
    return found.fetch(), found.commit


def look_up(reference: ModelReference, **wanted: Unpack[Wanted]) -> Located:
    """Find a model and fetch nothing yet.

    Args:
        reference: as `resolve` takes it.
        wanted: see Wanted.

    Raises:
        MolError, OSError: it is not there, as `resolve` says.
    """
    adapter = wanted.get("adapter", False)
    path = expanded(reference.name)
    if path.is_dir():
        if reference.revision is not None:
            raise CheckpointError(
                f"{reference}: {reference.name} is a local directory, which has no revision {reference.revision!r}; "
                "leave the revision out, or run where no directory has the name of that repository"
            )
        origin = hub_origin(path, wanted.get("cache_dir"))
        return Located(path, origin[1] if origin else None, lambda: path)
    if path.exists():
        holds = f"the adapter's {ADAPTER_CONFIG}" if adapter else f"the model's {CONFIG}"
        raise NotADirectoryError(f"{path} is a file; name the directory that holds {holds}")
    if not can_be_id(reference.name) or path.is_absolute():
        hint = nearby(reference.name)
        raise FileNotFoundError(
            f"{reference.name}: no such directory (and it cannot be the id of a Hub repository){hint}"
        )
    hub = _Hub(reference, wanted)
    return hub.look_up(weights=wanted.get("weights", True) and not adapter, code=wanted.get("code", False))


def revisions_like(repository: str, pattern: str, *, token: str | None = None) -> list[str]:
    """Return the branches and tags of a repository on the Hub whose names fit a pattern such as `step*`, sorted.

    Raises:
        FileNotFoundError, PermissionError: no such repository, or the token may not read it.
        CheckpointError: no name fits, or the Hub cannot be reached.
        ConfigError: the token cannot be one.
    """
    from huggingface_hub import HfApi

    reference = ModelReference(repository, pattern)
    hub = _Hub(reference, {"token": token})
    try:
        with hub._errors_explained():
            refs = HfApi(token=checked_token(token)).list_repo_refs(repository)
    except ConnectionError as error:
        raise CheckpointError(
            f"{reference}: the Hub, which knows them, is unreachable ({first_line(error)}); write them out, as in "
            f"{repository}@step1,step2"
        ) from error
    found = {ref.name for ref in (*refs.branches, *refs.tags) if fnmatchcase(ref.name, pattern)}
    if not found:
        raise CheckpointError(f"{reference}: none of the repository's branches and tags is named like that")
    return sorted(found)


def can_be_id(name: str) -> bool:
    """Return whether a name can be the id of a repository on the Hub."""
    return _HUB_ID.fullmatch(name) is not None


def checked_token(token: str | None) -> str | None:
    """Return a token of the Hub without white space around it, None for none.

    Raises:
        ConfigError: it holds other characters than a token does. A request would fail with an error that quotes it.
    """
    token = (token or "").strip()
    if token and not _TOKEN.fullmatch(token):
        raise ConfigError("the token of the Hub holds characters that no token has: copy it again")
    return token or None


class _Hub:
    """One revision of one repository on the Hub."""

    def __init__(self, reference: ModelReference, wanted: Wanted) -> None:
        self._reference = reference
        self._adapter = wanted.get("adapter", False)
        self._copies = wanted.get("copies")
        self._cache_dir = wanted.get("cache_dir")
        self._token = checked_token(wanted.get("token"))
        self._endpoint = wanted.get("endpoint")
        self._offline = wanted.get("offline")

    def look_up(self, *, weights: bool, code: bool) -> Located:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        with self._errors_explained():
            try:
                info = HfApi(endpoint=self._endpoint, token=self._token).model_info(
                    self._reference.name, revision=self._reference.revision
                )
            except HfHubHTTPError as error:
                if error.response is not None and error.response.status_code < 500:
                    raise
                return self._from_cache(error, weights=weights)
            except _connection_errors() as error:  # offline, or no connection in any of its forms
                return self._from_cache(error, weights=weights)
            listed = sorted(sibling.rfilename for sibling in info.siblings or ())
            offers = {SINGLE, INDEX} & set(listed) or counted_shards(listed)
            if weights and self._reference.revision is None and not offers and self._copies is None:
                converted = self._converted()
                if converted is not None:
                    _log.warning(
                        "%s holds no SafeTensors; those that the Hub's converter made of its weights (%s) are used",
                        self._reference.name,
                        converted,
                    )
                    self._reference = replace(self._reference, revision=converted)
                    return self.look_up(weights=weights, code=code)
            if info.sha is None:
                raise CheckpointError(f"{self._reference}: the Hub did not say which commit this revision is")
            wanted = self._wanted(listed, weights=weights, code=code)
            if not wanted:
                raise CheckpointError(f"{self._reference}: the repository holds no file that a merge could use")
        return Located(None, info.sha, partial(self._fetch, info.sha, wanted, listed, weights=weights))

    def _fetch(self, commit: str, wanted: Sequence[str], listed: Sequence[str], *, weights: bool) -> Path:
        with self._errors_explained():
            # The first by the name of the revision, so that the cache knows offline what the name means.
            directory = self._download(self._reference.revision, wanted[:1])
            if directory.name != commit:
                raise CheckpointError(f"{self._reference}: the repository changed during the download; run again")
            self._download(commit, wanted[1:])
            if weights and SINGLE not in listed and INDEX in listed:
                self._download(commit, self._shards(directory, listed))
        return directory

    def _converted(self) -> str | None:
        """Return the pull request in which the Hub's converter offers SafeTensors, as transformers looks for it."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=self._endpoint, token=self._token)
        for pull in api.get_repo_discussions(self._reference.name, author=_CONVERTER, discussion_type="pull_request"):
            if pull.author == _CONVERTER and pull.title == _CONVERSION and pull.status == "open":
                return pull.git_reference
        return None

    def _wanted(self, listed: Sequence[str], *, weights: bool, code: bool) -> list[str]:
        """Choose from the files of a repository: its config, side files and the index or the one file of weights."""
        if self._adapter:
            return [name for name in (ADAPTER_CONFIG, ADAPTER, CARD) if name in listed]
        side = sort_side_files(listed)
        wanted = [name for name in (CONFIG, CARD) if name in listed]
        wanted += [*side.tokenizer, *side.other, *(side.code if code else ())]
        if not weights:
            return wanted
        wanted += self._in_copies(listed)
        if CONFIG not in listed:
            raise CheckpointError(
                f"{self._reference}: the repository has no config.json, so there is no model to merge"
            )
        # The single file first, as transformers does; the two never describe different weights.
        for name in (SINGLE, INDEX):
            if name in listed:
                return [*wanted, name]
        counted = counted_shards(listed)
        if counted:
            return [*wanted, *counted]
        if self._copies is not None:  # a save that has nothing of its own
            return wanted
        others = ", ".join(side.weights[:4]) or "no weights at all"
        raise CheckpointError(
            f"{self._reference}: the repository has no {SINGLE} and no {INDEX} (it has {others}); "
            "convert the model to SafeTensors, or name a revision that has them"
        )

    def _in_copies(self, listed: Sequence[str]) -> Iterator[str]:
        for name in listed:
            parts = name.split("/")
            if len(parts) == 3 and parts[0] == self._copies and parts[1].isdecimal():
                side = sort_side_files([parts[2]])
                if parts[2] in (CONFIG, CARD, SINGLE, *side.tokenizer, *side.other):
                    yield name

    def _shards(self, directory: Path, listed: Sequence[str]) -> list[str]:
        shards = read_shard_names(directory / INDEX)
        missing = [name for name in shards if name not in listed]
        if missing:
            raise CheckpointError(f"{self._reference}: {INDEX} names {missing[0]}, which the repository lacks")
        return shards

    def _download(self, revision: str | None, names: Sequence[str]) -> Path:
        """Download files into the cache (those already there cost nothing) and return the snapshot's directory."""
        from huggingface_hub import hf_hub_download

        directory = Path()
        for name in names:
            path = hf_hub_download(
                self._reference.name,
                name,
                revision=revision,
                cache_dir=self._cache_dir,
                token=self._token,
                endpoint=self._endpoint,
            )
            directory = Path(path).parents[len(PurePosixPath(name).parts) - 1]
        return directory

    def _from_cache(self, cause: Exception, *, weights: bool) -> Located:
        """Return the cached snapshot of the revision, if all that the merge needs is there."""
        from huggingface_hub.constants import HF_HUB_OFFLINE

        snapshot = cached_snapshot(self._reference, self._cache_dir)
        nothing = [ADAPTER_CONFIG, ADAPTER] if self._adapter else [CONFIG, *([SINGLE] if weights else ())]
        if snapshot is None:
            missing = nothing
        elif self._adapter:
            missing = [name for name in nothing if not (snapshot / name).exists()]
        else:
            missing = missing_files(snapshot, weights=weights and self._copies is None)
        if snapshot is None or missing:
            others = [] if snapshot else cached_commits(self._reference, self._cache_dir)
            known = f" (of other commits it has {', '.join(others[:3])})" if others else ""
            connect = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE" if HF_HUB_OFFLINE else "connect"
            raise CheckpointError(
                f"{self._reference}: no such directory, the Hub is unreachable ({first_line(cause)}), and its cache "
                f"lacks {', '.join(missing[:4])}{known}; "
                f"{connect} and run again, or name a local directory{nearby(self._reference.name)}"
            ) from cause
        commit = snapshot.name
        if self._offline is None:
            _log.warning("offline: using the cached commit %s of %s", commit, self._reference)
        else:
            self._offline.append(f"{commit[:12]} of {self._reference}")
        return Located(snapshot, commit, lambda: snapshot)

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        """Context manager that turns errors of huggingface_hub into what they mean for the writer of the recipe."""
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            yield
        except HFValidationError as error:
            raise FileNotFoundError(
                f"{self._reference}: no such directory, and no id of a Hub repository ({first_line(error)})"
                f"{nearby(self._reference.name)}"
            ) from error
        except GatedRepoError as error:
            raise PermissionError(
                f"{self._reference}: the repository is gated; ask for access on its page, then log in "
                "(`hf auth login`) or set HF_TOKEN"
            ) from error
        except RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"{self._reference}: no such directory, and no such repository on the Hub "
                f"(a private one needs `hf auth login` or HF_TOKEN){nearby(self._reference.name)}"
            ) from error
        except RevisionNotFoundError as error:
            raise CheckpointError(
                f"{self._reference}: the repository has no revision {self._reference.revision!r}; "
                "name a branch, a tag or a full commit hash"
            ) from error
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403):
                raise PermissionError(
                    f"{self._reference}: the Hub refused ({first_line(error)}); check HF_TOKEN and its rights"
                ) from error
            raise CheckpointError(
                f"{self._reference}: the Hub failed ({first_line(error)}); run again later"
            ) from error
        except (LocalEntryNotFoundError, *_connection_errors()[:1]) as error:
            raise CheckpointError(
                f"{self._reference}: the connection to the Hub broke ({first_line(error)}); run again, "
                "finished files are kept"
            ) from error


def _connection_errors() -> tuple[type[Exception], type[OSError]]:
    """Return what a broken connection raises in whichever HTTP library huggingface_hub was built on."""
    from huggingface_hub import errors

    return errors.HTTPError, OSError  # type: ignore[attr-defined]
