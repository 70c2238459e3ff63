"""Which files other than weights make up a model, known by their names, and the checks before they are read."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

from mol.errors import CheckpointError
from mol.io.json_file import check_regular
from mol.io.layout import CARD, CONFIG, INDEX, JOURNAL, MANIFEST, RECIPE, SINGLE
from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What transformers, sentence-transformers, vLLM, llama.cpp and ModelScope open apart from config.json and tokenizer.
_SETTINGS: Final = regex(
    r"generation_config\.json|(?:image_|video_|audio_)?(?:pre)?processor_config\.json|audio_tokenizer_config\.json"
    r"|decision\.json|decision_template\.jinja|configuration\.json|SYSTEM_PROMPT\.txt"
    r"|modules\.json|router_config\.json|config_sentence_transformers\.json|sentence_[a-z-]+_config\.json"
)
# Tables of tokens: read as nothing else by anybody, so what they hold is never taken for a setting.
_TABLES: Final = regex(
    r"tokenizer\.json|(?:entity_|target_)?vocab\.(?:json|txt|bpe)|vocab-(?:src|tgt)\.json|encoder\.json|merges\.txt"
    r"|added_tokens\.json|dict\.txt|bpe\.codes|tekken\.json|normalizer\.json|byte_maps\.json|emoji\.json|unigram\.json"
    r"|word_(?:shape|pronunciation)\.json|prophetnet\.tokenizer|rwkv_vocab_v\d+\.txt|[\w.-]+\.tiktoken"
    r"|(?:source|target)\.spm|(?:tokenizer|spiece|sentencepiece(?:\.bpe)?|spm(?:_char)?|bpe|ice_text|tiktoken)\.model"
    r"|tokenizer\.model\.v\w+|tokenizer\.mm\.model(?:\.v\w+)?"
)
_TOKENIZER: Final = regex(
    r"tokenizer_config\.json|special_tokens_map\.json|chat_template\.json|chat_template[\w-]*\.jinja"
)
_MORE_TEMPLATES: Final = regex(r"additional_chat_templates/[^/]+\.jinja")
# `LICENSE`, `notice.txt`, `USE_POLICY.md`, `LICENSE-CODE`, `Tongyi Qianwen LICENSE AGREEMENT`; never `license_key`.
_WORD: Final = r"[^\W_]+(?:\.\d+)*"
_LEGAL: Final = regex(
    r"(?:(?i:(?:un)?licen[sc]es?|notice|copying|copyright|(?:acceptable_)?us(?:e|age)_policy|third_party_notices)"
    rf"|(?:{_WORD}[ _-])*(?:LICEN[SC]E|Licen[sc]e|NOTICE|USE_POLICY|TERMS)(?:[ _-](?!(?i:key)){_WORD})*)"
    r"(?i:\.(?:txt|md|rst|pdf))?"
)
# The stages after the transformer of sentence-transformers: `1_Pooling`, `2_Dense`; stage 0 is the model itself.
_STAGE: Final = regex(r"[1-9]\d?_[A-Za-z]\w*")
_STAGES: Final = "modules.json"
_STAGE_SETTINGS: Final = regex(r"(?:\w+_)?config\.json")

_CODE: Final = frozenset({".py", ".so", ".cpp", ".cu"})
_WEIGHTS: Final = frozenset({
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".hdf5", ".msgpack", ".ot", ".onnx", ".gguf", ".ggml",
    ".tflite", ".mlmodel", ".pkl", ".pickle", ".nemo", ".pdparams", ".npz", ".distcp",
})  # fmt: skip
# Written anew for every merge (the engine's journal among them), so those of an input are never copied.
_OURS: Final = frozenset({CONFIG, CARD, MANIFEST, RECIPE, JOURNAL})
# Weights, or an index of them, that loaders take before or instead of those that a merge wrote.
_TAKES_OVER: Final = frozenset({
    SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json",
    "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "consolidated.safetensors", "params.json",
})  # fmt: skip
# Where huggingface_hub keeps the content of what a snapshot, or a folder that it has filled, links to.
_BLOB: Final = regex(r"models--[^/]+/blobs/[0-9a-f]{40}(?:[0-9a-f]{24})?")


class SideFiles(NamedTuple):
    """The files next to the weights, as sorted relative paths with forward slashes.

    Attributes:
        tokenizer: what turns text into ids, chat templates included.
        code: Python files and libraries.
        other: the other files of a model: generation config, processor settings, licenses.
        weights: files, and folders (these end in a slash), that hold weights and are no part of the checkpoint.
        left_out: whatever else is there; no file of a model has such a name.
    """

    tokenizer: tuple[str, ...]
    code: tuple[str, ...]
    other: tuple[str, ...]
    weights: tuple[str, ...]
    left_out: tuple[str, ...]


def sort_side_files(paths: Iterable[str]) -> SideFiles:
    """Sort the relative paths of one model into kinds of side files, by a list of what a model has.

    A folder that holds weights (`original/`, `onnx/`, a trainer's `checkpoint-500/`) is another model. Hidden files
    and folders belong to tools, so nobody misses them.
    """
    every = {p: PurePosixPath(p) for p in sorted(set(paths))}
    files = {name: path for name, path in every.items() if not any(part.startswith(".") for part in path.parts)}
    staged = _STAGES in files
    foreign = {
        path.parts[0]
        for path in files.values()
        if len(path.parts) > 1 and is_weights(path.name) and not (staged and _STAGE.fullmatch(path.parts[0]))
    }
    tokenizer, code, other, weights, left_out = [], [], [], [f"{folder}/" for folder in foreign], []
    for name, path in files.items():
        folder = path.parts[0] if len(path.parts) > 1 else None
        if folder in foreign or name in _OURS:
            continue
        if is_tokenizer_file(name):
            tokenizer.append(name)
        elif _is_other(path, staged=staged):
            other.append(name)
        elif is_weights(name):
            weights.append(name)
        elif path.suffix in _CODE and len(path.parts) < 3:
            code.append(name)
        else:
            left_out.append(name)
    kept = {PurePosixPath(name).parts[0] for name in (*tokenizer, *code, *other, *weights)}
    grouped = {_whole_folder(name, kept) for name in left_out}
    return SideFiles(tuple(tokenizer), tuple(code), tuple(other), tuple(sorted(weights)), tuple(sorted(grouped)))


def is_weights(name: str) -> bool:
    """Return whether a file holds weights (or pickles, in any spelling), or an index of them."""
    path = PurePosixPath(name.lower())
    return (
        path.name.endswith(".index.json")
        or path.suffix in _WEIGHTS
        or any(suffix.startswith(".onnx") for suffix in path.suffixes)  # `model.onnx.data`
    )


def is_tokenizer_file(name: str) -> bool:
    """Return whether a file belongs to the tokenizer (or is a chat template)."""
    return any(pattern.fullmatch(name) for pattern in (_TABLES, _TOKENIZER, _MORE_TEMPLATES))


def is_read(name: str) -> bool:
    """Return whether loaders read a file because of its name, so that it changes what a directory holds."""
    side = sort_side_files([name])
    return name in _TAKES_OVER or bool(side.tokenizer) or (bool(side.other) and not is_license(name))


def is_license(name: str) -> bool:
    """Return whether a file states under which terms a model may be used; no loader reads it."""
    return bool(_LEGAL.fullmatch(name))


def is_settings(name: str) -> bool:
    """Return whether a file is a JSON object of settings, from which a loader may take the name of a class."""
    return name.endswith(".json") and name != _STAGES and not _TABLES.fullmatch(name)


def list_files(directory: Path) -> list[str]:
    """List what is in a directory and in its folders as relative paths, whatever it is.

    Files of a model lie no deeper, so a folder in a folder is not entered, and listed with a slash at its end. Links
    to folders, and folders that may not be entered, are listed in the same way.

    Raises:
        OSError: if the directory cannot be read.
    """
    found = []
    for entry in _visible(directory):
        if not entry.is_dir(follow_symlinks=False):
            found.append(entry.name)
            continue
        try:
            found += [
                f"{entry.name}/{inner.name}{'/' * inner.is_dir(follow_symlinks=False)}" for inner in _visible(entry)
            ]
        except PermissionError:
            found.append(f"{entry.name}/")
    return sorted(found)


class SideFile(NamedTuple):
    """A file that was found to be what it should: its path, and how to know it again."""

    path: Path
    size: int
    mtime_ns: int
    inode: int


def find_file(directory: Path, name: str) -> SideFile:
    """Find a side file: a regular file inside the directory, or in the cache of huggingface_hub behind it.

    Raises:
        CheckpointError: it is a pipe or a device, or a link out of the directory: such a link in a downloaded model
            would put any file of this machine into the output.
        OSError: it is missing (or a link leads nowhere), or a directory.
    """
    path = directory / name
    status = path.stat()
    real, home = Path(os.path.realpath(path)), Path(os.path.realpath(directory))
    behind = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (real.is_relative_to(home) or real.is_relative_to(behind) or _BLOB.fullmatch("/".join(real.parts[-3:]))):
        raise CheckpointError(
            f"{path} is a link to {real}, outside of the model's directory; replace it by the file itself (`cp -L`), "
            "or remove it"
        )
    check_regular(path, status.st_mode)
    return SideFile(path, status.st_size, status.st_mtime_ns, status.st_ino)


def _is_other(path: PurePosixPath, *, staged: bool) -> bool:
    if len(path.parts) == 1:
        return bool(_SETTINGS.fullmatch(path.name)) or is_license(path.name)
    if len(path.parts) > 2 or not _STAGE.fullmatch(path.parts[0]):
        return False
    return bool(_STAGE_SETTINGS.fullmatch(path.name)) or (staged and path.name == SINGLE)


def _whole_folder(name: str, kept: set[str]) -> str:
    """Name the folder instead of a file that is left out, unless something in it is not."""
    folder, slash, _ = name.partition("/")
    return f"{folder}/" if slash and folder not in kept else name


def _visible(directory: Path | os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))
