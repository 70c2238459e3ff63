"""`precision: mergekit`: tensors whose every operation is rounded to one dtype, as mergekit 0.1.5 makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from mol.dtypes import EXACT_DTYPES
from mol.merge.combine import Combiner
from mol.merge.plan import COPY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mol.config.merge_config import MergeConfig
    from mol.io.expressions import Expr
    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Slice
    from mol.merge.plan import Method

STEPWISE_NOTE: Final = (
    "`precision: mergekit`: operations are rounded one by one, and tensors outside the layers take the first value "
    "of a gradient, as in mergekit 0.1.5; without it a result is within one rounding of the method's definition"
)


class Origin(NamedTuple):
    """Of a tensor that is made, what its arithmetic may depend on.

    Attributes:
        pattern: its name in messages.
        layer: its layer in the output.
        stored: its dtype in the donor.
        dtypes: those of the tensors that are read.
        leading: length of its first axis.
    """

    pattern: str
    layer: int | None
    stored: str
    dtypes: set[str]
    leading: int


class Stepwise:
    """Turns methods and what they read into those of mergekit's arithmetic."""

    def __init__(self, dtype: str | None, problems: Mismatches) -> None:
        """Start with none.

        Args:
            dtype: the recipe's `dtype`, which inputs are cast to when they are loaded; None keeps that of each tensor.
            problems: where tensors go that have no single dtype.
        """
        self._dtype = dtype
        self._problems = problems
        self._made: dict[tuple[int, str, int | None], tuple[Method, Method]] = {}

    def made(self, origin: Origin, method: Method, of: tuple[Expr, ...]) -> tuple[Method, tuple[Expr, ...]]:
        """Return the method, and what it is done to, of one tensor."""
        pattern, layer, stored, dtypes, leading = origin
        if stored in EXACT_DTYPES:
            return method, of
        dtype = self._dtype or stored
        if self._dtype is None and dtypes != {stored}:
            listed = " and ".join(sorted({stored, *dtypes}))
            self._problems.add_tensor(pattern, layer, f"is {listed}; `precision: mergekit` needs `dtype` then")
        if dtype == "F64":
            self._problems.add_tensor(
                pattern, layer, "is F64, and `precision: mergekit` rounds to float32, float16 or bfloat16; add `dtype`"
            )
        if dtypes != {dtype}:
            of = tuple({"cast": {"of": expr, "to": dtype}} for expr in of)
        if method is COPY:
            return method, of
        # Tasks of one method share it, so that it is written once.
        more = {"leading": leading} if _by_columns(method) else {}
        key = (id(method), dtype, more.get("leading"))
        found = self._made.setdefault(key, (method, {"mergekit": {"dtype": dtype, "by": method, **more}}))
        return found[1], of


def _by_columns(method: Method) -> bool:
    """Return whether a method has one angle per column, which mergekit takes along the first axis of a tensor."""
    numbers = method.get("nuslerp", {})
    return bool(numbers and numbers["nuslerp_row_wise"] and not numbers["nuslerp_flatten"])


def as_mergekit(config: MergeConfig, problems: Mismatches, notes: dict[str, None]) -> Stepwise | None:
    """Return what turns methods into mergekit's arithmetic if a recipe asks for it, and note that it does."""
    if config.precision == "exact":
        return None
    notes[STEPWISE_NOTE] = None
    return Stepwise(config.dtype, problems)


def outside_layers(
    config: MergeConfig, slices: Sequence[Slice], side: str, problems: Mismatches
) -> tuple[Slice, float]:
    """Return the slice that makes a tensor outside the layers, and the position where gradients are read.

    As mergekit, all such tensors read them at the first layer, and those behind the layers are made of as many models
    as the first slice has.
    """
    slice_, position = (slices[-1], 1.0) if side == "last" else (slices[0], 0.0)
    if config.precision == "exact":
        return slice_, position
    count = len(slices[0].sources)
    if len(slice_.sources) > count and isinstance(slice_.combine, Combiner):
        combine = slice_.combine.of_first(count)
        if combine is None:
            problems.add(
                f"`precision: mergekit`: tensors behind the layers are made of the first {count} models of the last "
                "slice, and the base is not among them; list the base first"
            )
        else:
            slice_ = slice_._replace(sources=slice_.sources[:count], combine=combine)
    return slice_, 0.0


def ends_otherwise(
    slices: Sequence[Slice], slice_: Slice, names: Sequence[str | None], output: str, position: float
) -> Iterator[str]:
    """Yield what mergekit makes otherwise of a tensor behind the layers; nothing where `position` is 0."""
    combine, count = slice_.combine, len(slices[0].sources)
    if position == 0.0 or not isinstance(combine, Combiner):
        return
    if len(slice_.sources) > count:
        yield (
            f"what is behind the layers is made of all {len(slice_.sources)} models of the last slice, where mergekit "
            f"takes as many as the first has, {count}"
        )
    varies = combine.fixed is None and not combine.scales
    if varies and combine(names, output, 0.0) != combine(names, output, position):
        yield (
            "behind the layers a gradient has its last value, where mergekit takes its first (`precision: mergekit` "
            "does, too)"
        )
