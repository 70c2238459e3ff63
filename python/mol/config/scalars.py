"""Reads single scalars of a recipe, as YAML, strings in YAML or Python give them; what is none is None."""

from __future__ import annotations

import math
import numbers
import re
from typing import TYPE_CHECKING, Final

from mol.text import suggestion

if TYPE_CHECKING:
    from mol.config.method_spec import ParameterSpec, Scalar


# Of float32, in which most is computed: sums of larger numbers leave float64 too, products of smaller ones are zero.
_LARGEST: Final = 3.4e38
_SMALLEST: Final = 1.2e-38


def read_scalar(value: object, spec: ParameterSpec) -> tuple[Scalar | None, str]:
    """Return the value of a parameter, None for a wrong one, and what was wanted."""
    return _READERS[spec.kind](value, spec)


def as_bool(value: object) -> bool | None:
    """Return a truth value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    return None


def as_int(value: object) -> int | None:
    """Return a whole number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", value):
        return int(value)
    return None


def _read_float(value: object, spec: ParameterSpec) -> tuple[Scalar | None, str]:
    wanted = spec.bounds or "a finite number"
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
        return None, wanted
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None, wanted + _number_meant(value)
    if math.isfinite(number) and abs(number) > _LARGEST:
        return None, f"{wanted}, and no larger than float32 holds ({_LARGEST:g})"
    if 0 < abs(number) < _SMALLEST:
        return None, f"{wanted}, and zero or no smaller than float32 holds ({_SMALLEST:g})"
    return (number if math.isfinite(number) and spec.low <= number <= spec.high else None), wanted


def _number_meant(value: object) -> str:
    """Return how to write what has a decimal comma or a percent sign, else nothing."""
    match = (
        re.fullmatch(r"\s*([+-]?[0-9]{1,9})(?:[.,]([0-9]{1,9}))?\s*(%?)\s*", str(value))
        if len(str(value)) < 40
        else None
    )
    if match is None:
        return ""
    number = float(f"{match[1]}.{match[2] or 0}")
    return f"; write {number / 100 if match[3] else number:g}"


def _read_int(value: object, spec: ParameterSpec) -> tuple[Scalar | None, str]:
    number, _ = _read_float(value, spec)
    whole = isinstance(number, float) and number.is_integer()
    return (int(number) if whole and number is not None else None), f"a whole number {spec.bounds}"


def _read_bool(value: object, spec: ParameterSpec) -> tuple[Scalar | None, str]:
    return as_bool(value), "true or false"


def _read_choice(value: object, spec: ParameterSpec) -> tuple[Scalar | None, str]:
    for choice, others in spec.choices.items():
        if value == choice or value in others:
            return choice, ""
    wanted = " or ".join(f"`{choice}`" for choice in spec.choices)
    return None, wanted + (suggestion(value, spec.choices) if isinstance(value, str) else "")


_READERS = {"float": _read_float, "int": _read_int, "bool": _read_bool, "str": _read_choice}
