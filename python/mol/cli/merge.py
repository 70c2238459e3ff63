"""mol-merge merge, the default verb: run recipes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mol.cli import units
from mol.cli.errors import describe, error_document, stop_document
from mol.cli.group import Verb
from mol.cli.options import PATH, merge_options, merging, option, refuse_contradictions, speaking
from mol.cli.recipes import STDIN, read_recipe, refuse_swapped
from mol.cli.signals import kind_of
from mol.errors import MolError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.cli.console import Console
    from mol.config.merge_config import MergeConfig
    from mol.merge.options import MergeOptions


@click.command(
    "merge",
    cls=Verb,
    help="""Merge the models that the recipe CONFIG (`-`: standard input) names into the directory OUT, which may be
left out if the recipe has `output_path`. Several recipes go into --out-dir, each under its own name. What was
interrupted resumes when the same command is run again; of several recipes those whose result is there are kept.""",
    options_metavar="[OPTIONS]",
)
@click.argument("words", metavar="CONFIG... [OUT]", nargs=-1, type=PATH)
@option("--out-dir", type=PATH, metavar="DIR", section="Result",
        help="Where several recipes go: NAME.yml into DIR/NAME.")  # fmt: skip
@merging
@speaking
def command(console: Console, words: tuple[Path, ...], out_dir: Path | None, **given: Any) -> int:  # noqa: ANN401
    """Run one recipe, or several one after the other."""
    options = merge_options(console, given)
    pairs = _pair(words, out_dir)
    recipes = _load([recipe for recipe, _ in pairs])
    for (path, _), recipe in zip(pairs, recipes, strict=True):
        refuse_contradictions(recipe, path, given)
    jobs = [(path, recipe, _output(path, recipe, out)) for (path, out), recipe in zip(pairs, recipes, strict=True)]
    if out_dir is None:
        ((path, recipe, out),) = jobs
        console.document(merge_one(console, path, recipe, out, options))
        return 0
    return _merge_all(console, jobs, options)


def _pair(words: tuple[Path, ...], out_dir: Path | None) -> list[tuple[Path, Path | None]]:
    """Separate the recipes from OUT among the words of the command."""
    if not words:
        raise click.UsageError("no recipe is named; the command is `mol-merge CONFIG OUT`")
    if out_dir is not None:
        if STDIN in words:
            raise click.UsageError("a recipe from standard input has no name; give OUT instead of --out-dir")
        outs = [out_dir / word.stem for word in words]
        twice = sorted({str(out) for out in outs if outs.count(out) > 1})
        if twice:
            raise click.UsageError(f"two recipes would go to {twice[0]}; give their files different names")
        return list(zip(words, outs, strict=True))
    if len(words) > 2:
        raise click.UsageError("several recipes need --out-dir DIR; one recipe takes one OUT")
    if len(words) == 2:
        refuse_swapped(words[0], words[1])
    if len(words) == 2 and words[1].is_file():
        hint = "to merge both recipes give --out-dir DIR" if words[1].suffix in (".yml", ".yaml") else "name another"
        raise click.UsageError(f"OUT, {words[1]}, is a file; {hint}")
    return [(words[0], words[1] if len(words) == 2 else None)]


def _load(paths: list[Path]) -> list[MergeConfig]:
    """Read every recipe before the first is run, and report what is wrong with any of them."""
    from mol.errors import ConfigError

    if len(paths) == 1:
        return [read_recipe(paths[0])]
    recipes: list[MergeConfig] = []
    problems: list[str] = []
    for path in paths:
        try:
            recipes.append(read_recipe(path))
        except ConfigError as error:
            problems.extend(error.problems or (str(error),))
    if problems:
        raise ConfigError.listing("nothing was merged, since not every recipe can be", problems)
    return recipes


def _output(path: Path, recipe: MergeConfig, out: Path | None) -> Path:
    if out is not None:
        return out
    if not recipe.output_path:
        raise click.UsageError(f"OUT is missing: name the directory after {path}, or give the recipe an output_path")
    return Path(recipe.output_path)


def merge_one(
    console: Console,
    path: Path,
    recipe: MergeConfig,
    out: Path,
    options: MergeOptions,
    *,
    earlier: Sequence[dict[str, object]] | None = None,
) -> dict[str, object]:
    """Run one recipe and say how it went; interrupted, say how to go on.

    Args:
        console: where to.
        path: of the recipe.
        recipe: what to run.
        out: the output directory.
        options: see MergeOptions.
        earlier: of a series of recipes the documents of those before; a result that is there already is kept then.
    """
    from mol.cli.progress import Progress
    from mol.cli.report import merge_document, merge_text
    from mol.config.model_reference import expanded
    from mol.io.layout import MANIFEST
    from mol.merge.finished import finished_merge
    from mol.merge.output import partial_of
    from mol.merge.run import run_merge

    started, begun = time.monotonic(), time.time()
    keeps = earlier is not None and not (options.overwrite or options.overwrite_all)
    try:
        report = finished_merge(recipe, out, options) if keeps else None
        if report is None:
            with Progress(console, "merging") as progress:
                report = run_merge(recipe, out, on_progress=progress, options=options)
    except KeyboardInterrupt as stop:
        word, code = kind_of(stop)
        whole = Path(os.path.realpath(expanded(str(out))))
        partial, manifest = partial_of(whole), whole / MANIFEST
        if partial.exists():
            how = f"; {partial} keeps what is done: run the same command again to resume, or delete it to give up"
        elif manifest.exists() and manifest.stat().st_mtime >= begun:
            how = f" after {out} was complete"
        else:
            how = " before anything was written"
        console.error(word + how)
        document = stop_document(word + how)
        console.document(document if earlier is None else [*earlier, {"recipe": str(path), **document}])
        raise click.exceptions.Exit(code) from None
    span = time.monotonic() - started
    for line in merge_text(console, report, out, span):
        console.status(line)
    return merge_document(report, path, span)


def _merge_all(console: Console, jobs: list[tuple[Path, MergeConfig, Path]], options: MergeOptions) -> int:
    """Run recipes in order; one that fails does not keep the rest from running."""
    documents: list[dict[str, object]] = []
    failed = []
    for number, (path, recipe, out) in enumerate(jobs, start=1):
        console.status(f"{'' if number == 1 else chr(10)}{path} ({number} of {len(jobs)})")
        try:
            documents.append(merge_one(console, path, recipe, out, options, earlier=documents))
        except (MolError, OSError) as error:
            failed.append(str(path))
            console.error(describe(error))
            documents.append({"recipe": str(path), "error": error_document(error, describe(error))})
    console.document(documents)
    if failed:
        console.error(f"{len(failed)} of {units.amount(len(jobs), 'recipe')} failed: {', '.join(failed)}")
    return int(bool(failed))
