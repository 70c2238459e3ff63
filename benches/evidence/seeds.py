"""Reads the results of rows and puts their seeds together: means, standard errors, and the oracle."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from names import EXPERTS, SHOWN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COLUMNS: Final = (*EXPERTS, "switching", "general")


class Measured(NamedTuple):
    """The mean of some values and its standard error, None for a single one."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Measured:
        count, mean = len(values), sum(values) / len(values)
        if count == 1:
            return cls(mean, None)
        return cls(mean, math.sqrt(sum((one - mean) ** 2 for one in values) / (count - 1) / count))

    def __str__(self) -> str:
        """Show both."""
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


class Row(NamedTuple):
    """The results of a row, by seed."""

    name: str
    seeds: dict[int, dict[str, Any]]

    @property
    def shown(self) -> str:
        return SHOWN.get(self.name, self.name)

    @property
    def first(self) -> dict[str, Any]:
        return self.seeds[min(self.seeds)]

    def of(self, seed: int, column: str = "mean") -> float:
        """Return the value of one seed; the base, which has no seeds, has the same for all."""
        one = self.first if self.name == "base" else self.seeds[seed]
        return float(one["mean"] if column == "mean" else one["bits_per_byte"][column])

    def over_seeds(self, column: str = "mean") -> Measured:
        return Measured.of([self.of(seed, column) for seed in self.seeds])

    @property
    def flops(self) -> float:
        return float(self.first["mflops_per_token"])

    @property
    def mean(self) -> float:
        return self.over_seeds().mean


def load(results: Path) -> dict[str, Row]:
    """Return all rows that were measured, by name."""
    rows: dict[str, Row] = {}
    for path in sorted(results.glob("*.json")):
        one = json.loads(path.read_text())
        rows.setdefault(one["row"], Row(one["row"], {})).seeds[one["seed"]] = one
    return rows


def oracle(rows: dict[str, Row]) -> Row:
    """Return bits per byte where each document is given to the model that is best on it, by seed of the experts."""
    found = {}
    for seed in set.intersection(*(set(rows[name].seeds) for name in EXPERTS)):
        singles = [rows["base"].first["documents"], *(rows[name].seeds[seed]["documents"] for name in EXPERTS)]
        columns = {}
        for domain in COLUMNS:
            best = [min(nll for nll, _ in scores) for scores in zip(*(one[domain] for one in singles), strict=True)]
            columns[domain] = math.fsum(best) / sum(size for _, size in singles[0][domain]) / math.log(2)
        mean = sum(columns[domain] for domain in EXPERTS) / len(EXPERTS)
        found[seed] = {"mean": mean, "bits_per_byte": columns}
    return Row("oracle", found)
