"""Writes how rows of a vocabulary are gathered from a model's tensor by token, and from others where it has none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.dtypes import BYTES
from mol.structure.names import EMBEDDING, HEAD, HEAD_BIAS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mol.io.checkpoint import TensorInfo
    from mol.io.expressions import Expr
    from mol.merge.joined import Ids, Joined
    from mol.merge.model import Model

_ZERO: Final = -1
_Section = tuple[int, ...]  # positions of the models whose rows it holds; of several, their mean
_PADDING: Final[_Section] = ()  # one row, the mean of the model's own


class Gathered(NamedTuple):
    """What a task reads of one model.

    Attributes:
        of: the expression.
        bytes: what it gives, as the engine counts.
    """

    of: tuple[Expr]
    bytes: int


class _Layout(NamedTuple):
    """The rows of the output's tensor, in sections that lie one behind the other.

    Attributes:
        sections: which models each section is made of, that of the model itself first if it is there.
        members: of each section of several models, the rows of each in the order in which they are used.
        table: which of the tables picks the rows; None where the only section is taken as it is.
    """

    sections: tuple[_Section, ...]
    members: dict[_Section, list[str]]
    table: str | None


class _Elsewhere(NamedTuple):
    """The rows that do not come from the model itself.

    Attributes:
        sections: the models that rows come from, which rows, and for each of those models their rows there.
        zeros: rows that come from nowhere.
        number: how many rows all these are.
    """

    sections: list[tuple[_Section, Ids, list[Ids]]]
    zeros: list[int]
    number: int


def is_vocabulary(name: str, shape: Sequence[int]) -> bool:
    """Return whether a tensor outside the layers has one row for each token: an embedding, a head, or its bias."""
    if len(shape) == 2:
        return EMBEDDING.search(name) is not None or HEAD.search(name) is not None
    return len(shape) == 1 and HEAD_BIAS.search(name) is not None


class Gathers:
    """The gathers of a plan.

    Attributes:
        tables: row tables by name, as the plan has them.
        zeros: ids of tokens that no model has a row for.
        lacking: for each model the number of the output's tokens that it lacks.
        beyond: for each model the number of tokens whose ids lie behind its last row.
        problems: rows that cannot be taken.
    """

    def __init__(self, joined: Joined, models: Sequence[Model]) -> None:
        """Start without tables.

        Args:
            joined: the vocabulary of the output.
            models: every model of the recipe.
        """
        self._joined = joined
        self._models = models
        self._directories = [model.checkpoint.directory for model in models]
        self._layouts: dict[tuple[object, ...], _Layout] = {}
        self._rows: dict[tuple[Path, int, int], Ids] = {}
        self.tables: dict[str, Mapping[str, Any]] = {}
        self.zeros: set[int] = set()
        self.lacking: dict[str, int] = {}
        self.beyond: dict[str, int] = {}
        self.problems: dict[str, None] = {}

    def size(self, tensors: Mapping[int, TensorInfo], donors: int) -> int:
        """Return the rows of an output tensor.

        Args:
            tensors: that tensor in each model that has it, by the model's index.
            donors: its rows in the donor.
        """
        leader = self._joined.leader
        rows = (tensors[i].shape[0] for i in tensors if self._models[i].checkpoint.directory == leader)
        return self._joined.rows(next(rows, donors))

    def gather(self, own: Model, tensors: Mapping[int, TensorInfo], names: Mapping[int, str], size: int) -> Gathered:
        """Return what a task reads of one model.

        Args:
            own: the model.
            tensors: the tensor in each model that has it, by the model's index.
            names: its name there.
            size: rows of the output's tensor.
        """
        layout = self._layout(own.index, {index: info.shape[0] for index, info in tensors.items()}, size)
        used = {index for section in layout.sections for index in section or (own.index,)} or {own.index}
        for index in used:
            model, info = self._models[index], tensors[index]
            model.used.add(names[index])
            if info.shape[1:] != tensors[own.index].shape[1:]:
                self.problems[
                    f"rows of `{names[index]}` of {model.label}, of shape {list(info.shape)}, do not fit those of "
                    f"{own.label}, {list(tensors[own.index].shape)}"
                ] = None
        reads = {index: self._models[index].read(names[index]) for index in used}
        width = math.prod(tensors[own.index].shape[1:])
        # Tensors that an adapter makes, or brings, have a dtype of their own.
        dtypes = {
            None if names[index] in self._models[index].checkpoint.made else tensors[index].dtype for index in used
        }
        each = max(read // max(math.prod(tensors[index].shape), 1) for index, (_, read) in reads.items())
        sources = {index: of[0] for index, (of, _) in reads.items()}
        mixed = (
            len(dtypes) > 1
            or (len(used) > 1 and None in dtypes)
            or any(len(section) != 1 for section in layout.sections)
        )
        if mixed:
            each = max(each, BYTES["F32"])
        sections = [self._section(section, layout, sources, own.index, tensors) for section in layout.sections]
        if mixed and len(sections) > 1:
            sections = [
                {"cast": {"of": section, "to": "F64" if each == BYTES["F64"] else "F32"}} for section in sections
            ]
        # A source must be there, of which nothing is taken.
        of = sections[0] if len(sections) == 1 else {"stack": sections} if sections else sources[own.index]
        expr: Expr = of if layout.table is None else {"gather": {"of": of, "table": layout.table}}
        return Gathered((expr,), size * width * each)

    def _section(
        self,
        section: _Section,
        layout: _Layout,
        sources: Mapping[int, Expr],
        main: int,
        tensors: Mapping[int, TensorInfo],
    ) -> Expr:
        if len(section) == 1:
            return sources[section[0]]
        if section == _PADDING:
            height = tensors[main].shape[0]
            real = min(max(self._joined.taken[self._directories[main]], default=height - 1) + 1, height)
            own = sources[main]
            return {"mean": own if real == height else {"rows": {"of": own, "from": 0, "to": real}}}
        gathers = [
            {"gather": {"of": sources[index], "table": table}}
            for index, table in zip(section, layout.members[section], strict=True)
        ]
        return {"merged": {"by": {"linear": {"weights": [1.0] * len(section), "normalize": True}}, "of": gathers}}

    def _layout(self, main: int, heights: Mapping[int, int], size: int) -> _Layout:
        """Find where each row comes from; once for all tensors of the same heights."""
        key = (main, tuple(heights.items()), size)
        found = self._layouts.get(key)
        if found is None:
            found = self._layouts[key] = self._find(main, heights, size)
        return found

    def _find(self, main: int, heights: Mapping[int, int], size: int) -> _Layout:
        import numpy as np

        rows = {index: self._rows_of(index, height, size) for index, height in heights.items()}
        own, named = rows[main], self._named(size)
        lacking = int(((own < 0) & named).sum())
        if lacking:
            self.lacking[self._models[main].label] = lacking
        elsewhere = self._elsewhere(own, named, rows, heights)
        origins = own.copy()
        origins[elsewhere.zeros] = _ZERO
        begin: dict[_Section, int] = {}
        end = 0
        if elsewhere.number < size:
            begin[main,] = 0
            end = heights[main]
        tables = {}
        for section, where, at in elsewhere.sections:
            if len(section) == 1 and section in begin:
                origins[where] = begin[section] + at[0]
                continue
            begin[section] = end
            origins[where] = end + (at[0] if len(section) == 1 else np.arange(len(where)) if section else 0)
            end += heights[section[0]] if len(section) == 1 else len(where) if section else 1
            if len(section) > 1:
                tables[section] = [self._table(column) for column in at]
        as_it_is = list(begin) == [(main,)] and heights[main] == size and bool((origins == np.arange(size)).all())
        return _Layout(tuple(begin), tables, None if as_it_is else self._table(origins))

    def _named(self, size: int) -> Ids:
        """Return which rows of the output are of a token."""
        import numpy as np

        named = np.zeros(size, dtype=bool)
        tokens = self._joined.tokens[:size]
        named[: len(tokens)] = True
        if None in tokens:
            named[[row for row, token in enumerate(tokens) if token is None]] = False
        return named

    def _elsewhere(self, own: Ids, named: Ids, rows: Mapping[int, Ids], heights: Mapping[int, int]) -> _Elsewhere:
        """Find the rows that do not come from the model itself: the models that they come from, and the rows there.

        What the recipe says of the token, else the base's row, else the only one that there is, else the mean of those
        of all models that have the token, else zeros. New padding gets the mean of the model's own rows.
        """
        import numpy as np

        joined = self._joined
        index_of = {model.label: index for index, model in enumerate(self._models) if index in rows}
        base = None if joined.base is None else index_of.get(joined.base)
        merged = [index for index in rows if self._models[index].label in joined.members]
        ruled = {row: rule for row, rule in joined.rules.items() if rule.force or own[row] < 0}
        lacking = np.flatnonzero(own < 0)
        if ruled:
            lacking = lacking[~np.isin(lacking, list(ruled))]
        left = lacking
        found: list[tuple[_Section, Ids, list[Ids]]] = []

        def take(section: _Section, where: Ids) -> None:
            if where.size:
                found.append((section, where, [rows[index][where] for index in section]))

        if base is not None:
            there = rows[base][left] >= 0
            take((base,), left[there])
            left = left[~there]
        # Which of the models have the token, as bits.
        owners = np.zeros(left.size, dtype=np.int64)
        for bit, index in enumerate(merged):
            owners |= (rows[index][left] >= 0).astype(np.int64) << bit
        for bits in np.unique(owners[owners > 0]).tolist():
            take(tuple(index for bit, index in enumerate(merged) if bits >> bit & 1), left[owners == bits])
        left = left[owners == 0]
        zeros = left[named[left]].tolist()
        self.zeros.update(zeros)
        take(_PADDING, left[~named[left]])
        for row, rule in ruled.items():
            if rule.source is None:
                zeros.append(row)
            elif rule.source[0] in index_of:
                name, at = rule.source
                found.append(((index_of[name],), np.array([row]), [np.array([at])]))
                if at >= heights[index_of[name]]:
                    self.problems[f"`tokens`: {name} has {heights[index_of[name]]} rows, so none of the id {at}"] = None
        # Parts lie in the order of the rows that are first taken of them.
        found.sort(key=lambda taken: int(taken[1][0]))
        return _Elsewhere(found, zeros, len(zeros) + sum(len(where) for _, where, _ in found))

    def _rows_of(self, index: int, height: int, size: int) -> Ids:
        directory = self._directories[index]
        key = (directory, height, size)
        found = self._rows.get(key)
        if found is None:
            found = self._rows[key] = self._joined.rows_of(directory, height, size)
            beyond = int((self._joined.own[directory] >= height).sum())
            if beyond:
                self.beyond[self._models[index].label] = beyond
        return found

    def _table(self, origins: Ids) -> str:
        """Write a table; `origins` has for each row of the result that of the source, or zero."""
        import numpy as np

        there = origins != _ZERO
        # A run ends where the next row is zero, or is not the source's next one.
        follows = np.zeros(len(origins), dtype=bool)
        follows[1:] = there[1:] & there[:-1] & (origins[1:] == origins[:-1] + 1)
        firsts, zeros = np.flatnonzero(there & ~follows), np.flatnonzero(~there)
        lengths = np.diff(np.flatnonzero(~follows), append=len(origins))[there[~follows]]
        runs = list(zip(firsts.tolist(), origins[firsts].tolist(), lengths.tolist(), strict=True))
        name = f"v{len(self.tables)}"
        self.tables[name] = {"rows": len(origins), "runs": runs, "fills": [(row, "zero") for row in zeros.tolist()]}
        return name
