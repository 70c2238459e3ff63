"""TokenizerSection: the tokenizer of the output, where rows of single tokens come from, and how rows are padded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mol.config.model_reference import ModelReference

if TYPE_CHECKING:
    from collections.abc import Mapping

TokenizerSource = Literal["base", "union"] | ModelReference


class TokenRule(NamedTuple):
    """Where the row of one token comes from.

    Attributes:
        token: the token; the output gets it, whether or not its tokenizer has it.
        model: the model whose row it gets; None for zeros, or with `keeps` for the row that it has anyway.
        of: another token of that model, or an id; None for the same token.
        force: also for models that have the token.
        keeps: nothing is said of its row.
    """

    token: str
    model: ModelReference | None = None
    of: str | int | None = None
    force: bool = False
    keeps: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as YAML holds it, without the token."""
        source: object = {"kind": "zero"}
        if self.model is not None:
            source = self.model.to_plain()
        if self.of is not None:
            key = "token" if isinstance(self.of, str) else "token_id"
            source = {"kind": "model_token", "model": source, key: self.of}
        return {**({} if self.keeps else {"source": source}), **({"force": True} if self.force else {})}


class TokenizerSection(NamedTuple):
    """The section `tokenizer` of a recipe.

    Attributes:
        source: whose tokenizer the output gets: "base", "union", or a model.
        tokens: rules for single tokens.
        pad_to_multiple_of: the embedding gets a multiple of so many rows; None keeps those of the tokenizer's model.
    """

    source: TokenizerSource
    tokens: tuple[TokenRule, ...] = ()
    pad_to_multiple_of: int | None = None

    def renamed(self, names: Mapping[ModelReference, ModelReference]) -> TokenizerSection:
        """Return the section with other names of models."""
        source = self.source if isinstance(self.source, str) else names.get(self.source, self.source)
        tokens = tuple(
            rule if rule.model is None else rule._replace(model=names.get(rule.model, rule.model))
            for rule in self.tokens
        )
        return self._replace(source=source, tokens=tokens)

    def to_dict(self) -> dict[str, Any]:
        """Return the section as YAML holds it."""
        section: dict[str, Any] = {"source": self.source if isinstance(self.source, str) else self.source.to_plain()}
        if self.tokens:
            section["tokens"] = {rule.token: rule.to_dict() for rule in self.tokens}
        if self.pad_to_multiple_of is not None:
            section["pad_to_multiple_of"] = self.pad_to_multiple_of
        return section
