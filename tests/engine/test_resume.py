"""A run that was killed, cancelled or damaged continues where it was, and ends in the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mol.errors import MergeError, MolError
from tests.engine.processes import CHILD, SLOW, start
from tests.engine.toolkit import Case, Plan, encode, execute, linear, plan_of, preflight, read_header, shard_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.processes import Work


@pytest.fixture
def small(tmp_path: Path) -> Plan:
    drawn = np.random.default_rng(52)
    sources = tuple(encode(drawn.normal(0, 1, 1000), "F32") for _ in range(2))
    return plan_of(tmp_path, {f"w{i}": Case(linear(0.25, 0.75), sources, "F32") for i in range(6)}, shards=2)


def test_exchanged_models_are_other_work(small: Plan, tmp_path: Path) -> None:
    """Sizes and headers of fine-tunes of one model are the same."""
    partial = tmp_path / "out.partial"
    execute(small, partial)
    assert execute(small, partial)["resumed"] == 6
    swapped = small | {"tasks": [task | {"of": task["of"][::-1]} for task in small["tasks"]]}
    assert execute(swapped, partial)["resumed"] == 0
    execute(swapped, tmp_path / "fresh.partial")
    assert shard_bytes(partial) == shard_bytes(tmp_path / "fresh.partial")


def test_an_exception_in_the_callback_cancels_and_leaves_a_resumable_partial(work: Work, tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def stop(read: int, read_total: int, written: int, written_total: int) -> None:
        assert 0 <= read <= read_total
        assert 0 <= written <= written_total
        if written > written_total // 3:
            raise EnoughError

    partial = tmp_path / "out.partial"
    with pytest.raises(EnoughError):
        execute(work.plan, partial, threads=1, on_progress=stop, **SLOW)
    done = preflight(work.plan, partial)["resumable"]
    assert done > 0
    report = execute(work.plan, partial)
    assert report["resumed"] == done
    assert shard_bytes(partial) == work.bytes
    assert len(report["tensors"]) == len(work.plan["tasks"])


def test_an_interrupt_stops_the_run(work: Work, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    with start(work, partial, "--announce") as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.readline()  # the first report of progress
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in errors
    execute(work.plan, partial)
    assert shard_bytes(partial) == work.bytes


def test_two_runs_do_not_share_a_partial(work: Work, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    with start(work, partial, "--announce") as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.readline()  # the first report of progress
        with pytest.raises(MergeError, match=r"out\.partial.*another"):
            execute(work.plan, partial)
        child.communicate(timeout=30)
    assert child.returncode == 0
    assert shard_bytes(partial) == work.bytes


def test_a_finished_partial_is_taken_as_it_is(small: Plan, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    first = execute(small, partial)
    wanted = shard_bytes(partial)
    again = execute(small, partial)
    assert (first["resumed"], again["resumed"]) == (0, 6)
    assert again["tensors"] == first["tensors"]
    assert again["files"] == first["files"]
    assert shard_bytes(partial) == wanted


def tear(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes()[:-4])


def scribble(journal: Path) -> None:
    journal.write_bytes(journal.read_bytes() + b'{"na')


def forget(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-3]))


@pytest.mark.parametrize(("harm", "left"), [(tear, 6), (scribble, 6), (forget, 4)])
def test_a_journal_that_ends_early_or_in_half_a_line(
    small: Plan, tmp_path: Path, harm: Callable[[Path], None], left: int
) -> None:
    partial = tmp_path / "out.partial"
    execute(small, partial)
    wanted = shard_bytes(partial)
    harm(partial / f"{small['outputs'][1]['name']}.journal")  # three tensors, and that the file is complete
    with (partial / "journal").open("ab") as journal:
        journal.write(b'{"repl')
    assert execute(small, partial)["resumed"] == left
    assert shard_bytes(partial) == wanted
    assert execute(small, partial)["resumed"] == 6  # the journal is whole again


def test_a_claim_whose_bytes_were_damaged_is_redone(small: Plan, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    execute(small, partial)
    wanted = shard_bytes(partial)
    shard = partial / small["outputs"][1]["name"]
    header, start_of_data = read_header(shard)
    content = bytearray(shard.read_bytes())
    content[start_of_data + header["w4"]["data_offsets"][0] + 2] ^= 1
    shard.write_bytes(content)
    assert execute(small, partial)["resumed"] == 5
    assert shard_bytes(partial) == wanted


@pytest.mark.parametrize("harm", ["cut", "gone", "header"])
def test_a_shard_that_was_cut_lost_or_overwritten_is_redone(small: Plan, tmp_path: Path, harm: str) -> None:
    partial = tmp_path / "out.partial"
    execute(small, partial)
    wanted = shard_bytes(partial)
    shard = partial / small["outputs"][1]["name"]
    content = shard.read_bytes()
    if harm == "cut":
        shard.write_bytes(content[:-5000])
    elif harm == "gone":
        shard.unlink()
    else:
        shard.write_bytes(bytes(200) + content[200:])
    execute(small, partial)
    assert shard_bytes(partial) == wanted


def test_an_empty_journal_is_begun(small: Plan, tmp_path: Path) -> None:
    """As a power cut may leave it; what each output says of itself is verified in any case."""
    partial = tmp_path / "out.partial"
    execute(small, partial)
    wanted = shard_bytes(partial)
    (partial / "journal").write_bytes(b"")
    assert preflight(small, partial)["resumable"] == 0
    assert execute(small, partial)["resumed"] == 6
    assert shard_bytes(partial) == wanted
    for path in partial.glob("*journal"):
        path.write_bytes(b"")
    assert execute(small, partial)["resumed"] == 0
    assert shard_bytes(partial) == wanted


def test_the_partial_of_another_plan_is_refused(small: Plan, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    execute(small, partial)
    before = shard_bytes(partial)
    other = json.loads(json.dumps(small))
    for task in other["tasks"]:
        task["by"]["linear"]["weights"][0] = 0.26
    for attempt in (preflight, execute):
        with pytest.raises(MergeError) as caught:
            attempt(other, partial)
        assert str(partial) in str(caught.value)
        assert "another" in str(caught.value)
    assert shard_bytes(partial) == before
    assert preflight(small, partial)["resumable"] == 6
    assert preflight(other, partial, discard_partial=True)["resumable"] == 0
    assert not partial.exists()


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_an_edit_keeps_the_tensors_that_stay_the_same(small: Plan, tmp_path: Path, shards: int) -> None:
    """Also where they come to lie elsewhere: then their bytes are no more what is claimed, and they are made anew."""
    partial = tmp_path / "out.partial"
    execute(small, partial)
    edited = json.loads(json.dumps(small))
    edited["tasks"][3]["by"]["linear"]["weights"][0] = 0.26
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    names = ["model.safetensors"] if shards == 1 else names
    edited["outputs"] = [{"name": name, "format": "safetensors"} for name in names]
    for i, tensor in enumerate(edited["tensors"]):
        tensor["output"] = i * shards // 6
    execute(edited, tmp_path / "anew")
    if shards != 2:  # under other names nothing is claimed
        preflight(edited, partial, discard_partial=True)
    resumed = execute(edited, partial)["resumed"]
    assert resumed == (5 if shards == 2 else 0)
    assert shard_bytes(partial) == shard_bytes(tmp_path / "anew")


def test_a_foreign_directory_is_neither_used_nor_discarded(small: Plan, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    for attempt in (preflight, execute):
        with pytest.raises(MergeError, match=r"out\.partial"):
            attempt(small, partial)
    with pytest.raises(MergeError, match=r"out\.partial"):
        preflight(small, partial, discard_partial=True)
    assert (partial / "thesis.tex").read_text() == "years of work"


def test_the_partial_of_the_same_work_on_changed_inputs_is_refused(small: Plan, tmp_path: Path) -> None:
    """Same sizes and headers, so the same digest; but the files were written anew, so half the bytes would be stale."""
    partial = tmp_path / "out.partial"
    execute(small, partial)
    path = Path(small["inputs"][0]["path"])
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    now = json.loads(json.dumps(small))
    now["inputs"][0]["mtime_ns"] = path.stat().st_mtime_ns
    try:
        report = execute(now, partial)
    except MolError as error:
        assert "changed" in str(error) or "another" in str(error)  # noqa: PT017
    else:
        assert report["resumed"] == 0


def test_a_failed_write_names_the_file_and_leaves_a_resumable_partial(work: Work, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    partial = tmp_path / "out.partial"
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    command = [sys.executable, "-c", limit + CHILD, str(work.file), str(partial), "{}"]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 1
    assert "OSError" in child.stderr
    assert work.plan["outputs"][0]["name"] in child.stderr or work.plan["outputs"][1]["name"] in child.stderr
    execute(work.plan, partial)
    assert shard_bytes(partial) == work.bytes
