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
    """Draw a number for each element by Philox4x32-10 (Salmon et al., 2011), four a counter."""
    digest = hashlib.sha256(seed.to_bytes(8, "little") + tensor.encode()).digest()
    key = [int.from_bytes(digest[i : i + 4], "little") for i in (0, 4)]
    block = np.arange(-(-n // 4), dtype=np.uint64)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter = [block & low, block >> high, np.full_like(block, model), np.zeros_like(block)]
    for turn in range(10):
        keys = [
            np.uint64((k + turn * step) & 0xFFFFFFFF) for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)
        ]
        a, b = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = [(b >> high) ^ counter[1] ^ keys[0], b & low, (a >> high) ^ counter[3] ^ keys[1], a & low]
    return np.stack(counter, axis=1).ravel()[:n].astype(np.uint32)


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
        kept = np.where(drawn(seed, name, number, delta.size) >> 1 < round(density * 2**31), delta, 0.0)
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
    limits = np.floor(probability * 2**31 + 0.5) if density > 0 else np.zeros(delta.size)
    return np.where(drawn(seed, name, number, delta.size) >> 1 < limits, delta, 0.0)
