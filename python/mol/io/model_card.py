"""The README.md of an output directory: front matter that the Hub understands, then what was done to what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_FRONT_MATTER: Final = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_LICENSE_KEYS: Final = ("license", "license_name", "license_link")
_LISTED: Final = 100  # lines of a list in the card; the manifest holds the whole


@dataclass(frozen=True, slots=True)
class CardSource:
    """One input as the card names it.

    Attributes:
        name: a repository id, or the name of a local directory without its path.
        on_hub: whether the name is a repository id.
        revision: commit hash, if known.
        license: `license`, and `license_name` and `license_link` where they are given.
        role: e.g. "base", empty for a plain input.
    """

    name: str
    on_hub: bool
    revision: str | None
    license: Mapping[str, str]
    role: str = ""


def read_license(directory: Path) -> dict[str, str]:
    """Read what a model's own card says about its license; empty where there is no card or it does not say."""
    card = directory / "README.md"
    if not card.is_file():
        return {}
    with card.open("rb") as file:
        text = file.read(1 << 18).decode("utf-8", errors="replace")
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}
    try:
        content = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return {}  # somebody else's card; that it cannot be read is no reason to refuse a merge
    if not isinstance(content, dict):
        return {}
    return {key: content[key] for key in _LICENSE_KEYS if isinstance(content.get(key), str)}


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
        plan_digest: digest of the plan.
        version: mol's version.
    """
    names = [source.name for source in sources]
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", recipe))])
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(sources), sort_keys=False, allow_unicode=True)}---",
        f"# Merge of {_joined(names)}",
        f"This model was made with [{method_title}]({method_url}) (`{method}`) by mol {version}, without training.",
        "## Sources",
        "\n".join(_source_line(source) for source in sources),
        _license_line(sources),
        "## Recipe",
        f"{fence}yaml\n{recipe.rstrip()}\n{fence}",
        "## What was done",
        "\n".join(
            [f"- {count} tensors: {name}" for name, count in sorted(tensors.items())]
            + [f"- stored as {', '.join(dtypes)}", f"- plan `{plan_digest}`"]
        ),
    ]
    for title, lines in sections.items():
        if lines:
            shown = [f"- {_one_line(line)}" for line in lines[:_LISTED]]
            if len(lines) > _LISTED:
                shown.append(f"- and {len(lines) - _LISTED} more, all in `mol_manifest.json`")
            parts += [f"## {title}", "\n".join(shown)]
    return "\n\n".join(parts) + "\n"


def _front_matter(sources: Sequence[CardSource]) -> dict[str, Any]:
    # A local directory's name is not listed as base model: on the Hub it would point to a stranger's repository.
    on_hub = list(dict.fromkeys(source.name for source in sources if source.on_hub))
    front: dict[str, Any] = {}
    if on_hub:
        front |= {"base_model": on_hub, "base_model_relation": "merge"}
    front |= {"library_name": "transformers", "tags": ["mol", "merge", "mergekit"]}
    return front | _common_license(sources)


def _common_license(sources: Sequence[CardSource]) -> dict[str, str]:
    """Return the license that all sources state, word for word; none if any differs or does not say."""
    licenses = [dict(source.license) for source in sources]
    agreed = bool(licenses) and "license" in licenses[0] and all(other == licenses[0] for other in licenses)
    return licenses[0] if agreed else {}


def _license_line(sources: Sequence[CardSource]) -> str:
    agreed = _common_license(sources)
    if agreed:
        return f"All sources state the license `{_one_line(agreed.get('license_name', agreed['license']))}`."
    stated = "; ".join(
        f"{source.name}: {_one_line(source.license.get('license_name', source.license.get('license', 'not stated')))}"
        for source in sources
    )
    return f"The sources do not all state the same license ({stated}), so this card names none."


def _source_line(source: CardSource) -> str:
    revision = f" at revision `{source.revision}`" if source.revision else ""
    return f"- `{source.name}`{revision}{f' ({source.role})' if source.role else ''}"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
