"""Reads `tokenizer_source` and the section `tokenizer` of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mol.config.document import Table, shown
from mol.config.model_reference import is_local
from mol.config.tokenizer import TokenizerSection, TokenRule
from mol.text import suggestion

if TYPE_CHECKING:
    from mol.config.document import Location
    from mol.config.inputs import Inputs
    from mol.config.model_reference import ModelReference
    from mol.config.tokenizer import TokenizerSource
    from mol.config.values import ValueReader

_MOST_ROWS: Final = 1 << 20


def read_tokenizer(
    recipe: Table, base_model: ModelReference | None, inputs: Inputs, reader: ValueReader
) -> TokenizerSection | None:
    """Read `tokenizer_source` or `tokenizer`, which say the same; None where a recipe has neither."""
    word, location = recipe.get("tokenizer_source"), recipe.at("tokenizer_source")
    section = recipe.get("tokenizer")
    known = [*inputs.models(), *([base_model] if base_model else [])] if inputs.sound else None
    source = None if word is None else _read_source(word, location, known, reader)
    if section is None:
        return None if source is None else TokenizerSection(source)
    if not isinstance(section, Table):
        reader.problems.add(recipe.at("tokenizer"), "`tokenizer` is a map with `source`: `base`, `union` or a model")
        return None
    reader.keys(section, ("source", "tokens", "pad_to_multiple_of"), "`tokenizer`")
    own = section.get("source")
    own = _read_source("union" if own is None else own, section.at("source"), known, reader)
    if word is not None and source != own:
        reader.problems.add(recipe.at("tokenizer"), "`tokenizer` and `tokenizer_source` exclude each other")
    tokens = _read_tokens(section.get("tokens"), section.at("tokens"), reader)
    multiple = section.get("pad_to_multiple_of")
    if multiple is not None:
        multiple = reader.whole(multiple, section.at("pad_to_multiple_of"), "pad_to_multiple_of", 1, _MOST_ROWS)
    return None if own is None else TokenizerSection(own, tokens, multiple)


def _read_source(
    value: object, location: Location, known: list[ModelReference] | None, reader: ValueReader
) -> TokenizerSource | None:
    if value == "base":
        return "base"
    if value == "union":
        return "union"
    if isinstance(value, str):
        value = value.removeprefix("model:")  # as older recipes write it
    model = reader.model(value, location)
    if model is not None and known is not None and model not in known:
        hint = "" if is_local(model.name) else suggestion(str(model), map(str, known))
        reader.notes.append(f"{model} is none of the models that are merged, so its tokenizer alone is used{hint}")
    return model


def _read_tokens(value: object, location: Location, reader: ValueReader) -> tuple[TokenRule, ...]:
    if value is None:
        return ()
    if not isinstance(value, Table):
        reader.problems.add(location, f"`tokens` is a map from tokens to `source` and `force`, not {shown(value)}")
        return ()
    rules = []
    for token, entry in value.items():
        where = value.at(token)
        if not isinstance(entry, Table):
            reader.problems.add(where, f"token {token!r} needs a map with `source`, not {shown(entry)}")
            continue
        reader.keys(entry, ("source", "force"), f"the rule of token {token!r}")
        force = entry.get("force") is not None and reader.boolean(entry["force"], entry.at("force"), "force")
        rule = _read_rule(token, entry.get("source"), entry.at("source"), reader)
        if rule is not None:
            rules.append(rule._replace(force=force))
    return tuple(rules)


def _read_rule(token: str, source: object, location: Location, reader: ValueReader) -> TokenRule | None:
    if source is None:
        return TokenRule(token, keeps=True)
    if not isinstance(source, Table) or "kind" not in source:
        model = reader.model(source, location)
        return None if model is None else TokenRule(token, model)
    kind = source["kind"]
    if kind == "zero":
        reader.keys(source, ("kind",), f"the source of token {token!r}")
        return TokenRule(token)
    if kind != "model_token":
        hint = suggestion(str(kind), ("zero", "model_token"))
        reader.problems.add(source.at("kind"), f"`kind` is `zero` or `model_token`, not {shown(kind)}{hint}")
        return None
    reader.keys(source, ("kind", "model", "token", "token_id"), f"the source of token {token!r}")
    model = reader.model(source.get("model"), source.at("model"))
    of, number = source.get("token"), source.get("token_id")
    if (of is None) == (number is None):
        reader.problems.add(location, f"the source of token {token!r} needs either `token` or `token_id`")
        return None
    if number is not None:
        of = reader.whole(number, source.at("token_id"), "token_id", 0, 1 << 24)
    elif not isinstance(of, str) or not of:
        reader.problems.add(source.at("token"), f"`token` is a text, not {shown(of)}")
        return None
    return None if model is None or of is None else TokenRule(token, model, of)
