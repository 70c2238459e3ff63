"""Which files beside the weights make up a model, told from their names alone."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Weights in any format. Pickles are among them: a merge never passes one on.
_WEIGHTS: Final = frozenset({
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".hdf5", ".msgpack", ".ot", ".onnx", ".gguf", ".ggml",
    ".tflite", ".mlmodel", ".pkl", ".pickle", ".nemo", ".pdparams",
})  # fmt: skip
_CODE: Final = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"})
_TOKENIZER: Final = frozenset({
    "added_tokens.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt", "vocab.bpe",
    "encoder.json", "spiece.model", "sentencepiece.bpe.model", "bpe.codes", "dict.txt", "tekken.json",
    "normalizer.json", "chat_template.jinja", "chat_template.json",
})  # fmt: skip
# Written anew for every merge (the engine's journal among them), so those of an input are never copied.
_OURS: Final = frozenset({"config.json", "README.md", "mol_manifest.json", "mergekit_config.yml", "journal"})


@dataclass(frozen=True, slots=True)
class SideFiles:
    """The files beside the weights, as sorted relative paths with forward slashes.

    Attributes:
        tokenizer: what turns text into ids, chat templates included.
        code: Python files and libraries.
        other: everything else, e.g. the generation config and processor settings.
        left_out: files and folders (these end in a slash) that hold weights and are no part of the checkpoint.
    """

    tokenizer: tuple[str, ...]
    code: tuple[str, ...]
    other: tuple[str, ...]
    left_out: tuple[str, ...]


def sort_side_files(paths: Iterable[str]) -> SideFiles:
    """Tell the side files among the relative paths of one model.

    A folder that holds weights (`original/`, `onnx/`, a trainer's `checkpoint-500/`) is another model and left
    out as a whole. Hidden files and folders belong to tools, so nobody misses them.
    """
    files = [p for p in map(PurePosixPath, sorted(set(paths))) if not any(part.startswith(".") for part in p.parts)]
    foreign = {path.parts[0] for path in files if len(path.parts) > 1 and is_weights(path.name)}
    tokenizer, code, other = [], [], []
    left_out = [f"{folder}/" for folder in sorted(foreign)]
    for path in files:
        name = path.as_posix()
        nested = len(path.parts) > 1
        if (nested and path.parts[0] in foreign) or name in _OURS or "__pycache__" in path.parts:
            continue
        if is_weights(name):
            left_out.append(name)
        elif path.suffix in _CODE:
            code.append(name)
        elif is_tokenizer_file(name):
            tokenizer.append(name)
        else:
            other.append(name)
    return SideFiles(tuple(tokenizer), tuple(code), tuple(other), tuple(left_out))


def is_weights(name: str) -> bool:
    """Whether a file holds weights, or an index of them."""
    path = PurePosixPath(name)
    return (
        name.endswith(".index.json")
        or path.suffix in _WEIGHTS
        or any(suffix.startswith(".onnx") for suffix in path.suffixes)  # `model.onnx.data`
    )


def is_tokenizer_file(name: str) -> bool:
    """Whether a file belongs to the tokenizer (or is a chat template)."""
    path = PurePosixPath(name)
    if len(path.parts) > 1:
        return path.parts[0] == "additional_chat_templates"
    return name in _TOKENIZER or name.startswith("tokenizer") or path.suffix in {".tiktoken", ".spm"}


def list_files(directory: Path) -> list[str]:
    """List the regular files under a directory as relative paths; linked folders are not entered, linked files are.

    Raises:
        OSError: if a folder cannot be read or a link leads nowhere, naming it.
    """
    found = []
    for folder, folders, names in os.walk(directory, onerror=_raise):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in names:
            path = Path(folder, name)
            # Asked by `stat`, since `is_file` would pass over a link that leads nowhere.
            if not name.startswith(".") and stat.S_ISREG(path.stat().st_mode):
                found.append(path.relative_to(directory).as_posix())
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error
