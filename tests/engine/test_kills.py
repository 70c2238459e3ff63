"""Killed at any moment, again and again, a merge ends in the same bytes: in one go, by outputs, or all at once."""

from __future__ import annotations

import random
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from tests.engine.processes import claimed, start
from tests.engine.toolkit import execute, shard_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.processes import Work

# Which outputs each of the processes runs that are at work together, turn by turn; all where None.
WAYS: dict[str, list[list[list[int] | None]]] = {
    "in one go": [[None]],
    "outputs one after another": [[[0]], [[1]], [[2]]],
    "outputs at once": [[[0], [2, 1]]],
}


def kill(work: Work, partial: Path, way: str, times: int, seed: int) -> str:
    """Run the work and kill it, begin anew once it is through, compare at every end; returns what was met."""
    moments = random.Random(seed)
    kills = of_resumes = ends = 0
    turn = 0
    while kills < times:
        found = claimed(partial)
        children = [start(work, partial, threads=moments.choice([1, 2]), outputs=some) for some in WAYS[way][turn]]
        try:
            for child in children:
                assert child.stdout is not None
                child.stdout.readline()
            time.sleep(moments.uniform(0, work.seconds / (2 + 4 * len(WAYS[way]))))
            for child in moments.sample(children, moments.randint(1, len(children))):
                if child.poll() is None:
                    child.kill()
                    kills += 1
                    of_resumes += found > 0
            through = [not (child.communicate(timeout=120) and child.returncode) for child in children]
            assert all(child.returncode in (0, -9) for child in children)
        finally:
            for child in children:
                child.kill()
        if all(through):
            turn += 1
        if turn == len(WAYS[way]):
            assert shard_bytes(partial) == work.bytes
            ends += 1
            turn = 0
            shutil.rmtree(partial)
    for some in WAYS[way][turn:]:
        for outputs in some:
            execute(work.plan, partial, threads=2, outputs=outputs)
    assert shard_bytes(partial) == work.bytes
    return f"{kills} kills of {way}, {of_resumes} of them of a resume; the same bytes at {ends + 1} ends"


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("way", "seed"), [("in one go", 53), ("outputs at once", 54)])
def test_ten_kills_at_random_moments(work: Work, tmp_path: Path, way: str, seed: int) -> None:
    assert kill(work, tmp_path / "out.partial", way, 10, seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", WAYS)
def test_sixty_kills_at_random_moments(
    work: Work, tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    says = kill(work, tmp_path / "out.partial", way, 60, 55)
    with capsys.disabled():
        print(f" {says}", end=" ")
