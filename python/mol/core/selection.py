"""The selection of a batch that an expert sees: all tokens, some rows or some tokens, taken from it and added back."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Whole:
    """All tokens of all rows."""

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (B, T, ...) as it is."""
        return x

    def add_(self, x: torch.Tensor, change: torch.Tensor, share: torch.Tensor) -> None:
        """Add a change (B, T, H), weighted (B, T, 1), to x (B, T, H)."""
        x.addcmul_(share, change)


@dataclass(frozen=True)
class Rows:
    """Some rows of the batch.

    Attributes:
        numbers: which, ascending.
        index: the same as a tensor (R,), where the hidden states are.
    """

    numbers: tuple[int, ...]
    index: torch.Tensor

    @classmethod
    def of(cls, numbers: list[int], device: torch.device) -> Rows:
        """Return these rows as a selection."""
        return cls(tuple(numbers), torch.tensor(numbers, device=device))

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return these rows of x (B, T, ...)."""
        return x.index_select(0, self.index.to(x.device))

    def add_(self, x: torch.Tensor, change: torch.Tensor, share: torch.Tensor) -> None:
        """Add a change (R, T, H), weighted (R, T, 1), to these rows of x (B, T, H)."""
        x.index_add_(0, self.index, share * change)


@dataclass(frozen=True)
class Picked:
    """Some tokens of the batch.

    Attributes:
        rows: (N,), ascending.
        columns: (N,), ascending in each row.
        ranks: (N,), the number of each among those of its row, from 0.
        counts: for each row of the batch, how many tokens.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    ranks: torch.Tensor
    counts: tuple[int, ...]

    @classmethod
    def each(cls, chosen: torch.Tensor) -> list[Picked | None]:
        """Return for each expert the tokens that chose it, by truth values (B, T, E); None for one without any."""
        counts = chosen.sum(1)
        numbers: list[list[int]] = counts.T.tolist()  # the only device sync of a layer
        total = sum(map(sum, numbers))
        found = torch.nonzero_static(chosen.permute(2, 0, 1), size=total)
        starts = (counts.cumsum(0) - counts).T
        selections: list[Picked | None] = []
        end = 0
        for expert, each in enumerate(numbers):
            start, end = end, end + sum(each)
            _, rows, columns = found[start:end].unbind(1)
            ranks = torch.arange(len(rows), device=rows.device) - starts[expert].index_select(0, rows)
            selections.append(cls(rows, columns, ranks, tuple(each)) if len(rows) else None)
        return selections

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """Return these tokens (N, ...) of x (B, T, ...)."""
        return x[self.rows, self.columns]

    def add_(self, x: torch.Tensor, change: torch.Tensor, share: torch.Tensor) -> None:
        """Add a change (N, H), weighted (N, 1), to these tokens of x (B, T, H)."""
        flat = self.rows * x.shape[1] + self.columns
        x.view(-1, x.shape[-1]).index_add_(0, flat, share * change)


Selection = Whole | Rows | Picked


class Pinned:
    """The choice of each row of a batch for all of its tokens.

    Attributes:
        weights: (B, E), float32.
        logits: (B, E), float32.
    """

    def __init__(self, weights: torch.Tensor, logits: torch.Tensor) -> None:
        """Store a choice, and read which rows chose each expert."""
        self.weights = weights
        self.logits = logits
        chosen: list[list[bool]] = weights.detach().ne(0).T.tolist()
        self._rows = [[row for row, wanted in enumerate(each) if wanted] for each in chosen]
        # Decided once: an expert with all rows keeps its cache elsewhere than one with some.
        self._all = [all(each) for each in chosen]

    def selections(self) -> list[Selection | None]:
        """Return the selection of each expert, None for an expert that no row chose."""
        device = self.weights.device
        return [
            Whole() if whole else Rows.of(rows, device) if rows else None
            for whole, rows in zip(self._all, self._rows, strict=True)
        ]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may be given several times, as beams do."""
        self.weights = self.weights.index_select(0, rows.to(self.weights.device))
        self.logits = self.logits.index_select(0, rows.to(self.logits.device))
        self._rows = [where_from(each, rows)[0] for each in self._rows]


def where_from(kept: list[int], rows: torch.Tensor) -> tuple[list[int], list[int]]:
    """Return the new numbers of some rows of a batch when `rows` of it are kept in that order.

    Returns:
        The new numbers of the rows that are in `kept`, and for each its index in `kept`.
    """
    index = {row: number for number, row in enumerate(kept)}
    found = [(number, index[row]) for number, row in enumerate(rows.tolist()) if row in index]
    return [number for number, _ in found], [old for _, old in found]
