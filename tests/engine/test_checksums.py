"""Checksums of tensors and files, and the comparison of tensors, against other implementations."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mol import _rust
from mol.errors import CheckpointError
from tests.engine.toolkit import Case, Stored, decode, encode, execute, linear, plan_of, write_shard

if TYPE_CHECKING:
    from pathlib import Path

POLYNOMIAL = 0x9A6C9329AC4BC9B5  # of CRC-64/NVME, bits reflected
ALL_ONES = (1 << 64) - 1


def crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = crc_table()


def crc64nvme(data: bytes) -> int:
    crc = ALL_ONES
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ ALL_ONES


def checksum(path: Path, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    found: dict[str, Any] = json.loads(_rust.checksum(str(path), **options))
    return found


def test_the_reference_has_the_published_check_value() -> None:
    assert crc64nvme(b"123456789") == 0xAE8B14860A799888


@pytest.mark.parametrize("threads", [1, 3])
def test_checksums_of_a_file(tmp_path: Path, threads: int) -> None:
    random = np.random.default_rng(31)
    tensors = {
        "a": encode(random.normal(0, 1, (70_001,)), "F32"),
        "empty": encode(np.zeros((0, 4)), "BF16"),
        "b": Stored("U8", random.integers(0, 256, (3, 5), dtype=np.uint8)),
    }
    path = write_shard(tmp_path / "model.safetensors", tensors)
    seen: list[tuple[int, int]] = []
    found = checksum(path, threads=threads, digest="sha256", on_progress=lambda *counts: seen.append(counts))
    assert found["size"] == path.stat().st_size
    assert int(found["crc64nvme"], 16) == crc64nvme(path.read_bytes())
    assert [tensor["name"] for tensor in found["tensors"]] == list(tensors)
    for tensor in found["tensors"]:
        content = tensors[tensor["name"]].data.tobytes()
        assert int(tensor["crc64nvme"], 16) == crc64nvme(content)
        assert tensor["sha256"] == hashlib.sha256(content).hexdigest()
    assert all(0 <= done <= total for done, total in seen)


@pytest.mark.parametrize("digest", [None, "sha256", "blake3"])
def test_a_run_reports_what_a_reading_of_its_files_finds(tmp_path: Path, digest: str | None) -> None:
    random = np.random.default_rng(32)
    cases = {
        f"w{n}": Case(linear(0.3, 0.7), tuple(encode(random.normal(0, 1, n), "BF16") for _ in range(2)), "F32")
        for n in (1, 0, 4097, 150_001)
    }
    partial = tmp_path / "out.partial"
    plan = plan_of(tmp_path, cases, shards=2)
    report = execute(plan, partial, threads=2, tile=65536, digest=digest)
    for file in report["files"]:
        found = checksum(partial / file["name"], digest=digest)
        assert {"name": file["name"], "size": found["size"], "crc64nvme": found["crc64nvme"]} == file
        mine = [dict(tensor) for tensor in report["tensors"] if tensor["file"] == file["name"]]
        assert [tensor.pop("file") for tensor in mine] == [file["name"]] * len(mine)
        assert mine == found["tensors"]
    content = (partial / report["files"][0]["name"]).read_bytes()
    assert int(report["files"][0]["crc64nvme"], 16) == crc64nvme(content)
    assert report["bytes_written"] >= sum(4 * case.sources[0].data.size for case in cases.values())
    assert report["bytes_read"] >= sum(source.data.nbytes for case in cases.values() for source in case.sources)
    assert report["resumed"] == 0


def test_blake3_has_the_published_values(tmp_path: Path) -> None:
    """The vectors of the BLAKE3 project: the hash of the bytes 0, 1, ... 250, 0, 1, ... of each length."""
    vectors = {
        0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
        1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
        1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
        1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
        2048: "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a",
        102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
    }
    cases = {str(n): Case({"copy": {}}, (Stored("U8", (np.arange(n) % 251).astype(np.uint8)),), "U8") for n in vectors}
    report = execute(plan_of(tmp_path, cases), tmp_path / "out.partial", tile=65536, digest="blake3")
    assert {int(tensor["name"]): tensor["blake3"] for tensor in report["tensors"]} == vectors


def test_checksum_names_the_file_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        checksum(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="missing"):
        checksum(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("dtype_a", "dtype_b"), [("F32", "F32"), ("BF16", "BF16"), ("BF16", "F16"), ("F64", "F32")])
def test_compare_against_numpy(tmp_path: Path, dtype_a: str, dtype_b: str, threads: int) -> None:
    random = np.random.default_rng(33)
    shapes = {"one": (1,), "odd": (3, 7), "large": (1 + 3 * 65536,), "zero": (5,), "none": (0,), "equal": (9,)}
    a = {name: encode(random.normal(0, 1, shape) * (name != "zero"), dtype_a) for name, shape in shapes.items()}
    b = {name: encode(random.normal(0, 1, shape) * (name != "zero"), dtype_b) for name, shape in shapes.items()}
    a["equal"], b["equal"] = encode(np.arange(9), dtype_a), encode(np.arange(9), dtype_b)
    paths = [str(write_shard(tmp_path / f"{i}.safetensors", tensors)) for i, tensors in enumerate((a, b))]
    found = _rust.compare([(paths[0], name, paths[1], name) for name in shapes], threads=threads)
    for name, (norm_a, norm_b, norm_difference, cosine, largest, where) in zip(shapes, found, strict=True):
        x, y = decode(a[name]), decode(b[name])
        difference = np.abs(x - y)
        assert (norm_a, norm_b) == pytest.approx((np.linalg.norm(x), np.linalg.norm(y)), rel=1e-12), name
        assert norm_difference == pytest.approx(np.linalg.norm(difference), rel=1e-6), name
        assert cosine * norm_a * norm_b == pytest.approx(x @ y, rel=1e-9, abs=1e-9), name
        assert largest == pytest.approx(difference.max(initial=0.0), rel=1e-6), name
        assert where == (int(difference.argmax()) if difference.size else 0), name


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_compare_of_numbers_whose_squares_are_none(tmp_path: Path, size: float) -> None:
    x, y = np.array([3.0, 4.0, 0.0]), np.array([3.0, 0.0, 4.0])
    tensors = {"a": encode(x * size, "F64"), "b": encode(y * size, "F64")}
    path = str(write_shard(tmp_path / "model.safetensors", tensors))
    ((norm_a, norm_b, difference, cosine, largest, where),) = _rust.compare([(path, "a", path, "b")])
    assert [norm_a / size, norm_b / size, difference / size] == pytest.approx([5, 5, 32**0.5], rel=1e-12)
    assert (cosine, largest / size, where) == (pytest.approx(9 / 25, rel=1e-12), pytest.approx(4), 1)


def test_compare_names_what_it_cannot_compare(tmp_path: Path) -> None:
    tensors = {"w": encode([1.0], "F32"), "wide": encode([1.0, 2.0], "F32"), "ids": Stored("I64", np.arange(1))}
    path = str(write_shard(tmp_path / "model.safetensors", tensors))
    for other in ("absent", "wide", "ids"):
        with pytest.raises(CheckpointError, match=other):
            _rust.compare([(path, "w", path, other)])


def test_compare_finds_the_first_of_the_largest(tmp_path: Path) -> None:
    """Of equal differences in several blocks, and of NaNs, which count as larger than anything."""
    n = 3 * 65536
    a, b, c = np.zeros(n), np.zeros(n), np.zeros(n)
    b[[70_001, 70_003, n - 1]] = [2.0, -2.0, 2.0]
    c[[5, 90_000, 90_001]] = [3.0, np.nan, -np.nan]
    tensors = {"a": encode(a, "F32"), "b": encode(b, "F32"), "c": encode(c, "F32")}
    path = str(write_shard(tmp_path / "model.safetensors", tensors))
    equal, absent = _rust.compare([(path, "a", path, "b"), (path, "a", path, "c")])
    assert equal[4:] == (2.0, 70_001)
    assert np.isnan(absent[4])
    assert absent[5] == 90_000
