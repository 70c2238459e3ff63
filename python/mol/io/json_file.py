"""Reads the small files next to weights: regular files only, of bounded size, mostly JSON."""

from __future__ import annotations

import json
import os
import re
import stat
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from mol.errors import CheckpointError
from mol.regex import regex
from mol.text import write_size

if TYPE_CHECKING:
    from pathlib import Path

_DEEPEST: Final = 64
# The largest tokenizers take 40 MB, the index of a model of 100,000 tensors 10 MB.
_LARGEST: Final = 512 * 1024 * 1024
# Some file systems say 0 of a file whose size they do not know.
_UNSIZED: Final = 1024 * 1024
# Tokenizers write 10**30 for "no limit"; nothing that a model means is longer.
_MOST_DIGITS: Final = 40

_LFS: Final = b"version https://git-lfs.github.com/spec/"
_LFS_SIZE: Final = regex(rb"^size (\d{1,20})$", re.MULTILINE)
_WEB_PAGE: Final = regex(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        CheckpointError: it is no JSON, holds something else, or is no file that a model has.
        OSError: it cannot be read.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        found = "null" if content is None else f"a {type(content).__name__}"
        raise CheckpointError(f"{path} holds {found}, wanted a JSON object")
    return content


def digest_of(content: object) -> str:
    """Return a digest of a JSON value, whatever the order of its keys."""
    import hashlib  # loads OpenSSL

    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Read a JSON file.

    Raises:
        CheckpointError: it is no JSON, is nested without end, holds a number without end, gives a key two values, or
            is no file that a model has.
        OSError: it cannot be read.
    """
    return parse_json(path, read_regular(path))


def parse_json(path: Path, data: str | bytes) -> Any:  # noqa: ANN401 - whatever the file holds
    """Parse what was read of a JSON file; see `read_json`."""
    too_deep = f"{path} is nested more than {_DEEPEST} levels deep; no model's is"
    try:
        content = json.loads(data, parse_int=_integer, object_pairs_hook=_unique)
    except RecursionError as error:
        raise CheckpointError(too_deep) from error
    except _TooManyDigits as error:
        raise CheckpointError(f"{path} holds {error}; no model's does") from error
    except _GivenTwice as error:
        raise CheckpointError(f"{path} {error}; other programs take the last: remove the one that is wrong") from error
    except ValueError as error:
        instead = found_instead(data) if isinstance(data, bytes) else None
        if instead is not None:
            raise CheckpointError(f"{path} is {instead}") from error
        raise CheckpointError(f"{path} is not JSON: {error}; fetch the file again from where it came") from error
    if _is_deep(content):
        raise CheckpointError(too_deep)
    return content


def read_regular(path: Path) -> bytes:
    """Read a file, which must be a regular one of bounded size: a pipe would block, a device never ends.

    Raises:
        CheckpointError: it is a pipe, a device or a socket, or too large for a file next to weights.
        OSError: it cannot be read.
    """
    check_regular(path, path.stat().st_mode)
    # Opened without waiting for a writer, since a pipe may have replaced the file by now.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        found = os.fstat(file.fileno())
        check_regular(path, found.st_mode)
        # Memory is taken for all that is requested: little more than there is, and some where a size is not known.
        data = file.read(min(max(found.st_size, _UNSIZED), _LARGEST) + 1) if found.st_size <= _LARGEST else b""
    if found.st_size > _LARGEST or len(data) > _LARGEST:
        raise CheckpointError(f"{path} holds more than {_LARGEST:,} bytes, which no such file of a model does")
    return data


def check_regular(path: Path, mode: int) -> None:
    """Refuse what is no regular file, given the mode that `stat` reports.

    Raises:
        CheckpointError: it is a pipe, a device or a socket.
        IsADirectoryError: it is a directory.
    """
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a directory, wanted a file")
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for test, name in kinds if test(mode)), "a device")
        raise CheckpointError(f"{path} is {kind}, wanted a regular file")


def found_instead(head: bytes) -> str | None:
    """Return what was saved instead of a file of a model, and the way out; None where it is nothing known.

    Args:
        head: the first bytes of the file.
    """
    if head.startswith(_LFS):
        size = _LFS_SIZE.search(head)
        of = f" for a file of {write_size(int(size[1]))}" if size else ""
        return (
            f"a git-lfs pointer{of}, not the file itself; run `git lfs install` and `git lfs pull` in its directory, "
            "or fetch the model with `hf download`"
        )
    if _WEB_PAGE.match(head):
        return "a web page that was saved instead of the file; fetch the model with `hf download`"
    return None


def may(path: Path, mode: int) -> bool:
    """Return whether this process has the right, as its effective user."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


class _TooManyDigits(Exception):
    """A number that is no number of a model's."""


class _GivenTwice(Exception):
    """A key with two values."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys are given once, or say the same each time."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if (type(value), value) != (type(found[key]), found[key]):
                raise _GivenTwice(f"gives `{key[:100]}` twice, as {str(value)[:40]!r} and {str(found[key])[:40]!r}")
    return found


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise _TooManyDigits(f"an integer of {len(text):,} digits")
    return int(text)


def _is_deep(content: object) -> bool:
    """Return whether a JSON value is nested so deeply that walking it would exhaust the stack."""
    level: list[Any] = [content] if isinstance(content, (dict, list)) else []
    for _ in range(_DEEPEST):
        # Tokenizers hold 100,000s of texts and numbers, in one list or in one per token: all types are seen at once.
        level = [*chain.from_iterable(value.values() if type(value) is dict else value for value in level)]
        if {dict, list}.isdisjoint(map(type, level)):
            return False
        level = [value for value in level if type(value) in (dict, list)]
    return True
