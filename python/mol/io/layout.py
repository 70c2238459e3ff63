"""The names of the files in a model directory, and what the index of its weights says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mol.errors import CheckpointError
from mol.io.json_file import read_object
from mol.regex import regex

if TYPE_CHECKING:
    from pathlib import Path

CONFIG: Final = "config.json"
CARD: Final = "README.md"
GENERATION: Final = "generation_config.json"
TOKENIZER: Final = "tokenizer.json"
ADDED_TOKENS: Final = "added_tokens.json"
TOKENIZER_SETTINGS: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER: Final = "adapter_model.safetensors"

MANIFEST: Final = "mol_manifest.json"
RECIPE: Final = "mergekit_config.yml"
SWEEP: Final = "mol_sweep.json"
"""At the top of the output of a sweep: the directories of its results."""
JOURNAL: Final = "journal"
SCRATCH: Final = ".scratch"
"""Next to the journal: where steps that are read several times are computed into; empty between two of them."""
PARTIAL: Final = ".partial"
"""What follows the name of an output directory in that of the directory in which the merge works."""

_SAVED: Final = regex(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)")
_SAVED_INDEX: Final = regex(r"(model\.safetensors|pytorch_model\.bin)\.index\.json")


def is_saved_weights(name: str) -> bool:
    """Return whether transformers saves weights under a name."""
    return _SAVED.fullmatch(name) is not None


def is_saved_index(name: str) -> bool:
    """Return whether transformers saves the index of weights under a name."""
    return _SAVED_INDEX.fullmatch(name) is not None


def shard_names(count: int) -> tuple[str, ...]:
    """Return the names of `count` weight files as transformers expects them."""
    if count == 1:
        return (SINGLE,)
    return tuple(f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1))


def read_weight_map(index: Path) -> dict[str, Any]:
    """Read an index: tensor -> what it names as the tensor's file, which should be a text.

    Raises:
        CheckpointError: it is damaged or has no tensors.
        OSError: it cannot be read.
    """
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no `weight_map` from tensors to files; fetch the file again")
    return weight_map


def read_shard_names(index: Path) -> list[str]:
    """Read the names of the weight files of an index, sorted.

    Raises:
        CheckpointError: it is damaged, or names something else than files.
        OSError: it cannot be read.
    """
    files = read_weight_map(index).values()
    if not all(isinstance(name, str) for name in files):
        raise CheckpointError(f"{index} has no `weight_map` from tensors to files; fetch the file again")
    return sorted(set(files))
