"""Raises the limit of open files for a sweep, which writes all of its results at the same time."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from mol.errors import MergeError

if TYPE_CHECKING:
    from collections.abc import Iterator

_EACH: Final = 2  # a file of weights, and the journal of what is finished in it
_OTHERS: Final = 32  # inputs being read, libraries, streams
_MOST: Final = 10_240  # macOS accepts no higher limit, also where its hard limit is infinite


@contextmanager
def enough_open_files(results: int) -> Iterator[None]:
    """Context manager within which so many results can be written at once.

    Args:
        results: how many; none of a merge without a sweep.

    Raises:
        MergeError: this process may not open so many files.
    """
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _EACH * results + _OTHERS
    if not results or before == resource.RLIM_INFINITY:
        yield
        return
    allowed = _MOST if most == resource.RLIM_INFINITY else min(most, _MOST)
    if needed > max(before, allowed):
        raise MergeError(
            f"the sweep writes {results:,} results at once, which takes {needed:,} open files, and this process may "
            f"have {max(before, allowed):,}; raise that limit (`ulimit -n`) or take fewer values"
        )
    # With several weight files per result, those of several may be in work, so all that is allowed is taken.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, allowed), most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
