"""What is read of the files of a model: a tensor, or what is made of tensors; the twin of rust/src/plan/expr.rs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias


class Leaf(NamedTuple):
    """A tensor in an input file: the expression that most tasks read, and what all others are made of.

    Attributes:
        input: index into a list of files: those of a checkpoint, or `MergePlan.inputs`.
        tensor: its name there.
    """

    input: int
    tensor: str


Expr: TypeAlias = Leaf | Mapping[str, Any]
"""A tensor, or one entry, name of an expression to what it is made of, such as
`{"rows": {"of": Leaf(0, "qkv"), "from": 0, "to": 512}}`. rust/src/plan/expr.rs lists them."""


def leaves(expr: object) -> Iterator[Leaf]:
    """Yield every tensor that an expression, or each of several, is made of."""
    if isinstance(expr, Leaf):
        yield expr
    elif isinstance(expr, (Mapping, Sequence)) and not isinstance(expr, str):
        for part in expr.values() if isinstance(expr, Mapping) else expr:
            yield from leaves(part)


def renumbered(expr: Expr, number: Callable[[int], int]) -> Expr:
    """Return an expression with other numbers of files."""
    changed: Expr = _changed(expr, number, "")
    return changed


def with_tables(expr: Expr, prefix: str) -> Expr:
    """Return an expression with a prefix before the names of the row tables that it is gathered by."""
    changed: Expr = _changed(expr, int, prefix)
    return changed


def _changed(part: Any, number: Callable[[int], int], prefix: str) -> Any:  # noqa: ANN401 - any part of an expression
    if isinstance(part, Leaf):
        return Leaf(number(part.input), part.tensor)
    if isinstance(part, Mapping):
        return {
            key: prefix + value if key == "table" else _changed(value, number, prefix) for key, value in part.items()
        }
    if isinstance(part, (list, tuple)):
        return [_changed(value, number, prefix) for value in part]
    return part
