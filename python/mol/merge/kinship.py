"""Checks that the inputs are of one kind: one architecture, one way to store experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mol.regex import regex
from mol.structure.model_config import text_sections

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping, Sequence

    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Model

_SINGLE: Final = regex(r"(?:^|\.)experts\.[0-9]+\.")
_FUSED: Final = regex(r"(?:^|\.)experts\.[a-z_]+(?:\.weight)?$")


def check_kinship(
    models: Sequence[Model],
    problems: Mismatches,
    notes: dict[str, None],
    warnings: dict[str, None],
    *,
    allowed: bool,
) -> None:
    """Refuse models of different architectures, and experts that are stored in different layouts.

    A model of texts, and one of images and texts around a language model of that type, are no strangers.

    Args:
        models: the donor, then the others.
        problems: where everything that does not fit goes.
        notes: what was ignored.
        warnings: what may well surprise.
        allowed: different architectures are mixed as far as names and shapes allow.
    """
    types = {model.label: model.checkpoint.config.get("model_type") for model in models}
    known = [model for model in models if types[model.label] is not None]
    if not all(_are_kin(known[0].checkpoint.config, model.checkpoint.config) for model in known[1:]):
        listed = ", ".join(f"{model.label} ({types[model.label]})" for model in known)
        if allowed:
            warnings[f"different architectures are mixed, as allowed: {listed}"] = None
        else:
            problems.add_architectures(
                f"different architectures: {listed}; `allow_crimes` admits them where all shapes are equal", models
            )
    for label in (label for label, kind in types.items() if kind is None):
        notes[f"config.json of {label} has no model_type: it is taken for the donor's"] = None
    _check_experts(models, problems)


def _are_kin(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    ours, theirs = ([section.get("model_type") for section in text_sections(config)] for config in (a, b))
    return ours[0] in theirs or theirs[0] in ours


def _check_experts(models: Sequence[Model], problems: Mismatches) -> None:
    """Refuse experts in two layouts that could not be brought into one: some are missing, or have further tensors."""
    single = {model.label: name for model in models if (name := _example(model, _SINGLE)) is not None}
    rest = [model for model in models if model.label not in single] if single else []
    fused = {model.label: name for model in rest if (name := _example(model, _FUSED)) is not None}
    if fused:
        one, other = next(iter(single.values())), next(iter(fused.values()))
        problems.add(
            f"experts are stored in two layouts: one by one in {', '.join(single)} (`{one}`), fused in "
            f"{', '.join(fused)} (`{other}`); these cannot be brought into one, so save all models the same way, with "
            "one version of transformers"
        )


def _example(model: Model, form: re.Pattern[str]) -> str | None:
    """Name a tensor of an expert that is stored in a form."""
    for stack in model.structure.stacks:
        for suffixes in stack.layers:
            for suffix in suffixes:
                if "experts." in suffix and form.search(suffix):
                    return f"{stack.prefix}.*.{suffix}" if stack.prefix else f"*.{suffix}"
    return None
