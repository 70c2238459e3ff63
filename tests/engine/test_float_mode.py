"""What the floating-point mode of a caller and the NaNs of a processor could change, and do not."""

from __future__ import annotations

import ctypes
import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.engine.toolkit import Case, Stored, execute, linear, plan_of, read_shard, slerp, task_arithmetic, ties

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Where fenv_t keeps the register, and its bits that flush subnormals.
FLUSH = {"x86_64": (28, 0x8040), "AMD64": (28, 0x8040), "aarch64": (0, 1 << 24), "arm64": (0, 1 << 24)}
BITS = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F64": np.uint64}
NAN = {"BF16": 0x7FC0, "F16": 0x7E00, "F32": 0x7FC00000, "F64": 0x7FF8000000000000}
# Of either sign, signalling, and with a payload.
NANS = {
    "BF16": (0xFFC0, 0x7F81, 0x7FD5),
    "F16": (0xFE00, 0x7C01, 0x7E2A),
    "F32": (0xFFC00000, 0x7F800001, 0x7FC0BEEF),
    "F64": (0xFFF8000000000000, 0x7FF0000000000001, 0x7FF80000DEADBEEF),
}
INFINITE = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF0000000000000}


def from_bits(dtype: str, bits: np.ndarray) -> Stored:
    flat = bits.astype(BITS[dtype])
    return Stored(dtype, flat if dtype == "BF16" else flat.view({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]))


def bits_of(tensor: Stored) -> np.ndarray:
    return tensor.data.view(BITS[tensor.dtype])


@contextmanager
def flushed() -> Iterator[None]:
    """What torch.set_flush_denormal(True) does to the thread that calls it."""
    math = ctypes.CDLL("libm.so.6")
    offset, flush = FLUSH[platform.machine()]
    environment = ctypes.create_string_buffer(64)
    assert math.fegetenv(environment) == 0
    before = environment.raw
    register = int.from_bytes(before[offset : offset + 4], "little") | flush
    environment[offset : offset + 4] = register.to_bytes(4, "little")
    assert math.fesetenv(environment) == 0
    try:
        assert np.float32(1e-40) * np.float32(1) == 0  # the mode holds
        yield
    finally:
        math.fesetenv(ctypes.create_string_buffer(before))


@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() not in FLUSH, reason="asks glibc")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_caller_that_flushes_subnormals_changes_no_byte(tmp_path: Path, threads: int) -> None:
    small = np.arange(1, 128)  # all positive subnormals of BF16, and some of the others
    cases = {}
    for dtype in BITS:
        a, b = from_bits(dtype, small), from_bits(dtype, small[::-1].copy())
        cases |= {
            f"{dtype} copy": Case({"copy": {}}, (a,), dtype),
            f"{dtype} cast": Case({"copy": {}}, (a,), "F64"),
            f"{dtype} scale": Case({"scale": {"factor": 3.0}}, (a,), dtype),
            f"{dtype} linear": Case(linear(0.5, 0.5), (a, b), dtype),
            f"{dtype} slerp": Case(slerp(0.5), (a, b), dtype),
            f"{dtype} task arithmetic": Case(task_arithmetic(0.5), (a, b), dtype),
            f"{dtype} ties": Case(ties([0.5], [0.5]), (a, b), dtype),
        }
    plan = plan_of(tmp_path, cases)
    execute(plan, tmp_path / "plain", threads=threads)
    with flushed():
        execute(plan, tmp_path / "flushed", threads=threads)
    plain = read_shard(tmp_path / "plain" / "model.safetensors")
    for name, tensor in read_shard(tmp_path / "flushed" / "model.safetensors").items():
        assert tensor.data.tobytes() == plain[name].data.tobytes(), name
        assert np.any(bits_of(tensor) != 0), name


@pytest.mark.parametrize("dtype", BITS)
def test_a_copy_keeps_every_bit(tmp_path: Path, dtype: str) -> None:
    """NaNs with what they carry, signalling ones too, subnormals and the sign of zero."""
    width = 8 * np.dtype(BITS[dtype]).itemsize
    bits = np.array([*NANS[dtype], INFINITE[dtype], 0, 1 << (width - 1), 1, 2, 77] * 5, dtype=np.uint64)
    plan = plan_of(tmp_path, {"w": Case({"copy": {}}, (from_bits(dtype, bits),), dtype)}, allow_nonfinite=True)
    execute(plan, tmp_path / "out.partial")
    found = read_shard(tmp_path / "out.partial" / "model.safetensors")["w"]
    assert bits_of(found).tolist() == bits.astype(BITS[dtype]).tolist()


@pytest.mark.parametrize("target", BITS)
@pytest.mark.parametrize("dtype", BITS)
def test_a_nan_that_is_computed_is_always_the_same_one(tmp_path: Path, dtype: str, target: str) -> None:
    """Whichever NaN went in, or made of infinities: processors make different ones."""
    bits = np.array([*NANS[dtype], INFINITE[dtype], 0] * 9, dtype=np.uint64)
    other = np.array([0, 0, 0, INFINITE[dtype], 0] * 9, dtype=np.uint64)
    pair = (from_bits(dtype, bits), from_bits(dtype, other))
    cases = {"difference": Case(linear(1.0, -1.0, normalize=False), pair, target)}
    if dtype != target:
        cases["cast"] = Case({"copy": {}}, pair[:1], target)
    plan = plan_of(tmp_path, cases, allow_nonfinite=True)
    execute(plan, tmp_path / "out.partial")
    found = read_shard(tmp_path / "out.partial" / "model.safetensors")
    assert bits_of(found["difference"]).tolist() == [*[NAN[target]] * 4, 0] * 9
    if dtype != target:
        assert bits_of(found["cast"]).tolist() == [*[NAN[target]] * 3, INFINITE[target], 0] * 9
