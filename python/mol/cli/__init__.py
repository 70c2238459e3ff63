"""mol-merge: the command. Parsing loads click and the verb alone; a verb loads what it needs when it runs."""

from __future__ import annotations

import atexit
import gc
import logging
import sys
from typing import TYPE_CHECKING

import click

from mol.cli.console import Console, LogHandler, width_of
from mol.cli.errors import describe, error_document, stop_document
from mol.cli.group import VerbGroup, usage_text
from mol.cli.signals import interruptible, kind_of
from mol.cli.streams import guarded_streams, printable
from mol.errors import InternalError, MolError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

DONE, FAILED, USAGE = 0, 1, 2

HELP = """Merge language model checkpoints, natively and in constant memory.

CONFIG is a mergekit recipe (YAML); OUT is the directory to write. Without a
verb it merges. Options may stand anywhere. A recipe that has the name of a verb
is given as ./NAME.

\b
mol-merge config.yml ./merged
mol-merge plan config.yml
mol-merge merge a.yml b.yml --out-dir ./results
"""

# In the order of the help, which so loads none of them.
VERBS = {
    "merge": "Merge by a recipe; the default verb.",
    "average": "Average the last checkpoints of a run.",
    "plan": "Show what a merge would do and cost; writes nothing.",
    "validate": "Check recipes, and shapes where the models are at hand.",
    "methods": "List the merge methods, or describe one.",
    "examples": "Write example recipes.",
    "inspect": "List a checkpoint's tensors, sizes and architecture.",
    "diff": "Compare two checkpoints, tensor by tensor and layer by layer.",
    "verify": "Check a result against its manifest; names damaged tensors and files.",
    "eval": "Measure bits per byte and perplexity of a model on texts.",
    "push": "Upload a finished directory to the Hugging Face Hub.",
    "push-hf": "Upload a saved fusion, or one static model made of it.",
}


def _version(ctx: click.Context, _: click.Parameter, requested: bool) -> None:
    if requested:
        import mol

        click.echo(f"mol-merge {mol.__version__}")
        ctx.exit()


cli = VerbGroup(
    name="mol-merge",
    help=HELP,
    epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted, 143 terminated.",
    verbs=VERBS,
    params=[
        click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version,
                     help="Print the version."),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)  # fmt: skip


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        args: The arguments; those of the process if None.

    Returns:
        The exit code: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted, 143 terminated.
    """
    # The interpreter looks for garbage when it ends, which takes a tenth of the time of a short command.
    atexit.register(_end_quickly)
    with guarded_streams() as out, interruptible():
        console = Console()
        code = _main(console, list(sys.argv[1:] if args is None else args))
        lost = out.failure
        if lost is not None and not isinstance(lost, BrokenPipeError):  # `head` closing the pipe is no failure
            console.error(f"standard output: {lost.strerror or lost}; not all that was to be printed arrived")
            code = code or FAILED
    return code


def _main(console: Console, args: list[str]) -> int:
    handler = LogHandler(console)
    logger = logging.getLogger("mol")
    logger.addHandler(handler)
    hook, sys.excepthook = sys.excepthook, _Bug(console)
    # A plan is a million small objects without a cycle; looking for some took a fifth of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        code = _run(console, args)
        sys.excepthook = hook
    finally:
        logger.removeHandler(handler)
        if collecting:
            gc.enable()
    return code


def _run(console: Console, args: list[str]) -> int:
    if not args:
        with click.Context(cli, info_name="mol-merge", **cli.context_settings) as ctx:
            click.echo(cli.get_help(ctx), err=True)
        return USAGE
    console.json = "--json" in args  # until the verb has read its options
    try:
        code = cli.main(args, prog_name="mol-merge", standalone_mode=False, obj=console)
    except click.UsageError as error:
        console.error(text := usage_text(error, width_of(sys.stderr)))
        console.document({"error": {"type": "UsageError", "message": text, "problems": []}})
        return USAGE
    except (click.Abort, KeyboardInterrupt) as stop:
        word, code = kind_of(stop.__cause__ or stop)  # click makes an Abort of it
        console.error(word)
        console.document(stop_document(word))
        return code
    except (MolError, OSError, click.ClickException) as error:
        refuse(console, error)
        return FAILED
    return code if isinstance(code, int) else DONE


def refuse(console: Console, error: MolError | OSError | click.ClickException) -> None:
    """Report why the command did not do what was requested; with `--json` as the document too."""
    text = describe(error)
    if isinstance(error, InternalError):
        text += f"\n{_where_to_report()}"
        if console.verbose:
            _trace(error)
    console.error(text)
    console.document({"error": error_document(error, text)})


class _Bug:
    """Reports an unexpected exception as a bug of mol, and where to report it; the traceback only with -v.

    Running out of memory is no bug.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if self.console.verbose:
            _trace(error)
        if issubclass(kind, MemoryError):
            text = "out of memory: free some, or raise the limit that is set for the process (`ulimit -a`)"
        else:
            text = f"{kind.__name__}: {error}\n{_where_to_report()}"
        self.console.error(text)
        self.console.document({"error": {"type": kind.__name__, "message": text, "problems": []}})


def _trace(error: BaseException) -> None:
    from traceback import format_exception

    sys.stderr.write(printable("".join(format_exception(error))))


def _where_to_report() -> str:
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = dict(line.split(", ", 1) for line in metadata("mol-merge").get_all("Project-URL", []))
    except PackageNotFoundError:
        urls = {}
    where = next((urls[name] for name in ("Issues", "Repository", "Homepage") if name in urls), "the issue tracker")
    return (
        f"This is a bug in mol. Please report it to {where}, with the recipe and the output of this command with "
        "--verbose."
    )


def _end_quickly() -> None:
    if "torch" not in sys.modules:  # which complains of what is not collected
        gc.freeze()
