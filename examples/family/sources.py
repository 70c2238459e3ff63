"""Fetch Debian packages and cut the texts in them into documents.

Four domains. `general` is documentation for programmers (Perl's pods, the jargon file, the Debian reference), which the
base model is trained on. `python` (sources of Python's standard library), `kjv` (the King James Bible) and `wordnet`
(words and their definitions) are the experts'. Packages are downloaded with `apt-get download` and unpacked below the
given directory; nothing is installed. What each may be used for is written in README.md.
"""

from __future__ import annotations

import gzip
import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PACKAGES = (
    "perl-doc", "jargon-text", "debian-reference-en", "libpython3.11-stdlib", "libpython3.11-minimal",
    "bible-kjv", "bible-kjv-text", "wordnet-base",
)  # fmt: skip
# Perl's pods that are indexes or tables; Python's tables of characters, its tests, and generated files.
NO_PODS = ("perltoc", "perluniprops", "perlmodlib")
NO_MODULES = ("encodings", "test", "tests", "lib2to3", "pydoc_data", "idlelib", "__phello__", "turtledemo")
PARTS_OF_SPEECH = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
CHUNK = 20_000


class Document(NamedTuple):
    """A text and the name of where it is from."""

    name: str
    text: str


def fetch(directory: Path) -> dict[str, str]:
    """Download and unpack `PACKAGES` below `directory`, unless that was done, and return their versions."""
    done = directory / "versions.txt"
    if not done.exists():
        directory.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=directory, check=True)
        versions = []
        for package in PACKAGES:
            (archive,) = directory.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", archive, directory / package], check=True)
            versions.append(f"{package} {archive.name.split('_')[1].replace('%3a', ':')}\n")
        done.write_text("".join(versions))
    return dict(line.split() for line in done.read_text().splitlines())


def general(directory: Path) -> Iterator[Document]:
    """Return Perl's pods by file, and the jargon file and the Debian reference in chunks of some 20 kB."""
    for path in sorted(directory.glob("perl-doc/usr/share/perl/*/pod/*.pod")):
        if path.stem not in NO_PODS:
            yield Document(f"perl/{path.name}", path.read_text(encoding="utf-8", errors="replace"))
    for name, found in (
        ("jargon", "jargon-text/usr/share/doc/jargon-text/jargon.txt.gz"),
        ("debian", "debian-reference-en/usr/share/debian-reference/debian-reference.en.txt.gz"),
    ):
        text = gzip.decompress((directory / found).read_bytes()).decode("utf-8", errors="replace")
        yield from _chunks(name, re.split(r"\n[ \t]*(?:\n[ \t]*)+", text), "\n\n")


def python(directory: Path) -> Iterator[Document]:
    """Return the modules of Python's standard library that are written in Python."""
    for package in ("libpython3.11-minimal", "libpython3.11-stdlib"):
        root = directory / package / "usr/lib/python3.11"
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root)
            if not set(inside.parts[:-1]) & set(NO_MODULES) and not path.is_symlink() and path.stat().st_size > 500:
                yield Document(f"python/{inside}", path.read_text(encoding="utf-8", errors="replace"))


def kjv(directory: Path) -> Iterator[Document]:
    """Return the King James Bible by chapter, a verse per line."""
    program, data = directory / "bible-kjv/usr/bin/bible", directory / "bible-kjv-text/usr/lib"
    printed = subprocess.run(
        [program, "-l", "10000", "-p", data, "gen1:1-rev22:21"], capture_output=True, text=True, check=True
    ).stdout
    chapters: dict[str, list[str]] = {}
    for line in filter(None, printed.splitlines()):
        if re.fullmatch(r"(\d )?[A-Z][A-Za-z ]* \d+", line):
            verses = chapters.setdefault(line, [])
        else:
            verses.append(re.sub(r"^ *\d+ ", "", line))
    for chapter, verses in chapters.items():
        yield Document(f"kjv/{chapter}", "\n".join([chapter, *verses]) + "\n")


def wordnet(directory: Path) -> Iterator[Document]:
    """Return WordNet's words and definitions, a set of synonyms per line, in chunks of its files."""
    for part, name in PARTS_OF_SPEECH.items():
        lines = []
        for line in (directory / f"wordnet-base/usr/share/wordnet/data.{part}").read_text().splitlines():
            if not line.startswith(" "):
                fields, gloss = line.split(" | ", 1)
                _, _, _, count, *rest = fields.split(" ")
                words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]]
                lines.append(f"{', '.join(words)} ({name}): {gloss.strip()}")
        yield from _chunks(f"wordnet/{part}", lines, "\n")


def _chunks(name: str, parts: Iterable[str], between: str) -> Iterator[Document]:
    """Join consecutive parts to documents of some `CHUNK` characters."""
    total = 0
    grouped: dict[int, list[str]] = {}
    for part in parts:
        grouped.setdefault(total // CHUNK, []).append(part)
        total += len(part) + len(between)
    for number, (_, found) in enumerate(sorted(grouped.items())):
        yield Document(f"{name}/{number:03}", between.join(found) + "\n")


DOMAINS = {"general": general, "python": python, "kjv": kjv, "wordnet": wordnet}


def documents(domain: str, directory: Path) -> list[Document]:
    """Return the documents of a domain, without those that have the name of an earlier one."""
    return list({document.name: document for document in DOMAINS[domain](directory)}.values())
