"""Adapter: a LoRA in PEFT's layout, its settings checked and its tensors sorted by the modules that they change."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mol.errors import CheckpointError
from mol.io.checkpoint import CheckpointFile, TensorInfo, read_shard
from mol.io.json_file import read_object
from mol.io.layout import ADAPTER, ADAPTER_CONFIG
from mol.io.sha256 import sha256_of
from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PREFIX: Final = "base_model.model."
_FACTOR: Final = regex(r"(?P<module>.+)\.(?P<kind>lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(?:\.weight)?")
# A module that was trained as a whole, and one that was saved along with its factors.
_WHOLE: Final = regex(r"(?P<module>.+?)(?:\.modules_to_save|\.base_layer)?\.(?P<kind>weight|bias)")
# What PEFT puts below a module that it adapts: whatever of these is left is not understood.
_INSIDE: Final = regex(
    r"(?:^|\.)(?:lora_\w+|hada_\w+|lokr_\w+|oft_\w+|boft_\w+|vera_\w+|ia3_l|token_adapter|trainable_tokens_\w+"
    r"|original_module|base_layer|prompt_\w+|internal_xlora_classifier)(?:\.|$)"
)

# What adapter_config.json says that does not change what a finished adapter computes.
_PLAIN: Final = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "alpha_pattern", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
})  # fmt: skip
# What it may ask for that is not applied, each with what it is.
_REFUSED: Final = {
    "alora_invocation_tokens": "an adapter that begins to act at certain tokens cannot be merged into weights",
    "arrow_config": "routing between adapters is no change of weights",
    "layer_replication": "layers that are used twice; write them as `slices`",
    "lora_bias": "biases of the factors",
    "megatron_config": "layers that are split between machines",
    "target_parameters": "parameters such as fused experts, which come later",
    "trainable_token_indices": "single rows of the embedding",
    "use_qalora": "factors over groups of a quantized layer's inputs",
}
# Ways to begin that leave the model as it is; all others change it, so its file is not what the adapter belongs to.
_KEEPING: Final = (None, True, False, "gaussian", "eva", "orthogonal")
_MOST_REPEATS: Final = 4


@dataclass(slots=True)
class Factors:
    """What is added to the weight of one module: `scale * B A`, with `magnitude` each row scaled to it afterwards.

    Attributes:
        tensors: names in the file by kind: `lora_A` [rank, in] and `lora_B` [out, rank], or `lora_embedding_A` [rank,
            rows] and `lora_embedding_B` [columns, rank]; and `lora_magnitude_vector` [out].
        rank: that of both factors.
        scale: factor on their product.
    """

    tensors: dict[str, str] = field(default_factory=dict)
    rank: int = 0
    scale: float = 0.0


@dataclass(frozen=True)
class Adapter:
    """An adapter, read from headers and adapter_config.json.

    Attributes:
        name: what the user called it.
        directory: where it lies.
        revision: commit hash when it came from the Hub.
        file: its weight file.
        tensors: every tensor by name.
        config: its adapter_config.json.
        factors: what is added, by module.
        whole: names in the file of tensors that replace the model's, by theirs.
        digests: SHA-256 of both files.
    """

    name: str
    directory: Path
    revision: str | None
    file: CheckpointFile
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, Any]
    factors: Mapping[str, Factors]
    whole: Mapping[str, str]
    digests: Mapping[str, str]

    @classmethod
    def open(cls, directory: Path | str, *, name: str | None = None, revision: str | None = None) -> Adapter:
        """Read adapter_config.json and the header of the weights, and check that all of it can be applied.

        The weights are read once, for their digest.

        Args:
            directory: holds adapter_config.json and adapter_model.safetensors, as PEFT saves them.
            name: what to call the adapter; the path as given if None.
            revision: commit hash, when the directory is a snapshot from the Hub.

        Raises:
            FileNotFoundError: no such directory, or not the two files in it.
            CheckpointError: a file is damaged, or holds what is not applied; all of it is listed.
            OSError: a file cannot be read.
        """
        directory = Path(directory)
        label = str(directory) if name is None else name
        config = _read_config(directory, label)
        path = _find_weights(directory, label)
        file, tensors = read_shard(path, 0)
        problems = [*_check_config(config), *([] if tensors else [f"{ADAPTER} holds no tensor"])]
        factors, whole = _sort(tensors, problems) if config.get("peft_type") == "LORA" else ({}, {})
        if not problems:
            _settle(factors, tensors, config, problems)
        if problems:
            raise CheckpointError.listing(
                f"the adapter {label} cannot be applied; merge it with peft (merge_and_unload) and name the result",
                problems,
            )
        digests = {entry.name: sha256_of(entry) for entry in (path, directory / ADAPTER_CONFIG)}
        return cls(label, directory, revision, file, tensors, config, factors, whole, digests)


def _read_config(directory: Path, label: str) -> dict[str, Any]:
    path = directory / ADAPTER_CONFIG
    if os.path.lexists(path):
        return read_object(path)
    directory.stat()  # a directory that is not there differs from one without the file
    raise FileNotFoundError(
        f"{label}: no {ADAPTER_CONFIG}; the directory of an adapter (LoRA) has one, as peft saves it"
    )


def _find_weights(directory: Path, label: str) -> Path:
    path = directory / ADAPTER
    if os.path.lexists(path):
        return path
    found = sorted(entry.name for entry in directory.glob("adapter_model*"))
    if not found:
        raise FileNotFoundError(f"{label}: no {ADAPTER}, which holds the weights of an adapter")
    if any(name.endswith(".bin") for name in found):
        raise CheckpointError(
            f"{label}: its weights are pickled ({found[0]}), which is not supported; load and save it with peft"
        )
    raise CheckpointError(f"{label}: no {ADAPTER}, but {found[0]}: an adapter is one file here; save it again as one")


def _check_config(config: Mapping[str, Any]) -> Iterable[str]:
    kind = config.get("peft_type")
    if kind != "LORA":
        yield f"`peft_type` is {kind!r}: of the adapters of peft, LORA is applied (with rsLoRA and DoRA)"
        return
    bias = config.get("bias", "none")
    if bias not in ("none", None):
        yield f"`bias: {bias}`: biases that were trained along are not applied"
    if config.get("init_lora_weights") not in _KEEPING:
        yield (
            f"`init_lora_weights: {config['init_lora_weights']}`: peft changes the model as it loads such an adapter; "
            "save it with `path_initial_model_for_weight_conversion`, which makes a plain one of it"
        )
    for key, value in config.items():
        if key in _REFUSED and value:
            yield f"`{key}`: {_REFUSED[key]}"
        elif key not in _PLAIN and key not in _REFUSED and value:
            yield f"`{key}` is set, and this mol does not know what it asks for"
    for key in ("r", "lora_alpha"):
        if not _is_number(config.get(key, 8)):
            yield f"`{key}` is {config[key]!r}, wanted a number"
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(map(_is_number, patterns.values())):
            yield f"`{key}` is no map from names of modules to numbers"
            continue
        odd = [pattern for pattern in patterns if not _is_simple(pattern)]
        if odd:
            yield f"`{key}`: {odd[0][:80]!r} is no pattern that can be searched for in a bounded time"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_simple(pattern: str) -> bool:
    """Return whether a regular expression ends soon on every name: few repeats, and none of a group."""
    if (
        len(pattern) > 500
        or re.search(r"\)[*+?{]|\\\d", pattern)
        or len(re.findall(r"[*+?{]", pattern)) > _MOST_REPEATS
    ):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _sort(tensors: Iterable[str], problems: list[str]) -> tuple[dict[str, Factors], dict[str, str]]:
    """Sort the names of a file into factors by module, and tensors that replace the model's."""
    factors: dict[str, Factors] = {}
    whole: dict[str, str] = {}
    unknown = []
    for name in tensors:
        inner = name.removeprefix(_PREFIX)
        if match := _FACTOR.fullmatch(inner):
            factors.setdefault(match["module"], Factors()).tensors[match["kind"]] = name
        elif (
            (match := _WHOLE.fullmatch(inner))
            and not _INSIDE.search(match["module"])
            and (target := f"{match['module']}.{match['kind']}") not in whole
        ):
            whole[target] = name
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        problems.append(f"tensor `{unknown[0]}`{more}: not known, and every tensor of an adapter has to be applied")
    return factors, whole


def _settle(
    factors: Mapping[str, Factors], tensors: Mapping[str, TensorInfo], config: Mapping[str, Any], problems: list[str]
) -> None:
    """Find rank and scale of each module, and check that its tensors belong together."""
    dora = bool(config.get("use_dora"))
    ranks, alphas = (config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    for module, of_module in factors.items():
        found = of_module.tensors
        inner = "lora_embedding_" if "lora_embedding_A" in found or "lora_embedding_B" in found else "lora_"
        wanted = {f"{inner}A", f"{inner}B", *(["lora_magnitude_vector"] if dora else [])}
        if found.keys() != wanted:
            problems.append(f"`{module}` has {_words(found)}, wanted {_words(wanted)}")
            continue
        if dora and inner != "lora_":
            problems.append(f"`{module}`: DoRA of an embedding is not applied")
            continue
        a, b = (tensors[found[f"{inner}{side}"]].shape for side in "AB")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not a[0]:
            kind = "a convolution" if len(a) > 2 else "one that was saved in parts"
            problems.append(f"`{module}`: factors of shapes {list(a)} and {list(b)}, as of {kind}, are not applied")
            continue
        of_module.rank = a[0]
        stated = _by_pattern(ranks, module, config.get("r", 8))
        if stated != a[0]:
            problems.append(f"`{module}` has rank {a[0]}, and {ADAPTER_CONFIG} says {stated}: its scale is not certain")
            continue
        alpha = _by_pattern(alphas, module, config.get("lora_alpha", 8))
        of_module.scale = alpha / (math.sqrt(a[0]) if config.get("use_rslora") else a[0])


def _words(kinds: Iterable[str]) -> str:
    return ", ".join(sorted(kinds))


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:  # noqa: ANN401 - a number of the config
    """Return the value of the first pattern that fits the end of a module's name, as PEFT looks for it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
