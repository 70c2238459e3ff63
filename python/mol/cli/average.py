"""mol-merge average: the average of the last checkpoints of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mol.cli.group import Verb
from mol.cli.merge import merge_one
from mol.cli.options import PATH, merge_options, merging, option, speaking

if TYPE_CHECKING:
    from mol.cli.console import Console


class Counts(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Several numbers of checkpoints: `5,10,20`."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:  # noqa: ANN401
        """Read numbers with commas between them."""
        words = str(value).split(",")
        if not all(word.strip().isdecimal() and len(word) < 10 for word in words) or len(words) < 2:
            self.fail(f"{value!r} is not a list of two numbers or more, such as 5,10,20; --last has one", param, ctx)
        return [int(word) for word in words]


@click.command(
    "average",
    cls=Verb,
    help="""Write the average of the checkpoints RUN to OUT. RUN is a directory that holds checkpoint-N, step_N or
epoch-N, a pattern in quotes ('run/ckpt-*'), revisions of one repository (org/run@step1,step2 or 'org/run@step*'), or
several names. They are taken in the order of their steps; config and tokenizer are the last one's.""",
    options_metavar="[OPTIONS]",
)
@click.argument("words", metavar="RUN... OUT", nargs=-1, type=PATH)
@option("--last", type=click.IntRange(min=1), metavar="N", section="Average",
        help="Take the last N checkpoints.  [default: all]")  # fmt: skip
@option("--windows", type=Counts(), metavar="N,N,...", section="Average",
        help="Several averages: 5,10 writes that of the last 5 to OUT/last-5 and of 10 to OUT/last-10.")  # fmt: skip
@option("--weights", metavar="RULE", default="mean", section="Average",
        help="mean, ema:BETA, or as a learning rate decays: minus-sqrt, wsm:linear, wsm:cosine.  [default: mean]",
)  # fmt: skip
@merging
@speaking
def command(
    console: Console,
    words: tuple[Path, ...],
    last: int | None,
    windows: list[int] | None,
    weights: str,
    **given: Any,  # noqa: ANN401
) -> None:
    """Average checkpoints."""
    from mol.config.merge_config import MergeConfig

    options = merge_options(console, given)
    if len(words) < 2:
        raise click.UsageError("name the checkpoints, then OUT: `mol-merge average RUN OUT`")
    if last is not None and windows is not None:
        raise click.UsageError("--last takes one number and --windows several; give one of them")
    *run, out = words
    names = [name for word in run for name in _looked_up(str(word), given.get("token"))]
    recipe: dict[str, Any] = {"merge_method": "average", "checkpoints": names, "weights": weights}
    if len(names) == 1:
        recipe["checkpoints"] = names[0]
    if last is not None:
        recipe["last"] = last
    if windows is not None:
        recipe["sweep"] = {"last": windows}
    console.document(merge_one(console, Path("average"), MergeConfig.from_dict(recipe), out, options))


def _looked_up(text: str, token: str | None) -> list[str]:
    """Return the revisions of a repository that a pattern means, as names; any other text is what it is."""
    name, at, pattern = text.rpartition("@")
    if not at or "*" not in pattern or Path(text).parent.is_dir():
        return [text]
    from mol.io.hub import revisions_like

    return [f"{name}@{revision}" for revision in revisions_like(name, pattern, token=token)]
