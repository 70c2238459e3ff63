"""Files that are cut, lie, loop or are not there: each a clear error, and nothing on the disk is touched."""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING

import pytest

from mol import _rust
from mol.errors import CheckpointError, MolError
from mol.io.checkpoint import Checkpoint
from tests.engine.toolkit import write_shard
from tests.hostile_world import WEIGHT, World, entry, make_world, raw, shard, snapshot, tensors, write_index

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_the_world_is_sound_before_it_is_tampered_with(world: World) -> None:
    before = snapshot(world.root)
    world.merge()
    after = snapshot(world.root)
    assert after.keys() == before.keys()
    assert not world.out.with_name("out.partial").exists()


GOOD = entry([16], 0, 64)
TWICE = b'{"w": %b, "w": %b}' % ((json.dumps(GOOD).encode(),) * 2)
HOSTILE: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["0 bytes"]),
    "shorter than a length": (b"\x10\0\0\0", ["4 bytes"]),
    "header longer than the file": (raw({"w": GOOD}, length=5000), ["5000", "truncated"]),
    "header as long as memory": (raw({"w": GOOD}, length=2**63), [str(2**63)]),
    "a length of all ones": (raw({"w": GOOD}, length=2**64 - 1), []),
    "no JSON": (raw(b"{not json"), ["header"]),
    "no UTF-8": (raw(b'{"\xff": 1}'), ["header"]),
    "a list": (raw([GOOD]), ["header"]),
    "nested without end": (raw(b"[" * 100_000), ["header"]),
    "a pickle": (b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01K\x01s." * 4, []),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n", []),
    "metadata that is no text": (raw({"__metadata__": {"a": 1}, "w": GOOD}), ["header", "string"]),
    "metadata that is a list": (raw({"__metadata__": ["a"], "w": GOOD}), ["header", "map"]),
    "metadata twice": (raw(b'{"__metadata__": {"a": "b"}, "__metadata__": {"a": "c"}}', 0), ["__metadata__"]),
    "an entry without offsets": (raw({"w": {"dtype": "F32", "shape": [16]}}), ["data_offsets"]),
    "an entry with a key too many": (raw({"w": {**GOOD, "colour": 1}}), ["colour"]),
    "an unknown dtype": (raw({"w": entry([16], 0, 64, "F12")}), ["F12"]),
    "cut data": (raw({"w": GOOD}, 60), ["`w`", "64", "60"]),
    "data too many": (raw({"w": GOOD}, 70), ["64", "70"]),
    "no tensors but data": (raw({}, 8), ["8"]),
    "overlapping": (raw({"v": entry([8], 0, 32), "w": entry([8], 28, 60)}, 60), ["`w`", "28", "32"]),
    "the same bytes twice": (raw({"v": GOOD, "w": GOOD}), ["64"]),
    "a hole": (raw({"v": entry([4], 0, 16), "w": entry([4], 32, 48)}, 48), ["`w`", "32", "16"]),
    "offsets that run backwards": (raw({"w": entry([16], 64, 0)}), ["`w`"]),
    "negative offsets": (raw({"w": entry([16], -64, 0)}), []),
    "offsets beyond any file": (raw({"w": entry([16], 2**63, 2**63 + 64)}), ["`w`"]),
    "offsets beyond 64 bits": (raw({"w": entry([16], 0, 2**70)}), []),
    "a shape of other bytes": (raw({"w": entry([17], 0, 64)}), ["`w`", "[17]", "68"]),
    "a negative shape": (raw({"w": entry([-16], 0, 64)}), []),
    "a shape that overflows": (raw({"w": entry([2**62, 8], 0, 64)}), ["`w`", "overflow"]),
    "a shape that overflows to nothing": (raw({"w": entry([2**31, 2**31], 0, 0)}, 0), ["`w`"]),
    "one name twice": (raw(TWICE), ["`w`", "twice"]),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_file_that_is_no_sound_safetensors_file(world: World, hostile: str) -> None:
    content, words = HOSTILE[hostile]
    file = world.b / "model.safetensors"
    file.write_bytes(content)
    with world.refuses(str(file), *words, error=CheckpointError):
        _rust.read_header(str(file))
    with world.refuses(str(file), *words, error=CheckpointError):
        Checkpoint.open(world.b)
    with world.refuses(str(file), *words, error=CheckpointError):
        world.merge()


def test_a_pipe_instead_of_weights_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a file"):
        _rust.read_header(tmp_path / "model.safetensors")


def test_one_name_twice_side_by_side(tmp_path: Path) -> None:
    """Where each of the two has bytes of its own, so that only the name gives the lie away."""
    halves = tuple(json.dumps(entry([8], start, start + 32)).encode() for start in (0, 32))
    (tmp_path / "x.safetensors").write_bytes(raw(b'{"w": %b, "w": %b}' % halves))
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*`w`.*twice"):
        _rust.read_header(str(tmp_path / "x.safetensors"))


def test_a_header_beyond_the_bound_of_the_format(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 150_000_000))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*150000000"):
        _rust.read_header(str(path))


def test_all_bad_models_are_named_at_once(world: World) -> None:
    for directory in (world.a, world.b):
        (directory / "model.safetensors").write_bytes(b"")
    with world.refuses(str(world.a / "model.safetensors"), str(world.b / "model.safetensors")):
        world.merge()


# An index that lies: what is done to a sharded model b, and what the error says.


def drop_a_shard(b: Path) -> list[str]:
    (b / "model-00002-of-00002.safetensors").unlink()
    return ["model-00002-of-00002.safetensors", WEIGHT]


def point_elsewhere(b: Path, where: str) -> list[str]:
    index = json.loads((b / "model.safetensors.index.json").read_text())
    write_index(b, {**index["weight_map"], WEIGHT: where})
    return ["model.safetensors.index.json", where]


def list_a_tensor_too_many(b: Path) -> list[str]:
    index = json.loads((b / "model.safetensors.index.json").read_text())
    write_index(b, {**index["weight_map"], "ghost.weight": "model-00001-of-00002.safetensors"})
    return ["model-00001-of-00002.safetensors", "ghost.weight"]


def hold_a_tensor_too_many(b: Path) -> list[str]:
    write_shard(b / "model-00001-of-00002.safetensors", {**tensors(2), "ghost.weight": tensors(2)[WEIGHT]})
    return ["model-00001-of-00002.safetensors", "ghost.weight"]


def replace_the_index(b: Path, text: str) -> list[str]:
    (b / "model.safetensors.index.json").write_text(text)
    return ["model.safetensors.index.json"]


INDEXES: dict[str, Callable[[Path], list[str]]] = {
    "a missing shard": drop_a_shard,
    "a path outside": lambda b: point_elsewhere(b, "../a/model.safetensors"),
    "an absolute path": lambda b: point_elsewhere(b, "/etc/model.safetensors"),
    "a detour outside": lambda b: point_elsewhere(b, "x/../../a/model.safetensors"),
    "not a weight file": lambda b: point_elsewhere(b, "config.json"),
    "a listed tensor that the shard lacks": list_a_tensor_too_many,
    "a tensor in two shards": hold_a_tensor_too_many,
    "no JSON": lambda b: replace_the_index(b, "{"),
    "a list": lambda b: replace_the_index(b, "[]"),
    "no map": lambda b: replace_the_index(b, "{}"),
    "an empty map": lambda b: replace_the_index(b, '{"weight_map": {}}'),
    "a map to numbers": lambda b: replace_the_index(b, '{"weight_map": {"w": 1}}'),
}


@pytest.mark.parametrize("case", INDEXES)
def test_an_index_that_lies(world: World, case: str) -> None:
    shard(world.b, tensors(2))
    (world.b / "model.safetensors").unlink()
    world.merge()
    words = INDEXES[case](world.b)
    with world.refuses(str(world.b), *words, error=CheckpointError):
        Checkpoint.open(world.b)
    with world.refuses(str(world.b), *words, error=CheckpointError):
        world.merge()


# A directory without what it should hold.


def remove(*names: str) -> Callable[[Path], None]:
    def change(b: Path) -> None:
        for name in names:
            (b / name).unlink()

    return change


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda b: (b / name).write_text(text)


def link_to_itself(name: str) -> Callable[[Path], None]:
    def change(b: Path) -> None:
        (b / name).unlink()
        (b / name).symlink_to(name)

    return change


def only_pickles(b: Path) -> None:
    (b / "model.safetensors").rename(b / "pytorch_model.bin")


def directory_for_a_file(b: Path) -> None:
    (b / "model.safetensors").unlink()
    (b / "model.safetensors").mkdir()


DIRECTORIES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "empty": (remove("config.json", "model.safetensors"), ["config.json"]),
    "no config": (remove("config.json"), ["config.json"]),
    "no weights": (remove("model.safetensors"), ["model.safetensors"]),
    "a config that is no JSON": (write("config.json", "{"), ["config.json"]),
    "a config that is a list": (write("config.json", "[]"), ["config.json"]),
    "pickled weights": (only_pickles, ["pytorch_model.bin", "pickle"]),
    "weights that link to themselves": (link_to_itself("model.safetensors"), ["model.safetensors"]),
    "a config that links to itself": (link_to_itself("config.json"), ["config.json"]),
    "a directory for weights": (directory_for_a_file, ["model.safetensors"]),
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_a_directory_that_is_no_model(world: World, case: str) -> None:
    change, words = DIRECTORIES[case]
    change(world.b)
    with world.refuses(str(world.b), *words, error=(CheckpointError, OSError)):
        Checkpoint.open(world.b)
    with world.refuses(str(world.b), *words, error=(MolError, OSError)):
        world.merge()


def test_directories_that_link_in_a_loop(world: World) -> None:
    (world.root / "b").rename(world.root / "elsewhere")
    (world.root / "b").symlink_to("c")
    (world.root / "c").symlink_to("b")
    with world.refuses(str(world.b), error=(MolError, OSError)):
        world.merge()


def test_a_loop_of_links_inside_a_model_is_not_walked_for_ever(world: World) -> None:
    (world.a / "self").symlink_to(".")
    world.merge()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_may_not_be_read(world: World, name: str) -> None:
    (world.b / name).chmod(0)
    if os.access(world.b / name, os.R_OK):
        pytest.skip("root reads everything")
    with pytest.raises(PermissionError, match=name):
        world.merge()


def test_a_model_that_is_not_there(world: World) -> None:
    gone = World(world.root, world.a, world.root / "gone", world.out)
    with gone.refuses(str(gone.b), error=FileNotFoundError):
        gone.merge()
