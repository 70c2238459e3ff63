"""The engine trusts nothing: plans that lie, and files that are no longer what was planned for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest

from mol import _rust
from mol.errors import CheckpointError, MergeError, MolError
from tests.engine.toolkit import (
    Case,
    Plan,
    Stored,
    encode,
    execute,
    karcher,
    linear,
    multislerp,
    outputs,
    plan_of,
    preflight,
    ramplus,
    slerp,
    task_arithmetic,
    thin,
    ties,
    write_shard,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Change: TypeAlias = "Callable[[Plan], None]"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    weights = tuple(encode([[0.1, 0.2, 0.3]] * 2, "F32") for _ in range(2))
    ids = tuple(Stored("I64", np.arange(4)) for _ in range(2))
    cases = {"layer.w": Case(linear(0.5, 0.5), weights, "F32"), "ids": Case({"copy": {}}, ids, "I64")}
    return plan_of(tmp_path, cases)


def top(**values: Any) -> Change:  # noqa: ANN401
    return lambda plan: plan.update(values)


def task(index: int, **values: Any) -> Change:  # noqa: ANN401
    return lambda plan: plan["tasks"][index].update(values)


def tensor(index: int, **values: Any) -> Change:  # noqa: ANN401
    return lambda plan: plan["tensors"][index].update(values)


def both(*changes: Change) -> Change:
    def change_all(plan: Plan) -> None:
        for change in changes:
            change(plan)

    return change_all


def source(index: int, expr: object) -> Change:
    return lambda plan: plan["tasks"][0]["of"].__setitem__(index, expr)


def dare(numbers: list[int], *, of: int) -> dict[str, Any]:
    one_each = {"weights": [1.0] * (of - 1), "densities": [0.5] * (of - 1), "models": numbers}
    return {"dare_linear": {**one_each, "normalize": False, "rescale": False, "lambda": 1.0}}


ONE = [[0, "layer.w"]]
LIES: dict[str, tuple[Change, list[str]]] = {
    "a version to come": (top(plan=3), ["3"]),
    "an unknown key": (top(colour=1), ["colour"]),
    "an unknown key of a task": (task(0, colour=1), ["colour"]),
    "an unknown method": (task(0, by={"magic": {}}), ["magic"]),
    "an unknown key of a method": (task(0, by={"slerp": {"t": 0.5, "colour": 1}}), ["colour"]),
    "an unknown dtype": (tensor(0, dtype="F12"), ["F12"]),
    "an input that is not there": (source(0, [7, "layer.w"]), ["layer.w"]),
    "a source that is not there": (source(1, [1, "absent"]), ["model-1.safetensors", "absent"]),
    "an output that is not there": (tensor(1, output=7), ["ids"]),
    "another shape": (tensor(0, shape=[3, 2]), ["model-0.safetensors", "layer.w", "[2, 3]", "[3, 2]"]),
    "a shape that overflows": (tensor(0, shape=[1 << 40, 1 << 40]), ["layer.w"]),
    "a weight too few": (task(0, by=linear(1.0)), ["layer.w", "1", "2"]),
    "no weights": (task(0, by=linear(normalize=False), of=ONE), ["layer.w"]),
    "no sources": (task(0, of=[]), ["layer.w"]),
    "slerp of one": (task(0, by=slerp(0.5), of=ONE), ["layer.w"]),
    "slerp by not a number": (task(0, by=slerp(float("nan"))), []),
    "task arithmetic with a weight for the base": (task(0, by=task_arithmetic(1.0, 1.0)), ["layer.w"]),
    "task arithmetic without weights": (task(0, by=task_arithmetic()), ["layer.w"]),
    "ties without densities": (task(0, by=ties([1.0], [])), ["layer.w"]),
    "ties that keeps more than all": (task(0, by=ties([1.0], [1.5])), ["layer.w", "1.5", "[0, 1]"]),
    "ties by another vote": (task(0, by=ties([1.0], [1.0], vote="mass")), ["mass"]),
    "two models that draw the same": (
        task(0, by=dare([2, 2], of=3), of=[*ONE * 3]),
        ["layer.w", "two models", "number 2"],
    ),
    "a number of a model too few": (task(0, by=dare([], of=2)), ["layer.w", "0 model numbers, wanted 1"]),
    "probabilities below zero": (
        task(0, by=thin("della", [1.0], [0.2], epsilons=[0.2])),
        ["layer.w", "density 0.2", "epsilon 0.2", "(0, 1)"],
    ),
    "a gamma too few": (task(0, by=thin("breadcrumbs", [1.0], [0.2], gammas=[])), ["layer.w"]),
    "a gamma beyond all": (task(0, by=thin("breadcrumbs", [1.0], [0.2], gammas=[1.5])), ["layer.w", "gamma 1.5"]),
    "a selection beyond all": (task(0, by={"sce": {"select_topk": 1.5}}), ["layer.w", "select_topk 1.5"]),
    "an angle of one model": (task(0, by={"model_stock": {"filter_wise": False}}), ["layer.w", "2 sources"]),
    "multislerp with a source too many": (
        task(0, by=multislerp(1.0), of=[*ONE * 3]),
        ["layer.w", "3 sources, wanted 2"],
    ),
    "multislerp by weights that cancel": (task(0, by=multislerp(1.0, -1.0)), ["layer.w", "zero"]),
    "a karcher mean of nothing": (task(0, by=karcher(), of=[]), ["layer.w"]),
    "a karcher mean with a negative angle": (task(0, by=karcher(tol=-1.0)), ["layer.w", "tol -1"]),
    "a step back": (task(0, by={"nearswap": {"t": -0.5}}), ["layer.w", "t -0.5"]),
    "changes without a model": (task(0, by={"ram": {"epsilon": 0.0}}, of=ONE), ["layer.w", "1 sources"]),
    "changes above less than nothing": (task(0, by=ramplus(-1.0, 0.1, 0.2)), ["layer.w", "epsilon -1"]),
    "weights that cancel": (task(0, by=linear(1.0, -1.0)), ["layer.w", "zero"]),
    "arithmetic on integers": (task(1, by=linear(1.0, 1.0)), ["ids", "I64"]),
    "integers to floats": (tensor(1, dtype="F32"), ["ids", "I64", "F32"]),
    "floats to integers": (both(tensor(0, dtype="I64"), task(0, by={"copy": {}})), ["layer.w", "F32", "I64"]),
    "two tensors of one name": (tensor(1, name="layer.w"), ["layer.w"]),
    "a file outside the directory": (top(outputs=outputs("../model.safetensors")), ["../model.safetensors"]),
    "an absolute path": (top(outputs=outputs("/model.safetensors")), ["/model.safetensors"]),
    "no outputs": (top(outputs=[]), []),
    "two outputs of one name": (top(outputs=outputs("a.safetensors", "a.safetensors")), []),
    "an output of another format": (top(outputs=[{"name": "a.safetensors", "format": "gguf"}]), ["gguf"]),
    "an expression that is not there yet": (source(0, {"spilled": 3}), ["spilled"]),
    "two results by one method": (task(0, to=[{"tensor": i, "row": 0} for i in (0, 1)]), ["2 tensors by 1 methods"]),
    "a result too few": (task(0, by=[linear(0.5, 0.5), {"copy": {}}]), ["task 0", "1 tensors by 2 methods"]),
    "a result of another shape": (
        both(
            tensor(1, name="swept", dtype="F32", shape=[3, 2]),
            top(tasks=[{"to": [{"tensor": i, "row": 0} for i in (0, 1)], "by": [linear(1.0)] * 2, "of": ONE}]),
        ),
        ["model-0.safetensors", "layer.w", "[3, 2]"],
    ),
    "a task that writes nothing": (task(0, to=[], by=[]), ["task 0 writes nothing"]),
    "an encoding": (task(0, **{"as": {"fp8": "row"}}), ["as"]),
    "a tensor that no task writes": (top(tasks=[]), ["layer.w"]),
    "the journal as an output": (top(outputs=outputs("journal")), ["journal"]),
}


@pytest.mark.parametrize("attempt", [preflight, execute])
@pytest.mark.parametrize("threads", [1, 7])
def test_the_first_of_several_damaged_inputs_is_named(
    tmp_path: Path, threads: int, attempt: Callable[..., Any]
) -> None:
    plan = plan_of(tmp_path, {"w": Case(linear(*[1.0] * 9), tuple(encode([0.1], "F32") for _ in range(9)), "F32")})
    for i in range(3, 9):
        (tmp_path / f"model-{i}.safetensors").write_bytes(b"no weights")
    for _ in range(5):
        with pytest.raises(CheckpointError, match=r"model-3\.safetensors"):
            attempt(plan, tmp_path / "out.partial", threads=threads)


@pytest.mark.parametrize("attempt", [preflight, execute])
@pytest.mark.parametrize("lie", LIES)
def test_a_plan_that_lies(plan: Plan, tmp_path: Path, lie: str, attempt: Callable[..., Any]) -> None:
    change, words = LIES[lie]
    change(plan)
    with pytest.raises(MolError) as caught:
        attempt(plan, tmp_path / "out.partial")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"plan": 2', "\x00"])
def test_what_is_no_plan_at_all(text: str, tmp_path: Path) -> None:
    for attempt in (_rust.preflight, _rust.execute):
        with pytest.raises(MergeError, match="plan"):
            attempt(text, str(tmp_path / "out.partial"))
    with pytest.raises(MergeError, match="plan"):
        _rust.plan_digest(text)


@pytest.mark.parametrize("options", [{"tile": 0}, {"tile": 65537}, {"simd": "neon9"}, {"digest": "md5"}])
def test_options_out_of_range(plan: Plan, tmp_path: Path, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises((MolError, ValueError), match=name) as caught:
        execute(plan, tmp_path / "out.partial", **options)
    assert str(value) in str(caught.value)
    assert not (tmp_path / "out.partial").exists()


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 8)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def rename_a_tensor(path: Path) -> None:
    """Another header of the same size, at the same time."""
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"layer.w", b"layer.v"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("attempt", [preflight, execute])
@pytest.mark.parametrize("change", [touch, grow, cut, rename_a_tensor])
def test_an_input_that_changed_since_planning(
    plan: Plan, tmp_path: Path, change: Callable[[Path], None], attempt: Callable[..., Any]
) -> None:
    change(tmp_path / "model-1.safetensors")
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors"):
        attempt(plan, tmp_path / "out.partial")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("attempt", [preflight, execute])
def test_an_input_that_is_gone(plan: Plan, tmp_path: Path, attempt: Callable[..., Any]) -> None:
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-1\.safetensors"):
        attempt(plan, tmp_path / "out.partial")


@pytest.mark.parametrize("dtype", ["I64", "BOOL", "F32"])
def test_copies_that_should_be_equal_and_are_not(tmp_path: Path, dtype: str) -> None:
    values = np.arange(70_000) % 2
    one, two = values.copy(), values.copy()
    two[69_999] ^= 1
    sources = tuple(Stored(dtype, x.astype({"I64": "<i8", "BOOL": "?", "F32": "<f4"}[dtype])) for x in (one, two))
    plan = plan_of(tmp_path, {"position_ids": Case({"copy": {}}, sources, dtype)})
    with pytest.raises(MolError) as caught:
        preflight(plan, tmp_path / "out.partial")
    for word in ("position_ids", "model-0.safetensors", "model-1.safetensors"):
        assert word in str(caught.value)
    assert not (tmp_path / "out.partial").exists()


def test_all_unequal_copies_are_listed_at_once(tmp_path: Path) -> None:
    cases = {
        name: Case({"copy": {}}, (Stored("I64", np.array([1, 2])), Stored("I64", np.array([1, last]))), "I64")
        for name, last in {"first": 3, "second": 2, "third": 4}.items()
    }
    with pytest.raises(MolError) as caught:
        preflight(plan_of(tmp_path, cases), tmp_path / "out.partial")
    message = str(caught.value)
    assert "first" in message
    assert "third" in message
    assert "second" not in message


def test_preflight_reports_what_the_run_needs(plan: Plan, tmp_path: Path) -> None:
    found = preflight(plan, tmp_path / "out.partial")
    assert found["bytes_needed"] >= 6 * 4 + 4 * 8
    assert found["bytes_free"] > 0
    assert found["resumable"] == 0
    assert not (tmp_path / "out.partial").exists()


def test_the_same_file_twice_is_no_fault(tmp_path: Path) -> None:
    tensor = encode([1.0, 2.0], "F32")
    plan = plan_of(tmp_path, {"w": Case(linear(0.5, 0.5), (tensor, tensor), "F32")})
    plan["inputs"].append(plan["inputs"][0])
    plan["tasks"][0]["of"][1][0] = len(plan["inputs"]) - 1
    execute(plan, tmp_path / "out.partial")


def test_read_header_reports_what_a_file_holds(tmp_path: Path) -> None:
    tensors = {"b": encode([[1.0, 2.0]], "BF16"), "a": Stored("BOOL", np.array([True])), "none": encode([], "F64")}
    path = write_shard(tmp_path / "model.safetensors", tensors)
    size, mtime_ns, header, table = _rust.read_header(str(path))
    assert (size, mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert len(bytes.fromhex(header)) == 32
    assert table == [("b", "BF16", (1, 2), 4), ("a", "BOOL", (1,), 1), ("none", "F64", (0,), 0)]


def test_read_header_of_a_file_without_tensors(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "model.safetensors", {})
    size, _, _, table = _rust.read_header(str(path))
    assert (size, table) == (path.stat().st_size, [])
