"""mol-merge plan: what a merge would do, before it is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mol.cli.errors import describe
from mol.cli.group import Verb
from mol.cli.options import PATH, merge_options, merging, refuse_contradictions, speaking
from mol.cli.recipes import read_recipe, refuse_swapped
from mol.errors import MolError

if TYPE_CHECKING:
    from mol.cli.console import Console
    from mol.merge.options import MergeOptions
    from mol.merge.planned import PlannedMerge


@click.command(
    "plan",
    cls=Verb,
    help="Show what merging CONFIG would do and cost: methods, copies, drops, alignments, bytes, memory. Reads headers "
    "only, heads that config.json calls tied, and all weights once where the recipe takes weights from norms; writes "
    "nothing. A model on the Hub that is not in the cache is "
    "downloaded first.",
)
@click.argument("config", type=PATH)
@click.argument("out", type=PATH, required=False)
@merging
@speaking
def command(console: Console, config: Path, out: Path | None, **given: Any) -> None:  # noqa: ANN401
    """Show one plan."""
    options = merge_options(console, given)
    if out is not None:
        refuse_swapped(config, out)

    from mol.cli.report import plan_document, plan_lines
    from mol.merge.run import plan_recipe

    recipe = read_recipe(config)
    refuse_contradictions(recipe, config, given)
    planned = plan_recipe(recipe, options)
    if out is None and recipe.output_path:
        out = Path(recipe.output_path)
    if out is not None and (problem := _trouble(planned, out, options)):
        planned = planned._replace(warnings=(*planned.warnings, problem))
    text = planned.plan.to_json()
    if console.json:
        # `plan` is exactly what the engine gets.
        console.document(plan_document(planned, text, config, out, options), plan=text)
        return
    for line in plan_lines(console, planned, text, config, out, options):
        console.result(line)


def _trouble(planned: PlannedMerge, out: Path, options: MergeOptions) -> str | None:
    """Return why a merge into OUT would be refused, None if it would not."""
    from mol.merge.output import check_output

    try:
        inputs = [source.directory for source in planned.sources]
        check_output(out, overwrite=options.overwrite, overwrite_all=options.overwrite_all, inputs=inputs)
    except MolError as error:
        head, *_ = str(error).splitlines()
        return " ".join((head, "; ".join(error.problems))).rstrip()
    except OSError as error:
        return describe(error)
    return None
