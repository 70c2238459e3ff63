"""Several results of one reading: the bytes of tasks apart, each claimed by itself."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mol import _rust
from mol.errors import MolError
from tests.engine.toolkit import (
    Case,
    encode,
    execute,
    linear,
    outputs,
    plan_of,
    preflight,
    read_header,
    shard_bytes,
    slerp,
    task_arithmetic,
    ties,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.toolkit import Method, Plan

RECIPES: dict[str, tuple[Method, str]] = {
    "ties": (ties([1.0], [0.3], rescale=True), "BF16"),
    "wide": (task_arithmetic(0.7), "F32"),
    "arc": (slerp(0.3), "F16"),
}
TENSORS = 7


def plan_for(directory: Path, *recipes: str, apart: bool = False) -> Plan:
    """Each recipe's tensors in a file of its own, made by tasks of one reading or apart."""
    drawn = np.random.default_rng(3)
    shapes = [(3 + i, 9000) for i in range(TENSORS)]
    sources = [tuple(encode(drawn.normal(0, 1, shape), dtype) for dtype in ("BF16", "F32")) for shape in shapes]
    one = plan_of(directory, {f"w{i}": Case(linear(1.0, 1.0), pair, "F32") for i, pair in enumerate(sources)})
    tensors = [
        {"name": f"{name}.w{i}", "dtype": RECIPES[name][1], "shape": list(shape), "output": output}
        for output, name in enumerate(recipes)
        for i, shape in enumerate(shapes)
    ]
    read = [task["of"] for task in one["tasks"]]
    targets = [[{"tensor": TENSORS * output + i, "row": 0} for output in range(len(recipes))] for i in range(TENSORS)]
    methods = [RECIPES[name][0] for name in recipes]
    tasks: list[dict[str, Any]] = [{"to": to, "by": methods, "of": of} for to, of in zip(targets, read, strict=True)]
    if apart:
        tasks = [
            {"to": [targets[i][output]], "by": by, "of": of}
            for output, by in enumerate(methods)
            for i, of in enumerate(read)
        ]
    return one | {"outputs": outputs(*(f"{name}.safetensors" for name in recipes)), "tensors": tensors, "tasks": tasks}


@pytest.mark.parametrize("options", [{}, {"threads": 1}, {"threads": 5, "tile": 1 << 16, "simd": "off"}], ids=str)
def test_results_of_one_reading_are_the_bytes_of_tasks_apart(tmp_path: Path, options: dict[str, Any]) -> None:
    reports = [
        execute(plan_for(tmp_path, *RECIPES, apart=apart), tmp_path / f"{apart}.partial", **options)
        for apart in (False, True)
    ]
    assert reports[0] == reports[1]
    assert shard_bytes(tmp_path / "False.partial") == shard_bytes(tmp_path / "True.partial")


def test_each_output_of_a_sweep_can_be_run_by_itself(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, *RECIPES)
    execute(plan, tmp_path / "whole.partial")
    for output in (2, 0, 1):
        assert execute(plan, tmp_path / "apart.partial", outputs=[output])["resumed"] == 0
    assert execute(plan, tmp_path / "apart.partial")["resumed"] == 3 * TENSORS
    assert shard_bytes(tmp_path / "apart.partial") == shard_bytes(tmp_path / "whole.partial")


def test_a_sweep_that_grows_keeps_what_is_finished_of_it(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    small, grown = plan_for(tmp_path, "ties", "arc", apart=True), plan_for(tmp_path, *RECIPES)
    execute(small | {"inputs": grown["inputs"]}, partial)  # which were written twice
    assert preflight(grown, partial)["resumable"] == 2 * TENSORS
    assert execute(grown, partial)["resumed"] == 2 * TENSORS
    execute(grown, tmp_path / "fresh.partial")
    assert shard_bytes(partial) == shard_bytes(tmp_path / "fresh.partial")


def test_what_is_read_together_is_done_together(tmp_path: Path) -> None:
    """A run that fails at the fourth reading has the first three of every recipe."""
    plan = plan_for(tmp_path, *RECIPES)
    shard = tmp_path / "model-1.safetensors"
    header, start = read_header(shard)
    with shard.open("r+b") as file:
        file.seek(start + header["w3"]["data_offsets"][0])
        file.write(np.float32(np.nan).tobytes())
    info = shard.stat()
    plan["inputs"][1] |= {"mtime_ns": info.st_mtime_ns}
    with pytest.raises(MolError, match="`w3` holds NaN"):
        execute(plan, tmp_path / "out.partial", threads=1)
    done = [
        (tmp_path / "out.partial" / f"{name}.safetensors.journal").read_text().count("crc64nvme") for name in RECIPES
    ]
    assert done == [3, 3, 3]


def in_directories(directory: Path, *names: str) -> Plan:
    """The same tensors in every result, each in a directory of its own and in two files."""
    plan = plan_for(directory, *names)
    files = [f"{name}/model-{part}.safetensors" for name in names for part in (1, 2)]
    tensors = [
        tensor | {"name": f"w{i % TENSORS}", "output": 2 * tensor["output"] + (i % TENSORS > 3)}
        for i, tensor in enumerate(plan["tensors"])
    ]
    return plan | {"outputs": outputs(*files), "tensors": tensors}


def everything(partial: Path) -> dict[str, bytes]:
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    return {path.relative_to(partial).as_posix(): path.read_bytes() for path in files}


def test_results_in_directories_hold_tensors_of_one_name(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    report = execute(in_directories(tmp_path, *RECIPES), partial, digest="blake3")
    assert {entry["name"] for entry in report["files"]} == {
        f"{n}/model-{i}.safetensors" for n in RECIPES for i in (1, 2)
    }
    found = everything(partial)
    for name in RECIPES:
        alone = execute(in_directories(tmp_path, name), tmp_path / f"{name}.partial", digest="blake3")
        theirs = everything(tmp_path / f"{name}.partial")
        assert {path: found[path] for path in found if path.startswith(f"{name}/m") and "journal" not in path} == {
            path: theirs[path] for path in theirs if path.startswith(f"{name}/m") and "journal" not in path
        }
        assert [entry for entry in report["tensors"] if entry["file"].startswith(f"{name}/")] == alone["tensors"]
        index = json.loads(found[f"{name}/model.safetensors.index.json"])
        assert index["weight_map"]["w6"] == "model-2.safetensors"


def test_a_sweep_that_shrinks_leaves_nothing_of_what_it_had(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    less, whole = in_directories(tmp_path, "ties", "arc"), in_directories(tmp_path, *RECIPES)
    execute(whole, partial)
    (partial / "wide" / "config.json").write_text("{}")
    less |= {"inputs": whole["inputs"]}
    assert execute(less, partial)["resumed"] == 2 * TENSORS
    assert sorted(path.name for path in partial.iterdir()) == ["arc", "journal", "ties"]
    _rust.commit(str(partial), str(tmp_path / "out"), sync=False)
    assert sorted(everything(tmp_path / "out")) == sorted(
        f"{name}/{file}"
        for name in ("ties", "arc")
        for file in ("model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json")
    )


def test_a_link_instead_of_a_directory_is_not_followed(tmp_path: Path) -> None:
    plan, partial, elsewhere = in_directories(tmp_path, "ties", "arc"), tmp_path / "out.partial", tmp_path / "elsewhere"
    execute(plan, partial, outputs=[0])
    shutil.rmtree(partial / "arc")
    elsewhere.mkdir()
    (partial / "arc").symlink_to(elsewhere)
    execute(plan, partial)
    assert list(elsewhere.iterdir()) == []
    assert not (partial / "arc").is_symlink()


def test_a_result_may_be_made_of_some_of_the_sources(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "wide", "arc")
    some = plan_for(tmp_path, "wide", "arc")
    for i, task in enumerate(some["tasks"]):
        task["by"] = [linear(1.0, 2.0), linear(1.0)]
        task["to"][1]["of"] = [1]
        plan["tasks"][i] = {"to": [task["to"][0]], "by": linear(1.0, 2.0), "of": task["of"]}
        plan["tasks"].append({"to": [{"tensor": TENSORS + i, "row": 0}], "by": linear(1.0), "of": task["of"][1:]})
    execute(plan | {"inputs": some["inputs"]}, tmp_path / "apart.partial")
    assert execute(some, tmp_path / "apart.partial")["resumed"] == 2 * TENSORS
    execute(some, tmp_path / "together.partial")
    assert shard_bytes(tmp_path / "apart.partial") == shard_bytes(tmp_path / "together.partial")


@pytest.mark.parametrize(
    "name",
    ["../out.safetensors", "/out.safetensors", "a/b/c.safetensors", ".a/b.safetensors", "a/../b.safetensors",
     "./b.safetensors", "a//b.safetensors", "a/.safetensors/", "/a.safetensors/b", "a/b"],
)  # fmt: skip
def test_outputs_do_not_leave_their_directory(name: str, tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "ties")
    with pytest.raises(MolError, match=r"is not the name of a \.safetensors file"):
        execute(plan | {"outputs": outputs(name)}, tmp_path / "out.partial")
    assert not (tmp_path / "out.partial").exists()


def test_what_a_result_is_made_of_is_listed_and_each_name_is_written_once_in_a_directory(tmp_path: Path) -> None:
    plan = in_directories(tmp_path, "ties", "arc")
    plan["tasks"][0]["to"][1]["of"] = [0, 2]
    with pytest.raises(MolError, match="task 0 makes a result of expression 2, but it lists 2"):
        execute(plan, tmp_path / "out.partial")
    plan = in_directories(tmp_path, "ties", "arc")
    plan["tensors"][TENSORS]["name"] = "w1"
    with pytest.raises(MolError, match="tensor `w1` is written twice"):
        execute(plan, tmp_path / "out.partial")
