"""Texts to measure a model on: documents by domain, from strings or files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mol.errors import ConfigError

UNNAMED = "texts"
"""The domain of documents that are given without one."""


def read_domains(texts: Any) -> dict[str, list[str]]:  # noqa: ANN401 - see below
    """Return documents by domain.

    Args:
        texts: a mapping from the name of a domain to a string, a `pathlib.Path`, or several of them; or a path or
            several, whose domains are the names of the files without their suffix; or strings, of one domain, "texts".
            A file is one document; each line of a `.jsonl` file is one, an object with a `text`.

    Raises:
        ConfigError: there is no text, a document is empty, or something is no text; lists every problem.
        OSError: a file cannot be read.
    """
    problems: list[str] = []
    domains: dict[str, list[str]] = {}
    if isinstance(texts, Mapping):
        named = [(str(name), _listed(given)) for name, given in texts.items()]
    else:
        given = _listed(texts)
        files = [one for one in given if isinstance(one, Path)]
        if files and len(files) < len(given):
            raise ConfigError("texts are strings and paths; give a mapping from domains to texts, or one kind of them")
        named = [(name, [file]) for name, file in _named_files(files).items()] if files else [(UNNAMED, given)]
    for name, listed in named:
        documents: list[str] = []
        domains[name] = documents
        for one in listed:
            found = _read(one, problems) if isinstance(one, Path) else [one]
            where, first = (str(one), 1) if isinstance(one, Path) else (name, len(documents) + 1)
            for number, text in enumerate(found, first):
                if not isinstance(text, str):
                    problems.append(f"{where} holds a {type(text).__name__}, wanted strings, or pathlib.Path of files")
                elif not text.strip():
                    problems.append(f"document {number} of {where} is empty")
            documents += found
        if not listed:
            problems.append(f"{name} has no document")
    if not named:
        problems.append("there are none")
    if problems:
        raise ConfigError.listing("no model can be measured on these texts", problems)
    return domains


def _listed(given: object) -> list[Any]:
    if isinstance(given, str | Path) or not isinstance(given, Iterable):
        return [given]
    return list(given)


def _named_files(files: list[Path]) -> dict[str, Path]:
    """Name files by their stems, and those that share one by their paths."""
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 else str(file): file for file in files}


def _read(path: Path, problems: list[str]) -> list[str]:
    try:
        content = path.read_bytes().decode()  # no newline is translated: its bytes are counted
    except UnicodeDecodeError as error:
        problems.append(f"{path} is no text in UTF-8: {error}")
        return []
    if path.suffix != ".jsonl":
        return [content]
    found = []
    for number, line in enumerate(content.split("\n"), 1):  # other line ends may be inside a JSON string
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if isinstance(text, str):
            found.append(text)
        else:
            problems.append(f"{path}, line {number}: {line[:60]!r} is no JSON object with a `text`")
    if not found and not problems:
        problems.append(f"{path} has no document")
    return found
