"""Stages that are read several times: computed once, on the disk while a tensor made of them is; the same bytes."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mol import _rust
from mol.errors import MergeError
from tests.engine.processes import Work, start
from tests.engine.toolkit import (
    COPY,
    Method,
    Plan,
    Stored,
    cabs,
    encode,
    execute,
    linear,
    plan_of_tasks,
    preflight,
    read_shard,
    shard_bytes,
    slerp,
    thin,
    ties,
)

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (37, 5003)
BASE = np.random.default_rng(31).normal(0, 0.02, SHAPE)
STORED = {
    name: BASE + np.random.default_rng(i).normal(0, 0.003, SHAPE) if i else BASE for i, name in enumerate("abcdef")
}
METHODS: dict[str, Method] = {
    "ties": ties([1.0, 0.7], [0.5, 0.3]),
    "ties, rescaled": ties([1.0, 0.7], [0.5, 0.3], rescale=True),
    "dare_ties": thin("dare_ties", [1.0, 0.7], [0.5, 0.3], rescale=True),
    "della": thin("della", [1.0, 0.7], [0.5, 0.3], epsilons=[0.1, 0.1], rescale=True),
    "cabs": cabs(1.0, 0.7, n=1, m=4),
    "slerp": slerp(0.3),
}
IN_PARTIAL = {"journal", "model.safetensors", "model.safetensors.journal"}


def t(name: str) -> list[Any]:
    return [0, name]


def stage(method: Method, *of: Any, dtype: str | None = "BF16") -> dict[str, Any]:  # noqa: ANN401 - expressions
    merged = {"merged": {"by": method, "of": list(of)}}
    return merged if dtype is None else {"cast": {"of": merged, "to": dtype}}


def left_in(partial: Path) -> set[str]:
    """What a partial directory contains; nothing of a stage."""
    assert not list((partial / ".scratch").glob("*"))
    return {path.name for path in partial.iterdir()} - {".scratch"}


def plan_for(directory: Path, *of: Any, by: Method, out: str = "BF16", **more: Any) -> Plan:  # noqa: ANN401
    """A plan of one tensor from expressions over those stored."""
    stored = {name: encode(values, "BF16") for name, values in STORED.items()} | more.pop("stored", {})
    return plan_of_tasks(directory, stored, (0, *of), shape=more.pop("shape", SHAPE), by=by, out=out, **more)


def sources_of(method: Method, last: Any, number: int) -> list[Any]:  # noqa: ANN401 - expressions
    """What a step of a chain merges: the step before, and tensors."""
    return [last, t("abcdef"[number])] if "slerp" in method else [t("a"), last, t("bcdef"[number])]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("length", [2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_chain_in_one_gives_the_bytes_of_its_merges_apart(
    tmp_path: Path, method: str, length: int, mmap: bool
) -> None:
    by = METHODS[method]
    last: Any = t("f")
    results: dict[str, Stored] = {}
    for number in range(length):
        read = t("made") if number else last
        plan = plan_for(tmp_path / f"{number}", *sources_of(by, read, number), by=by, stored=results)
        execute(plan, tmp_path / f"{number}.partial")
        results = {"made": read_shard(tmp_path / f"{number}.partial" / "model.safetensors")["t"]}
    for number in range(length - 1):
        last = stage(by, *sources_of(by, last, number))
    plan = plan_for(tmp_path, *sources_of(by, last, length - 1), by=by)
    apart = (tmp_path / f"{length - 1}.partial" / "model.safetensors").read_bytes()
    for i, options in enumerate([{"threads": 1, "tile": 65536}, {"threads": 3, "simd": "off"}]):
        partial = tmp_path / f"in one {i}.partial"
        execute(plan, partial, mmap=mmap, **options)
        assert (partial / "model.safetensors").read_bytes() == apart
        assert left_in(partial) == IN_PARTIAL


TIES = ties([1.0, 0.7], [0.5, 0.3])
STAGE = stage(TIES, t("a"), t("b"), t("c"))
PLAIN = stage(linear(0.5, 0.5), t("a"), t("b"))
N = BASE.size
ON_DISK: dict[str, tuple[list[Any], Method, int]] = {
    "of a search, read by a search": ([t("a"), STAGE, t("d")], TIES, 2 * N),
    "not rounded": ([t("a"), stage(TIES, t("a"), t("b"), t("c"), dtype=None), t("d")], TIES, 4 * N),
    "without statistics": ([t("a"), PLAIN, t("d")], TIES, 0),
    "read once": ([STAGE], COPY, 0),
    "read by what reads once": ([STAGE, t("d")], linear(0.5, 0.5), 0),
    "below a stage without statistics": (
        [t("a"), stage(linear(0.5, 0.5), STAGE, t("d")), t("e")], TIES, 2 * N,
    ),
    "of a stage": ([t("a"), stage(TIES, t("a"), STAGE, t("d")), t("e")], TIES, 4 * N),
    "of a stage, read once": ([stage(TIES, t("a"), STAGE, t("d")), t("e")], linear(0.5, 0.5), 2 * N),
    "read by two": ([STAGE, stage(linear(0.5, 0.5), STAGE, t("d"))], linear(0.5, 0.5), 2 * N),
    "read by two searches": ([t("a"), STAGE, stage(TIES, t("a"), STAGE, t("d"))], TIES, 4 * N),
    "transposed": ([{"transpose": {"transpose": STAGE}}], COPY, 2 * N),
    "of rows that lie across": ([{"rows": {"of": STAGE, "from": 0, "to": 37}}, t("d")], slerp(0.5), 2 * N),
}  # fmt: skip


@pytest.mark.parametrize("case", ON_DISK)
def test_what_is_kept_on_the_disk_is_counted(tmp_path: Path, case: str) -> None:
    of, by, bytes_of_stages = ON_DISK[case]
    plan = plan_for(tmp_path, *of, by=by)
    execute(plan, tmp_path / "out.partial")
    written = (tmp_path / "out.partial" / "model.safetensors").stat().st_size
    assert _rust.plan_cost(json.dumps(plan))[:2] == (written, bytes_of_stages)
    assert preflight(plan, tmp_path / "new.partial")["bytes_needed"] == written + bytes_of_stages


def test_as_many_tasks_as_threads_keep_their_stages(tmp_path: Path) -> None:
    rows = [t("a"), STAGE, t("d")]
    low, high = ([{"rows": {"of": of, "from": i, "to": j}} for of in rows] for i, j in ((0, 9), (9, 37)))
    stored = {name: encode(values, "BF16") for name, values in STORED.items()}
    plan = plan_of_tasks(tmp_path, stored, (0, *low), (9, *high), shape=SHAPE, out="BF16", by=TIES)
    assert [_rust.plan_cost(json.dumps(plan), threads=threads)[1] for threads in (1, 2, 3)] == [2 * N, 4 * N, 4 * N]


def test_one_stage_of_a_vocabulary_is_read_for_its_rows_and_for_means(tmp_path: Path) -> None:
    """Rows that are filled with means read single rows of the same stage."""
    fill = {"mean": [[STAGE, 3], [t("d"), 5]]}
    tables = {"v": {"rows": 38, "runs": [[0, 0, 36], [37, 36, 1]], "fills": [[36, fill]]}}
    gathered = {"gather": {"of": STAGE, "table": "v"}}
    plan = plan_for(tmp_path / "one", gathered, by=COPY, shape=(38, 5003), tables=tables)
    assert _rust.plan_cost(json.dumps(plan))[1] == 2 * N
    execute(plan, tmp_path / "one.partial")
    first = plan_for(tmp_path / "first", t("a"), t("b"), t("c"), by=TIES)
    execute(first, tmp_path / "first.partial")
    made = {"made": read_shard(tmp_path / "first.partial" / "model.safetensors")["t"]}
    tables["v"]["fills"] = [[36, {"mean": [[t("made"), 3], [t("d"), 5]]}]]
    apart = plan_for(
        tmp_path / "two", {"gather": {"of": t("made"), "table": "v"}}, by=COPY, shape=(38, 5003), tables=tables,
        stored=made,
    )  # fmt: skip
    execute(apart, tmp_path / "two.partial")
    assert shard_bytes(tmp_path / "one.partial") == shard_bytes(tmp_path / "two.partial")


def test_a_stage_without_elements(tmp_path: Path) -> None:
    empty = {name: encode(np.zeros((0, 4)), "BF16") for name in "abcd"}
    plan = plan_for(tmp_path, t("a"), STAGE, t("d"), by=TIES, stored=empty, shape=(0, 4))
    execute(plan, tmp_path / "out.partial")
    assert read_shard(tmp_path / "out.partial" / "model.safetensors")["t"].data.shape == (0, 4)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_value_that_is_not_finite_below_a_stage_is_named_and_nothing_stays(tmp_path: Path, mmap: bool) -> None:
    values = STORED["c"].copy()
    values[7, 11] = np.nan
    of = stage(slerp(0.5), t("b"), t("c"))
    plan = plan_for(tmp_path, of, t("d"), by=slerp(0.5), stored={"c": encode(values, "BF16")})
    partial = tmp_path / "out.partial"
    with pytest.raises(MergeError, match=rf"`c` holds NaN at element {7 * 5003 + 11}\b"):
        execute(plan, partial, mmap=mmap)
    assert left_in(partial) <= IN_PARTIAL


def test_a_run_that_is_cancelled_leaves_nothing_of_a_stage(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, t("a"), STAGE, t("d"), by=TIES)
    partial = tmp_path / "out.partial"
    seen = set()

    def stop(*_: int) -> None:
        seen.update(left_in(partial))
        raise KeyError

    with pytest.raises(KeyError):
        execute(plan, partial, on_progress=stop, tile=65536, threads=1)
    assert seen <= IN_PARTIAL
    assert left_in(partial) <= IN_PARTIAL


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Work of several tensors, each of a chain of three."""
    root = tmp_path_factory.mktemp("staged")
    last = stage(TIES, t("a"), STAGE, t("d"))
    tasks = [
        (row, *({"rows": {"of": of, "from": row, "to": row + 1}} for of in (t("a"), last, t("e")))) for row in range(4)
    ]
    stored = {
        name: Stored("BF16", encode(values, "BF16").data.reshape(1, -1)[:, :120_000].repeat(4, 0))
        for name, values in STORED.items()
    }
    plan = plan_of_tasks(root, stored, *tasks, shape=(4, 120_000), out="BF16", by=TIES)
    (root / "plan.json").write_text(json.dumps(plan))
    begun = time.monotonic()
    execute(plan, root / "undisturbed", threads=1, tile=65536, simd="off", digest="sha256")
    seconds = time.monotonic() - begun
    return Work(plan, root / "plan.json", shard_bytes(root / "undisturbed"), seconds)


def test_kills_while_stages_are_made_leave_nothing_that_a_resume_minds(staged: Work, tmp_path: Path) -> None:
    moments = random.Random(57)
    partial = tmp_path / "out.partial"
    for threads in (1, 2, 1, 2):
        with start(staged, partial, threads=threads) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(moments.uniform(0, staged.seconds / 3))
            child.kill()
        if partial.exists():
            assert {path.name for path in partial.iterdir()} <= {".scratch", *IN_PARTIAL}
            assert sum(path.stat().st_size for path in partial.glob(".scratch/*")) == 0
    execute(staged.plan, partial)
    assert shard_bytes(partial) == staged.bytes


def test_what_a_killed_process_left_is_dropped(tmp_path: Path) -> None:
    """A scratch file has its name for a moment, in which its process may end."""
    plan = plan_for(tmp_path, t("a"), STAGE, t("d"), by=TIES)
    partial = tmp_path / "out.partial"
    (partial / ".scratch").mkdir(parents=True)
    (partial / ".scratch" / "0-0").touch()
    with pytest.raises(MergeError, match="not mol's"):
        execute(plan, partial)
    (partial / "journal").write_text('{"journal":')
    execute(plan, partial)
    assert left_in(partial) == IN_PARTIAL
    (partial / ".scratch" / "0-1").touch()
    _rust.commit(str(partial), str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.safetensors"}
