"""Sources that are made of others, against float64 numpy: each alone, nested, and refused where it does not fit."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mol.errors import MolError
from tests.engine.toolkit import (
    COPY,
    Plan,
    Stored,
    decode,
    encode,
    execute,
    linear,
    made_by,
    plan_of_tasks,
    preflight,
    read_shard,
    slerp,
    thin,
    ties,
)

if TYPE_CHECKING:
    from pathlib import Path

RANDOM = np.random.default_rng(13)
W, V = (RANDOM.normal(0, 0.02, (37, 53)) for _ in range(2))
A, B = RANDOM.normal(0, 0.1, (5, 53)), RANDOM.normal(0, 0.1, (37, 5))
MAGNITUDE = np.abs(RANDOM.normal(1, 0.1, 37))
EXPERTS = RANDOM.normal(0, 0.02, (3, 4, 53))
BIAS = RANDOM.normal(0, 0.02, 37)
VALUES = {"w": W, "v": V, "a": A, "b": B, "m": MAGNITUDE, "experts": EXPERTS, "bias": BIAS}


def plan_for(
    directory: Path,
    *tasks: tuple[Any, ...],
    dtype: str = "BF16",
    out: str = "F32",
    shape: tuple[int, ...] = (37, 53),
    by: dict[str, Any] = COPY,
    tables: dict[str, Any] | None = None,
    values: dict[str, Any] = VALUES,
) -> Plan:
    """Plan one tensor from the values above, stored as `dtype`; a task is a row and what it reads."""
    stored = {name: encode(value, dtype) for name, value in values.items()}
    return plan_of_tasks(directory, stored, *tasks, shape=shape, out=out, by=by, tables=tables or {})


def made(directory: Path, expr: Any, **options: Any) -> Stored:  # noqa: ANN401
    """The tensor that a copy of an expression gives."""
    return made_by(plan_for(directory, (0, expr), **options), directory)


def t(name: str) -> list[Any]:
    return [0, name]


def stored(name: str, dtype: str) -> Any:  # noqa: ANN401
    return decode(encode(VALUES[name], dtype)).reshape(VALUES[name].shape)


TABLE = {
    "rows": 40,
    "runs": [[0, 7, 30], [32, 0, 7]],
    "fills": [[30, "zero"], [31, {"mean": [[[0, "w"], 3], [[0, "v"], 5], [[0, "v"], 36]]}], [39, "zero"]],
}
PADDED = {"rows": 40, "runs": [[0, 0, 38], [38, 37, 1], [39, 37, 1]], "fills": []}
LORA = {"lora": {"of": t("w"), "a": t("a"), "b": t("b"), "scale": 2.0, "magnitude": None}}
DORA = {"lora": {"of": t("w"), "a": t("a"), "b": t("b"), "scale": 0.5, "magnitude": t("m")}}
MEAN = {"merged": {"by": linear(0.25, 0.75), "of": [t("w"), t("v")]}}


def rows(of: Any, start: int, end: int) -> dict[str, Any]:  # noqa: ANN401
    return {"rows": {"of": of, "from": start, "to": end}}


def columns(of: Any, start: int, end: int) -> dict[str, Any]:  # noqa: ANN401
    return {"columns": {"of": of, "from": start, "to": end}}


def gathered(w: Any, v: Any) -> Any:  # noqa: ANN401
    zero = np.zeros((1, 53))
    return np.concatenate([w[7:37], zero, [(w[3] + v[5] + v[36]) / 3], w[:7], zero])


def adapted(w: Any, a: Any, b: Any, scale: float, magnitude: Any = None) -> Any:  # noqa: ANN401
    whole = w + scale * (b @ a)
    return whole if magnitude is None else whole * (magnitude / np.linalg.norm(whole, axis=1))[:, None]


# What an expression gives, from the stored values: expression, shape, reference.
EXACT: dict[str, tuple[Any, Any]] = {
    "rows": (rows(t("w"), 5, 30), lambda x: x("w")[5:30]),
    "rows of experts": (rows(t("experts"), 4, 8), lambda x: x("experts")[1]),
    "rows of a vector": (rows(t("bias"), 3, 20), lambda x: x("bias")[3:20]),
    "no rows": (rows(t("w"), 5, 5), lambda x: x("w")[5:5]),
    "columns": (columns(t("w"), 11, 52), lambda x: x("w")[:, 11:52]),
    "one column": (columns(t("w"), 52, 53), lambda x: x("w")[:, 52:]),
    "stack": ({"stack": [t("w"), t("experts"), t("v")]}, lambda x: np.concatenate([x("w"), *x("experts"), x("v")])),
    "stack of vectors": ({"stack": [t("bias"), t("m")]}, lambda x: np.concatenate([x("bias"), x("m")])),
    "transpose": ({"transpose": t("w")}, lambda x: x("w").T),
    "transposed twice": ({"transpose": {"transpose": t("w")}}, lambda x: x("w")),
    "stacked slices of a transpose": (
        {"stack": [columns({"transpose": t("w")}, 1, 9), rows(columns(t("experts"), 20, 28), 2, 9)]},
        lambda x: np.concatenate([x("w").T[:, 1:9], x("experts").reshape(12, 53)[2:9, 20:28]]),
    ),
}
CLOSE: dict[str, tuple[Any, Any]] = {
    "gather": ({"gather": {"of": t("w"), "table": "v0"}}, lambda x: gathered(x("w"), x("v"))),
    "lora": (LORA, lambda x: adapted(x("w"), x("a"), x("b"), 2.0)),
    "dora": (DORA, lambda x: adapted(x("w"), x("a"), x("b"), 0.5, x("m"))),
    "mean": ({"mean": t("w")}, lambda x: x("w").mean(axis=0, keepdims=True)),
    "mean of experts": (
        {"mean": rows(t("experts"), 2, 11)},
        lambda x: x("experts").reshape(12, 53)[2:11].mean(0)[None],
    ),
    "mean of a vector": ({"mean": t("bias")}, lambda x: x("bias").mean()[None]),
    "padding": (
        {
            "gather": {
                "of": {"stack": [{"merged": {"by": linear(1), "of": [t("w")]}}, {"mean": t("w")}]},
                "table": "pad",
            }
        },
        lambda x: np.concatenate([x("w"), np.tile(x("w").mean(axis=0), (3, 1))]),
    ),
    "merged": (MEAN, lambda x: 0.25 * x("w") + 0.75 * x("v")),
    "a stage of an adapter, transposed": (
        {"transpose": {"merged": {"by": linear(0.5, 0.5), "of": [LORA, t("v")]}}},
        lambda x: ((adapted(x("w"), x("a"), x("b"), 2.0) + x("v")) / 2).T,
    ),
    "an adapter on gathered rows of a stage": (
        {"gather": {"of": {"lora": {**DORA["lora"], "of": MEAN}}, "table": "v0"}},
        lambda x: gathered(adapted(0.25 * x("w") + 0.75 * x("v"), x("a"), x("b"), 0.5, x("m")), x("v")) + _fill(x),
    ),
}


def _fill(x: Any) -> Any:  # noqa: ANN401
    """The mean is of stored rows, not of what is gathered."""
    correction = np.zeros((40, 53))
    base = 0.25 * x("w") + 0.75 * x("v")
    through = adapted(base, x("a"), x("b"), 0.5, x("m"))
    correction[31] = (x("w")[3] - through[3]) / 3
    return correction


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("kind", EXACT)
def test_elements_that_are_only_moved_are_bit_for_bit_the_sources(tmp_path: Path, kind: str, dtype: str) -> None:
    expr, reference = EXACT[kind]
    wanted = reference(lambda name: stored(name, dtype))
    result = made(tmp_path, expr, dtype=dtype, out=dtype, shape=wanted.shape)
    np.testing.assert_array_equal(result.data, encode(wanted, dtype).data)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("kind", CLOSE)
def test_elements_that_are_computed_agree_with_float64(tmp_path: Path, kind: str, dtype: str) -> None:
    expr, reference = CLOSE[kind]
    wanted = reference(lambda name: stored(name, dtype))
    out = "F64" if dtype == "F64" else "F32"
    result = made(tmp_path, expr, dtype=dtype, out=out, shape=wanted.shape, tables={"v0": TABLE, "pad": PADDED})
    tolerance = 1e-13 if dtype == "F64" else 4e-7
    np.testing.assert_allclose(decode(result).reshape(wanted.shape), wanted, rtol=tolerance, atol=tolerance * 0.1)


def test_an_adapter_is_rounded_once(tmp_path: Path) -> None:
    wanted = adapted(*(stored(name, "BF16") for name in "wab"), 2.0)
    result = made(tmp_path, LORA)
    np.testing.assert_array_equal(result.data, wanted.astype(np.float32))


def test_a_cast_rounds_to_nearest_even(tmp_path: Path) -> None:
    result = made(tmp_path, {"cast": {"of": t("w"), "to": "BF16"}}, dtype="F32")
    np.testing.assert_array_equal(decode(result), decode(encode(stored("w", "F32"), "BF16")))


@pytest.mark.parametrize("method", [linear(0.3, 0.7), slerp(0.3), ties([1.0], [0.4])], ids=["linear", "slerp", "ties"])
def test_a_method_takes_an_expression_as_it_takes_a_tensor(tmp_path: Path, method: dict[str, Any]) -> None:
    """What is only moved there and back gives the same bytes."""
    there_and_back = {"transpose": {"transpose": t("w")}}
    halves = {"stack": [rows(t("v"), 0, 11), rows(t("v"), 11, 37)]}
    bytes_of = []
    for name, of in {"plain": (t("w"), t("v")), "made": (there_and_back, halves)}.items():
        execute(plan_for(tmp_path / name, (0, *of), out="BF16", by=method), tmp_path / name / "out.partial")
        bytes_of.append((tmp_path / name / "out.partial" / "model.safetensors").read_bytes())
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize("by", [COPY, thin("della", [1.0], [0.6], epsilons=[0.2], rescale=True)], ids=["copy", "rows"])
def test_a_transpose_of_several_blocks_is_the_same_from_a_file_that_is_read(tmp_path: Path, by: dict[str, Any]) -> None:
    """Read, it makes rows by the block, for copies and methods of single rows, below a stage and by itself."""
    values = {"w": RANDOM.normal(0, 1, (700, 300)), "v": RANDOM.normal(0, 1, (300, 700))}
    of: list[Any] = [{"transpose": t("w")}]
    if by is not COPY:
        of.append({"merged": {"by": slerp(0.3), "of": [{"transpose": t("w")}, t("v")]}})
    plan = plan_for(tmp_path, (0, *of), by=by, dtype="F32", shape=(300, 700), values=values)
    result = made_by(plan, tmp_path)
    if by is COPY:
        np.testing.assert_array_equal(result.data, values["w"].T.astype(np.float32))


def test_bytes_do_not_depend_on_threads_tiles_and_instruction_set(tmp_path: Path) -> None:
    """A tensor of several tiles whose rows are longer than a strip."""
    random = np.random.default_rng(5)
    values = {"w": random.normal(0, 1, (17, 9001)), "v": random.normal(0, 1, (17, 9001))}
    values |= {"a": random.normal(0, 1, (3, 9001)), "b": random.normal(0, 1, (17, 3)), "m": np.ones(17)}
    stage = {"merged": {"by": ties([1.0], [0.3]), "of": [DORA, {"transpose": {"transpose": t("v")}}]}}
    plan = plan_for(
        tmp_path, (0, stage, t("v")), by=slerp(0.3), out="BF16", shape=(17, 9001), values=values
    )  # fmt: skip
    found = set()
    for i, options in enumerate(
        [
            {"threads": 1, "tile": 65536},
            {"threads": 3, "tile": 65536, "simd": "off"},
            {"threads": 2, "tile": 1 << 20},
            {"threads": 7, "simd": "off"},
            {"threads": 3, "tile": 65536, "mmap": False},
        ]
    ):
        execute(plan, tmp_path / f"{i}.partial", **options)
        found.add((tmp_path / f"{i}.partial" / "model.safetensors").read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("method", [COPY, linear(1.0, 1.0)], ids=["copy", "linear"])
def test_tasks_that_write_rows_give_the_tensor_and_the_checksum_of_one_task(
    tmp_path: Path, method: dict[str, Any]
) -> None:
    of = [t("w")] if method == COPY else [t("w"), t("v")]
    reports = []
    for name, edges in {"one": [0, 37], "three": [0, 1, 20, 37]}.items():
        tasks = [(a, *(rows(x, a, b) for x in of)) for a, b in pairwise(edges)]
        plan = plan_for(tmp_path / name, *tasks, out="BF16", by=method)
        reports.append(execute(plan, tmp_path / name / "out.partial"))
        reports[-1] |= {"plan_digest": ""}
    assert reports[0] == reports[1]
    one, three = (read_shard(tmp_path / name / "out.partial" / "model.safetensors")["t"] for name in ("one", "three"))
    np.testing.assert_array_equal(one.data, three.data)


def test_tasks_of_one_tensor_do_not_draw_the_same_numbers(tmp_path: Path) -> None:
    of_one = {"weights": [1.0], "densities": [0.5], "models": [0]}
    drops = {"dare_linear": {**of_one, "normalize": False, "rescale": False, "lambda": 1.0}}
    values = {"w": np.zeros((8, 100)), "v": np.ones((8, 100))}
    tasks = [(a, *(rows(t(name), a, a + 4) for name in "wv")) for a in (0, 4)]
    plan = plan_for(tmp_path, *tasks, by=drops, shape=(8, 100), values=values)
    execute(plan, tmp_path / "out.partial")
    kept = decode(read_shard(tmp_path / "out.partial" / "model.safetensors")["t"]).reshape(2, 400)
    assert 0.3 < np.mean(kept[0] == kept[1]) < 0.7


def test_experts_one_by_one_become_a_fused_tensor(tmp_path: Path) -> None:
    tasks = [(4 * i, rows(t("experts"), 4 * (2 - i), 4 * (3 - i))) for i in range(3)]
    execute(plan_for(tmp_path, *tasks, out="BF16", shape=(3, 4, 53)), tmp_path / "out.partial")
    result = read_shard(tmp_path / "out.partial" / "model.safetensors")["t"]
    np.testing.assert_array_equal(result.data, encode(EXPERTS[::-1], "BF16").data)


def test_a_run_of_rows_is_resumed_task_by_task(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, *((i, rows(t("w"), i, i + 1)) for i in range(37)), out="BF16")
    first = execute(plan, tmp_path / "out.partial")
    assert execute(plan, tmp_path / "out.partial") | {"bytes_read": 0, "bytes_written": 0, "resumed": 0} == first | {
        "bytes_read": 0,
        "bytes_written": 0,
    }


def test_an_input_that_is_not_finite_is_named_through_an_expression(tmp_path: Path) -> None:
    values = dict(VALUES, v=np.where(V[3, 4] == V, np.nan, V))
    plan = plan_for(tmp_path, (0, {"transpose": MEAN}), shape=(53, 37), values=values)
    with pytest.raises(MolError, match=r"in\.safetensors: tensor `v` holds NaN at element 163"):
        execute(plan, tmp_path / "out.partial")


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "rows beyond the last": (rows(t("w"), 5, 38), ["`rows`", "5 to 38", "37"]),
    "rows that end before they begin": (rows(t("w"), 9, 8), ["`rows`", "9 to 8"]),
    "columns beyond the last": (columns(t("w"), 0, 54), ["`columns`", "0 to 54", "53"]),
    "columns of a vector": (columns(t("bias"), 0, 1), ["`columns`", "vector"]),
    "a stack of nothing": ({"stack": []}, ["`stack`"]),
    "a stack of unequal columns": ({"stack": [t("w"), t("b")]}, ["`stack`", "[37, 53]", "[37, 5]"]),
    "a stack of two formats": (
        {"stack": [t("w"), {"cast": {"of": t("w"), "to": "F16"}}]},
        ["`stack`", "BF16", "F16", "cast"],
    ),
    "a transposed vector": ({"transpose": t("bias")}, ["`transpose`", "[37]"]),
    "a transpose of three axes": ({"transpose": t("experts")}, ["`transpose`", "[3, 4, 53]"]),
    "a mean of no rows": ({"mean": rows(t("w"), 3, 3)}, ["`mean`", "of no rows"]),
    "a mean of other columns": ({"gather": {"of": t("b"), "table": "v0"}}, ["`gather`", "mean of rows of 5"]),
    "a run of too few rows": ({"gather": {"of": rows(t("w"), 0, 9), "table": "v0"}}, ["`gather`", "7 to 37", "9"]),
    "a cast to integers": ({"cast": {"of": t("w"), "to": "I8"}}, ["`cast`", "I8"]),
    "an adapter of other columns": ({"lora": {**LORA["lora"], "a": t("b")}}, ["`lora`", "[37, 5]", "[rank, columns]"]),
    "an adapter with a magnitude too few": (
        {"lora": {**LORA["lora"], "magnitude": rows(t("m"), 0, 36)}},
        ["`lora`", "magnitude", "[36]", "37"],
    ),
    "a stage of unequal shapes": (
        {"merged": {"by": linear(1, 1), "of": [t("w"), t("b")]}},
        ["`merged`", "[37, 53]", "[37, 5]"],
    ),
    "a stage of too few": ({"merged": {"by": slerp(0.5), "of": [t("w")]}}, ["`merged`", "1 sources, wanted 2"]),
    "another shape": (rows(t("w"), 0, 36), ["`rows`", "[36, 53]", "37 rows of 53"]),
    "a tensor that is not there": (rows(t("absent"), 0, 1), ["in.safetensors", "absent"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    expr, words = REFUSED[case]
    plan = plan_for(tmp_path, (0, expr), tables={"v0": TABLE})
    for attempt in (preflight, execute):
        with pytest.raises(MolError) as caught:
            attempt(plan, tmp_path / "out.partial")
        for word in words:
            assert word in str(caught.value)
    assert not (tmp_path / "out.partial").exists()
