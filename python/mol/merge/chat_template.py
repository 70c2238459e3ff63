"""Chooses the chat template of the output, and writes it where loaders look for it."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from mol.config.chat_templates import CHAT_TEMPLATES, SPECIAL_TOKENS
from mol.errors import CheckpointError
from mol.io.json_file import read_object, read_regular
from mol.io.layout import CHAT_TEMPLATE, TOKENIZER_SETTINGS
from mol.io.side_files import find_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mol.io.side_files import SideFile
    from mol.io.vocabulary import Vocabulary
    from mol.merge.planned import PlannedMerge

_KEY: Final = "chat_template"
_DEFAULT: Final = "default"


def choose_template(planned: PlannedMerge, vocabulary: Vocabulary, notes: list[str], warnings: list[str]) -> str | None:
    """Return the chat template that a recipe chooses, None where it keeps that of the tokenizer.

    Args:
        planned: the merge.
        vocabulary: of the tokenizer that the output gets.
        notes: gets whose template was taken.
        warnings: gets the tokens that the template writes and the tokenizer lacks.
    """
    template = planned.config.chat_template
    if template == "auto":
        template, remark = _most_common(planned)
        notes.append(remark)
    elif template in CHAT_TEMPLATES:
        lacking = _lacking(SPECIAL_TOKENS[template], planned, vocabulary)
        if lacking:
            warnings.append(
                f"chat_template {template} writes {', '.join(lacking)}, which the output's tokenizer splits up; "
                "take the tokenizer of a model that has such tokens, or `union`"
            )
        template = CHAT_TEMPLATES[template]
    return template


def write_template(
    template: str, copies: dict[str, SideFile], texts: dict[str, str], rewritten: dict[str, dict[str, Any]]
) -> None:
    """Make a template the default of the output; others that the tokenizer has by name stay.

    Args:
        template: the template.
        copies: the files that are copied.
        texts: gets the file of the template.
        rewritten: gets the tokenizer's settings.
    """
    copies.pop("chat_template.json", None)
    if TOKENIZER_SETTINGS in copies:
        # Versions older than chat_template.jinja look here.
        settings = rewritten.setdefault(TOKENIZER_SETTINGS, read_object(copies[TOKENIZER_SETTINGS].path))
        stated, settings[_KEY] = settings.get(_KEY), template
        others = [entry for entry in stated if _default_of([entry]) is None] if isinstance(stated, list) else []
        if others:
            settings[_KEY] = [{"name": _DEFAULT, "template": template}, *others]
            if not any(name == CHAT_TEMPLATE or name.startswith("additional_chat_templates/") for name in copies):
                return  # loaders that find a file read no list
    texts[CHAT_TEMPLATE] = template


def chat_template_of(directory: Path) -> str | None:
    """Return the chat template that a model has in its files; a damaged file is refused."""
    if os.path.lexists(directory / CHAT_TEMPLATE):
        path = find_file(directory, CHAT_TEMPLATE).path
        try:
            return read_regular(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8: {error}; fetch the file again from where it came") from error
    if not os.path.lexists(directory / TOKENIZER_SETTINGS):
        return None
    template = read_object(find_file(directory, TOKENIZER_SETTINGS).path).get(_KEY)
    template = _default_of(template) if isinstance(template, list) else template
    return template if isinstance(template, str) else None


def _default_of(named: list[Any]) -> object:
    """Return the default of templates with names, None without one."""
    entries = (entry for entry in named if isinstance(entry, dict))
    return next((entry.get("template") for entry in entries if entry.get("name") == _DEFAULT), None)


def _most_common(planned: PlannedMerge) -> tuple[str | None, str]:
    """Return the chat template that most inputs have, the first of equals, and a remark about it."""
    found = {source.name: template for source in planned.sources if (template := chat_template_of(source.directory))}
    if not found:
        return None, "chat_template: auto finds none: no input has a chat template"
    ((template, count),) = Counter(found.values()).most_common(1)
    owner = next(name for name, text in found.items() if text == template)
    return template, f"chat_template: auto takes that of {owner}, which {count} of {len(planned.sources)} inputs have"


def _lacking(tokens: Iterable[str], planned: PlannedMerge, vocabulary: Vocabulary) -> list[str]:
    """Return the tokens that the output's tokenizer is known to lack."""
    new = () if planned.joined is None else planned.joined.new
    known = {*vocabulary.ids, *(token.content for token in new)}
    return [token for token in tokens if token not in known] if vocabulary.complete else []
