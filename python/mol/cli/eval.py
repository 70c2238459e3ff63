"""mol-merge eval: bits per byte and perplexity of a language model, by domain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mol.cli.group import Verb
from mol.cli.options import PATH, option, speaking
from mol.cli.tables import table

if TYPE_CHECKING:
    from mol.cli.console import Console

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    "eval",
    cls=Verb,
    help="Measure the language model MODEL, a directory (a merge, or a saved fusion), the file of a saved runtime or a "
    "model of the Hugging Face Hub, on FILES: bits per byte, by which models of different tokenizers can be compared, "
    "and perplexity per token. Each file is a domain and one document; of a .jsonl file each line is a document, an "
    "object with a `text`. Documents begin with the tokenizer's BOS (EOS where it has none); longer ones than the "
    "model's context are read in windows. It needs the extra: pip install 'mol-merge[fusion]'.",
)
@click.argument("model", metavar="MODEL")
@click.argument("more", metavar="", nargs=-1, type=_FILE)
@option("--texts", type=_FILE, metavar="FILES...", multiple=True, required=True, section="Texts",
        help="Files in UTF-8, each a domain of its name.")  # fmt: skip
@option("--max-length", type=click.IntRange(min=1), metavar="N", section="Texts",
        help="Tokens read at once.  [default: the model's context, at most 2048]")  # fmt: skip
@option("--stride", type=click.IntRange(min=1), metavar="N", section="Texts",
        help="Tokens that each window of a long document scores after the first.  [default: half]")  # fmt: skip
@option("--batch-size", type=click.IntRange(min=1), metavar="N", default=8, section="Model",
        help="Windows per forward.  [default: 8]")  # fmt: skip
@option("--device", metavar="DEVICE", section="Model", help="Such as cuda:0.  [default: a GPU if there is one]")
@option("--dtype", metavar="DTYPE", section="Model", help="float32, bfloat16, float16.  [default: as stored]")
@option("--trust-remote-code/--no-trust-remote-code", default=False, section="Model",
        help="Run the Python files of the model; only if you trust them.")  # fmt: skip
@option("--transformers-cache", "--cache-dir", "cache_dir", type=PATH, metavar="DIR", section="Model",
        help="The Hugging Face cache to use for a model that is no local directory.")  # fmt: skip
@speaking
def command(
    console: Console,
    model: str,
    more: tuple[Path, ...],
    texts: tuple[Path, ...],
    **options: Any,  # noqa: ANN401 - those of mol.evaluate
) -> None:
    """Measure one model."""
    try:
        from mol import evaluate
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    found = evaluate(model, [*texts, *more], progress=False if console.quiet else None, **options)
    console.document(found.to_dict())
    if not console.json:
        console.result("\n".join(table(found.heads, found.rows(), right=frozenset(range(1, 6)))))
