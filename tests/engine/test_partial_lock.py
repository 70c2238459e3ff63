"""OUT.partial is mol's own and one merge's at a time: no link in it is followed, nothing of others is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mol import _rust
from mol.errors import CheckpointError, MergeError
from tests.engine.toolkit import Case, Plan, encode, execute, linear, outputs, plan_of, preflight, shard_bytes, ties

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = b'{"journal":'


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    drawn = np.random.default_rng(61)
    sources = tuple(encode(drawn.normal(0, 1, 1000), "F32") for _ in range(2))
    return plan_of(tmp_path / "in", {f"w{i}": Case(linear(0.25, 0.75), sources, "F32") for i in range(4)}, shards=2)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def finished(plan: Plan, directory: Path) -> dict[str, bytes]:
    execute(plan, directory)
    return shard_bytes(directory)


def contents(directory: Path) -> dict[str, bytes | None]:
    paths = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in paths}


def no_line_feed(directory: Path) -> None:
    (directory / "journal").write_text("Dear diary")
    (directory / "photos").mkdir()
    (directory / "photos" / "a.jpg").write_text("x")


def empty_journal(directory: Path) -> None:
    (directory / "journal").touch()
    (directory / "thesis.tex").write_text("years of work")


def empty_journal_next_to_a_model(directory: Path) -> None:
    (directory / "journal").touch()
    (directory / "model-00001-of-00002.safetensors").write_bytes(b"somebody's weights")


def empty_journal_next_to_an_index(directory: Path) -> None:
    (directory / "journal").touch()
    (directory / "model.safetensors.index.json").write_text("somebody's")


def another_journal(directory: Path) -> None:
    (directory / "journal").write_text('{"entries": []}\n')


def a_folder(directory: Path) -> None:
    (directory / "journal").mkdir()


SOMEBODYS = [
    no_line_feed,
    empty_journal,
    empty_journal_next_to_a_model,
    empty_journal_next_to_an_index,
    another_journal,
    a_folder,
]


@pytest.mark.parametrize("make", SOMEBODYS)
def test_a_journal_that_is_not_mols_gives_no_right_to_a_directory(
    plan: Plan, partial: Path, make: Callable[[Path], None]
) -> None:
    partial.mkdir()
    make(partial)
    before = contents(partial)
    for attempt in (preflight, execute, lambda *given: preflight(*given, discard_partial=True)):
        with pytest.raises(MergeError, match=r"out\.partial.*not mol's"):
            attempt(plan, partial)
    assert contents(partial) == before


@pytest.mark.parametrize(
    "name",
    [
        "journal",
        "model-00001-of-00002.safetensors",
        "model-00001-of-00002.safetensors.journal",
        "model.safetensors.index.json",
    ],
)
@pytest.mark.parametrize("begun", [False, True], ids=["planted", "in a partial of mol's"])
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_links_in_a_partial_are_not_followed(
    plan: Plan, partial: Path, name: str, begun: bool, link: Callable[[Path, Path], None]
) -> None:
    wanted = finished(plan, partial.with_name("wanted"))
    victim = partial.with_name("victim")
    victim.write_text("hf_a_token_without_line_feed")
    partial.mkdir()
    if begun:
        execute(plan, partial)
        (partial / name).unlink()
    link(partial / name, victim)
    if begun and name != "journal":
        execute(plan, partial)
        assert shard_bytes(partial) == wanted
        assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in partial.iterdir())
    else:
        for attempt in (preflight, execute):
            with pytest.raises(MergeError, match=r"out\.partial.*not mol's"):
                attempt(plan, partial)
        assert (partial / name).samefile(victim)
    assert victim.read_text() == "hf_a_token_without_line_feed"


def test_a_journal_with_a_tail_that_is_not_text_is_read_up_to_it(plan: Plan, partial: Path) -> None:
    wanted = finished(plan, partial)
    for tail in (b"\xff\xfe", bytes(100), b"\xff\xfe\n" * 3):
        journal = (partial / "journal").read_bytes()
        (partial / "journal").write_bytes(journal + tail)
        assert execute(plan, partial)["resumed"] == 4
        assert shard_bytes(partial) == wanted


@pytest.mark.parametrize("first", [HEAD + b"1}\n\xff\xfe", HEAD + b"2}\n", HEAD + b"\xff\n", HEAD + bytes(90) + b"\n"])
def test_a_journal_that_cannot_be_read_is_refused_until_it_is_discarded(
    plan: Plan, partial: Path, first: bytes
) -> None:
    partial.mkdir()
    (partial / "journal").write_bytes(first)
    for attempt in (preflight, execute):
        with pytest.raises(MergeError, match=r"out\.partial.*journal"):
            attempt(plan, partial)
    preflight(plan, partial, discard_partial=True)
    assert not partial.exists()
    execute(plan, partial)


def test_a_first_line_that_was_cut_is_written_anew(plan: Plan, partial: Path) -> None:
    wanted = finished(plan, partial)
    journal = (partial / "journal").read_bytes()
    first = journal.index(b"\n")
    for length in (1, 5, len(HEAD), first // 2, first):
        (partial / "journal").write_bytes(journal[:length])
        assert execute(plan, partial)["resumed"] == 4  # each output says itself what of it is finished
        assert shard_bytes(partial) == wanted
        assert execute(plan, partial)["resumed"] == 4


def test_journals_are_only_added_to(plan: Plan, partial: Path) -> None:
    """A kill at any moment of a resume must leave what the next one needs."""
    execute(plan, partial)
    before = {path: path.read_bytes() for path in partial.glob("*journal")}
    assert len(before) == 3
    shard = partial / plan["outputs"][0]["name"]
    shard.write_bytes(shard.read_bytes()[:-4] + b"flip")
    assert execute(plan, partial)["resumed"] == 3
    assert all(path.read_bytes().startswith(text) for path, text in before.items())
    assert execute(plan, partial)["resumed"] == 4


def test_a_directory_is_locked_from_the_first_check_until_the_commit(plan: Plan, partial: Path, out: Path) -> None:
    with closing(_rust.PartialLock(str(partial), str(out))) as lock:
        assert lock.warning is None
        assert not partial.exists()  # looking makes nothing
        text = json.dumps(plan)
        _rust.preflight(text, str(partial), lock=lock)
        _rust.execute(text, str(partial), lock=lock)
        for attempt in (
            lambda: _rust.PartialLock(str(partial), str(out)),
            lambda: preflight(plan, partial),
            lambda: preflight(plan, partial, discard_partial=True),
            lambda: execute(plan, partial),
            lambda: _rust.commit(str(partial), str(out)),
        ):
            with pytest.raises(MergeError, match=r"out\.partial: another mol-merge is working"):
                attempt()
        _rust.commit(str(partial), str(out), lock=lock)
        with pytest.raises(MergeError, match=r"other: the lock is of another directory"):
            _rust.commit(str(partial.with_name("other")), str(out), lock=lock)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(output["name"] for output in plan["outputs"]), "model.safetensors.index.json"]
    )
    assert not partial.exists()


def test_the_second_of_two_that_found_nothing_is_refused(plan: Plan, partial: Path, out: Path) -> None:
    first, second = (_rust.PartialLock(str(partial), str(out)) for _ in range(2))
    text = json.dumps(plan)
    _rust.execute(text, str(partial), lock=first)
    for attempt in (_rust.preflight, _rust.execute):
        with pytest.raises(MergeError, match="another mol-merge is working"):
            attempt(text, str(partial), lock=second)
    first.close()
    assert json.loads(_rust.preflight(text, str(partial), lock=second))["resumable"] == 4
    second.close()


def test_a_lock_excludes_other_processes_and_ends_with_its_own(plan: Plan, partial: Path, out: Path) -> None:
    execute(plan, partial)
    code = f"from mol import _rust; lock = _rust.PartialLock({str(partial)!r}, {str(out)!r}); print(1); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdout is not None
        child.stdout.read(1)
        with pytest.raises(MergeError, match="another mol-merge is working"):
            preflight(plan, partial)
        child.kill()
    assert preflight(plan, partial)["resumable"] == 4


def test_what_is_refused_leaves_no_directory(plan: Plan, partial: Path, out: Path) -> None:
    plan["tasks"][0]["of"][0][1] = "absent"
    with closing(_rust.PartialLock(str(partial), str(out))) as lock, pytest.raises(CheckpointError, match="absent"):
        _rust.execute(json.dumps(plan), str(partial), lock=lock)
    assert not partial.exists()


def exchange(partial: Path, out: Path, old: Path) -> None:
    """Commit up to the exchange, as a kill right after it leaves things."""
    with (partial / "journal").open("a") as journal:
        journal.write(json.dumps({"replaces": out.stat().st_ino}) + "\n")
    out.rename(old.with_name("moving"))
    partial.rename(out)
    old.with_name("moving").rename(old)


@pytest.mark.parametrize("aside", ["out.partial", "out.replaced"])
@pytest.mark.parametrize("emptied", [False, True])
def test_a_commit_that_was_cut_after_its_rename_is_finished_by_the_next_check(
    plan: Plan, partial: Path, out: Path, aside: str, emptied: bool
) -> None:
    wanted = finished(plan, partial)
    out.mkdir()
    (out / "model.safetensors").write_text("old")
    exchange(partial, out, out.with_name(aside))
    if emptied:
        (out.with_name(aside) / "model.safetensors").unlink()
    _rust.PartialLock(str(partial), str(out)).close()
    assert contents(out) == wanted  # the journal is gone
    assert sorted(path.name for path in out.parent.iterdir()) == ["in", "out"]


def test_a_directory_that_was_not_replaced_is_not_removed(plan: Plan, partial: Path, out: Path) -> None:
    execute(plan, partial)
    partial.rename(out)
    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    _rust.PartialLock(str(partial), str(out)).close()
    assert not (out / "journal").exists()
    assert (partial / "thesis.tex").exists()
    with pytest.raises(MergeError, match=r"out\.partial.*not mol's"):
        preflight(plan, partial)


def test_a_foreign_journal_in_out_is_left_there(plan: Plan, partial: Path, out: Path) -> None:
    out.mkdir()
    for text in ("Dear diary", "", '{"journal":1}\n'):
        (out / "journal").write_text(text)
        _rust.PartialLock(str(partial), str(out)).close()
        assert (out / "journal").read_text() == text
    execute(plan, partial)
    (partial / "journal").rename(out / "journal")  # no output file is there that would be finished
    _rust.PartialLock(str(partial), str(out)).close()
    assert (out / "journal").exists()


def test_more_outputs_than_a_process_may_open(tmp_path: Path) -> None:
    tensor = encode([1.0, 2.0], "F32")
    plan = plan_of(tmp_path / "in", {f"w{i}": Case(linear(1.0, 1.0), (tensor, tensor), "F32") for i in range(200)})
    plan["outputs"] = outputs(*(f"model-{i + 1:05}-of-00200.safetensors" for i in range(200)))
    for i, entry in enumerate(plan["tensors"]):
        entry["output"] = i
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code = """
import resource, sys
from mol import _rust
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for _ in range(2):  # the second resumes
    report = _rust.execute(open(sys.argv[1]).read(), sys.argv[2], threads=4)
print(report[-20:])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "plan.json"), str(tmp_path / "out.partial")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert '"resumed":200' in child.stdout
    assert len(list((tmp_path / "out.partial").glob("*.safetensors"))) == 200


def overwrite(path: Path) -> None:
    """Other numbers in place, with the times of the old."""
    times = path.stat()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size // 4))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(path: Path) -> None:
    path.with_name("other").write_bytes(path.read_bytes())
    path.with_name("other").replace(path)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


HARMS = {
    overwrite: "written to",
    replace: "another file",
    Path.unlink: "No such file",
    cut: "tensor `w0` cannot be read: the file was truncated",
}


@pytest.mark.parametrize("harm", HARMS)
def test_an_input_that_changes_during_the_run(tmp_path: Path, partial: Path, harm: Callable[[Path], None]) -> None:
    drawn = np.random.default_rng(62)
    base = drawn.normal(0, 0.02, 500_000)
    sources = tuple(encode(base + drawn.normal(0, 0.003, base.size), "F32") for _ in range(4))
    method = ties([1.0, 0.5, 0.25], [0.5, 0.3, 0.7], rescale=True)
    plan = plan_of(tmp_path, {f"w{i}": Case(method, sources, "BF16") for i in range(6)})
    # Each of them many times, so that the merge outlasts the first report of its progress.
    for turn in range(20):
        for task in plan["tasks"][:6]:
            tensor = plan["tensors"][task["to"][0]["tensor"]]
            plan["tasks"].append(task | {"to": [{"tensor": len(plan["tensors"]), "row": 0}]})
            plan["tensors"].append(tensor | {"name": f"{tensor['name']}.{turn}"})
    target = Path(plan["inputs"][1]["path"])
    seen: list[int] = []

    def meddle(*_: int) -> None:
        if not seen:
            harm(target)
        seen.append(1)

    # What is cut off under a map would end the process.
    options = {"threads": 1, "simd": "off", "tile": 65536, "digest": "sha256", "mmap": harm is not cut}
    with pytest.raises(CheckpointError, match="changed while") as caught:
        execute(plan, partial, on_progress=meddle, **options)
    assert HARMS[harm] in str(caught.value)
    assert str(target) in str(caught.value)
    with pytest.raises(MergeError, match="no finished merge"):
        _rust.commit(str(partial), str(tmp_path / "out"))
    if harm is overwrite:  # what was made of the old bytes counts for nothing
        assert preflight(plan, partial)["resumable"] == 0
        execute(plan, partial)
        assert shard_bytes(partial) == finished(plan, tmp_path / "anew")
