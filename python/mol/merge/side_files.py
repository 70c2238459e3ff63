"""The files beside a merge's weights: which are copied, which are written anew, and the card and manifest."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mol.config.methods import METHODS
from mol.io.hub import hub_origin
from mol.io.json_file import read_object
from mol.io.model_card import CardSource, model_card, read_license
from mol.io.side_files import list_files, sort_side_files
from mol.merge.labels import Labels
from mol.merge.manifest import MANIFEST_NAME, build_manifest, manifest_text
from mol.merge.output import may
from mol.merge.special_tokens import follow_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from mol.config import MergeConfig
    from mol.merge.options import MergeOptions
    from mol.merge.planner import PlannedMerge

_ENGINE_FILES: Final = frozenset({"journal", "model.safetensors.index.json"})
_CHAT_TEMPLATE: Final = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class SideFilePlan:
    """What is written beside the weights, apart from card, manifest and recipe.

    Attributes:
        copies: relative path -> the input's file.
        texts: relative path -> content.
        notes: what was left out or changed, one line each.
        warnings: what the user should know about, one line each.
    """

    copies: Mapping[str, Path]
    texts: Mapping[str, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def plan_side_files(planned: PlannedMerge, tokenizer: Path, options: MergeOptions) -> SideFilePlan:
    """Decide which side files the output gets; reads only small files.

    A merge never runs code, so an input that brings some is merged, but without `trust_remote_code` neither the
    code nor what points to it (`auto_map`) goes into the output: it loads with the library's own classes or not at
    all, and never runs what nobody vouched for.

    Args:
        planned: the merge; all but the tokenizer comes from its donor.
        tokenizer: directory whose tokenizer the output gets.
        options: see MergeOptions.

    Raises:
        OSError: a file cannot be read.
        CheckpointError: a JSON file is damaged.
    """
    donor, trust = planned.donor.directory, options.trust_remote_code or planned.config.trust_remote_code
    side = sort_side_files(list_files(donor))
    copies = {name: donor / name for name in side.other}
    notes, warnings = [], []
    if options.copy_tokenizer:
        names = side.tokenizer if tokenizer == donor else sort_side_files(list_files(tokenizer)).tokenizer
        copies |= {name: tokenizer / name for name in names}
    if trust:
        copies |= {name: donor / name for name in side.code}
        if side.code:
            warnings.append(f"trust_remote_code: Python files are copied unread: {', '.join(side.code)}")
    elif side.code:
        notes.append(f"Python files not copied without trust_remote_code: {', '.join(side.code)}")
    unreadable = [str(path) for path in copies.values() if not may(path, os.R_OK)]
    if unreadable:
        more = f", nor {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        raise PermissionError(errno.EACCES, f"no right to read it{more}", unreadable[0])
    merged = {file.path.name for file in planned.donor.files} | _ENGINE_FILES
    left_out = [name for name in side.left_out if name not in merged]
    if left_out:
        notes.append(f"not copied, since they hold other weights: {', '.join(left_out)}")

    tokens = follow_tokenizer(planned, tokenizer, copies_tokenizer=options.copy_tokenizer)
    rewritten, remarks = _rewritten(planned, copies, {"config.json": dict(tokens.config), **tokens.files}, trust=trust)
    notes += [*tokens.notes, *remarks]
    warnings += tokens.warnings
    texts = {}
    template = planned.config.chat_template
    if template == "auto":
        template, remark = _most_common_template(planned)
        notes.append(remark)
    if template is not None:
        texts[_CHAT_TEMPLATE] = template
        if "tokenizer_config.json" in copies:
            # Readers before chat_template.jinja look here.
            settings = rewritten.setdefault("tokenizer_config.json", read_object(copies["tokenizer_config.json"]))
            settings["chat_template"] = template
        copies.pop("chat_template.json", None)
    texts |= {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in rewritten.items()}
    return SideFilePlan(
        {name: path for name, path in copies.items() if name not in texts}, texts, tuple(notes), tuple(warnings)
    )


def _rewritten(
    planned: PlannedMerge, copies: Mapping[str, Path], changed: Mapping[str, dict[str, Any]], *, trust: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the JSON files that are not the input's byte for byte, as relative path -> content, and remarks."""
    notes = []
    rewritten = dict(changed)
    for name, path in copies.items():
        keeps_code = trust and path.is_relative_to(planned.donor.directory)
        if (
            name not in changed
            and name.endswith("config.json")
            and not keeps_code
            and b'"auto_map"' in path.read_bytes()
        ):
            rewritten[name] = read_object(path)
    for name, content in rewritten.items():
        if "auto_map" in content and not (trust and name == "config.json"):
            del content["auto_map"]
            notes.append(
                f"{name}: `auto_map` left out, since it points to Python files that are not copied; if no class of "
                "the library fits the model, merge with --trust-remote-code"
            )
    return rewritten, notes


def write_side_files(
    partial: Path,
    planned: PlannedMerge,
    side: SideFilePlan,
    executed: Mapping[str, Any],
    *,
    options: MergeOptions,
    version: str,
) -> None:
    """Complete the directory that the engine left with everything but weights.

    Raises:
        OSError: a file could not be read or written.
    """
    _clear(partial, keep=_ENGINE_FILES | set(planned.plan.outputs))
    for name, source in side.copies.items():
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except OSError as error:  # names the source whichever of the two it is about
            raise OSError(error.errno, f"copying {source}: {error.strerror}", str(target)) from error
    config = planned.config
    recipe = config.source_text if config.source_text is not None else config.to_yaml()
    places = [str(place) for place in (config.output_path, config.tokenizer_source) if place is not None]
    labels = Labels(planned.sources, places)
    manifest = build_manifest(planned, executed, recipe=recipe, labels=labels, version=version)
    texts = {**side.texts, "mergekit_config.yml": recipe, MANIFEST_NAME: manifest_text(manifest)}
    if options.write_model_card:
        texts["README.md"] = _card(planned, labels, manifest)
    for name, text in texts.items():
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of a file that is no UTF-8 must not end a finished run: the escape is as good in JSON.
        target.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def _card(planned: PlannedMerge, labels: Labels, manifest: Mapping[str, Any]) -> str:
    method = METHODS[planned.config.method]
    sources = [
        CardSource(
            name=labels.of(source),
            on_hub=hub_origin(source.directory) is not None,
            revision=source.revision,
            license=read_license(source.directory),
            role=_role(planned.config, source.name),
        )
        for source in planned.sources
    ]
    return model_card(
        method=method.name,
        method_title=method.title,
        method_url=method.url,
        sources=sources,
        recipe=manifest["recipe"],
        dtypes=sorted({task.dtype for task in planned.plan.tasks}),
        tensors=planned.methods,
        sections={
            "Notes": manifest["notes"],
            "Copied from one source": manifest["copied"],
            "Not in this model": manifest["dropped"],
        },
        plan_digest=manifest["plan"],
        version=manifest["mol"],
    )


def _most_common_template(planned: PlannedMerge) -> tuple[str | None, str]:
    """Give the chat template that most inputs have, the first of equals, and a remark about it."""
    found = {source.name: template for source in planned.sources if (template := _chat_template(source.directory))}
    if not found:
        return None, "chat_template: auto finds none: no input has a chat template"
    ((template, count),) = Counter(found.values()).most_common(1)
    owner = next(name for name, text in found.items() if text == template)
    return template, f"chat_template: auto takes that of {owner}, which {count} of {len(planned.sources)} inputs have"


def _chat_template(directory: Path) -> str | None:
    path = directory / _CHAT_TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    settings = directory / "tokenizer_config.json"
    template = read_object(settings).get("chat_template") if settings.is_file() else None
    return template if isinstance(template, str) else None


def _role(config: MergeConfig, name: str) -> str:
    bases = {config.base_model, *(part.base_model for part in config.slices or ())}
    return "base" if any(base is not None and name in (base.name, str(base)) for base in bases) else ""


def _clear(partial: Path, *, keep: Iterable[str]) -> None:
    """Remove what an earlier attempt with other options may have left beside the weights."""
    kept = set(keep)
    for path in sorted(partial.iterdir()):
        if path.name not in kept:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
