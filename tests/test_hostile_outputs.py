"""OUT where it cannot be, disks too small, weights that do not fit: each a clear error, and nothing is touched."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import shutil
import struct
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mol
from mol.errors import MergeError, MolError
from tests.engine.toolkit import Stored, encode, read_shard, write_shard
from tests.hostile_world import WEIGHT, World, entry, make_model, make_world, raw, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_out_that_touches_an_input(world: World) -> None:
    for out in (world.b, world.b / "deep" / "out"):
        with world.refuses(str(world.b), error=MolError):
            mol.run_merge(world.recipe(), out, overwrite=True)


def test_out_that_holds_the_inputs(world: World) -> None:
    """Even where it looks like a model that may be overwritten."""
    (world.root / "config.json").write_text("{}")
    with world.refuses(str(world.a), str(world.b), error=MolError):
        mol.run_merge(world.recipe(), world.root, overwrite=True)


def test_out_that_touches_an_input_by_a_link(world: World) -> None:
    (world.root / "link").symlink_to("b")
    for out in (world.root / "link", world.root / "link" / "out"):
        with world.refuses(str(world.b), error=MolError):
            mol.run_merge(world.recipe(), out, overwrite=True)


def test_an_input_instead_of_the_partial(world: World) -> None:
    moved = World(world.root, world.a, world.root / "out.partial", world.out)
    world.b.rename(moved.b)
    with moved.refuses(str(moved.b), error=MolError):
        moved.merge()


def test_out_that_is_not_empty(world: World) -> None:
    with world.refuses(str(world.out), "overwrite", error=MergeError):
        mol.run_merge(world.recipe(), world.out)


def test_out_that_is_a_file_or_below_one(world: World) -> None:
    (world.root / "file").write_text("precious")
    for out in (world.root / "file", world.root / "file" / "out"):
        with world.refuses(str(world.root / "file"), error=(MolError, OSError)):
            mol.run_merge(world.recipe(), out, overwrite=True)


def test_out_that_may_not_be_written(world: World) -> None:
    shelf = world.root / "shelf"
    shelf.mkdir(0o500)
    if os.access(shelf, os.W_OK):
        pytest.skip("root writes everywhere")
    with world.refuses(str(shelf), error=PermissionError):
        mol.run_merge(world.recipe(), shelf / "out")


def test_out_where_not_even_root_may_write(world: World) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    with world.refuses("/proc", error=(MolError, OSError)):
        mol.run_merge(world.recipe(), Path("/proc/out"))


# What --overwrite may delete.


PROJECTS: dict[str, dict[str, str]] = {
    "a web project": {"config.json": '{"webpack": 1}', "thesis.tex": "years", ".git/HEAD": "x"},
    "a config that says it is a model": {"config.json": '{"model_type": "llama"}', "notes.txt": "x"},
    "a config that cannot be read": {"config.json": "{", "model.safetensors": "x"},
    "weights alone": {"model.safetensors": "x"},
    "a manifest of another program": {"mol_manifest.json": '{"files": 3}'},
    "a manifest without files": {"mol_manifest.json": '{"format": 1, "files": []}'},
}


def fill(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("project", PROJECTS)
def test_what_is_no_model_is_not_overwritten(world: World, project: str, every: bool) -> None:
    directory = world.root / "project"
    fill(directory, PROJECTS[project])
    with world.refuses(str(directory), "no model", error=MergeError):
        mol.run_merge(world.recipe(), directory, overwrite=True, overwrite_all=every)


@pytest.mark.parametrize(
    "name", ["thesis.tex", ".git/HEAD", "checkpoint-500/model.safetensors", "optimizer.pt", "train.py", "journal", "x/"]
)
def test_a_model_with_other_files_is_overwritten_only_when_that_is_said(world: World, name: str) -> None:
    if name.endswith("/"):
        (world.out / name).mkdir()
    else:
        fill(world.out, {name: "precious"})
    with world.refuses(str(world.out), f"- {name}", "--overwrite-all", error=MergeError):
        mol.run_merge(world.recipe(), world.out, overwrite=True)
    mol.run_merge(world.recipe(), world.out, overwrite_all=True)
    assert not (world.out / name).exists()
    assert sorted(path.name for path in world.root.iterdir()) == ["a", "b", "out"]


def test_what_savers_of_models_write_is_overwritten(world: World) -> None:
    weights = world.out / "model.safetensors"
    (world.out / "mol_manifest.json").unlink()
    weights.rename(weights.with_name("pytorch_model-00001-of-00002.bin"))
    more = {
        "pytorch_model.bin.index.json": "{}",
        "generation_config.json": "{}",
        "tokenizer.json": "{}",
        "LICENSE": "x",
    }
    fill(world.out, {**more, ".gitattributes": "x"})
    world.merge()
    assert not (world.out / "tokenizer.json").exists()


# OUT that no rename can replace.


@pytest.mark.parametrize("kind", ["another disk", "the same disk"])
def test_out_that_is_a_mount_point(world: World, kind: str) -> None:
    directory = world.root / "mounted"
    directory.mkdir()
    (world.root / "bound").mkdir()
    how = ["-t", "tmpfs", "tmpfs"] if kind == "another disk" else ["--bind", str(world.root / "bound")]
    if subprocess.run(["mount", *how, directory], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount")
    try:
        with world.refuses(str(directory), "mount point", "below it", error=MergeError):
            mol.run_merge(world.recipe(), directory)
        mol.run_merge(world.recipe(), directory / "merged")
        assert (directory / "merged" / "config.json").is_file()
    finally:
        subprocess.run(["umount", directory], check=True)


def test_out_in_the_lower_layer_of_an_overlay(world: World) -> None:
    """Of a container's image: the kernel refuses to rename such a directory, and mol does before it runs."""
    base = world.root / "base"
    base.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", base], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount")
    try:
        for name in ("upper", "work", "top"):
            (base / name).mkdir()
        mol.run_merge(world.recipe(), base / "lower" / "out")
        layers = f"lowerdir={base / 'lower'},upperdir={base / 'upper'},workdir={base / 'work'}"
        command = ["mount", "-t", "overlay", "overlay", "-o", layers, base / "top"]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("no overlay file system here")
        try:
            with world.refuses(str(base / "top" / "out"), "overlay", error=MergeError):
                mol.run_merge(world.recipe(), base / "top" / "out", overwrite=True)
            mol.run_merge(world.recipe(), base / "top" / "new")
            mol.run_merge(world.recipe(), base / "top" / "new", overwrite=True)
        finally:
            subprocess.run(["umount", base / "top"], check=True)
    finally:
        subprocess.run(["umount", base], check=True)


# A power cut.


@contextmanager
def cut_power(disk: Path, image: Path) -> Iterator[None]:
    """A file system of its own under `disk`, to which nothing more is written once the block is over."""
    shut_down, without_log = 0x8004587D, 2
    with image.open("wb") as file:
        file.truncate(32 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-F", image], capture_output=True, check=False).returncode == 0
    mount = ["mount", "-o", "loop", image, disk]
    if not made or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount a disk")
    try:
        yield
        folder = os.open(disk, os.O_RDONLY)
        fcntl.ioctl(folder, shut_down, struct.pack("I", without_log))
        os.close(folder)
    finally:
        subprocess.run(["umount", disk], check=True)
    subprocess.run(mount, check=True)


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="no mkfs.ext4 here")
@pytest.mark.parametrize("there", ["nothing", "a model"])
def test_a_merge_that_ended_is_on_the_disk(world: World, there: str) -> None:
    disk = world.root / "disk"
    disk.mkdir()
    wanted = {path.name: path.read_bytes() for path in world.out.iterdir()}
    with cut_power(disk, world.root / "image"):
        if there == "a model":
            mol.run_merge(world.recipe(), disk / "new" / "out", out_shard_size=100)
            os.sync()
        mol.run_merge(world.recipe(), disk / "new" / "out", overwrite=there == "a model")
    try:
        assert {path.name: path.read_bytes() for path in (disk / "new" / "out").iterdir()} == wanted
        assert [path.name for path in (disk / "new").iterdir()] == ["out"]
    finally:
        subprocess.run(["umount", disk], check=True)


# A disk that is too small.


def test_a_merge_larger_than_the_disk(world: World) -> None:
    """Models of 8 TB each, which take no space: their files are holes."""
    end = 0
    header = {}
    for name, tensor in tensors(1, "F32").items():
        shape = [1 << 20, 1 << 20] if ".mlp." in name else list(tensor.data.shape)
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = entry(shape, begin, end)
    for directory in (world.a, world.b):
        content = raw(header, 0)
        with (directory / "model.safetensors").open("wb") as file:
            file.write(content)
            try:
                file.truncate(len(content) + end)
            except OSError as error:
                assert error.errno in (errno.EFBIG, errno.ENOSPC, errno.EINVAL)  # noqa: PT017
                pytest.skip("this file system has no files so large")
    with world.refuses("8796", "free", str(world.root), error=(MolError, OSError)):
        world.merge()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_too_small(small_disk: Path, tmp_path: Path) -> None:
    large = {**tensors(1), WEIGHT: encode(np.ones((256, 256)), "F32")}
    a, b = (make_model(tmp_path / name, large) for name in "ab")
    world = World(tmp_path, a, b, small_disk / "out")
    with world.refuses(str(small_disk), "free", error=(MolError, OSError)):
        world.merge()


def test_a_disk_that_is_too_small_for_side_files(small_disk: Path, tmp_path: Path) -> None:
    """The weights fit, and the rest does not: that is known before a byte is written."""
    a, b = (make_model(tmp_path / name, tensors(1)) for name in "ab")
    (a / "NOTICE").write_text("x" * 100_000)
    world = World(tmp_path, a, b, small_disk / "out")
    with world.refuses("disk/out", "for the files next to them", "free", error=MergeError):
        world.merge()


# What only the data can show.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties"])
def test_a_weight_that_is_not_finite(world: World, value: float, method: str) -> None:
    weights = tensors(2, "F32")
    weights[WEIGHT].data[3, 5] = value
    write_shard(world.b / "model.safetensors", weights)
    changes: dict[str, Any] = {} if method == "linear" else {"base_model": str(world.a)}
    if method == "slerp":
        changes["parameters"] = {"t": 0.5}
    partial = world.root / "out.partial"
    with world.refuses(WEIGHT, "29", str(world.b / "model.safetensors"), error=MergeError, keeps=partial):
        world.merge(merge_method=method, **changes)


def test_a_weight_too_large_for_the_output(world: World) -> None:
    weights = tensors(2, "F32")
    weights[WEIGHT].data[3, 5] = 1e6
    write_shard(world.b / "model.safetensors", weights)
    with world.refuses(WEIGHT, "29", "F16", error=MergeError, keeps=world.root / "out.partial"):
        world.merge(dtype="float16")


def test_integers_that_differ(world: World) -> None:
    for seed, directory in ((1, world.a), (2, world.b)):
        ids = Stored("I64", np.arange(4) + seed)
        write_shard(directory / "model.safetensors", {**tensors(seed), "position_ids": ids})
    files = [str(directory / "model.safetensors") for directory in (world.a, world.b)]
    with world.refuses("position_ids", *files, error=MolError):
        world.merge()


def test_the_same_model_twice_is_no_fault(world: World) -> None:
    twice = World(world.root, world.a, world.a, world.out)
    twice.merge()
    merged, model = (read_shard(directory / "model.safetensors") for directory in (world.out, world.a))
    assert {name: tensor.data.tolist() for name, tensor in merged.items()} == {
        name: tensor.data.tolist() for name, tensor in model.items()
    }


def test_names_that_a_careless_program_would_split(world: World) -> None:
    odd = world.root / "modèle + émoji@v1 ü"
    world.b.rename(odd)
    World(world.root, world.a, odd, world.out).merge()
