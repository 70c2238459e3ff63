"""The fenced blocks of a Markdown page, for tests that run what it shows."""

from __future__ import annotations

import re


def fenced(page: str, language: str) -> list[str]:
    """The contents of a page's blocks in a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
