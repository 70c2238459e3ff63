"""Names of a package that are imported when they are first used, and those of earlier plans that are not there yet."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_PUSH: Final = "MoLRuntime.push_to_hf(...) and `mol-merge push` upload"
_RECIPES: Final = "mol.config.load_recipe reads and checks a recipe"
_MEMORY: Final = "MoLConfig(device_map=..., max_expert_memory=...) decides what is in memory, and where"

LATER: Final[dict[str, dict[str, str]]] = {
    "mol": {
        "HF_AVAILABLE": _PUSH,
        "HuggingFacePublisher": _PUSH,
        "BlockExtractor": "MoLRuntime.add_layer takes blocks out of models",
    },
    "mol.config": dict.fromkeys(("ConfigParser", "ConfigValidator", "MergeConfiguration", "ParameterConfig"), _RECIPES),
    "mol.core": {"BlockExtractor": "MoLRuntime.add_layer takes blocks out of models"},
    "mol.merge_methods.base_merge": {"LayerSlice": "mol.config.SliceConfig is a slice of a recipe"},
    "mol.utils": {
        "MemoryManager": _MEMORY,
        "ModelUtils": "MoLRuntime.summary() counts parameters",
    },
}
"""By module, each name with what to use until it is there."""

LATER_MODULES: Final[dict[str, str]] = {
    "mol.cli.merge_cli": "mol.cli has the command",
    "mol.core.block_extractor": "MoLRuntime.add_layer takes blocks out of models",
    "mol.models": "MoLRuntime opens models by name",
    "mol.utils.hf_utils": _PUSH,
    "mol.utils.memory_utils": _MEMORY,
}


def sentence(name: str, until: str) -> str:
    """Return the message that a name is not there yet, as the command has it for a verb."""
    return f"{name!r} comes in a later version of mol; until then {until}"


def missing(module: str, name: str) -> Exception:
    """Return the error for a name that a module does not have.

    A name of the table is an ImportError, for `from mol import` would not repeat what an AttributeError says.
    """
    until = LATER.get(module, {}).get(name)
    if until is None:
        return AttributeError(f"module {module!r} has no attribute {name!r}")
    return ImportError(sentence(name, until), name=module)


def check_module(name: str) -> None:
    """Refuse a module of the table.

    Raises:
        ModuleNotFoundError: it is one.
    """
    if name in LATER_MODULES:
        raise ModuleNotFoundError(sentence(name, LATER_MODULES[name]), name=name)


def find(module: str, name: str, homes: Mapping[str, Collection[str]]) -> object:
    """Import a name from its home.

    Args:
        module: the package it is imported from.
        name: the name.
        homes: modules, each with the names that it has.

    Raises:
        ImportError: it is a name for later, or needs a package that is not installed.
        AttributeError: there is no such name.
    """
    home = next((home for home, names in homes.items() if name in names), None)
    if home is None:
        raise missing(module, name)
    try:
        return getattr(import_module(home), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("torch", "transformers", "accelerate"):
            raise
        raise ImportError(f"{name} needs {error.name}: pip install 'mol-merge[fusion]'") from error
