"""What the system refuses in the midst of a merge is an error that names the file; what is done is kept and resumed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests import faults
from tests.engine.toolkit import Case, encode, execute, plan_of, preflight, shard_bytes, ties, write_shard
from tests.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WHY_NOT = faults.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"no faults here: {WHY_NOT}")

SHARD = "model-00002-of-00003.safetensors"
INPUT = "b/model.safetensors"
# Readings of headers, which are 2 each, and some of the data.
SOME = 60


class Merges:
    """A recipe of two models, what it gives, and runs of it in processes of their own."""

    def __init__(self, recipe: Path, out: Path, wanted: dict[str, bytes]) -> None:
        self.recipe, self.out, self.wanted = recipe, out, wanted

    def run(self, *with_faults: Fault, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mol.cli", str(self.recipe), str(self.out), "--out-shard-size", "700KB"]
        command += ["--allow-crimes", "--threads", "2", "--tile", "65536", *options]
        environment = {**os.environ, "COLUMNS": "4000"}
        if with_faults:
            return faults.run(command, with_faults, environment)
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def weights(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.out.iterdir() if path.suffix == ".safetensors"}

    def check_that_it_fails_and_is_resumed(self, *with_faults: Fault, named: str, options: tuple[str, ...] = ()) -> str:
        done = self.run(*with_faults, options=options)
        assert done.returncode == 1, done.stderr
        assert named in done.stderr
        assert os.strerror(with_faults[0].error) in done.stderr
        assert "Traceback" not in done.stderr
        assert not self.out.exists()
        assert (self.out.parent / "out.partial").is_dir()
        again = self.run()
        assert again.returncode == 0, again.stderr
        assert self.weights() == self.wanted
        return done.stderr

    def check_that_it_goes_through(self, *with_faults: Fault, options: tuple[str, ...] = ()) -> str:
        done = self.run(*with_faults, options=options)
        assert done.returncode == 0, done.stderr
        assert self.weights() == self.wanted
        assert [path.name for path in self.out.parent.iterdir() if path.name.startswith("out")] == ["out"]
        return done.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Merges:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        random = np.random.default_rng(seed)
        (root / name).mkdir()
        (root / name / "config.json").write_text("{}")
        weights = {f"w{i}": encode(random.normal(0, 0.02, (300, 256)), "F32") for i in range(6)}
        write_shard(root / name / "model.safetensors", weights)
    models = [{"model": str(root / "b"), "parameters": {"weight": 0.5, "density": 0.5}}]
    recipe = {"merge_method": "ties", "base_model": str(root / "a"), "models": models, "dtype": "float32"}
    (root / "recipe.json").write_text(json.dumps(recipe))
    merges = Merges(root / "recipe.json", root / "out", {})
    done = merges.run()
    assert done.returncode == 0, done.stderr
    return Merges(merges.recipe, merges.out, merges.weights())


@pytest.fixture
def merges(undisturbed: Merges, tmp_path: Path) -> Merges:
    assert SHARD in undisturbed.wanted
    return Merges(undisturbed.recipe, tmp_path / "out", undisturbed.wanted)


@pytest.mark.parametrize("sync", ["--sync", "--no-sync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_tile_that_cannot_be_written(merges: Merges, error: int, sync: str) -> None:
    fault = Fault("pwrite64", error, SHARD, after=2)
    merges.check_that_it_fails_and_is_resumed(fault, named=f"out.partial/{SHARD}", options=(sync,))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get)
def test_an_output_that_the_disk_has_no_room_for(merges: Merges, error: int) -> None:
    merges.check_that_it_fails_and_is_resumed(Fault("fallocate", error, SHARD), named=f"out.partial/{SHARD}")


@pytest.mark.parametrize("call", ["fallocate", "openat", "pwrite64"])
def test_a_step_that_the_disk_has_no_room_for(merges: Merges, tmp_path: Path, call: str) -> None:
    recipe = json.loads(merges.recipe.read_text())
    recipe["then"] = recipe | {"models": [dict(recipe["models"][0], model="merged")]}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    merges.recipe = tmp_path / "recipe.json"
    done = merges.run()
    assert done.returncode == 0, done.stderr
    merges.wanted = merges.weights()
    shutil.rmtree(merges.out)
    file = "out.partial/.scratch/3-0"
    fault = Fault(call, errno.ENOSPC, file if call == "openat" else f"{file} (deleted)")
    merges.check_that_it_fails_and_is_resumed(fault, named=file)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_a_write_that_fails_late_when_the_file_is_synced(merges: Merges, error: int) -> None:
    late = [Fault(call, error, SHARD) for call in ("fsync", "fdatasync")]
    merges.check_that_it_fails_and_is_resumed(*late, named=SHARD)


@pytest.mark.parametrize("error", [errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("sync", ["--sync", "--no-sync"])
def test_a_write_that_fails_when_the_file_is_closed(merges: Merges, error: int, sync: str) -> None:
    merges.check_that_it_fails_and_is_resumed(Fault("close", error, SHARD), named=SHARD, options=(sync,))


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE], ids=errno.errorcode.get)
def test_no_descriptor_left_for_an_output(merges: Merges, error: int) -> None:
    merges.check_that_it_fails_and_is_resumed(Fault("openat", error, SHARD), named=SHARD)


@pytest.mark.parametrize("call", ["fallocate", "pwrite64", "fsync", "flock", "openat", "write"])
def test_a_call_that_a_signal_interrupts_is_made_again(merges: Merges, call: str) -> None:
    target = {"flock": "journal", "write": "journal"}.get(call, SHARD)
    calls = {"fsync": ("fsync", "fdatasync"), "write": ("write", "pwrite64")}.get(call, (call,))
    merges.check_that_it_goes_through(*(Fault(name, errno.EINTR, target, times=2) for name in calls))


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_an_input_that_cannot_be_read(merges: Merges, error: int) -> None:
    fault = Fault("pread64", error, INPUT, after=SOME)
    said = merges.check_that_it_fails_and_is_resumed(fault, named=INPUT, options=("--no-mmap",))
    assert f"{os.strerror(error)}, reading tensor `w" in said


def test_a_header_that_cannot_be_read(merges: Merges) -> None:
    done = merges.run(Fault("pread64", errno.EIO, INPUT, after=1))
    assert done.returncode == 1
    assert INPUT in done.stderr
    assert os.strerror(errno.EIO) in done.stderr


def test_inputs_of_a_network_file_system_are_read(merges: Merges) -> None:
    nfs = Fault("fstatfs", 0, "model.safetensors", f_type=0x6969)
    broken = Fault("pread64", errno.EIO, INPUT, after=SOME)
    assert "reading tensor `w" in merges.check_that_it_fails_and_is_resumed(broken, nfs, named=INPUT)


def test_a_reading_that_a_signal_interrupts_is_made_again(merges: Merges) -> None:
    interrupted = Fault("pread64", errno.EINTR, INPUT, after=SOME, times=3)
    merges.check_that_it_goes_through(interrupted, options=("--no-mmap",))


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_locks(merges: Merges, error: int) -> None:
    assert "flock" in merges.check_that_it_goes_through(Fault("flock", error))


def test_processes_that_share_a_directory_where_nothing_can_be_locked(tmp_path: Path) -> None:
    """Each process writes its claims into files; one that is gone, or has released them, excludes no other."""
    source = encode(np.linspace(-1, 1, 1000), "F32")
    plan = plan_of(
        tmp_path / "in", {f"w{i}": Case(ties([1.0], [0.5]), (source,) * 2, "F32") for i in range(4)}, shards=2
    )
    execute(plan, tmp_path / "wanted")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    partial = tmp_path / "out.partial"
    code = """
import json, sys
from mol import _rust
print(_rust.execute(open(sys.argv[1]).read(), sys.argv[2], outputs=json.loads(sys.argv[3])))
"""

    def run(outputs: list[int] | None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(tmp_path / "plan.json"), str(partial), json.dumps(outputs)]
        return faults.run(command, [Fault("flock", errno.ENOSYS)], {**os.environ})

    done = run([0])
    assert done.returncode == 0, done.stderr
    assert "no locks (flock)" in json.loads(done.stdout)["warning"]
    name = plan["outputs"][1]["name"]
    claims = partial / f"{name}.journal"
    this = {"host": os.uname().nodename, "pid": os.getpid()}
    claims.write_text(json.dumps({"owner": this}) + "\n" + '{"task":"cut sh')
    assert f"{name}: another process is writing this output" in run([1]).stderr
    assert "another mol-merge is working" in run(None).stderr
    assert json.loads(run([0]).stdout)["resumed"] == 2
    with claims.open("a") as file:
        file.write("ort\n" + json.dumps({"left": this}) + "\n")
    for outputs in ([1], None):
        done = run(outputs)
        assert done.returncode == 0, done.stderr
    with (partial / "journal").open("a") as file:
        file.write(json.dumps({"owner": this}) + "\n")
    for outputs in ([1], None):
        assert "another mol-merge is working" in run(outputs).stderr
    assert shard_bytes(partial) == shard_bytes(tmp_path / "wanted")


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_allocate(merges: Merges, error: int) -> None:
    merges.check_that_it_goes_through(Fault("fallocate", error))


def test_a_journal_that_cannot_be_written(merges: Merges) -> None:
    faulty = [Fault(call, errno.ENOSPC, "journal", after=2) for call in ("write", "pwrite64")]
    merges.check_that_it_fails_and_is_resumed(*faulty, named="journal")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_others_fill_meanwhile(small_disk: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(71)
    sources = tuple(encode(random.normal(0, 0.02, 100_003), "F32") for _ in range(2))
    plan = plan_of(tmp_path, {f"w{i}": Case(ties([1.0], [0.5]), sources, "F32") for i in range(4)}, shards=4)
    execute(plan, tmp_path / "wanted")
    partial = small_disk / "out.partial"
    preflight(plan, partial)
    (small_disk / "filler").write_bytes(bytes(1_200_000))
    with pytest.raises(OSError, match=r"No space left.*out\.partial/model-0000\d-of-00004"):
        execute(plan, partial)
    (small_disk / "filler").unlink()
    execute(plan, partial)
    assert shard_bytes(partial) == shard_bytes(tmp_path / "wanted")
