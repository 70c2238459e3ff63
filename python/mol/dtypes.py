"""The names of dtypes: SafeTensors' own, the words of a recipe and of config.json, numpy's codes."""

from __future__ import annotations

from typing import Final

DTYPES: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
"""Dtypes that an output can have, as recipe and config.json call them, each with SafeTensors' name."""

DTYPE_NAMES: Final = {name: word for word, name in DTYPES.items()}
"""The same the other way round."""

DTYPE_WORDS: Final = {
    **DTYPES,
    **{name: name for name in DTYPES.values()},
    **{"fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp64": "F64"},
}
"""Every word that a recipe may use for them."""

FLOAT_DTYPES: Final = frozenset(DTYPES.values())
"""Dtypes that are merged."""

EXACT_DTYPES: Final = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
"""Dtypes that are only ever copied."""

BYTES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes per element of the dtypes that an output can have."""

NUMPY_CODES: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "?", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
"""numpy's codes; it has none for BF16 and FP8."""
