"""How a plan is carried out: in which order, in which mode, with which files open. None of it shows in the bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mol.errors import MergeError
from tests.engine.toolkit import Case, Plan, Stored, encode, execute, linear, plan_of, shard_bytes, ties

DRAWN = np.random.default_rng(71)


def stored(size: int, count: int, dtype: str = "F32") -> tuple[Stored, ...]:
    return tuple(encode(DRAWN.normal(0, 0.02, size), dtype) for _ in range(count))


def one_output_each(directory: Path, count: int, size: int = 2) -> Plan:
    plan = plan_of(directory, {f"w{i}": Case(linear(1.0, 1.0), stored(size, 2), "F32") for i in range(count)})
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    plan["outputs"] = [{"name": name, "format": "safetensors"} for name in names]
    for i, tensor in enumerate(plan["tensors"]):
        tensor["output"] = i
    return plan


def run(plan: Plan, partial: Path, code: str) -> str:
    """Execute a plan in a process of its own: `code` has the plan as `plan` and the directory as `partial`."""
    path = partial.with_name("plan.json")
    path.write_text(json.dumps(plan))
    start = "import json, sys\nfrom mol import _rust\nplan, partial = open(sys.argv[1]).read(), sys.argv[2]\n"
    command = [sys.executable, "-c", start + code, str(path), str(partial)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.mark.parametrize("threads", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("memory", [0, 1 << 20, None])
def test_bytes_do_not_depend_on_threads_and_memory(tmp_path: Path, threads: int, memory: int | None) -> None:
    random = np.random.default_rng(72)
    tensors = [encode(random.normal(0, 1, size), "BF16") for size in (1, 300, 70_000, 5, 200_000, 64) for _ in range(3)]
    method = ties([1.0, 0.5], [0.4, 0.6])
    cases = {f"w{i}": Case(method, tuple(tensors[i * 3 : i * 3 + 3]), "BF16") for i in range(6)}
    plan = plan_of(tmp_path / "in", cases, shards=3)
    execute(plan, tmp_path / "wanted", threads=1, tile=1 << 20)
    execute(plan, tmp_path / "out.partial", threads=threads, memory=memory, tile=65536)
    assert shard_bytes(tmp_path / "out.partial") == shard_bytes(tmp_path / "wanted")


def test_outputs_are_finished_one_after_another(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path / "in", {f"w{i}": Case(linear(1.0, 1.0), stored(300_000, 2), "F32") for i in range(12)}, shards=4
    )
    partial = tmp_path / "out.partial"
    names: list[str] = []
    there: list[int] = []

    def finished(name: str) -> None:
        names.append(name)
        assert (partial / name).stat().st_size > 900_000

    def look(*_: int) -> None:
        there.append(len(list(partial.glob("*.safetensors"))))

    execute(plan, partial, threads=1, simd="off", on_output=finished, on_progress=look)
    wanted = [output["name"] for output in plan["outputs"]]
    assert names == wanted
    assert there == sorted(there)
    names.clear()
    execute(plan, partial, on_output=finished)
    assert sorted(names) == wanted  # what was finished before is reported as well


def test_some_outputs_and_then_the_others(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path / "in", {f"w{i}": Case(linear(1.0, 1.0), stored(500, 2), "F32") for i in range(9)}, shards=3
    )
    whole = execute(plan, tmp_path / "wanted")
    partial = tmp_path / "out.partial"
    first = execute(plan, partial, outputs=[1])
    assert [file["name"] for file in first["files"]] == [plan["outputs"][1]["name"]]
    assert [tensor["name"] for tensor in first["tensors"]] == ["w3", "w4", "w5"]
    assert not (partial / plan["outputs"][0]["name"]).exists()
    rest = [execute(plan, partial, outputs=[output]) for output in (2, 0)]
    assert [part["resumed"] for part in rest] == [0, 0]
    assert shard_bytes(partial) == shard_bytes(tmp_path / "wanted")
    assert [*rest[1]["tensors"], *first["tensors"], *rest[0]["tensors"]] == whole["tensors"]
    assert execute(plan, partial)["resumed"] == 9
    with pytest.raises(MergeError, match="output 3: the plan has 3 output files"):
        execute(plan, partial, outputs=[3])


def test_a_thousand_outputs_with_few_open_files(tmp_path: Path) -> None:
    plan = one_output_each(tmp_path / "in", 1000)
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
for _ in range(2):
    print(json.loads(_rust.execute(plan, partial, threads=4, sync=False))["resumed"])
"""
    assert run(plan, tmp_path / "out.partial", code).split() == ["0", "1000"]
    assert len(list((tmp_path / "out.partial").glob("*.safetensors"))) == 1000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report it")
def test_page_tables_do_not_grow_with_the_inputs(tmp_path: Path) -> None:
    """32 files of 16 MiB, read one after another: mapped together they would take 1 MiB of page tables."""
    one = Stored("BF16", np.zeros(1 << 23, np.uint16))
    plan = plan_of(tmp_path / "in", {"w0": Case({"copy": {}}, (one,), "BF16")})
    path = Path(plan["inputs"][0]["path"])
    for i in range(1, 32):
        path.with_name(f"{i}.safetensors").hardlink_to(path)
        plan["inputs"].append({**plan["inputs"][0], "path": str(path.with_name(f"{i}.safetensors"))})
        plan["tensors"].append({**plan["tensors"][0], "name": f"w{i}"})
        plan["tasks"].append({"to": [{"tensor": i, "row": 0}], "by": {"copy": {}}, "of": [[i, "w0"]]})
    code = """
def tables():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmPTE"))
seen = [tables()]
_rust.execute(plan, partial, threads=1, sync=False, on_progress=lambda *_: seen.append(tables()))
print(max(seen) - seen[0])
"""
    assert int(run(plan, tmp_path / "out.partial", code)) < 400  # KiB


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not report it")
def test_worker_threads_have_ended_when_the_call_returns(tmp_path: Path) -> None:
    plan = one_output_each(tmp_path / "in", 3)
    code = """
import os
before = len(os.listdir("/proc/self/task"))
for _ in range(20):
    _rust.execute(plan, partial, threads=7, sync=False)
    assert len(os.listdir("/proc/self/task")) == before
"""
    run(plan, tmp_path / "out.partial", code)
