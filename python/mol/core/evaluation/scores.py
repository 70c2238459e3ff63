"""What an evaluation found: bits per byte and perplexity, by domain."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class DomainScore:
    """What a model scores on the documents of a domain.

    Attributes:
        documents: their number.
        bytes: of their text in UTF-8.
        tokens: that the model predicted: all of them.
        nll: the sum of the tokens' negative log likelihoods, in nats.
    """

    documents: int
    bytes: int
    tokens: int
    nll: float

    @property
    def bits_per_byte(self) -> float:
        """The text's information by this model: models with different tokenizers can be compared by it."""
        return self.nll / self.bytes / math.log(2)

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss per token: only models with one tokenizer can be compared by it."""
        mean = self.nll / self.tokens
        return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True)
class Evaluation:
    """What `mol.evaluate` returns; it prints as a table.

    Attributes:
        model: its name.
        domains: the scores, by domain.
        max_length: the most tokens that the model read at once.
        stride: how many tokens each window scored after the first of a document.
        first_token: the token that each document was begun with, which is not scored.
    """

    model: str
    domains: Mapping[str, DomainScore]
    max_length: int
    stride: int
    first_token: str
    heads: ClassVar = ("domain", "documents", "bytes", "tokens", "bits/byte", "perplexity")

    @property
    def bits_per_byte(self) -> float:
        """The mean of the domains' bits per byte, each counted once."""
        return sum(score.bits_per_byte for score in self.domains.values()) / len(self.domains)

    def rows(self) -> list[list[str]]:
        """Return the table's rows: domain, documents, bytes, tokens, bits per byte, perplexity."""
        rows = [
            [name, f"{s.documents:,}", f"{s.bytes:,}", f"{s.tokens:,}", f"{s.bits_per_byte:.4f}", f"{s.perplexity:.2f}"]
            for name, s in self.domains.items()
        ]
        return [*rows, ["mean", "", "", "", f"{self.bits_per_byte:.4f}", ""]] if len(rows) > 1 else rows

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, as `--json` prints it."""
        return {
            "model": self.model,
            "max_length": self.max_length,
            "stride": self.stride,
            "first_token": self.first_token,
            "bits_per_byte": self.bits_per_byte,
            "domains": {
                name: {**asdict(score), "bits_per_byte": score.bits_per_byte, "perplexity": score.perplexity}
                for name, score in self.domains.items()
            },
        }

    def __str__(self) -> str:
        """Show the table."""
        rows = [[*self.heads], *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.heads))]
        return "\n".join(
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
            ).rstrip()
            for row in rows
        )
