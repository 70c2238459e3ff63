"""Methods that keep entries of task vectors at random: dare_linear, dare_ties, della, della_linear."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from tests.reference.averages import add_deltas
from tests.reference.election import elect
from tests.reference.trimming import by_rank, rescaled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tests.reference.tensors import Tensor


def dare_linear(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    models: Sequence[int],
    *,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    seed: int = 0,
    name: str = "w",
) -> Tensor:
    """Task arithmetic over task vectors of which each element survives at random, with the density as probability.

    `models` has a number for each model, by which it draws; `rescale` restores the L1 norm that each had before, where
    the paper divides by the density.
    """
    thinned = _thinned(tensors, densities, models, rescale=rescale, seed=seed, name=name)
    return add_deltas(tensors[0], thinned, weights, normalize=normalize, lambda_=lambda_)


def dare_ties(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    models: Sequence[int],
    *,
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    seed: int = 0,
    name: str = "w",
) -> Tensor:
    """Thin task vectors out as `dare_linear` does, then add those that agree; see `elect`."""
    thinned = _thinned(tensors, densities, models, rescale=rescale, seed=seed, name=name)
    return elect(tensors[0], thinned, weights, normalize=normalize, lambda_=lambda_)


def della(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    models: Sequence[int],
    *,
    shape: Sequence[int],
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
    seed: int = 0,
    name: str = "w",
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Thin task vectors out as `della_linear` does, then add those that agree; see `elect`."""
    kept = [
        rescaled(
            model - tensors[0], _by_row(tensors[0], model, *numbers, shape, seed, name, precision), rescale=rescale
        )
        for model, *numbers in zip(tensors[1:], densities, epsilons, models, strict=True)
    ]
    return elect(tensors[0], kept, weights, normalize=normalize, lambda_=lambda_)


def della_linear(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    models: Sequence[int],
    *,
    shape: Sequence[int],
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
    seed: int = 0,
    name: str = "w",
    precision: type[np.floating] = np.float32,
) -> Tensor:
    """Task arithmetic over task vectors of which elements survive at random, the smaller ones of a row more rarely.

    The probability of the smallest element of a row of the last axis is density - epsilon, that of the largest
    density + epsilon, and grows evenly with the rank between; an element that is a row by itself has the density.
    """
    kept = [
        rescaled(
            model - tensors[0], _by_row(tensors[0], model, *numbers, shape, seed, name, precision), rescale=rescale
        )
        for model, *numbers in zip(tensors[1:], densities, epsilons, models, strict=True)
    ]
    return add_deltas(tensors[0], kept, weights, normalize=normalize, lambda_=lambda_)


def drawn(seed: int, tensor: str, model: int, n: int) -> NDArray[np.uint32]:
    """Draw a number for each element by Philox4x32-7 (Salmon et al., 2011).

    The upper 16 bits of 64 elements are words of eight counters: elements 0 to 31 have the first two words of each,
    elements 32 to 63 the others, the lower half of a word first. The lower 16 bits are those of the first word of
    another counter per element.
    """
    digest = hashlib.sha256(seed.to_bytes(8, "little") + tensor.encode()).digest()
    key = [int.from_bytes(digest[i : i + 4], "little") for i in (0, 4)]
    words = _philox(key, np.arange(-(-n // 64) * 8, dtype=np.uint64), model, 0)
    halves = np.stack([words & 0xFFFF, words >> np.uint64(16)], axis=-1)  # of a word, (counters, 4, 2)
    upper = halves.reshape(-1, 8, 2, 2, 2).transpose(0, 2, 1, 3, 4).ravel()[:n]
    lower = _philox(key, np.arange(n, dtype=np.uint64), model, 1)[:, 0] & 0xFFFF
    return (upper << np.uint64(16) | lower).astype(np.uint32)


def _philox(key: Sequence[int], counters: NDArray[np.uint64], model: int, last: int) -> NDArray[np.uint64]:
    """The four words of counters, each of two words, the model and a last one."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter = [counters & low, counters >> high, np.full_like(counters, model), np.full_like(counters, last)]
    for turn in range(7):
        keys = [
            np.uint64((k + turn * step) & 0xFFFFFFFF) for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)
        ]
        a, b = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = [(b >> high) ^ counter[1] ^ keys[0], b & low, (a >> high) ^ counter[3] ^ keys[1], a & low]
    return np.stack(counter, axis=1)


def _limits(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a draw is below with a probability less than 1."""
    return np.minimum(np.floor(probability * 2.0**32 + 0.5), 2.0**32 - 1)


def _thinned(
    tensors: Sequence[Tensor],
    densities: Sequence[float],
    models: Sequence[int],
    *,
    rescale: bool,
    seed: int,
    name: str,
) -> list[Tensor]:
    base, *tuned = tensors
    thinned = []
    for model, density, number in zip(tuned, densities, models, strict=True):
        delta = model - base
        dropped = density < 1.0 and drawn(seed, name, number, delta.size) >= _limits(np.full(delta.size, density))
        kept = np.where(dropped, 0.0, delta)
        thinned.append(rescaled(delta, kept, rescale=rescale))
    return thinned


def _by_row(
    base: Tensor,
    model: Tensor,
    density: float,
    epsilon: float,
    number: int,
    shape: Sequence[int],
    seed: int,
    name: str,
    precision: type[np.floating],
) -> Tensor:
    """A task vector with what survives of it, and zeros."""
    delta = model - base
    columns = shape[-1] if shape else 1
    if delta.size == 0 or density >= 1.0:
        return delta
    ranks = [
        by_rank(base[start : start + columns], model[start : start + columns], precision)
        for start in range(0, delta.size, columns)
    ]
    step = (columns - 1 - np.concatenate(ranks)) / max(columns - 1, 1)
    probability = density - epsilon + 2 * epsilon * step if columns > 1 else np.full(delta.size, density)
    limits = _limits(probability) if density > 0 else np.zeros(delta.size)
    return np.where(drawn(seed, name, number, delta.size) < limits, delta, 0.0)
