"""Which elements of a tensor a method may decide either way: equal magnitudes, votes that cancel, thresholds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from tests.engine.toolkit import decode, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.engine.toolkit import Case

Array = np.ndarray[Any, Any]

EQUALS: Final = "which of equal magnitudes are kept depends on an unstable sort there"
VOTES: Final = "votes that nearly cancel have another sign after its roundings"
NEAR: Final = "values within its rounding of a threshold fall on the other side"
PICKS: Final = "it picks other elements, since the divergences of rows cancel in its arithmetic"
ANGLES: Final = "it steps by angles from cosines that it rounds to bf16, where vectors are nearly parallel"
RATIOS: Final = "it goes by ratios from cosines that it rounds to bf16"


def free(case: Case, theirs: Array, truth: Array) -> tuple[Array, list[str]]:
    """Return which elements may differ by more than rounding, and why.

    Args:
        case: how the tensor is made.
        theirs: what mergekit made of it.
        truth: what the reference made of it.
    """
    ((name, numbers),) = case.method.items()
    sources = [decode(source) for source in case.sources]
    found, reasons = np.zeros(truth.size, dtype=bool), []
    for rule in _RULES.get(name, ()):
        mask, reason = rule(Tensor(case, numbers, sources, theirs, truth))
        if mask.any():
            found |= mask
            reasons.append(reason)
    return found, reasons


class Tensor(NamedTuple):
    """A tensor of unlike results.

    Attributes:
        case: how it is made.
        numbers: of its method.
        sources: what it is made of, in float64.
        theirs: mergekit's result.
        truth: the reference's.
    """

    case: Case
    numbers: dict[str, Any]
    sources: Sequence[Array]
    theirs: Array
    truth: Array

    @property
    def deltas(self) -> list[Array]:
        """Task vectors as mergekit has them, in the recipe's dtype."""
        return [decode(encode(source - self.sources[0], self.case.dtype)) for source in self.sources[1:]]

    @property
    def rough(self) -> bool:
        """Whether it is made in bf16."""
        return self.case.dtype == "BF16"


def _at_cuts(magnitudes: Array, cuts: Sequence[int]) -> Array:
    """Elements as large as the last that is kept, where the first that is dropped is as large too."""
    ordered = np.sort(magnitudes)[::-1]
    mask = np.zeros(magnitudes.size, dtype=bool)
    for cut in cuts:
        if 0 < cut < magnitudes.size and ordered[cut - 1] == ordered[cut]:
            mask |= magnitudes == ordered[cut]
    return mask


def _trimmed(tensor: Tensor) -> tuple[Array, str]:
    numbers = tensor.numbers
    mask = np.zeros(tensor.truth.size, dtype=bool)
    gammas = numbers.get("gammas", [0.0] * len(numbers["densities"]))
    for delta, density, gamma in zip(tensor.deltas, numbers["densities"], gammas, strict=True):
        if density < 1:
            kept = max(1, int(density * delta.size))
            top = min(int(gamma * delta.size), delta.size - kept)
            mask |= _at_cuts(np.abs(delta), [top, top + kept])
    return mask, EQUALS


def at_thresholds(case: Case, numbers: dict[str, Any]) -> Array:
    """Return which elements are as large as one at a threshold that lies on its other side."""
    sources = [decode(source) for source in case.sources]
    nothing = np.zeros(sources[0].size)
    tensor = Tensor(case, numbers, sources, nothing, nothing)
    return (_trimmed if "densities" in numbers else _varied)(tensor)[0]


def _voted(tensor: Tensor) -> tuple[Array, str]:
    """Sums of votes that are small compared with their terms, with every choice of who votes."""
    numbers, deltas = tensor.numbers, tensor.deltas
    weights = np.asarray(numbers.get("weights", [1.0] * len(deltas)), dtype=np.float64)
    if numbers.get("rescale"):
        kept = [
            np.sort(np.abs(delta))[::-1][: max(1, int(density * delta.size))].sum()
            for delta, density in zip(deltas, numbers["densities"], strict=True)
        ]
        weights *= [np.abs(delta).sum() / some for delta, some in zip(deltas, kept, strict=True)]
    votes = np.stack(deltas) * weights[:, None]  # (models, n)
    noise = 2.0**-6 if tensor.rough else 2.0**-18
    mask = np.zeros(tensor.truth.size, dtype=bool)
    for chosen in range(1, 2 ** len(votes)):
        some = votes[[i for i in range(len(votes)) if chosen >> i & 1]]
        total, size = np.abs(some.sum(axis=0)), np.abs(some).sum(axis=0)
        mask |= (total <= noise * size) & (size > 0)
    return mask, VOTES


def _varied(tensor: Tensor) -> tuple[Array, str]:
    variance = np.stack(tensor.deltas).var(axis=0)
    share = tensor.numbers["select_topk"]
    kept = int(np.count_nonzero(variance) * share)
    if share >= 1 or not 0 < kept < variance.size:
        return np.zeros(variance.size, dtype=bool), NEAR
    cut = np.sort(variance)[::-1][kept - 1]
    return np.abs(variance - cut) <= cut * (2.0**-4 if tensor.rough else 2.0**-16), NEAR


def _changed(tensor: Tensor) -> tuple[Array, str]:
    epsilon = tensor.numbers["epsilon"]
    sizes = np.abs(np.stack([source - tensor.sources[0] for source in tensor.sources[1:]]))
    return (np.abs(sizes - epsilon) <= (2.0**-7 if tensor.rough else 2.0**-20) * epsilon).any(axis=0), NEAR


def _picked(tensor: Tensor) -> tuple[Array, str]:
    """Elements that are one of the two inputs'; it adds the rounded difference, which need not give the input."""
    a, b = tensor.sources
    near = (2.0**-7 if tensor.rough else 2.0**-22) * (np.abs(a) + np.abs(b))
    return (np.abs(tensor.theirs - a) <= near) | (np.abs(tensor.theirs - b) <= near), PICKS


def _turned(tensor: Tensor) -> tuple[Array, str]:
    """All, if models are nearly parallel and the result is as far off as an angle of such a cosine can make it."""
    units = [source / np.linalg.norm(source) for source in tensor.sources if source.any()]
    parallel = min(float((one * other).sum()) for one in units for other in units) > 1 - 2.0**-5
    off = np.linalg.norm(tensor.theirs - tensor.truth) <= 0.15 * np.linalg.norm(tensor.truth)
    return np.full(tensor.truth.size, tensor.rough and parallel and off), ANGLES


def _moved(tensor: Tensor) -> tuple[Array, str]:
    """Elements that are as far off as rounding makes the ratio: the mean cosine by 2^-6, and the ratio itself."""
    base, *models = tensor.sources
    columns = tensor.case.sources[0].data.shape[-1] if tensor.numbers["filter_wise"] else base.size
    rows = np.stack([model - base for model in models]).reshape(len(models), -1, columns)
    units = rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), 1e-12)
    count = len(models)
    cosine = ((units.sum(axis=0) ** 2).sum(axis=1) - count) / (count * (count - 1))  # (rows,)
    divisor = 1 + (count - 1) * cosine
    ratio, slope = count * cosine / divisor, count / divisor**2
    steps = 2.0**-7 * (np.abs(ratio) + np.abs(1 - ratio) + 1)
    sizes = np.abs(np.stack(tensor.sources)).max(axis=0).reshape(-1, columns)
    bound = 2.0**-6 * slope[:, None] * np.abs(rows.mean(axis=0)) + steps[:, None] * sizes
    return (np.abs(tensor.theirs - tensor.truth) <= bound.ravel()) & tensor.rough, RATIOS


_RULES: Final[dict[str, tuple[Any, ...]]] = {
    "karcher": (_turned,),
    "model_stock": (_moved,),
    "ties": (_trimmed, _voted),
    "breadcrumbs": (_trimmed,),
    "breadcrumbs_ties": (_trimmed, _voted),
    "dare_ties": (_voted,),
    "della": (_voted,),
    "sce": (_varied, _voted),
    "ram": (_changed,),
    "ramplus_tl": (_changed,),
    "arcee_fusion": (_picked,),
}
