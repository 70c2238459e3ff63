"""Bytes depend on the plan and the inputs alone: not on threads, tiles, instruction sets or the split into shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.engine.test_methods import METHODS
from tests.engine.toolkit import Case, Plan, encode, execute, outputs, plan_of, read_header, read_shard, shard_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

SIZES = (1, 17, 4099, 65537, 1_200_005)
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


def make_cases() -> dict[str, Case]:
    random = np.random.default_rng(21)
    cases = {}
    for n in SIZES:
        base = random.normal(0, 0.02, n)
        values = [base, *(base + random.normal(0, 0.003, n) for _ in range(3))]
        for label, dtypes in {"bf16": ("BF16",) * 4, "mixed": ("F32", "F16", "BF16", "F32")}.items():
            sources = tuple(encode(v, dtype) for v, dtype in zip(values, dtypes, strict=True))
            for name, (inputs, method) in METHODS.items():
                if n < 1_000_000 or name in ("linear", "slerp", "task arithmetic", "ties", "ties, rescaled"):
                    cases[f"{label} {name} {n}"] = Case(method, sources[:inputs], dtypes[0])
    return cases


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    directory = tmp_path_factory.mktemp("determinism")
    return plan_of(directory, make_cases())


@pytest.fixture(scope="module")
def wanted(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[Any]]:
    """The bytes and the tensors' checksums of a run by one thread."""
    partial = tmp_path_factory.mktemp("wanted") / "out.partial"
    report = execute(plan, partial, threads=1)
    return shard_bytes(partial), report["tensors"]


def options() -> list[dict[str, Any]]:
    threads: list[dict[str, Any]] = [{"threads": n} for n in (2, 3, 7, None)]
    tiles: list[dict[str, Any]] = [{"tile": 1 << n, "threads": 2} for n in (16, 17, 18, 20)]
    read = [{"mmap": False, "threads": n, "tile": 1 << 17} for n in (1, 7)]
    return [*threads, *tiles, *read, *({"simd": level} for level in ("off", "avx2", "avx512", "auto"))]


@pytest.mark.parametrize("option", options(), ids=str)
def test_bytes_do_not_depend_on(
    option: Mapping[str, Any], plan: Plan, wanted: tuple[dict[str, bytes], list[Any]], tmp_path: Path
) -> None:
    needed = {"avx2": " avx2", "avx512": " avx512f"}.get(option.get("simd", ""), "")
    if needed not in CPU:
        pytest.skip(f"this processor has no{needed}")
    report = execute(plan, tmp_path / "out.partial", **option)
    files = shard_bytes(tmp_path / "out.partial")
    assert files.keys() == wanted[0].keys()
    assert report["tensors"] == wanted[1]
    assert files == wanted[0]


def test_one_shard_and_many_hold_the_same_tensors(tmp_path: Path) -> None:
    cases = {name: case for name, case in make_cases().items() if case.sources[0].data.size < 100_000}
    execute(plan_of(tmp_path, cases), tmp_path / "one")
    whole = read_shard(tmp_path / "one" / "model.safetensors")
    report = execute(plan_of(tmp_path, cases, shards=4), tmp_path / "four")
    index = json.loads((tmp_path / "four" / "model.safetensors.index.json").read_text())
    names = [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
    assert [file["name"] for file in report["files"]] == names
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    seen = []
    for name in names:
        header, _ = read_header(tmp_path / "four" / name)
        assert header["__metadata__"] == {"format": "pt"}
        for tensor, stored in read_shard(tmp_path / "four" / name).items():
            assert index["weight_map"][tensor] == name
            assert stored.dtype == whole[tensor].dtype
            assert stored.data.tobytes() == whole[tensor].data.tobytes()
            seen.append(tensor)
    assert seen == list(cases)
    assert index["weight_map"].keys() == cases.keys()
    assert index["metadata"]["total_size"] == sum(stored.data.nbytes for stored in whole.values())


def test_headers_are_readable_by_safetensors(tmp_path: Path) -> None:
    from safetensors import safe_open

    cases = {"a.weight": Case({"copy": {}}, (encode([[1.0, 2.0]], "F32"),), "F16")}
    execute(plan_of(tmp_path, cases), tmp_path / "out.partial")
    with safe_open(tmp_path / "out.partial" / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("a.weight"), np.array([[1.0, 2.0]], dtype=np.float16))


def test_the_digest_of_a_plan_knows_no_paths_and_times(tmp_path: Path) -> None:
    from mol import _rust

    cases = {"w": Case({"scale": {"factor": 0.1}}, (encode([1.0, 2.0], "F32"),), "F32")}
    here, there = (plan_of(tmp_path / name, cases) for name in ("here", "there"))
    there["inputs"][0]["mtime_ns"] += 1
    assert _rust.plan_digest(json.dumps(here)) == _rust.plan_digest(json.dumps(there, indent=1, sort_keys=True))
    assert _rust.plan_digest(json.dumps({**here, "allow_nonfinite": True})) == _rust.plan_digest(json.dumps(here))
    for change in ({"seed": 1}, {"outputs": outputs("other.safetensors")}):
        assert _rust.plan_digest(json.dumps({**here, **change})) != _rust.plan_digest(json.dumps(here))
    there["tasks"][0]["by"] = {"scale": {"factor": 0.1 + 2**-56}}
    assert _rust.plan_digest(json.dumps(here)) != _rust.plan_digest(json.dumps(there))
    assert execute(here, tmp_path / "out.partial")["plan_digest"] == _rust.plan_digest(json.dumps(here))
