"""NaN, Inf and overflow stop a run, name the tensor and the first index, and what was finished is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mol import _rust
from mol.errors import MergeError
from tests.engine.toolkit import (
    COPY,
    Case,
    Method,
    encode,
    execute,
    linear,
    merge,
    of_rows,
    plan_of,
    plan_of_tasks,
    preflight,
    shard_bytes,
    slerp,
    task_arithmetic,
    thin,
    ties,
)

if TYPE_CHECKING:
    from pathlib import Path

METHODS = {name: method for name, (sources, method) in of_rows(2).items() if sources == 2}
N = 2 * 65536 + 9


def assert_is_no_model(partial: Path) -> None:
    """What is there may be resumed, and not committed."""
    with pytest.raises(MergeError, match="no finished merge"):
        _rust.commit(str(partial), str(partial.with_name("out")))
    assert not partial.with_name("out").exists()


def values(n: int = N) -> np.ndarray:
    return np.random.default_rng(41).normal(0, 0.02, n)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("culprit", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("method", METHODS)
def test_an_input_that_is_not_finite(
    tmp_path: Path, method: str, dtype: str, bad: float, culprit: int, threads: int
) -> None:
    """The first index is reported, although later tiles hold worse; n is odd, and the first is in the second tile."""
    tensors = [values(), values() + 0.001]
    tensors[culprit][[70_003, 70_004, N - 1]] = bad
    plan = plan_of(tmp_path, {"layer.w": Case(METHODS[method], tuple(encode(t, dtype) for t in tensors), dtype)})
    with pytest.raises(MergeError) as caught:
        execute(plan, tmp_path / "out.partial", threads=threads, tile=65536)
    message = str(caught.value)
    assert "layer.w" in message
    assert "70003" in message.replace(",", "").replace("_", "")
    assert f"model-{culprit}.safetensors" in message
    assert ("NaN" if np.isnan(bad) else "inf") in message.replace("Inf", "inf")
    assert "nonfinite" in message.replace("-", "").replace("_", "").lower()  # the way out, as the command spells it
    assert_is_no_model(tmp_path / "out.partial")


@pytest.mark.parametrize("method", [{"copy": {}}, {"scale": {"factor": 1.0}}], ids=["copy", "scale"])
@pytest.mark.parametrize("target", ["F32", "BF16"])
def test_one_source_that_is_not_finite(tmp_path: Path, method: Method, target: str) -> None:
    tensor = values(1000)
    tensor[17] = np.nan
    plan = plan_of(tmp_path, {"w": Case(method, (encode(tensor, "F32"),), target)})
    with pytest.raises(MergeError, match=r"`w`.*17"):
        execute(plan, tmp_path / "out.partial")
    assert_is_no_model(tmp_path / "out.partial")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_value_at_every_position_of_a_strip(tmp_path: Path, bad: float) -> None:
    """Vector bodies and scalar tails see every element."""
    n = 4096 + 33
    for index in (0, 1, 31, 2048, 4095, 4096, 4127, n - 1):
        tensor = values(n)
        tensor[index] = bad
        sources = (encode(values(n), "BF16"), encode(tensor, "BF16"))
        plan = plan_of(tmp_path / str(index), {"w": Case(ties([1.0], [0.01]), sources, "BF16")})
        with pytest.raises(MergeError, match=rf"\b{index}\b"):
            execute(plan, tmp_path / "out.partial")


def test_a_nan_that_trimming_would_drop(tmp_path: Path) -> None:
    """It is in the base where no delta would survive, and all other elements outrank it."""
    base, tuned = np.ones(1000), np.full(1000, 2.0)
    base[501] = np.nan
    plan = plan_of(tmp_path, {"w": Case(ties([1.0], [0.1]), (encode(base, "BF16"), encode(tuned, "BF16")), "BF16")})
    with pytest.raises(MergeError, match="501"):
        execute(plan, tmp_path / "out.partial")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_stage_that_would_drop_it(tmp_path: Path, bad: float) -> None:
    tensor = values(1000)
    tensor[17] = bad
    plan = plan_of(
        tmp_path, {"w": Case(ties([1.0], [0.1]), (encode(values(1000), "F32"), encode(tensor, "F32")), "F32")}
    )
    (task,) = plan["tasks"]
    plan["tasks"] = [task | {"by": linear(1.0), "of": [{"merged": {"by": task["by"], "of": task["of"]}}]}]
    with pytest.raises(MergeError, match=r"model-1.*`w` holds .* at element 17; repair"):
        execute(plan, tmp_path / "out.partial")
    assert_is_no_model(tmp_path / "out.partial")
    execute(plan | {"allow_nonfinite": True}, tmp_path / "allowed.partial")


@pytest.mark.parametrize(
    ("method", "sources", "target"),
    [
        ({"copy": {}}, [("F32", 65520.0)], "F16"),  # the least value that rounds beyond 65504
        ({"copy": {}}, [("BF16", -1e5)], "F16"),
        ({"copy": {}}, [("F64", 1e39)], "F32"),
        ({"copy": {}}, [("F32", 3.4e38)], "BF16"),
        ({"scale": {"factor": 2.0}}, [("F16", 40000.0)], "F16"),
        (linear(1.0, 1.0, normalize=False), [("F16", 40000.0), ("F16", 30000.0)], "F16"),
        (linear(2.0, 1.0, normalize=False), [("F32", 3e38), ("F32", 1e38)], "F32"),
        (task_arithmetic(3.0), [("BF16", -1e38), ("BF16", 2e38)], "BF16"),
        (ties([3.0], [1.0], normalize=False), [("F16", 0.0), ("F16", 30000.0)], "F16"),
        (slerp(0.5), [("F32", 1e5), ("F32", 1e5)], "F16"),
        (task_arithmetic(0.1), [("BF16", -3e38), ("BF16", 3e38)], "BF16"),  # already the delta
        (ties([0.1], [0.5]), [("F32", -3e38), ("F32", 3e38)], "F32"),
    ],
)  # fmt: skip
def test_a_result_too_large_for_its_dtype(
    tmp_path: Path, method: Method, sources: list[tuple[str, float]], target: str
) -> None:
    tensors = []
    for dtype, peak in sources:
        tensor = np.zeros(77)
        tensor[[42, 60]] = peak
        tensors.append(encode(tensor, dtype))
    plan = plan_of(tmp_path, {"layer.w": Case(method, tuple(tensors), target)})
    with pytest.raises(MergeError, match=r"layer\.w") as caught:
        execute(plan, tmp_path / "out.partial")
    assert "42" in str(caught.value)
    assert target in str(caught.value)
    assert_is_no_model(tmp_path / "out.partial")


def test_an_f32_result_in_range_is_no_overflow_whatever_its_terms(tmp_path: Path) -> None:
    """The delta is too large for f32, and 0.1 of it is not."""
    base, tuned = encode([-3e38], "F32"), encode([3e38], "F32")
    merged = merge(tmp_path, {"w": Case(task_arithmetic(0.1), (base, tuned), "F32")})["w"]
    assert merged.data.tolist() == pytest.approx([-2.4e38])


@pytest.mark.parametrize("out", ["F32", "F16"])
def test_an_adapter_that_overflows_in_a_copy(tmp_path: Path, out: str) -> None:
    """All that is stored is finite, and what is copied is not."""
    tensors = {"w": np.ones((300, 3)), "a": np.full((1, 3), 1e30), "b": np.zeros((300, 1))}
    tensors["b"][7] = 1e30
    lora = {"lora": {**{name: [0, name] for name in "ab"}, "of": [0, "w"], "scale": 1.0, "magnitude": None}}
    stored = {name: encode(tensor, "F32") for name, tensor in tensors.items()}
    plan = plan_of_tasks(tmp_path, stored, (0, lora), shape=(300, 3), out=out, by=COPY, tables={})
    with pytest.raises(MergeError, match=rf"element 21 is too large for {out}") as caught:
        execute(plan, tmp_path / "out.partial")
    assert ("wider" in str(caught.value)) == (out == "F16")


def test_an_overflow_that_the_result_does_not_show(tmp_path: Path) -> None:
    """Dropped deltas of infinity make the factors of the survivors infinite, which then elect no sign."""
    models = tuple(encode(x, "F32") for x in ([-3e38, 0, 0], [3e38, -1, 0], [3e38, 0, -1]))
    method = thin("dare_ties", [0.1, 0.1], [0.5, 0.5], rescale=True)
    plan = plan_of(tmp_path, {"w": Case(method, models, "BF16")})
    with pytest.raises(MergeError, match=r"`w`: numbers on the way to the result are too large for F32; .* smaller"):
        execute(plan, tmp_path / "out.partial")
    execute(plan | {"allow_nonfinite": True}, tmp_path / "allowed.partial")


def test_the_largest_value_is_no_overflow(tmp_path: Path) -> None:
    case = Case({"copy": {}}, (encode([65519.0, -65519.0], "F32"),), "F16")
    execute(plan_of(tmp_path, {"w": case}), tmp_path / "out.partial")


@pytest.mark.parametrize("threads", [1, 3])
def test_a_nan_in_the_last_tensor_costs_nothing_that_was_finished(tmp_path: Path, threads: int) -> None:
    """The same merge that admits it continues where the strict one stopped; a strict one takes nothing from that."""
    sound, nan = values(1000), values(1000)
    nan[17] = np.nan
    cases = {f"w{i}": Case(linear(0.5, 0.5), (encode(sound, "F32"), encode(sound, "F32")), "F32") for i in range(5)}
    cases["w5"] = Case(linear(0.5, 0.5), (encode(sound, "F32"), encode(nan, "F32")), "F32")
    cases["w6"] = Case({"copy": {}}, (encode(nan, "F32"),), "F32")
    plan = plan_of(tmp_path / "in", cases, shards=2)
    partial, admitting = tmp_path / "out.partial", {**plan, "allow_nonfinite": True}
    with pytest.raises(MergeError, match=r"`w5`.*17.*out\.partial"):
        execute(plan, partial, threads=threads)
    assert preflight(plan, partial)["resumable"] == 5
    assert execute(admitting, partial)["resumed"] == 5
    wanted = shard_bytes(partial)
    execute(admitting, tmp_path / "anew")
    assert wanted == shard_bytes(tmp_path / "anew")
    assert preflight(admitting, partial)["resumable"] == 7
    assert preflight(plan, partial)["resumable"] == 5
    with pytest.raises(MergeError, match=r"`w5`.*17"):
        execute(plan, partial, threads=threads)
    assert_is_no_model(partial)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_of_several_faulty_tensors_the_first_is_reported(tmp_path: Path, threads: int) -> None:
    """Also where a later one is so small that it is found sooner."""
    large, small = values(1 << 20), values(10)
    large[-1] = small[3] = np.nan
    sound = encode(values(10), "F32")
    cases = {f"a{i}": Case({"copy": {}}, (sound,), "F32") for i in range(3)}
    cases["large"] = Case(ties([1.0], [0.5]), (encode(values(1 << 20), "F32"), encode(large, "F32")), "F32")
    cases |= {f"b{i}": Case({"copy": {}}, (encode(small, "F32"),), "F32") for i in range(6)}
    plan = plan_of(tmp_path / "in", cases, shards=3)
    for attempt in range(3):
        with pytest.raises(MergeError, match="`large`"):
            execute(plan, tmp_path / str(attempt), threads=threads)
