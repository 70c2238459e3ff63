"""The README.md of an output directory: front matter that the Hub understands, then what was done to what."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml

from mol.errors import CheckpointError
from mol.io.layout import CARD, MANIFEST
from mol.io.side_files import find_file
from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

LISTED: Final = 100
"""Lines of a list in the card; the manifest holds the whole."""

_FRONT_MATTER: Final = regex(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_LICENSE_KEYS: Final = ("license", "license_name", "license_link")
# A key of the front matter with its value, as far as the next line that is not indented.
_LICENSE_LINES: Final = regex(
    rf"""^(?:(['"]?)(?:{"|".join(_LICENSE_KEYS)})\1[ \t]*:).*(?:\n[ \t].*|\n(?=\r?\n|\Z))*""", re.MULTILINE
)
_LONGEST: Final = 300  # characters of a license's name or link
# What Markdown, HTML or the Hub's renderer would take for more than letters, links without brackets included.
_MARKUP: Final = regex(r"[\\`*\[\]<>&!|~#$]|(?<=www)\.|:(?=//)", re.IGNORECASE)


class CardSource(NamedTuple):
    """One input as the card names it.

    Attributes:
        name: a repository id, or the name of a local directory without its path.
        on_hub: whether the name is a repository id.
        revision: commit hash, if known.
        license: `license`, and `license_name` and `license_link` where they are given.
        role: e.g. "base", empty for a plain input.
        digest: SHA-256 of its weights, if they were read as a whole.
    """

    name: str
    on_hub: bool
    revision: str | None
    license: Mapping[str, str]
    role: str = ""
    digest: str | None = None


def read_license(directory: Path) -> dict[str, str]:
    """Read what a model's own card says about its license; empty where there is no card or it does not say.

    Only the lines of the license are read as YAML, and nothing in them but text: what else is wrong with another
    model's card does not matter.

    Raises:
        CheckpointError: those lines are no YAML, or the card is no regular file.
        OSError: the card cannot be read.
    """
    if not os.path.lexists(directory / CARD):
        return {}
    card = find_file(directory, CARD).path
    with card.open("rb") as file:
        text = file.read(1 << 18).decode("utf-8", errors="replace")
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}
    lines = "\n".join(found[0] for found in _LICENSE_LINES.finditer(match[1].replace("\r\n", "\n")))
    try:
        content = yaml.load(lines, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise CheckpointError(f"{card}: its front matter cannot be read ({_one_line(problem)})") from error
    if not isinstance(content, dict):
        return {}
    values = {key: content.get(key) for key in _LICENSE_KEYS}
    return {
        key: value
        for key, value in values.items()
        if isinstance(value, str) and _one_line(value) and len(value) <= _LONGEST
    }


def model_card(
    *,
    method: str,
    method_title: str,
    method_url: str,
    sources: Sequence[CardSource],
    recipe: str,
    dtypes: Sequence[str],
    tensors: Mapping[str, int],
    sections: Mapping[str, Sequence[str]],
    plan_digest: str,
    version: str,
) -> str:
    """Write the card; the same arguments give the same text.

    Args:
        method: the method's name in a recipe.
        method_title: its name for people.
        method_url: where it is described.
        sources: the inputs in the recipe's order, the base among them.
        recipe: the recipe's YAML.
        dtypes: dtypes of the output's tensors.
        tensors: how many tensors each method made.
        sections: title -> lines to list; empty ones are left out.
        plan_digest: digest of the operations, not of what is in the files that they read.
        version: mol's version.
    """
    names = [source.name for source in sources]
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", recipe))])
    parts = [
        front_matter(sources, "transformers", ["mol", "merge", "mergekit"]),
        f"# Merge of {joined([inline(name) for name in names])}",
        f"This model was made with [{method_title}]({method_url}) (`{method}`) by mol {version}, without training.",
        "## Sources",
        "\n".join(source_line(source) for source in sources),
        license_line(sources),
        "## Recipe",
        f"{fence}yaml\n{recipe.rstrip()}\n{fence}",
        "## What was done",
        "\n".join(
            [f"- {count} tensors: {inline(name)}" for name, count in sorted(tensors.items())]
            + [f"- stored as {', '.join(dtypes)}", f"- digest of the operations: `{plan_digest}`"]
        ),
    ]
    for title, lines in sections.items():
        if lines:
            shown = [f"- {inline(line)}" for line in lines[:LISTED]]
            if len(lines) > LISTED:
                shown.append(f"- and {len(lines) - LISTED} more, all in `{MANIFEST}`")
            parts += [f"## {title}", "\n".join(shown)]
    return "\n\n".join(parts) + "\n"


def front_matter(sources: Sequence[CardSource], library: str, tags: Sequence[str]) -> str:
    """Return what the Hub reads of a card: models, library, tags, and the license if all sources state the same."""
    # A local directory's name is not listed as base model: on the Hub it would point to a stranger's repository.
    on_hub = list(dict.fromkeys(source.name for source in sources if source.on_hub))
    front: dict[str, Any] = {}
    if on_hub:
        front |= {"base_model": on_hub, "base_model_relation": "merge"}
    front |= {"library_name": library, "tags": list(tags)}
    front |= _common_license(sources)
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _common_license(sources: Sequence[CardSource]) -> dict[str, str]:
    """Return the license that all sources state, word for word; none if any differs or does not say."""
    licenses = [dict(source.license) for source in sources]
    agreed = bool(licenses) and "license" in licenses[0] and all(other == licenses[0] for other in licenses)
    return licenses[0] if agreed else {}


def license_line(sources: Sequence[CardSource]) -> str:
    """Return the sentence of a card on the licenses of its sources."""
    if _common_license(sources):
        return f"All sources state the license {code(_stated(sources[0]))}."
    stated = "; ".join(f"{inline(source.name)}: {inline(_stated(source))}" for source in sources)
    return f"The sources do not all state the same license ({stated}), so this card names none."


def _stated(source: CardSource) -> str:
    return source.license.get("license_name", source.license.get("license", "not stated"))


def source_line(source: CardSource) -> str:
    """Return the line of a card on one source."""
    revision = f" at revision {code(source.revision)}" if source.revision else ""
    digest = f", SHA-256 {code(source.digest)}" if source.digest else ""
    return f"- {code(source.name)}{revision}{f' ({source.role})' if source.role else ''}{digest}"


def joined(names: Sequence[str]) -> str:
    """Return names as a sentence lists them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def code(text: str) -> str:
    """Return a name as a span of code, which it cannot end."""
    text = _one_line(text)
    ticks = "`" * (max([0, *(len(run) for run in re.findall("`+", text))]) + 1)
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def inline(text: str) -> str:
    """Return a line of text as one: its spans of code stay, and nothing else in it is markup."""
    text = _one_line(text)
    pieces = text.split("`")
    if len(pieces) % 2 == 0 or "``" in text:  # no spans of code, but a name that has these characters
        return _escaped(text)
    return "`".join(piece if i % 2 else _escaped(piece) for i, piece in enumerate(pieces))


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\g<0>", text)


def _one_line(text: str) -> str:
    """Return a text without line breaks, and with what cannot be seen (or turns the writing) spelled out."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
