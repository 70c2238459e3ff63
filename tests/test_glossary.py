"""Comments, docstrings, messages and names use one word per idea: those that must not return are listed here."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
FOLDERS = ("python", "rust", "tests", "benches", "examples")

# What must not be written, and what is written instead.
INSTEAD = {
    r"bands?": "slice",
    r"lanes?": "source of a slice",
    r"pieces?": "tile (of scheduling), strip (of a kernel call), block (of a model), chunk (of a file)",
    r"places?": "directory, path, position, file; `instead of` for `in place of`",
    r"tells?|told": "return, report, print; distinguish for `tell apart`",
    r"asked": "requested",
    r"besides?": "next to, with, in addition to",
    r"serves?": "is used",
    r"stands? for|in the place of": "replace, mean",
    r"(can|cannot|to) be had": "is available, can be loaded",
    r"looks? (ahead|back)": "attends to later tokens, is causal",
    r"(goes?|writes?) on": "continues, generates",
    r"of use": "used, useful",
    r"one an? (model|layer|tensor|slice|token|row|column|line|task)": "one per model",
    r"slips? of the pen": "typing error",
    r"MergedModel": "PendingMerge",
}
# Phrases that stay, by language, each with the one meaning that it has there.
MEANINGS = {
    "[Ll]anes?": {"rust": "the elements of a SIMD vector"},
    "in place(?! of)": {"python": "to change the object itself", "rust": "without a copy"},
    "last place": {"python": "a unit in the last place of a float", "rust": "a unit in the last place of a float"},
    "into place": {"python": "to the bits where a value belongs"},
    "such place": {"python": "of a path that does not exist"},
    "tell me a story": {"python": "of a text that a model reads"},
    "places each": {"rust": "of a layout: to choose where in a file a tensor is"},
    "places single": {"python": "of a device_map: to choose devices of blocks"},
}
# Of the device on which a block is kept, and whether it stays there: the one thing that is named a place.
PLACES = {"placement.py", "residence.py", "runner.py", "loading.py"}
FIRST_WORDS = {"Tell", "Tells", "Say", "Says", "Give", "Gives", "Whether"}  # of a function: Return, Report, Check, ...

BANNED = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b", re.IGNORECASE)
OLD_NAMES = re.compile(r"(?:^|_)(?:bands?|(?<!word_)pieces?|places?|told|tells?|asked|besides?|serves?)(?:_|$)")


def prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    """Yield comments and strings of several words, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind == "COMMENT" or (kind in ("STRING", "FSTRING_MIDDLE") and " " in token.string):
            yield token.start[0], token.string


def prose_of_rust(text: str) -> Iterator[tuple[int, str]]:
    """Yield comments and strings of several words, with their lines."""
    for number, line in enumerate(text.splitlines(), 1):
        for found in re.finditer(r'//.*|"(?:[^"\\]|\\.)* (?:[^"\\]|\\.)*"', line):
            yield number, found[0]


def wrong_words(prose: Iterator[tuple[int, str]], language: str) -> Iterator[str]:
    allowed = re.compile(rf"\b(?:{'|'.join(words for words, meanings in MEANINGS.items() if language in meanings)})\b")
    for number, text in prose:
        for found in BANNED.finditer(allowed.sub("", text)):
            instead = next(word for old, word in INSTEAD.items() if re.fullmatch(old, found[0], re.IGNORECASE))
            yield f"{number}: `{found[0]}`; write {instead}"


def wrong_names(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        name = node.name if is_function or isinstance(node, ast.ClassDef) else getattr(node, "arg", None)
        if isinstance(name, str) and OLD_NAMES.search(name):
            yield f"{node.lineno}: the name `{name}`"
        if is_function and not node.decorator_list:
            first = (ast.get_docstring(node) or "").partition(" ")[0]
            if first in FIRST_WORDS:
                yield f"{node.lineno}: the docstring of `{node.name}` begins with {first}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_words_that_were_replaced_do_not_return(folder: str) -> None:
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.*")):
        text = path.read_text(encoding="utf-8") if path.suffix in (".py", ".pyi", ".rs") else ""
        if path == Path(__file__) or "target" in path.parts:
            continue
        if path.suffix == ".rs":
            found = [*wrong_words(prose_of_rust(text), "rust")]
        else:
            found = [*wrong_words(prose_of_python(text), "python"), *wrong_names(text)]
            found = [line for line in found if path.name not in PLACES or not re.search("place", line, re.IGNORECASE)]
        wrong += [f"{path.relative_to(ROOT)}:{line}" for line in found]
    assert not wrong, "\n".join(wrong)
