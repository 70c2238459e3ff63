"""The plans whose results are held to the checksums in tests/data/digests.json, on inputs made by integer arithmetic.

`python -m tests.engine.digests` prints the table of the installed engine. Output bytes are a promise: a row is changed
only where a result was wrong, and CHANGELOG.md says so; a new method adds rows.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from tests.engine.toolkit import (
    SMALLEST,
    Case,
    Method,
    Stored,
    cabs,
    consensus,
    encode,
    execute,
    karcher,
    linear,
    multislerp,
    plan_of,
    ramplus,
    slerp,
    task_arithmetic,
    thin,
    ties,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.toolkit import Plan

Table: TypeAlias = dict[str, dict[str, str]]
"""By mixture or kind of values, by method: CRC-64/NVME for each number of elements, in their order."""

TABLE = Path(__file__).parents[1] / "data" / "digests.json"
MODELS = (1, 2, 3, 5, 6, 8)
SIZES = (1, 15, 16, 17, 4095)
BEYOND_A_BLOCK = 65_537
SEVERAL_TILES = 300_017

# (dtype of the base or first model, of the second, ...), again from the start where there are more; dtype of the output
MIXTURES = {
    "bf16": (("BF16",), "BF16"),
    "f16": (("F16",), "F16"),
    "f32": (("F32",), "F32"),
    "f64": (("F64",), "F64"),
    "f32, bf16 and f16 to bf16": (("F32", "BF16", "F16", "BF16"), "BF16"),
    "bf16 to f32": (("BF16",), "F32"),
    "bf16, f64, f32 and f16 to f16": (("BF16", "F64", "F32", "F16"), "F16"),
    "f32 to f64": (("F32", "F32", "BF16"), "F64"),
}
BEYOND_A_BLOCK_IN = ("bf16", "f16", "f32", "f32, bf16 and f16 to bf16")
SEVERAL_TILES_IN = ("bf16", "f32", "f32, bf16 and f16 to bf16")


def by_models(models: int) -> dict[str, tuple[int, Method]]:
    """Rows for a number of models next to the base: how many sources each takes, and the method."""
    weights = [0.5 + 0.25 * i for i in range(models)]
    signed = [w if i % 3 != 1 else -0.4 * w for i, w in enumerate(weights)]
    densities = [0.5, 0.3, 0.8, 0.07, 1.0, 0.5, 0.9, 0.01][:models]
    rows: dict[str, tuple[int, Method]] = {
        "linear": (models, linear(*weights)),
        "linear, signed, not normalized": (models, linear(*signed, normalize=False)),
        "task arithmetic": (models + 1, task_arithmetic(*signed, lambda_=0.8)),
        "task arithmetic, normalized": (models + 1, task_arithmetic(*weights, normalize=True)),
        "ties": (models + 1, ties(weights, densities)),
        "ties, signed, lambda": (models + 1, ties(signed, densities, lambda_=0.7)),
        "ties, not normalized": (models + 1, ties(weights, densities, normalize=False)),
        "ties, count": (models + 1, ties(signed, densities, vote="count")),
        "ties, rescale": (models + 1, ties(weights, densities, rescale=True)),
        "ties, count, rescale, not normalized": (
            models + 1,
            ties(signed, densities, vote="count", rescale=True, normalize=False),
        ),
    }
    return {f"{name}: {models}": row for name, row in rows.items()}


SINGLE: dict[str, tuple[int, Method]] = {
    "copy": (1, {"copy": {}}),
    "scale -0.3": (1, {"scale": {"factor": -0.3}}),
    "scale 1": (1, {"scale": {"factor": 1.0}}),
    "scale 0": (1, {"scale": {"factor": 0.0}}),
    **{f"slerp {t}": (2, slerp(t)) for t in (0.0, 0.3, 0.5, 1.0, 1.4, -0.2)},
    "linear, tiny and ordinary weights": (3, linear(1e-30, 0.1, 0.2)),
    "linear, weights that almost cancel": (3, linear(0.1, 0.2, -0.299)),
    "linear, a weight of zero": (3, linear(0.5, 0.0, 0.25)),
    "linear, not normalized, cancelling": (2, linear(1.0, -1.0, normalize=False)),
    "task arithmetic, cancelling, normalized": (3, task_arithmetic(1.0, -1.0, normalize=True)),
    "task arithmetic, lambda 0": (3, task_arithmetic(0.5, 0.7, lambda_=0.0)),
    "task arithmetic, lambda -1": (3, task_arithmetic(0.5, 0.7, lambda_=-1.0)),
    "ties, decimal weights": (4, ties([0.5, 0.3, 0.2], [0.9, 0.9, 0.9])),
    "ties, decimal weights that cancel": (4, ties([0.1, 0.2, -0.3], [1.0, 1.0, 1.0])),
    "ties, weights that cancel": (3, ties([1.0, -1.0], [0.6, 0.6])),
    "ties, a weight of zero": (4, ties([1.0, 0.0, 0.5], [0.6, 0.6, 0.6])),
    "ties, lambda 0": (3, ties([1.0, 0.5], [0.5, 0.5], lambda_=0.0)),
    "ties, lambda -1.5": (3, ties([1.0, 0.5], [0.5, 0.5], lambda_=-1.5)),
    **{f"ties, density {d}": (3, ties([1.0, 0.5], [d, d])) for d in (0.0, 1e-9, 1e-3, 0.25, 0.999999, 1.0)},
    "ties, densities 0, 1, 0.01": (4, ties([1.0, 0.5, 1.5], [0.0, 1.0, 0.01])),
    "ties, densities 0, 1, 0.01, rescale": (4, ties([1.0, 0.5, 1.5], [0.0, 1.0, 0.01], rescale=True)),
    "ties, density 0, rescale": (3, ties([1.0, 0.5], [0.0, 0.0], rescale=True)),
    "ties, density 1, count": (4, ties([1.0, 0.5, -0.7], [1.0, 1.0, 1.0], vote="count")),
    "dare_linear": (3, thin("dare_linear", [0.5, -0.7], [0.5, 0.9], rescale=True)),
    "dare_ties": (4, thin("dare_ties", [1.0, 0.5, -0.7], [0.5, 0.3, 0.9], rescale=True)),
    "della": (4, thin("della", [1.0, 0.5, -0.7], [0.5, 0.3, 0.9], epsilons=[0.4, 0.15, 0.05], normalize=True)),
    "della_linear": (3, thin("della_linear", [0.5, -0.7], [0.5, 0.9], epsilons=[0.2, 0.05], rescale=True)),
    "breadcrumbs": (3, thin("breadcrumbs", [0.5, -0.7], [0.5, 0.9], gammas=[0.01, 0.3])),
    "breadcrumbs_ties": (4, thin("breadcrumbs_ties", [1.0, 0.5, -0.7], [0.5, 0.3, 0.9], gammas=[0.01, 0.1, 0.0])),
    **{f"sce {share}": (4, {"sce": {"select_topk": share}}) for share in (0.3, 1.0)},
    "model_stock": (4, {"model_stock": {"filter_wise": False}}),
    "multislerp": (2, multislerp(0.5, 0.7)),
    "multislerp over a base": (3, multislerp(0.5, -0.7, normalize=False)),
    "karcher": (3, karcher()),
    "nearswap": (2, {"nearswap": {"t": 0.001}}),
    "arcee_fusion": (2, {"arcee_fusion": {}}),
    "ram": (4, {"ram": {"epsilon": 1e-5}}),
    "ramplus_tl": (4, ramplus(1e-5, 0.1, 0.2)),
    "consensus_ta": (4, consensus("consensus_ta", [1.0, 0.5, -0.7], k=2)),
    "consensus_ties": (4, consensus("consensus_ties", [1.0, 0.5, 0.7], densities=[0.5, 0.3, 0.9], normalize=True)),
    "magmax": (4, {"magmax": {"lambda": 0.8}}),
    "localize_and_stitch": (4, {"localize_and_stitch": {"densities": [0.1, 0.3, 0.5]}}),
    "pcb": (4, {"pcb": {"densities": [0.1, 0.3, 0.5], "lambda": 0.8}}),
    "cabs": (4, cabs(1.0, 0.5, -0.7, n=2, m=8)),
}

ROWS = {**SINGLE, **{name: row for models in MODELS for name, row in by_models(models).items()}}
# Where every size is tried, and on hard values.
CORE = (*SINGLE, *by_models(1), *by_models(3), *by_models(6))
# Those that decide by whole tensors, and one of each that does not.
LARGE = (
    *("slerp 0.3", "linear: 3", "task arithmetic: 3", "ties, decimal weights that cancel", "ties, density 0.001"),
    *("ties, densities 0, 1, 0.01", "ties: 1", "ties: 3", "ties: 8", "ties, count: 3", "ties, rescale: 3"),
    *("dare_ties", "della", "breadcrumbs_ties", "sce 0.3", "model_stock", "multislerp", "karcher", "arcee_fusion"),
    *("ramplus_tl", "consensus_ties", "localize_and_stitch", "pcb", "cabs"),
)


def words(seed: int, n: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """64 pseudo-random bits an element: SplitMix64."""
    z = (np.arange(n, dtype=np.uint64) + np.uint64(seed << 32 | 1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def below(seed: int, n: int, bound: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Integers 0 to bound - 1, as floats."""
    return (words(seed, n) % np.uint64(bound)).astype(np.float64)


def bell(seed: int, n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Integers about zero with a standard deviation of 37,837, as floats: sums of four uniform ones."""
    return words(seed, n).view(np.uint16).reshape(n, 4).astype(np.float64).sum(axis=1) - 2 * 65535


def ordinary(model: int, n: int, dtype: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weights of deviation 0.018; a third of each task vector is zero."""
    base = bell(0, n) * 2.0**-21
    return base if model == 0 else base + bell(model, n) * 2.0**-24 * (below(100 + model, n, 3) > 0)


def equal_magnitudes(model: int, n: int, dtype: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Task vectors of five values, exact in every dtype: thresholds cut groups of equals."""
    base = (below(0, n, 17) - 8) * 2.0**-6
    return base if model == 0 else base + (below(model, n, 5) - 2) * 2.0**-8


def zeros(model: int, n: int, dtype: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Zeros of both signs among few others."""
    return np.array([0.0, -0.0, 0.0, -0.0, 2.0**-7, -(2.0**-7)])[below(model, n, 6).astype(np.intp)]


def subnormals(model: int, n: int, dtype: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The least numbers of a dtype, of both signs."""
    return (below(model, n, 240) - 120) * SMALLEST[dtype]


def huge(model: int, n: int, dtype: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """As large as leaves room for sums, squares and small divisors."""
    top = {"F64": 2.0**500, "F16": 2.0**5}.get(dtype, 2.0**110)
    return (below(model, n, 256) - 128) * 2.0**-7 * top


def many_scales(model: int, n: int, dtype: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Exponents spread over forty powers of two."""
    return np.ldexp(ordinary(model, n, dtype), (below(50, n, 40) - 28).astype(np.intp))


def all_equal(model: int, n: int, dtype: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Every model is the base."""
    return bell(0, n) * 2.0**-21


def opposite(model: int, n: int, dtype: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Every other model is the negative of the base: votes cancel, arcs have no direction."""
    return bell(0, n) * (2.0**-21 if model % 2 == 0 else -(2.0**-21))


HARD = (equal_magnitudes, zeros, subnormals, huge, many_scales, all_equal, opposite)
HARD_SIZES = (17, 4099)
HARD_IN = ("bf16", "f16", "f32", "f64")


def sources(values: Any, n: int, dtypes: tuple[str, ...]) -> tuple[Stored, ...]:  # noqa: ANN401 - a function above
    """A base and as many models as any row takes."""
    kinds = [dtypes[i % len(dtypes)] for i in range(max(MODELS) + 1)]
    return tuple(encode(values(i, n, kind), kind) for i, kind in enumerate(kinds))


class Group(NamedTuple):
    """Rows of the table on the same sources."""

    label: str
    sources: tuple[Stored, ...]
    dtype: str
    rows: tuple[str, ...]


def groups() -> Iterator[Group]:
    for mixture, (dtypes, out) in MIXTURES.items():
        for n in SIZES:
            yield Group(mixture, sources(ordinary, n, dtypes), out, tuple(ROWS))
        if mixture in BEYOND_A_BLOCK_IN:
            yield Group(mixture, sources(ordinary, BEYOND_A_BLOCK, dtypes), out, CORE)
        if mixture in SEVERAL_TILES_IN:
            yield Group(mixture, sources(ordinary, SEVERAL_TILES, dtypes), out, LARGE)
    for values in HARD:
        for mixture in HARD_IN:
            dtypes, out = MIXTURES[mixture]
            for n in HARD_SIZES:
                label = f"{mixture}, {values.__name__.replace('_', ' ')}"
                yield Group(label, sources(values, n, dtypes), out, CORE)


def make_plan(directory: Path) -> Plan:
    """A plan of everything in the table; a tensor's name is its position there."""
    cases = {}
    for label, stored, dtype, rows in groups():
        for row in rows:
            count, method = ROWS[row]
            cases[json.dumps([label, row, str(stored[0].data.size)])] = Case(method, stored[:count], dtype)
    return plan_of(directory, cases)


def make_table(plan: Plan, partial: Path, **options: Any) -> Table:  # noqa: ANN401
    """Run the plan, and return the checksums; what it wrote is removed."""
    report = execute(plan, partial, **options)
    shutil.rmtree(partial)
    table: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for tensor in report["tensors"]:
        label, row, _ = json.loads(tensor["name"])
        table[label][row].append(tensor["crc64nvme"])
    return {label: {row: " ".join(sums) for row, sums in rows.items()} for label, rows in table.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        table = make_table(make_plan(Path(scratch)), Path(scratch) / "out.partial")
    sys.stdout.write(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
