"""OUT appears by one rename, complete, or not at all; nothing stale survives next to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mol import _rust
from mol.errors import MergeError
from tests.engine.toolkit import Case, encode, execute, plan_of, read_shard


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    case = Case({"scale": {"factor": 2.0}}, (encode([1.0, 2.0], "F32"),), "F32")
    execute(plan_of(tmp_path / "in", {"w": case}), tmp_path / "out.partial")
    (tmp_path / "out.partial" / "config.json").write_text("{}")
    return tmp_path / "out.partial"


def assert_is_the_merge(out: Path) -> None:
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert read_shard(out / "model.safetensors")["w"].data.tolist() == [2.0, 4.0]
    assert sorted(path.name for path in out.parent.iterdir()) == ["in", out.name]


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("there", ["nothing", "an empty directory"])
def test_commit_renames(partial: Path, there: str, sync: bool) -> None:
    out = partial.with_name("out")
    if there != "nothing":
        out.mkdir()
    _rust.commit(str(partial), str(out), sync=sync)
    assert_is_the_merge(out)


def test_a_directory_that_is_not_empty_is_refused(partial: Path) -> None:
    out = partial.with_name("out")
    out.mkdir()
    (out / "model-00001-of-00002.safetensors").write_text("old")
    with pytest.raises(MergeError, match="overwrite") as caught:
        _rust.commit(str(partial), str(out))
    assert str(out) in str(caught.value)
    assert [path.read_text() for path in out.iterdir()] == ["old"]
    assert (partial / "model.safetensors").exists()
    _rust.commit(str(partial), str(out), overwrite=True)  # a refusal leaves it committable
    assert_is_the_merge(out)


def test_overwrite_leaves_nothing_of_the_old_model(partial: Path) -> None:
    out = partial.with_name("out")
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "file").write_text("old")
    (out / "model.safetensors.index.json").write_text("old")
    _rust.commit(str(partial), str(out), overwrite=True, sync=True)
    assert_is_the_merge(out)


def test_overwrite_touches_nothing_next_to_out(partial: Path) -> None:
    out, other = partial.with_name("out"), partial.with_name("out.replaced")
    for directory in (out, other):
        directory.mkdir()
        (directory / "file").write_text(directory.name)
    _rust.commit(str(partial), str(out), overwrite=True)
    assert (other / "file").read_text() == "out.replaced"
    assert not (out / "file").exists()
    assert not partial.exists()


def test_unfinished_work_is_never_called_a_model(partial: Path) -> None:
    journal, claims = partial / "journal", partial / "model.safetensors.journal"
    lines = claims.read_bytes().splitlines(keepends=True)
    for left in (lines[:-1], []):
        claims.write_bytes(b"".join(left))
        with pytest.raises(MergeError, match="no finished merge"):
            _rust.commit(str(partial), str(partial.with_name("out")))
    claims.write_bytes(b"".join(lines))
    journal.write_bytes(b"")
    with pytest.raises(MergeError, match="no finished merge"):
        _rust.commit(str(partial), str(partial.with_name("out")))
    journal.unlink()
    with pytest.raises(MergeError, match="no finished merge"):
        _rust.commit(str(partial), str(partial.with_name("out")))
    assert not partial.with_name("out").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_instead_of_out_is_refused(partial: Path, overwrite: bool) -> None:
    out = partial.with_name("out")
    out.write_text("precious")
    with pytest.raises((MergeError, OSError), match="out"):
        _rust.commit(str(partial), str(out), overwrite=overwrite)
    assert out.read_text() == "precious"
    assert (partial / "model.safetensors").exists()


def test_no_partial_to_commit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    with pytest.raises((MergeError, OSError), match=r"out\.partial"):
        _rust.commit(str(tmp_path / "out.partial"), str(out), overwrite=True)
    assert (out / "file").read_text() == "old"


def test_a_parent_that_is_missing_is_named(partial: Path) -> None:
    with pytest.raises((MergeError, OSError), match="nowhere"):
        _rust.commit(str(partial), str(Path("/nowhere/at/all/out")))
    out = partial.with_name("out")
    _rust.commit(str(partial), str(out))  # a failure leaves it committable
    assert_is_the_merge(out)
