"""The Hub's cache: which of its directories is which revision of which repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from mol.regex import regex

if TYPE_CHECKING:
    from mol.config.model_reference import ModelReference

_SNAPSHOT: Final = regex(r"models--(?P<id>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})")
_COMMIT: Final = regex(r"[0-9a-f]{40}")


def hub_origin(directory: Path, cache_dir: Path | str | None = None) -> tuple[str, str] | None:
    """Return (repository id, commit hash) of a directory in the Hub cache in use, None for any other.

    A directory elsewhere may have the same names, and anything in it.

    Args:
        directory: the directory.
        cache_dir: the Hub cache, huggingface_hub's own if None.
    """
    resolved = directory.resolve()
    match = _SNAPSHOT.fullmatch("/".join(resolved.parts[-3:]))
    if match is None:
        return None
    if cache_dir is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache_dir = HF_HUB_CACHE
    if Path(cache_dir).expanduser().resolve() != resolved.parents[2]:
        return None
    return match["id"].replace("--", "/"), match["commit"]


def cached_snapshot(reference: ModelReference, cache_dir: Path | str | None = None) -> Path | None:
    """Return the directory of a revision in the Hub's cache, None where it is not there.

    By the cache's documented layout, since huggingface_hub's own look-up takes long to load.

    Args:
        reference: the id of a repository with an optional revision.
        cache_dir: the Hub cache, huggingface_hub's own if None.
    """
    repository = _repository(reference, cache_dir)
    revision = reference.revision or "main"
    named = repository / "refs" / revision
    if named.is_file():
        revision = named.read_text(encoding="utf-8", errors="replace").strip()
    snapshot = repository / "snapshots" / revision
    return snapshot if _COMMIT.fullmatch(revision) and snapshot.is_dir() else None


def cached_commits(reference: ModelReference, cache_dir: Path | str | None = None) -> list[str]:
    """Return the commits of a repository that the Hub's cache has; the arguments are those of `cached_snapshot`."""
    return sorted(path.name for path in _repository(reference, cache_dir).glob("snapshots/*"))


def _repository(reference: ModelReference, cache_dir: Path | str | None) -> Path:
    if cache_dir is None:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache_dir = HF_HUB_CACHE
    return Path(cache_dir).expanduser() / f"models--{reference.name.replace('/', '--')}"
