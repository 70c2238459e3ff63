"""Split the documents of each domain into train, validation and test text that have no passage in common.

Documents are put in order by a digest of their names; the first are test text, the next validation text, the others
train text, up to a size. What a later split has in common with an earlier one, of whichever domain, is then removed
from it, paragraph by paragraph: no 13 words in a row are in two splits (`shared` counts them). So a boilerplate or a
verse that the Bible has twice does not show a model what it is measured on.

    python examples/family/texts.py

writes texts/DOMAIN.SPLIT.jsonl of the three domains of the experts, which are in the repository (train text as .xz),
and the train text of the base model, which is not, below build/family.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from sources import DOMAINS, Document, documents, fetch

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "family"
EXPERTS = ("python", "kjv", "wordnet")
SPLITS = ("test", "validation", "train")
BYTES = {"test": 200_000, "validation": 100_000, "train": 3_000_000}
GENERAL_BYTES = BYTES | {"train": 20_000_000}
WORDS_IN_A_ROW = 13


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ngrams(text: str, size: int = WORDS_IN_A_ROW) -> set[tuple[str, ...]]:
    """Return all `size` consecutive words of a text."""
    found = words(text)
    return {tuple(found[at : at + size]) for at in range(len(found) - size + 1)}


def shared(texts: Iterable[str], earlier: Iterable[str]) -> int:
    """Count the 13-grams of some texts that are in others, too, by digests of 64 bits, which takes seconds."""
    numbers: dict[str, int] = {}
    factors = np.random.default_rng(0).integers(2**63, size=WORDS_IN_A_ROW, dtype=np.uint64) * 2 + 1

    def digests(some: Iterable[str]) -> np.ndarray:
        found = []
        for text in some:
            row = np.array([numbers.setdefault(word, len(numbers)) for word in words(text)], dtype=np.uint64)
            if len(row) >= WORDS_IN_A_ROW:
                found.append(np.lib.stride_tricks.sliding_window_view(row, WORDS_IN_A_ROW) @ factors)
        return np.unique(np.concatenate(found)) if found else np.array([], dtype=np.uint64)

    return len(np.intersect1d(digests(texts), digests(earlier), assume_unique=True))


def split(found: list[Document], sizes: dict[str, int]) -> dict[str, list[Document]]:
    """Deal documents out, in an order that depends on their names alone.

    Test and validation text come from the general domain's jargon file alone, which is in the public domain, so that
    they can be shipped.
    """
    order = sorted(found, key=lambda document: hashlib.sha256(document.name.encode()).digest())
    parts: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for name in SPLITS:
        room = sizes[name]
        for document in list(order):
            size = len(document.text.encode())
            held_out = name != "train"
            if size > room or (held_out and document.name.startswith(("perl/", "debian/"))):
                continue
            if held_out and size > sizes[name] // 4:
                continue
            room -= size
            parts[name].append(document)
            order.remove(document)
    return parts


def without(document: Document, known: set[tuple[str, ...]]) -> Document:
    """Remove each paragraph (each line, where no line is blank) of which a word is in one of the known n-grams."""
    text = document.text
    while ngrams(text) & known:
        between = "\n\n" if "\n\n" in text else "\n"
        paragraphs = text.split(between)
        numbers = [number for number, paragraph in enumerate(paragraphs) for _ in words(paragraph)]
        found = words(text)
        starts = (at for at in range(len(found)) if tuple(found[at : at + WORDS_IN_A_ROW]) in known)
        removed = {number for at in starts for number in numbers[at : at + WORDS_IN_A_ROW]}
        text = between.join(text for number, text in enumerate(paragraphs) if number not in removed)
    return Document(document.name, text)


def make(packages: Path) -> dict[tuple[str, str], list[Document]]:
    """Return the documents of each domain and split."""
    sizes = {domain: GENERAL_BYTES if domain == "general" else BYTES for domain in DOMAINS}
    dealt = {domain: split(documents(domain, packages), sizes[domain]) for domain in DOMAINS}
    made: dict[tuple[str, str], list[Document]] = {}
    known: set[tuple[str, ...]] = set()
    for name in SPLITS:
        for domain in DOMAINS:
            cleaned = (without(document, known) for document in dealt[domain][name])
            made[domain, name] = [document for document in cleaned if len(document.text) > 200]
        for domain in DOMAINS:
            known.update(*(ngrams(document.text) for document in made[domain, name]))
    return made


def path_of(domain: str, name: str) -> Path:
    """Return where the text of a domain and split is."""
    if domain == "general" and name == "train":
        return BUILD / "general.train.jsonl.xz"
    return HERE / "texts" / f"{domain}.{name}.jsonl{'.xz' if name == 'train' else ''}"


def read(domain: str, name: str) -> list[str]:
    """Return the texts of a domain's split, a text per document."""
    path = path_of(domain, name)
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return [json.loads(line)["text"] for line in data.splitlines()]


def main() -> int:
    packages = BUILD / "packages"
    versions = fetch(packages)
    print(*(f"{name} {version}" for name, version in versions.items()), sep="\n")
    for (domain, name), found in make(packages).items():
        path = path_of(domain, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"name": one.name, "text": one.text}, ensure_ascii=False) + "\n" for one in found)
        data = "".join(lines).encode()
        path.write_bytes(lzma.compress(data, preset=9) if path.suffix == ".xz" else data)
        size = sum(len(one.text.encode()) for one in found)
        print(f"{domain:8} {name:10} {len(found):4} documents {size:9,} bytes, {path.stat().st_size:9,} as a file")
    return 0


if __name__ == "__main__":
    sys.exit(main())
