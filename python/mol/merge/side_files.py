"""The files of a merge other than weights: which are copied and which are written, decided before a weight is read."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.errors import CheckpointError, MergeError
from mol.io.json_file import found_instead, may, read_object
from mol.io.layout import (
    ADDED_TOKENS,
    CARD,
    CONFIG,
    INDEX,
    JOURNAL,
    MANIFEST,
    RECIPE,
    TOKENIZER,
)
from mol.io.side_files import (
    SideFile,
    find_file,
    is_license,
    is_settings,
    is_tokenizer_file,
    list_files,
    sort_side_files,
)
from mol.io.tokenizer_json import add_tokens
from mol.merge.card import card_text
from mol.merge.chat_template import choose_template, write_template
from mol.merge.manifest import build_manifest, manifest_size, manifest_text
from mol.merge.planned import OutputFile
from mol.merge.special_tokens import follow_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from io import BufferedReader
    from pathlib import Path

    from mol.io.vocabulary import Vocabulary
    from mol.merge.card import Card
    from mol.merge.options import MergeOptions
    from mol.merge.planned import PlannedMerge

_ENGINE_FILES: Final = frozenset({JOURNAL, INDEX})
# What names Python files that a loader imports, in whichever file and at whichever depth it stands.
_CODE_KEYS: Final = ("auto_map", "custom_pipelines")
_NAMED: Final = 20  # files that a note names
_CHUNK: Final = 1 << 20


class SideFilePlan(NamedTuple):
    """What is written next to the weights, without card, manifest and recipe.

    Attributes:
        copies: relative path -> the input's file.
        texts: relative path -> content.
        notes: what was changed, one line each.
        left_out: what is not copied, one line for each reason; not for the card, since names of files may be private.
        warnings: what the user should know about, one line each.
        chat_template: that which the recipe chooses; None where it keeps the tokenizer's.
    """

    copies: Mapping[str, SideFile]
    texts: Mapping[str, str]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    chat_template: str | None


def plan_side_files(
    planned: PlannedMerge, tokenizer: Path, vocabularies: Mapping[Path, Vocabulary], options: MergeOptions
) -> SideFilePlan:
    """Decide which side files the output gets; reads only small files.

    A merge never runs code, so an input that brings some is merged, but without `trust_remote_code` neither the
    code nor what points to it (`auto_map`) goes into the output: it loads with the library's own classes or not at
    all, and never runs unreviewed code.

    Args:
        planned: the merge; all but the tokenizer comes from its donor.
        tokenizer: directory whose tokenizer the output gets.
        vocabularies: of all models and of `tokenizer`, by directory.
        options: see MergeOptions.

    Raises:
        OSError: a file cannot be read.
        CheckpointError: a JSON file is damaged, or a file is none (a pipe, a link out of its directory).
    """
    donor, trust = planned.donor.directory, options.trust_remote_code or planned.config.trust_remote_code
    side = sort_side_files(list_files(donor))
    chosen = dict.fromkeys(side.other, donor)
    notes, warnings = [], []
    if options.copy_tokenizer:
        names = side.tokenizer if tokenizer == donor else sort_side_files(list_files(tokenizer)).tokenizer
        chosen |= dict.fromkeys(names, tokenizer)
    if trust:
        chosen |= dict.fromkeys(side.code, donor)
        if side.code:
            warnings.append(f"trust_remote_code: Python files are copied unread: {', '.join(side.code)}")
    elif side.code:
        notes.append(f"Python files not copied without trust_remote_code: {', '.join(side.code)}")
    copies = _find_all(chosen)
    stages = [name for name in copies if name.endswith(".safetensors")]
    if stages:
        notes.append(f"copied from {planned.donor.name} as they are, not merged: {', '.join(stages)}")
    merged = {file.path.name for file in planned.donor.files} | _ENGINE_FILES
    left_out = [
        *_left_out("they hold other weights", [name for name in side.weights if name not in merged]),
        *_left_out("they are not known to be part of a model", side.left_out),
    ]

    tokens = follow_tokenizer(planned, tokenizer, vocabularies, copies_tokenizer=options.copy_tokenizer)
    changed = {CONFIG: dict(tokens.config), **tokens.files}
    new = () if planned.joined is None or not options.copy_tokenizer else planned.joined.new
    texts = {}
    if new:
        text, files = add_tokens(vocabularies[tokenizer], new)
        texts[TOKENIZER] = f"{text}\n"
        changed |= files
        notes += _of_one_model(planned, copies)
    rewritten, remarks = _rewritten(planned, copies, changed, trust=trust)
    notes += [*tokens.notes, *remarks]
    warnings += tokens.warnings
    template = choose_template(planned, vocabularies[tokenizer], notes, warnings)
    if template is not None:
        write_template(template, copies, texts, rewritten)
    for name, value in rewritten.items():
        texts[name] = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return SideFilePlan(
        copies={name: file for name, file in copies.items() if name not in texts},
        texts=texts,
        notes=tuple(notes),
        left_out=tuple(left_out),
        warnings=tuple(warnings),
        chat_template=template,
    )


def output_files(
    planned: PlannedMerge, side: SideFilePlan, card: Card, options: MergeOptions
) -> tuple[OutputFile, ...]:
    """List the files of the output other than weights, with sizes; all texts are composed once, to fail early."""
    from mol import _rust

    owners = {source.directory: source.name for source in planned.sources}
    other = str(planned.config.tokenizer_source)  # need not be an input
    files = [
        OutputFile(name, file.size, next((owners[top] for top in file.path.parents if top in owners), other))
        for name, file in side.copies.items()
    ]
    texts = _texts(planned, side, card, options, plan_digest="0" * 64, version=_rust.__version__)
    files += [OutputFile(name, len(_bytes(text)), None) for name, text in texts.items()]
    files.append(OutputFile(MANIFEST, manifest_size(planned, [file.name for file in files]), None))
    return tuple(sorted(files))


def write_side_files(
    partial: Path,
    planned: PlannedMerge,
    side: SideFilePlan,
    executed: Mapping[str, Any],
    *,
    card: Card,
    options: MergeOptions,
    version: str,
) -> None:
    """Complete the directory that the engine left with everything but weights.

    Raises:
        OSError: a file could not be read or written.
        MergeError: a file is not what it was when the merge was planned.
    """
    _clear(partial, keep=_ENGINE_FILES | set(planned.plan.outputs))
    written = {}
    for name, source in side.copies.items():
        try:
            written[name] = _copy(source, _target(partial, name))
        except OSError as error:  # names the source whichever of the two it is about
            raise OSError(error.errno, f"copying {source.path}: {error.strerror}", str(partial / name)) from error
    texts = _texts(planned, side, card, options, plan_digest=executed["plan_digest"], version=version)
    for name, text in texts.items():
        written[name] = _write(_target(partial, name), text)
    if (partial / INDEX).is_file():
        written[INDEX] = _digest((partial / INDEX).read_bytes())
    manifest = build_manifest(planned, executed, written, card=card, version=version)
    _write(_target(partial, MANIFEST), manifest_text(manifest))


def _of_one_model(planned: PlannedMerge, copies: Mapping[str, SideFile]) -> list[str]:
    """Name the tables of tokens that lack those which the tokenizer of the output gets."""
    tables = (name for name in copies if is_tokenizer_file(name) and not is_settings(name))
    names = [name for name in tables if name not in {TOKENIZER, ADDED_TOKENS} and not name.endswith(".jinja")]
    return [f"{', '.join(names)}: the tokens of {planned.donor.name} alone; {TOKENIZER} has all"] if names else []


def _find_all(chosen: Mapping[str, Path]) -> dict[str, SideFile]:
    """Check each file that is to be copied, and refuse all that cannot be at once."""
    found, problems = {}, []
    for name, directory in chosen.items():
        try:
            found[name] = find_file(directory, name)
        except CheckpointError as error:
            problems.append(str(error))
    unreadable = [str(file.path) for file in found.values() if not may(file.path, os.R_OK)]
    if unreadable:
        more = f", nor {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        raise PermissionError(errno.EACCES, f"no right to read it{more}", unreadable[0])
    problems += [
        f"{file.path} is {instead}"
        for name, file in found.items()
        if not is_license(name) and not name.endswith(".jinja") and (instead := found_instead(_head(file))) is not None
    ]
    if problems:
        raise CheckpointError.listing("files next to the weights cannot be copied", problems)
    return found


def _left_out(why: str, names: Sequence[str]) -> list[str]:
    """Describe what is not copied in one line; a name may hold anything, a line break included."""
    shown = [name if name.isprintable() else repr(name) for name in names[:_NAMED]]
    more = f", and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return [f"not copied, since {why}: {', '.join(shown)}{more}"] if names else []


def _rewritten(
    planned: PlannedMerge, copies: Mapping[str, SideFile], changed: Mapping[str, dict[str, Any]], *, trust: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the JSON files that are not the input's byte for byte, as relative path -> content, and remarks."""
    notes = []
    rewritten = dict(changed)
    for name, file in copies.items():
        if is_settings(name) and name not in changed:
            content = read_object(file.path)  # read even if it is dropped: a damaged file is refused
            if not (trust and file.path.is_relative_to(planned.donor.directory)):
                rewritten[name] = content
    for name, content in tuple(rewritten.items()):
        found = _names_code(content)
        # Python files are copied from the donor alone.
        is_donors = name not in copies or copies[name].path.is_relative_to(planned.donor.directory)
        if found and not (trust and name in changed and is_donors):
            rewritten[name] = _without_code(content)
            notes.append(
                f"{name}: {' and '.join(f'`{key}`' for key in found)} left out, since it points to Python files that "
                "are not copied; if no class of the library fits the model, merge with --trust-remote-code"
            )
        elif name not in changed:
            del rewritten[name]
    return rewritten, notes


def _names_code(content: object) -> list[str]:
    """Return which of the keys that name Python files occur in a JSON value, at any depth."""
    found: set[str] = set()
    level = [content]
    while level:
        value = level.pop()
        if isinstance(value, dict):
            found.update(key for key in _CODE_KEYS if key in value)
            level += value.values()
        elif isinstance(value, list):
            level += value
    return sorted(found)


def _without_code(content: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(content, dict):
        return {key: _without_code(value) for key, value in content.items() if key not in _CODE_KEYS}
    return [_without_code(value) for value in content] if isinstance(content, list) else content


def _texts(
    planned: PlannedMerge, side: SideFilePlan, card: Card, options: MergeOptions, *, plan_digest: str, version: str
) -> dict[str, str]:
    texts = {**side.texts, RECIPE: card.recipe}
    if options.write_model_card:
        texts[CARD] = card_text(card, planned, plan_digest=plan_digest, version=version)
    return texts


def _clear(partial: Path, *, keep: Iterable[str]) -> None:
    """Remove what an earlier attempt with other options may have left next to the weights."""
    kept = set(keep)
    kept |= {f"{name}.journal" for name in kept}  # what the engine says of each weight file, until the commit
    for path in sorted(partial.iterdir()):
        if path.name not in kept:
            if path.is_dir() and not path.is_symlink():
                import shutil

                shutil.rmtree(path)
            else:
                path.unlink()


def _target(partial: Path, name: str) -> Path:
    target = partial / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _copy(source: SideFile, target: Path) -> dict[str, Any]:
    """Copy a file, if it is still the one that was found; return its size and digest."""
    import hashlib

    digest = hashlib.sha256()
    with _open(source) as file:
        _check_same(source, os.fstat(file.fileno()))
        with target.open("xb") as copy:
            while data := file.read(_CHUNK):
                copy.write(data)
                digest.update(data)
        _check_same(source, os.fstat(file.fileno()))
    return {"size": source.size, "sha256": digest.hexdigest()}


def _head(source: SideFile) -> bytes:
    with _open(source) as file:
        return file.read(512)


def _open(source: SideFile) -> BufferedReader:
    # Without waiting for a writer, since a pipe may have replaced the file.
    return os.fdopen(os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _check_same(source: SideFile, found: os.stat_result) -> None:
    if (found.st_size, found.st_mtime_ns, found.st_ino) != source[1:]:
        raise MergeError(f"{source.path} changed while the merge ran; run the same merge again to take it as it is now")


def _write(target: Path, text: str) -> dict[str, Any]:
    data = _bytes(text)
    with target.open("xb") as file:
        file.write(data)
    return _digest(data)


def _bytes(text: str) -> bytes:
    # A name of a file that is no UTF-8 must not end a finished run: the escape is as good in JSON.
    return text.encode("utf-8", errors="backslashreplace")


def _digest(data: bytes) -> dict[str, Any]:
    import hashlib

    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
