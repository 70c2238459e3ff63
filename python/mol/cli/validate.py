"""mol-merge validate: whether recipes can be carried out, as far as that can be checked without a download."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mol.cli import units
from mol.cli.console import width_of, wrap
from mol.cli.errors import describe
from mol.cli.group import Verb
from mol.cli.options import PATH, merge_options, models, option, speaking
from mol.cli.recipes import read_recipe
from mol.errors import MolError

if TYPE_CHECKING:
    from mol.cli.console import Console
    from mol.config.merge_config import MergeConfig, ModelReference
    from mol.merge.options import MergeOptions
    from mol.merge.planned import PlannedMerge


@click.command(
    "validate",
    cls=Verb,
    help="Check each recipe CONFIG. Where all its models are at hand, on this disk or in the Hugging Face cache, "
    "tensor names, shapes and dtypes are checked too. Nothing is downloaded; what was not checked is listed.",
)
@click.argument("configs", metavar="CONFIG...", nargs=-1, required=True, type=PATH)
@option("--strict", is_flag=True, help="Fail where models are not at hand, too.")
@models
@speaking
def command(console: Console, configs: tuple[Path, ...], strict: bool, **given: Any) -> int:  # noqa: ANN401
    """Check one recipe after the other."""
    options = merge_options(console, given)
    results = [_validate(console, path, options, strict=strict) for path in configs]
    console.document(results)
    return int(not all(result["valid"] for result in results))


def _validate(console: Console, path: Path, options: MergeOptions, *, strict: bool) -> dict[str, object]:
    try:
        recipe = read_recipe(path)
        missing, planned = _check_models(recipe, options)
    except (MolError, OSError) as error:
        text = describe(error)
        console.error(text if str(path) in text.partition("\n")[0] else f"{path}: {text}")
        problems = list(error.problems) if isinstance(error, MolError) and error.problems else [describe(error)]
        return {"recipe": str(path), "valid": False, "problems": problems}
    tensors = 0 if planned is None else len(planned.plan.tensors)
    notes, warnings = (recipe.notes, recipe.warnings) if planned is None else (planned.notes, planned.warnings)
    names = [str(reference) for reference in missing]
    checked = "the recipe"
    if tensors:
        checked += f", and names, shapes and dtypes of {units.amount(tensors, 'tensor')} to write"
    lines = [f"{path}: valid{', as far as can be checked here' if names else ''}", f"  checked: {checked}"]
    if names:
        lines.append(
            f"  not checked: {'its tokenizer' if tensors else 'tensors'}, since these are neither a directory here "
            f"nor in the cache: {', '.join(names)}"
        )
    for line in lines:
        console.status("\n".join(wrap(line, width_of(sys.stdout), hang=2)))
    if strict and names:
        console.error(f"{path}: models are not at hand, and --strict requires them: {', '.join(names)}")
    for warning in warnings:
        console.warning(f"{path}: {warning}")
    for note in notes:
        console.note(f"{path}: {note}")
    return {
        "recipe": str(path), "valid": not (strict and names), "problems": [], "method": recipe.method,
        "tensors_checked": tensors, "not_at_hand": names, "notes": list(notes),
        "warnings": list(warnings),
    }  # fmt: skip


def _check_models(recipe: MergeConfig, options: MergeOptions) -> tuple[list[ModelReference], PlannedMerge | None]:
    """Open what is at hand; with all of it, plan the merge.

    Returns:
        The models that would have to be downloaded first, and the plan if none has to be.
    """
    from mol.cli.local import find, find_adapter
    from mol.config.merge_config import ModelReference

    cache = None if options.cache_dir is None else Path(options.cache_dir)
    found = {reference: find(reference, cache) for reference in recipe.inputs()}
    missing = [reference for reference, checkpoint in found.items() if checkpoint is None]
    if recipe.stages:
        from mol.merge.opening import adapted_steps

        on_steps = dict.fromkeys(reference.adapter for reference in adapted_steps(recipe))
        missing += [adapter for adapter in on_steps if adapter is not None and find_adapter(adapter, cache) is None]
    if missing:
        return missing, None
    from mol.merge.auto_weights import evenly
    from mol.merge.planner import plan_merge
    from mol.merge.run import plan_recipe
    from mol.structure.heads import find_own_heads
    from mol.structure.layers import find_structures

    recipe = evenly(recipe)
    at_hand = {reference: checkpoint for reference, checkpoint in found.items() if checkpoint is not None}
    tokenizer = recipe.tokenizer_source
    known = isinstance(tokenizer, ModelReference) and (tokenizer in at_hand or recipe.is_stage(tokenizer))
    if isinstance(tokenizer, ModelReference) and not known and not Path(tokenizer.name).is_dir():
        structures = find_structures(at_hand)
        own_heads = find_own_heads(at_hand, structures)
        return [tokenizer], plan_merge(recipe, at_hand, options=options, own_heads=own_heads, structures=structures)
    return [], plan_recipe(recipe, options, checkpoints=at_hand)
