"""What is particular to methods that take means on a sphere, or of what models change: laws, and examples by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mol.errors import MergeError
from tests.engine.toolkit import (
    Case,
    Method,
    Stored,
    assert_agrees,
    decode,
    encode,
    karcher,
    merge,
    merge_one,
    multislerp,
    ramplus,
    slerp,
)

if TYPE_CHECKING:
    from pathlib import Path

ARCEE: Method = {"arcee_fusion": {}}


def vectors(count: int, n: int = 1000, *, spread: float = 1.0) -> list[np.ndarray]:
    """Unit vectors about a direction, in float64."""
    random = np.random.default_rng([7, count])
    drawn = random.normal(size=n) + spread * random.normal(size=(count, n))
    return list(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def merged(tmp_path: Path, method: Method, *models: np.ndarray, dtype: str = "F64") -> np.ndarray:
    return decode(merge_one(tmp_path, method, *(encode(model, dtype) for model in models)))


def test_the_karcher_mean_of_two_of_one_length_is_halfway_on_the_arc(tmp_path: Path) -> None:
    a, b = vectors(2)
    mean = merged(tmp_path / "karcher", karcher(), a, b)
    assert mean == pytest.approx(merged(tmp_path / "slerp", slerp(0.5), a, b), abs=1e-12)


@pytest.mark.parametrize("models", [3, 8])
def test_at_the_karcher_mean_the_arcs_to_all_models_balance(tmp_path: Path, models: int) -> None:
    lengths = np.arange(1, models + 1)
    given = vectors(models, spread=2.0)
    mean = merged(tmp_path, karcher(100, 1e-12), *(length * v for length, v in zip(lengths, given, strict=True)))
    assert np.linalg.norm(mean) == pytest.approx(lengths.mean())
    mean /= np.linalg.norm(mean)
    angles = [np.arccos(mean @ v) for v in given]
    pulls = [angle / np.sin(angle) * (v - (mean @ v) * mean) for angle, v in zip(angles, given, strict=True)]
    assert np.linalg.norm(sum(pulls)) < 1e-10


def test_a_model_without_a_length_has_no_direction_and_shortens_the_mean(tmp_path: Path) -> None:
    a, b = vectors(2)
    mean = merged(tmp_path, karcher(), 3 * a, np.zeros_like(a), 3 * b)
    assert mean == pytest.approx(merged(tmp_path / "two", karcher(), 2 * a, 2 * b), abs=1e-12)


def test_of_models_too_short_for_a_direction_the_mean_is_taken(tmp_path: Path) -> None:
    tiny = np.array([1e-6, 2e-6]), np.array([3e-6, -2e-6])
    assert merged(tmp_path, karcher(), *tiny) == pytest.approx([2e-6, 0.0], abs=1e-20)


@pytest.mark.parametrize("method", [karcher(), karcher(1000, 1e-9)], ids=str)
def test_the_karcher_mean_of_opposite_models_has_the_direction_of_the_first(tmp_path: Path, method: Method) -> None:
    a = vectors(1)[0]
    assert merged(tmp_path, method, 2 * a, -4 * a) == pytest.approx(3 * a, abs=1e-12)


@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_multislerp_of_equal_weights_has_the_direction_of_the_sum_of_directions(tmp_path: Path, dtype: str) -> None:
    given = vectors(4)
    mean = merged(tmp_path, multislerp(1, 1, 1, 1), *(3 * v for v in given), dtype=dtype)
    total = sum(given)
    assert mean == pytest.approx(3 * total / np.linalg.norm(total), abs=1e-6)


def test_two_directions_that_cancel_are_added_up_by_weight(tmp_path: Path) -> None:
    a, base = vectors(2)
    one = merged(tmp_path / "alone", multislerp(0.5, 0.5), 3 * a, -a)
    assert one == pytest.approx(a, abs=1e-12)
    over = merged(tmp_path / "base", multislerp(0.5, 0.5, normalize=False), base, base + 3 * a, base - a)
    assert over == pytest.approx(base + a, abs=1e-12)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_tensor_that_no_model_changed_is_the_bases(tmp_path: Path, dtype: str) -> None:
    """As a frozen embedding is; mergekit stops there."""
    base = encode(vectors(1)[0], dtype)
    result = merge_one(tmp_path, multislerp(0.2, 0.3, 0.5), base, base, base, base)
    assert result.data.tobytes() == base.data.tobytes()
    zeros = encode(np.zeros(5), dtype)
    assert not merge_one(tmp_path / "zeros", multislerp(1, 1, 1), zeros, zeros, zeros).data.any()


def test_three_directions_that_cancel_are_refused(tmp_path: Path) -> None:
    angles = 2 * np.pi * np.arange(3) / 3
    models = [encode([np.cos(angle), np.sin(angle)], "F32") for angle in angles]
    with pytest.raises(MergeError, match=r"`w`.*the directions of 3 models cancel.*change the weights"):
        merge_one(tmp_path, multislerp(1, 1, 1), *models)


@pytest.mark.parametrize(
    ("method", "models"),
    [
        (karcher(), 4),
        (multislerp(0.2, 0.3, 0.5), 3),
        ({"nearswap": {"t": 0.001}}, 2),
        (ARCEE, 2),
        ({"ram": {"epsilon": 1e-5}}, 4),
        (ramplus(1e-5, 0.1, 0.2), 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_a_mean_of_one_model_is_that_model(tmp_path: Path, method: Method, models: int, dtype: str) -> None:
    model = encode(np.random.default_rng(1).normal(0, 0.02, (31, 257)), dtype)
    assert merge_one(tmp_path, method, *[model] * models).data.tobytes() == model.data.tobytes()


CORNERS: dict[str, tuple[int, Method]] = {
    "karcher of one": (1, karcher()),
    "karcher without a step": (3, karcher(0)),
    "nearswap by less than the smallest divisor": (2, {"nearswap": {"t": 5e-7}}),
    "ram+ of one model": (2, ramplus(0.0, 0.1, 0.2)),
    "ram of any change": (4, {"ram": {"epsilon": 0.0}}),
    "multislerp of one": (1, multislerp(0.4, normalize=False)),
}


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
def test_corners_agree_with_their_references(tmp_path: Path, dtype: str) -> None:
    sources = tuple(encode(0.02 * vector, dtype) for vector in vectors(4, 4097))
    cases = {label: Case(method, sources[:inputs], dtype) for label, (inputs, method) in CORNERS.items()}
    for label, result in merge(tmp_path, cases).items():
        assert_agrees(cases[label], result, label)


def test_nearswap_by_hand(tmp_path: Path) -> None:
    a, b = np.array([0.0, 0.0, 1.0, -1.0, 0.0]), np.array([0.25, 4.0, 0.5, 1.0, 1e-9])
    assert merged(tmp_path, {"nearswap": {"t": 0.5}}, a, b).tolist() == [0.25, 0.5, 0.5, -0.5, 1e-9]


def test_ram_by_hand(tmp_path: Path) -> None:
    """What one changes is kept whole, what several change is averaged, and what is too small counts as no change."""
    base = np.array([1.0, 1.0, 1.0, 1.0])
    one, two = np.array([2.0, 3.0, 1.0, 1.125]), np.array([1.0, 2.0, 1.0, 1.0])
    assert merged(tmp_path, {"ram": {"epsilon": 0.25}}, base, one, two).tolist() == [2.0, 2.5, 1.0, 1.0]


@pytest.mark.parametrize(("alpha", "factor"), [(0.5, 1.25), (4.0, 2.0)])
def test_ram_plus_by_hand(tmp_path: Path, alpha: float, factor: float) -> None:
    """The first model changes two elements with the other and one alone: a ratio of 2, which alpha cuts."""
    base = np.zeros(5)
    one, two = np.array([1.0, 1.0, 1.0, 0.0, 0.0]), np.array([3.0, 1.0, 0.0, 0.0, 0.0])
    result = merged(tmp_path, ramplus(0.25, 0.5, alpha), base, one, two)
    assert result.tolist() == [2.0, 1.0, factor, 0.0, 0.0]


def test_arcee_fusion_takes_what_lies_far_off_from_either_model(tmp_path: Path) -> None:
    """One row is far from the base's and one is not; of the first the outlier is taken."""
    base = np.zeros((2, 8))
    tuned = np.full((2, 8), 0.001)
    tuned[0, 3], tuned[1, 5] = 2.0, 0.5
    result = merge(tmp_path, {"w": Case(ARCEE, (encode(base, "F32"), encode(tuned, "F32")), "F32")})["w"]
    assert np.flatnonzero(result.data).tolist() == [3, 13]
    assert result.data[0, 3] == np.float32(2.0)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
def test_each_value_of_arcee_fusion_is_one_of_the_two(tmp_path: Path, dtype: str) -> None:
    """Its bits too, those of a minus zero among them, and in the dtype that was requested."""
    random = np.random.default_rng(3)
    base = random.normal(0, 0.02, (257, 300)) * (random.random((257, 300)) < 0.9)
    one, two = encode(-base, dtype), encode(base + random.normal(0, 0.01, base.shape), dtype)
    result = merge_one(tmp_path, ARCEE, one, two)
    assert result.dtype == dtype
    bits = [tensor.data.view(f"u{tensor.data.itemsize}") for tensor in (result, one, two)]
    assert ((bits[0] == bits[1]) | (bits[0] == bits[2])).all()
    share = (bits[0] != bits[1]).mean()
    assert 0.02 < share < 0.2


def test_a_uniform_shift_of_a_row_is_no_divergence(tmp_path: Path) -> None:
    """Softmax does not see it; the threshold is zero then, and every value is the other model's."""
    base = np.arange(12.0).reshape(3, 4) / 8
    models = tuple(Stored("F32", values.astype("<f4")) for values in (base, base + 0.5))
    assert merge(tmp_path, {"w": Case(ARCEE, models, "F32")})["w"].data.tolist() == (base + 0.5).tolist()
