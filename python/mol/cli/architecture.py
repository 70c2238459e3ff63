"""What inspect says of a model's architecture: what its config.json means, or that alone with the reason why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mol.cli import units
from mol.errors import MolError

if TYPE_CHECKING:
    from mol.architecture import ArchitectureInfo
    from mol.io.checkpoint import Checkpoint

# Those that are counted after their number, the others before it.
_COUNTS = (("num_layers", "layer"), ("num_attention_heads", "head"), ("max_position_embeddings", "position"))
_SIZES = (("hidden_dim", "width"), ("intermediate_size", "inner width"), ("vocab_size", "vocabulary"))
_PARTS = (("layer_path", "blocks"), ("embedding_path", "embeddings"), ("lm_head_path", "head"))


def find_architecture(checkpoint: Checkpoint, *, trust_remote_code: bool) -> ArchitectureInfo | str:
    """Detect the architecture of a checkpoint, without reading its weights; where that fails, say why."""
    from mol.architecture import UniversalArchitectureHandler

    handler = UniversalArchitectureHandler(trust_remote_code)
    try:
        # By its directory, as this verb never asks the network.
        return handler.detect_architecture(str(checkpoint.directory)).named(checkpoint.name)
    except (MolError, OSError, ImportError) as error:  # the last two also where torch is installed, but broken
        return str(error)


def architecture_entries(found: ArchitectureInfo | str, checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Describe an architecture for people: entries of a label and a text, without what the model does not have."""
    if isinstance(found, str):
        from mol.architecture.sizes import stated_sizes

        said = ", ".join(f"{key} {value}" for key, value in stated_sizes(checkpoint.config).items())
        return [*([("config", said)] if said else []), ("family", f"unknown: {found}")]
    able = [what for what, can in (("causal", found.supports_causal_lm), ("masked", found.supports_masked_lm)) if can]
    abilities = f"{' and '.join(able)} language model" if able else "no causal or masked language model"
    sizes = [units.amount(count, noun) for name, noun in _COUNTS if (count := getattr(found, name)) is not None]
    sizes += [f"{words} {getattr(found, name):,}" for name, words in _SIZES if getattr(found, name) is not None]
    parts = [f"{words} {getattr(found, name)}" for name, words in _PARTS if getattr(found, name) is not None]
    entries = [("family", f"{found.architecture_family} ({found.architecture_type}): {abilities}")]
    if sizes:
        entries.append(("sizes", ", ".join(sizes)))
    if parts:
        entries.append(("modules", ", ".join(parts)))
    auto_map = checkpoint.config.get("auto_map")
    if isinstance(auto_map, dict):
        names = ", ".join(map(str, auto_map.values()))
        run = "was run, as requested" if found.requires_remote_code else "is not run: transformers knows the type"
        entries.append(("code", f"of its own ({names}); it {run}"))
    return entries


def architecture_document(found: ArchitectureInfo | str) -> dict[str, object]:
    """Return an architecture for programs: its fields, or null and the reason."""
    if isinstance(found, str):
        return {"architecture": None, "architecture_problem": found}
    return {"architecture": found.to_dict(), "architecture_problem": None}
