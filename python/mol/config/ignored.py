"""Words of real recipes that mergekit takes no notice of, and that have no effect here either."""

from __future__ import annotations

from typing import Final

COMMAND_OPTIONS: Final[dict[str, str]] = {
    "allow_crimes": "--allow-crimes",
    "copy_tokenizer": "--copy-tokenizer",
    "num_threads": "--num-threads",
    "out_shard_size": "--out-shard-size",
    "random_seed": "--random-seed",
    "seed": "--random-seed",
    "trust_remote_code": "--trust-remote-code",
    "write_model_card": "--write-model-card",
}
"""Options of the command that some recipes hold, each with how it is spelled there."""

_ABOUT_THE_MODEL: Final = (
    "author", "authors", "base_model_relation", "comment", "comments", "created_by", "creator", "date", "datasets",
    "description", "id", "info", "language", "library_name", "license", "license_link", "license_name",
    "merge_description", "merge_name", "metadata", "model_creator", "model_description", "model_name", "model_type",
    "note", "notes", "output_name", "pipeline_tag", "project", "quantized_by", "summary", "tag", "tags",
    "thumbnail", "title", "url", "version",
)  # fmt: skip
_SETTINGS: Final = (
    "architecture", "architectures", "async_write", "clone_tensors", "cuda", "device", "embed_slerp", "gpu_rich",
    "lazy_loading", "lazy_unpickle", "lora_merge_cache", "low_cpu_mem_usage", "low_cpu_memory",
    "merge_mode", "multi_gpu", "out_path", "quiet", "read_to_gpu", "residual_weight", "safe_serialization",
    "transformers_cache", "use_safetensors", "verbose", "write_threads",
)  # fmt: skip

IGNORED: Final = frozenset((*_ABOUT_THE_MODEL, *_SETTINGS))
"""Words without effect on a merge, wherever they stand."""


def without_effect(word: str, what: str) -> str | None:
    """Return the note about a word that changes nothing; None where it is none of those that are known.

    Args:
        word: the key.
        what: the map that holds it, as in "a recipe".
    """
    if word in COMMAND_OPTIONS:
        return (
            f"`{word}` in {what} has no effect, in mergekit neither: the command has `{COMMAND_OPTIONS[word]}` for it"
        )
    if word in IGNORED or word.startswith(("x-", "x_")):
        return f"`{word}` in {what} has no effect in mergekit, and none here"
    return None
