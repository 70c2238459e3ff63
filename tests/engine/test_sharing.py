"""Several processes in one OUT.partial: each writes outputs of its own, and what they make is what one makes alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mol import _rust
from mol.errors import MergeError
from tests.engine.processes import at_work, claimed, start
from tests.engine.toolkit import Case, Plan, encode, execute, linear, outputs, plan_of, preflight, shard_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.processes import Work

# A busy machine lets the slow merges of other processes take long.
pytestmark = pytest.mark.timeout(240)

BUSY = r"out\.partial: another mol-merge is working"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    drawn = np.random.default_rng(91)
    sources = tuple(encode(drawn.normal(0, 1, 1000), "F32") for _ in range(2))
    return plan_of(tmp_path / "in", {f"w{i}": Case(linear(0.25, 0.75), sources, "F32") for i in range(8)}, shards=8)


def other_weights(plan: Plan, task: int = 3) -> Plan:
    edited: Plan = json.loads(json.dumps(plan))
    (numbers,) = edited["tasks"][task]["by"].values()
    numbers["weights"][0] = 0.26
    return edited


def test_three_processes_write_what_one_does(work: Work, partial: Path) -> None:
    children = [start(work, partial, outputs=[output]) for output in range(3)]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    assert shard_bytes(partial) == work.bytes
    _rust.commit(str(partial), str(partial.with_suffix("")))
    assert shard_bytes(partial.with_suffix("")) == work.bytes  # and no journals
    assert not partial.exists()


@pytest.mark.parametrize("there", ["nothing", "a torn journal", "an edited recipe"])
def test_all_that_begin_in_the_same_moment_are_let_in(plan: Plan, partial: Path, there: str) -> None:
    execute(plan, partial.with_name("wanted"))
    wanted = shard_bytes(partial.with_name("wanted"))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(25):
            shutil.rmtree(partial, ignore_errors=True)
            if there == "a torn journal":
                partial.mkdir()
                (partial / "journal").write_bytes(b'{"jour')
            elif there == "an edited recipe":
                execute(other_weights(plan), partial, sync=False)
            reports = list(pool.map(lambda one: execute(plan, partial, outputs=[one], sync=False), range(8)))
            assert [len(report["files"]) for report in reports] == [1] * 8
            assert shard_bytes(partial) == wanted
            assert len((partial / "journal").read_bytes().splitlines()) == (2 if there == "an edited recipe" else 1)
    assert preflight(plan, partial)["resumable"] == 8


def test_two_plans_that_begin_in_the_same_moment_take_turns(plan: Plan, partial: Path) -> None:
    plans = (plan, other_weights(plan))
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            shutil.rmtree(partial, ignore_errors=True)
            list(pool.map(lambda i: execute(plans[i], partial, outputs=[i], sync=False), range(2)))
            heads = [json.loads(line)["plan"] for line in (partial / "journal").read_text().splitlines()]
            assert len(heads) == len(set(heads)) == 2
            assert preflight(plan, partial)["resumable"] == 2


def test_while_one_is_at_work(work: Work, partial: Path) -> None:
    out = str(partial.with_suffix(""))
    names = [output["name"] for output in work.plan["outputs"]]
    with at_work(work, partial, outputs=[0, 1]) as child:
        for attempt in (
            lambda: _rust.PartialLock(str(partial), out),
            lambda: preflight(work.plan, partial),
            lambda: preflight(other_weights(work.plan), partial, discard_partial=True),
            lambda: execute(work.plan, partial),
            lambda: _rust.commit(str(partial), out),
            lambda: _rust.commit(str(partial), out, overwrite=True),
        ):
            with pytest.raises(MergeError, match=BUSY):
                attempt()
        for taken in ([0], [1, 2], [2, 1]):
            name = names[1 if 1 in taken else 0]
            with pytest.raises(MergeError, match=rf"out\.partial/{name}: another process is writing this output"):
                execute(work.plan, partial, outputs=taken)
        with pytest.raises(MergeError, match=r"out\.partial: another plan is being run there"):
            execute(other_weights(work.plan), partial, outputs=[2])
        done = execute(work.plan, partial, outputs=[2])
        assert [file["name"] for file in done["files"]] == names[2:]
    assert child.returncode == 0
    assert shard_bytes(partial) == work.bytes


def test_a_whole_merge_excludes_every_other(work: Work, partial: Path) -> None:
    with at_work(work, partial) as child, pytest.raises(MergeError, match=BUSY):
        execute(work.plan, partial, outputs=[0])
    assert child.returncode == 0
    assert shard_bytes(partial) == work.bytes


def test_one_of_three_is_killed(work: Work, partial: Path) -> None:
    out = partial.with_suffix("")
    with (
        at_work(work, partial, outputs=[0]),
        at_work(work, partial, outputs=[2]),
        at_work(work, partial, [1]) as killed,
    ):
        killed.kill()
        killed.wait()
        with pytest.raises(MergeError, match=BUSY):
            _rust.commit(str(partial), str(out))
    with pytest.raises(MergeError, match="no finished merge"):
        _rust.commit(str(partial), str(out))
    before = claimed(partial)
    report = execute(work.plan, partial, outputs=[1])
    assert report["resumed"] == before - sum(t["output"] != 1 for t in work.plan["tensors"])
    _rust.commit(str(partial), str(out))
    assert shard_bytes(out) == work.bytes


def test_a_directory_of_another_merge_is_refused(plan: Plan, partial: Path) -> None:
    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    with pytest.raises(MergeError, match=r"out\.partial.*not mol's"):
        execute(plan, partial, outputs=[0])
    assert [path.name for path in partial.iterdir()] == ["thesis.tex"]
    (partial / "thesis.tex").unlink()
    execute(plan, partial, outputs=[0])
    with pytest.raises(MergeError, match=r"out\.partial.*another plan"):
        execute(plan | {"tasks": [{**task, "by": linear(0.5, 0.5)} for task in plan["tasks"]]}, partial, outputs=[0])
    assert preflight(plan, partial)["resumable"] == 1


def test_a_link_instead_of_claims_is_not_followed(plan: Plan, partial: Path) -> None:
    execute(plan, partial)
    wanted = shard_bytes(partial)
    victim = partial.with_name("victim")
    victim.write_text("a token")
    claims = partial / f"{plan['outputs'][0]['name']}.journal"
    claims.unlink()
    claims.symlink_to(victim)
    assert execute(plan, partial, outputs=[0])["resumed"] == 0
    assert victim.read_text() == "a token"
    assert shard_bytes(partial) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is on open files of Linux")
def test_an_output_that_cannot_be_kept_is_named(tmp_path: Path, partial: Path) -> None:
    tensor = encode([1.0, 2.0], "F32")
    plan = plan_of(tmp_path / "in", {f"w{i}": Case(linear(1.0, 1.0), (tensor, tensor), "F32") for i in range(100)})
    plan["outputs"] = outputs(*(f"model-{i + 1:05}-of-00100.safetensors" for i in range(100)))
    for i, entry in enumerate(plan["tensors"]):
        entry["output"] = i
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code = """
import resource, sys
from mol import _rust
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
_rust.execute(open(sys.argv[1]).read(), sys.argv[2], outputs=[*range(30)], threads=2)
_rust.execute(open(sys.argv[1]).read(), sys.argv[2], outputs=[*range(100)], threads=2)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "plan.json"), str(partial)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Too many open files" in child.stderr
    assert ".safetensors.journal" in child.stderr
    assert preflight(plan, partial)["resumable"] == 30
