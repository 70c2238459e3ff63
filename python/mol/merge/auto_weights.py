"""Finds the weights of models from the norms of their differences from the base: `weight: {auto: ...}`.

The norm is that of a whole model, one number for each, and of its difference from the base for both forms. It takes one
reading of all weights before the plan is made.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from mol.config.parameters import auto_of
from mol.dtypes import FLOAT_DTYPES
from mol.errors import MergeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.config.merge_config import MergeConfig, ModelReference
    from mol.io.checkpoint import Checkpoint
    from mol.merge.options import MergeOptions
    from mol.structure.layers import Structure

_log = logging.getLogger("mol")


def find_weights(
    config: MergeConfig,
    checkpoints: Mapping[ModelReference, Checkpoint],
    structures: Mapping[ModelReference, Structure],
    options: MergeOptions,
) -> MergeConfig:
    """Return the recipe with the weights that it asks to be found, and a note that says them.

    Args:
        config: the recipe; without `weight: {auto: ...}` it is returned as it is.
        checkpoints: its models.
        structures: their layers.
        options: `workers` and `mmap` count here.

    Raises:
        MergeError: a model's weights are in no file, it equals the base, or holds what is not finite.
        OSError: a file cannot be read.
    """
    auto, base = auto_of(config.parameters), config.base_model
    if auto is None or base is None:
        return config
    models = [source.model for source in config.models or () if source.model != base]
    made = [str(model) for model in (base, *models) if checkpoints[model].made]
    if made:
        raise MergeError(
            f"`weight: {{auto: {auto.value}}}` reads weights before the merge, and those of {', '.join(made)} are in "
            "no file: an adapter or a stage makes them; give each model a `weight`"
        )
    norms = {model: _norm(model, base, checkpoints, structures, options) for model in models}
    equal = [str(model) for model, norm in norms.items() if norm == 0.0]
    if equal:
        raise MergeError(
            f"`weight: {{auto: {auto.value}}}`: {', '.join(equal)} equals the base, {base}, so its difference has no "
            "norm to weigh by; leave it out"
        )
    weights = shares(norms, auto.value)
    listed = "; ".join(f"{model} {weights[model]:.6g} (norm {norms[model]:.6g})" for model in models)
    return config.with_weights(weights, f"`weight: {{auto: {auto.value}}}`, from the norms of differences: {listed}")


def shares(norms: Mapping[ModelReference, float], form: str) -> dict[ModelReference, float]:
    """Return weights that sum to one.

    Args:
        norms: the Euclidean norms of the differences from the base, none of them zero.
        form: "norm": w_i = n_i^2 / sum(n_k^2), as MetaGPT (https://arxiv.org/abs/2406.11385);
            "inverse_norm": w_i = (1 / n_i) / sum(1 / n_k), as NAN (https://arxiv.org/abs/2505.16148).
    """
    largest = max(norms.values())
    # In proportion to the largest, so that no square overflows or vanishes.
    parts = {model: (norm / largest) ** 2 if form == "norm" else largest / norm for model, norm in norms.items()}
    total = math.fsum(parts.values())
    return {model: part / total for model, part in parts.items()}


def _norm(
    model: ModelReference,
    base: ModelReference,
    checkpoints: Mapping[ModelReference, Checkpoint],
    structures: Mapping[ModelReference, Structure],
    options: MergeOptions,
) -> float:
    """Return the norm of the difference of a model from the base, over the float tensors of equal shapes."""
    from mol import _rust
    from mol.structure.alignment import align

    ours, theirs = checkpoints[base], checkpoints[model]
    alignment = align(structures[base], structures[model])
    pairs = []
    for name, info in ours.tensors.items():
        other = alignment.find(name, theirs.tensors)
        if other is None:
            continue
        found = theirs.tensors[other]
        if found.shape == info.shape and {found.dtype, info.dtype} <= FLOAT_DTYPES:
            pairs.append((str(ours.files[info.file].path), name, str(theirs.files[found.file].path), other))
    _log.info("reading %s and %s once, to weigh by norms", base, model)
    sums = _rust.compare(pairs, threads=options.workers, mmap=options.mmap)
    norm = math.hypot(*(difference for _, _, difference, *_ in sums))
    if not math.isfinite(norm):
        raise MergeError(f"the difference of {model} from {base} is not finite: repair the one that holds NaN or inf")
    return norm


def evenly(config: MergeConfig) -> MergeConfig:
    """Return the recipe with even weights instead of those that are to be found, to check it without reading any."""
    if auto_of(config.parameters) is None:
        return config
    models = [source.model for source in config.models or () if source.model != config.base_model]
    return config.with_weights(dict.fromkeys(models, 1.0 / len(models)), "the weights are found when models are read")
