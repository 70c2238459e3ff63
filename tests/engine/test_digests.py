"""Every result has its checksum in tests/data/digests.json, whatever threads, tiles and instruction set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.digests import TABLE, make_plan, make_table

if TYPE_CHECKING:
    from tests.engine.toolkit import Plan

CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
# Each of threads, tiles, instruction sets and ways to read in several of its values, together.
OPTIONS: list[dict[str, Any]] = [
    {"threads": 1, "simd": "off"},
    {"threads": 2, "tile": 1 << 16, "simd": "avx2"},
    {"threads": 3, "tile": 1 << 17, "simd": "avx512"},
    {"threads": 7, "tile": 1 << 16},
    {"threads": 16, "tile": 1 << 20},
    {"threads": 1, "mmap": False},
    {"threads": 3, "tile": 1 << 16, "mmap": False},
]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(tmp_path_factory.mktemp("digests"))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_results_have_the_checksums_of_the_table(plan: Plan, tmp_path: Path, options: dict[str, Any]) -> None:
    needed = {"avx2": " avx2", "avx512": " avx512f"}.get(options.get("simd", ""), "")
    if needed not in CPU:
        pytest.skip(f"this processor has no{needed}")
    wanted = json.loads(TABLE.read_text())
    found = make_table(plan, tmp_path / "out.partial", **options)
    assert found.keys() == wanted.keys()
    for label, rows in wanted.items():
        different = [row for row in rows.keys() | found[label].keys() if found[label].get(row) != rows.get(row)]
        assert not different, f"{label}: {sorted(different)}"
