"""Regular expressions that are compiled when they are first used: a command uses few of all that its modules have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, AnyStr, cast

if TYPE_CHECKING:
    Flags = int | re.RegexFlag


def regex(source: AnyStr, flags: Flags = 0) -> re.Pattern[AnyStr]:
    """Return what `re.compile` does, without compiling it yet.

    Raises:
        re.error: at its first use, if it is none.
    """
    return cast("re.Pattern[AnyStr]", _Pattern(source, flags))


class _Pattern:
    """Has the attributes of a compiled expression: the first use compiles it, and each is kept."""

    def __init__(self, source: str | bytes, flags: Flags) -> None:
        self._source, self._flags = source, flags
        self._compiled: re.Pattern[str] | re.Pattern[bytes] | None = None

    def __getattr__(self, name: str) -> object:
        if self._compiled is None:
            self._compiled = re.compile(self._source, self._flags)
        found = self.__dict__[name] = getattr(self._compiled, name)
        return found
