"""The engine's own memory does not grow with a tensor: no tensor is ever held whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mol import _rust
from tests.engine.test_methods import METHODS
from tests.engine.toolkit import Case, Stored, encode, plan_of, task_arithmetic, ties

CHILD = """
import json, sys
from mol import _rust

def anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

seen = [anonymous()]
look = lambda *counts: seen.append(anonymous())
_rust.execute(open(sys.argv[1]).read(), sys.argv[2], threads=2, simd="off", on_progress=look)
print(json.dumps(seen))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell")
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
    (tmp_path / "plan.json").write_text(json.dumps(plan_of(tmp_path, cases)))
    command = [sys.executable, "-c", CHILD, str(tmp_path / "plan.json"), str(tmp_path / "out.partial")]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    before, *during = json.loads(child.stdout)
    assert max(during) - before < 32 * 1024  # KiB
    _, heap = _rust.plan_cost(Path(command[3]).read_text(), threads=2)
    assert max(during) - before < heap / 1024 < 32 * 1024


def test_a_search_in_a_small_tensor_costs_no_more_than_its_elements(tmp_path: Path) -> None:
    """Few elements are ranked as they are: nothing of the size of a sample of a large tensor is claimed for them."""
    n = 2000
    sources = tuple(encode(np.arange(n) + i, "BF16") for i in range(4))
    costs = [
        _rust.plan_cost(json.dumps(plan_of(tmp_path / name, cases)), threads=1)[1]
        for name, cases in (
            ("ties", {"w": Case(ties([1.0] * 3, [0.5] * 3), sources, "BF16")}),
            ("plain", {"w": Case(task_arithmetic(*[1.0] * 3), sources, "BF16")}),
        )
    ]
    assert costs[0] - costs[1] < 8 * 4 * n + 200
