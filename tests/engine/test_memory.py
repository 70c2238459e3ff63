"""The engine's own memory does not grow with a tensor: no tensor is ever held whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mol import _rust
from tests.engine.test_methods import METHODS
from tests.engine.toolkit import (
    Case,
    Plan,
    Stored,
    encode,
    input_entry,
    linear,
    plan_of,
    shard_bytes,
    task_arithmetic,
    thin,
    ties,
    write_shard,
)

TOLD = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report it")
CHILD = """
import json, sys
from mol import _rust

def anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

seen = [anonymous()]
look = lambda *counts: seen.append(anonymous())
options = json.loads(sys.argv[3])
_rust.execute(open(sys.argv[1]).read(), sys.argv[2], threads=2, simd="off", on_progress=look, **options)
print(json.dumps(seen))
"""


def anonymous(plan: Plan, partial: Path, **options: Any) -> int:  # noqa: ANN401 - those of execute
    """Bytes by which the anonymous memory of a process of its own grows that runs a plan, as far as is seen."""
    partial.with_name("plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-c", CHILD, str(partial.with_name("plan.json")), str(partial), json.dumps(options)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    before, *during = json.loads(child.stdout)
    return (max(during) - before) << 10


@TOLD
def test_anonymous_memory_is_far_below_the_size_of_a_tensor(tmp_path: Path) -> None:
    """A tensor of 2^24 elements takes 64 MiB as f32; a run over it takes less than half of that."""
    random = np.random.default_rng(61)
    base = random.normal(0, 0.02, 1 << 20)
    models = [encode(values, "BF16") for values in (base, *(base + random.normal(0, 0.003, 1 << 20) for _ in range(3)))]
    sources = tuple(Stored("BF16", np.tile(model.data, 16)) for model in models)
    names = ("linear", "slerp", "task arithmetic", "ties", "ties, rescaled")
    cases = {
        name: Case(method, sources[:inputs], "BF16") for name, (inputs, method) in METHODS.items() if name in names
    }
    plan = plan_of(tmp_path, cases)
    most = anonymous(plan, tmp_path / "out.partial")
    assert most < 32 << 20
    *_, heap = _rust.plan_cost(json.dumps(plan), threads=2)
    assert most < heap < 32 << 20


@TOLD
def test_what_is_drawn_by_rank_is_held_in_part(tmp_path: Path) -> None:
    """A bit for each of 2^26 elements and seven models would take 56 MiB; the cost is of a tensor per thread."""
    random = np.random.default_rng(67)
    rows = [encode(random.normal(0, 0.02, (128, 512)), "BF16").data for _ in range(2)]
    sources = tuple(Stored("BF16", np.tile(data, (1024, 1))) for data in rows)
    method = thin("della", [1.0, -0.5] * 3 + [1.0], [0.5] * 7, epsilons=[0.1] * 7, rescale=True)
    plan = plan_of(tmp_path, {"w": Case(method, sources, "BF16")})
    base, model = plan["tasks"][0]["of"]
    plan["tasks"][0]["of"] = [base, *[model] * 7]
    most = anonymous(plan, tmp_path / "out.partial")
    assert most < 30 << 20
    *_, heap = _rust.plan_cost(json.dumps(plan), threads=2)
    assert most < heap < 60 << 20


def test_a_search_in_a_small_tensor_costs_no_more_than_its_elements(tmp_path: Path) -> None:
    """Few elements are ranked as they are: nothing of the size of a sample of a large tensor is claimed for them."""
    n = 2000
    sources = tuple(encode(np.arange(n) + i, "BF16") for i in range(4))
    costs = [
        _rust.plan_cost(json.dumps(plan_of(tmp_path / name, cases)), threads=1)[2]
        for name, cases in (
            ("ties", {"w": Case(ties([1.0] * 3, [0.5] * 3), sources, "BF16")}),
            ("plain", {"w": Case(task_arithmetic(*[1.0] * 3), sources, "BF16")}),
        )
    ]
    assert costs[0] - costs[1] < 8 * 4 * n + 200


@TOLD
def test_tasks_whose_sources_hold_much_run_one_at_a_time_where_memory_is_short(tmp_path: Path) -> None:
    """Factors of adapters are held in f64 from the start of a task to its end: 45 MB each here."""
    rank, columns, rows = 1100, 4096, 64
    held = (rank * columns + rank * rows) * 8
    drawn = np.random.default_rng(62)
    tile = encode(drawn.normal(0, 0.02, 1 << 16), "BF16").data
    of = lambda *shape: Stored("BF16", np.resize(tile, shape))  # noqa: E731
    sources = {"w": of(rows, columns), "a": of(rank, columns), "b": of(rows, rank)}
    plan = plan_of(tmp_path, {f"w{i}": Case(linear(1.0), (sources["w"],), "BF16") for i in range(4)})
    path = write_shard(tmp_path / "adapters.safetensors", {name: sources[name] for name in "ab"})
    plan["inputs"].append(input_entry(path))
    for task in plan["tasks"]:
        adapted = {"of": task["of"][0], "a": [1, "a"], "b": [1, "b"], "scale": 0.5, "magnitude": None}
        task["of"] = [{"lora": adapted}]
    assert anonymous(plan, tmp_path / "short.partial", memory=0) < 1.7 * held
    assert anonymous(plan, tmp_path / "long.partial", memory=4 * held) > 1.7 * held
    assert shard_bytes(tmp_path / "short.partial") == shard_bytes(tmp_path / "long.partial")
    heap = [_rust.plan_cost(json.dumps(plan), threads=3, memory=memory)[2] for memory in (0, 4 * held)]
    assert heap[1] - heap[0] == 2 * held
