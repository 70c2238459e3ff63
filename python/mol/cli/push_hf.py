"""mol-merge push-hf: upload a saved fusion to the Hub, as it is or as one static model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mol.cli.console import field
from mol.cli.group import Verb
from mol.cli.options import PATH, option, speaking
from mol.cli.push import uploading

if TYPE_CHECKING:
    from pathlib import Path

    from mol.cli.console import Console

TYPES = ("runtime", "fused", "bundle")
METHODS = ("weighted_average", "learned_weights", "best_expert")


@click.command(
    "push-hf",
    cls=Verb,
    help="Load the fusion that save_checkpoint or save_pretrained wrote, and upload it to the repository REPO "
    "(`user/name`) of the Hugging Face Hub: as a `runtime` (adapters and routers; models by name), as a `bundle` (with "
    "copies of what is used of them), or `fused` into one static model, which a merge makes where shapes are equal. "
    "It needs the extra: pip install 'mol-merge[fusion]'.",
)
@click.argument("repo", metavar="REPO")
@option(
    "--mol-checkpoint",
    "checkpoint",
    type=PATH,
    metavar="PATH",
    required=True,
    section="Fusion",
    help="What was saved: PATH, PATH.safetensors (also for PATH.pt), or a directory.",
)
@option(
    "--fusion-type",
    type=click.Choice(TYPES),
    default="runtime",
    section="Fusion",
    help="What to upload.  [default: runtime]",
)
@option(
    "--fusion-method",
    type=click.Choice(METHODS),
    default="weighted_average",
    section="Fusion",
    help="Shares of the experts in a fused model: equal, the routers' mean weights on the text, or all of the "
    "model with the lowest loss.  [default: weighted_average]",
)
@option(
    "--calibration",
    type=PATH,
    metavar="FILE",
    default=None,
    section="Fusion",
    help="Text in UTF-8, one text a line, to measure a fused model on.",
)
@option(
    "--drop-adapters",
    is_flag=True,
    section="Fusion",
    help="Leave out adapters that a fused model cannot have, instead of refusing them; its loss is in the card.",
)
@option(
    "--trust-remote-code/--no-trust-remote-code",
    default=False,
    section="Fusion",
    help="Run the Python files of the models; only if you trust them.",
)
@uploading
@speaking
def command(
    console: Console,
    repo: str,
    checkpoint: Path,
    fusion_type: Any,  # noqa: ANN401 - one of the words of its choice
    fusion_method: Any,  # noqa: ANN401
    calibration: Path | None,
    trust_remote_code: bool,
    **given: Any,  # noqa: ANN401
) -> int:
    """Upload one fusion."""
    texts = None if calibration is None else _texts(calibration)
    try:
        from mol import MoLRuntime

        options: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
        runtime = MoLRuntime.load_checkpoint(checkpoint, token=given["token"], **options)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    url = runtime.push_to_hf(repo, fusion_type, fusion_method=fusion_method, calibration=texts, **given)
    console.status(field("written" if given["dry_run"] else "uploaded", f"the fusion as {fusion_type}, for {repo}"))
    console.status(field("output" if given["dry_run"] else "url", url))
    console.document({
        "repo": repo, "fusion_type": fusion_type, "url": None if given["dry_run"] else url,
        "dry_run": url if given["dry_run"] else None,
    })  # fmt: skip
    return 0


def _texts(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise click.UsageError(f"--calibration {path} is no text in UTF-8: {error}") from error
    texts = [line for line in lines if line]
    if not texts:
        raise click.UsageError(f"--calibration {path} holds no text")
    return texts
