"""The options that verbs share: mol's own, mergekit's and the seed's; each works, or says in one line why not."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mol.cli.group import SAID, SectionOption
from mol.without_effect import WITHOUT_EFFECT as REASONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mol.cli.console import Console
    from mol.config.merge_config import MergeConfig
    from mol.merge.options import MergeOptions

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

LOG_LEVELS = ("debug", "info", "warning", "error")

# What takes a value, which `--help` calls so; all else are flags, and those but `--gpu-rich` have a `--no-`.
_TAKES = {"write_threads": "N", "lora_merge_cache": "PATH", "lora_merge_dtype": "DTYPE"}


def _declaration(name: str) -> str:
    word = name.replace("_", "-")
    return f"--{word}" if name in _TAKES or name == "gpu_rich" else f"--{word}/--no-{word}"


# Name of the parameter, its declaration, what it takes (None: a flag), and why it changes nothing here.
WITHOUT_EFFECT = tuple((name, _declaration(name), _TAKES.get(name), why) for name, why in REASONS.items())
# These are on here and cannot be turned off: asking for pickle files is refused, not noted.
SAFETENSORS_ONLY = (
    ("safe_serialization", "--safe-serialization/--no-safe-serialization"),
    ("use_safetensors", "--use-safetensors/--no-use-safetensors/--no-safetensors"),
)


class NamedPath(click.Path):
    """A path that is not empty: `""`, from a variable that is not set, would be the working directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """Refuse the empty name."""
        if value == "":
            self.fail("the name is empty", param, ctx)
        return super().convert(value, param, ctx)


class ThreadCount(click.IntRange):
    """A number of threads; one that no machine has a use for is lowered, with a note."""

    def __init__(self) -> None:
        """Read a number of threads, at least one."""
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401
        """Lower the number to the most that are started."""
        from mol.merge.options import most_threads

        threads: int = super().convert(value, param, ctx)
        most = most_threads()
        if threads > most and ctx is not None:
            ctx.obj.pending.append(f"--threads {_short(threads)} is more than this machine can use: {most} are started")
        return min(threads, most)


PATH = NamedPath(path_type=Path, readable=False)


def _short(number: int) -> str:
    return str(number) if number < 10**12 else "of more than 12 digits"


def option(*names: str, section: str | None = "Options", **kwargs: Any) -> Decorator:  # noqa: ANN401
    """Return `click.option` with the heading under which `--help` lists it."""
    return click.option(*names, cls=SectionOption, section=section, **kwargs)


def speaking(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--verbose`, `--quiet`, `--json` and `--log-level`, and pass the verb a console that follows them."""

    def verb(console: Console, /, **given: Any) -> Any:  # noqa: ANN401
        level = given.pop("log_level")
        console.configure(
            quiet=given.pop("quiet") or level == "error",
            verbose=max(given.pop("verbose"), int(level == "debug")),
            json=given.pop("json_"),
        )
        return function(console, **given)

    return _decorated(functools.update_wrapper(click.pass_obj(verb), function), [
        option("-v", "--verbose", count=True, section=SAID, help="Print more; list everything."),
        option("-q", "--quiet", is_flag=True, section=SAID, help="Print only errors and requested output."),
        option("--json", "json_", is_flag=True, section=SAID,
               help="One JSON document on stdout; all else on stderr."),
        option("--log-level", type=click.Choice(LOG_LEVELS, case_sensitive=False), hidden=True),
    ])  # fmt: skip


def _decorated(function: Callable[..., Any], decorators: Sequence[Decorator]) -> Callable[..., Any]:
    """Apply decorators so that `--help` lists them in the order given."""
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def models(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about where models come from and which are admitted."""
    return _decorated(function, [
        option("--trust-remote-code/--no-trust-remote-code", default=None, section="Models",
               help="Keep the donor's Python files in the result; only for models that you trust."),
        option("--allow-crimes/--no-allow-crimes", default=None, section="Models",
               help="Admit other architectures, heads or tokens where tensors have equal shapes."),
        option("--strict-tensors", is_flag=True, section="Models",
               help="Refuse tensors that only some models have, instead of copying or dropping them."),
        option("--expert-layout", type=click.Choice(["single", "fused"]), section="Models",
               help="Store experts in a tensor for each, or all in one; the donor's way by default."),
        option("--transformers-cache", "--cache-dir", "cache_dir", type=PATH, metavar="DIR",
               section="Models", help="The Hugging Face cache to use for models that are no local directory."),
    ])  # fmt: skip


def merging(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add every option of a merge: those with an effect, and those that only say why they have none."""
    decorators = [
        option("--overwrite", is_flag=True, section="Result",
               help="Replace OUT if it is there, once the new one is complete."),
        option("--overwrite-all", is_flag=True, section="Result",
               help="The same, deleting also files in OUT that are no model's; --overwrite lists them."),
        option("--discard-partial", is_flag=True, section="Result",
               help="Throw away what another, unfinished merge left at OUT.partial."),
        option("--out-shard-size", metavar="SIZE", default=None, section="Result",
               help="Most bytes in one file: 5B, 5GB, 500M.  [default: 5GB]"),
        option("--dtype", metavar="DTYPE", default=None, section="Result",
               help="The output's dtype, overriding the recipe's: float32, float16, bfloat16, float64."),
        option("--copy-tokenizer/--no-copy-tokenizer", default=True, section="Result",
               help="Copy the donor's tokenizer.  [default: yes]"),
        option("--write-model-card/--no-write-model-card", default=True, section="Result",
               help="Write README.md.  [default: yes]"),
        option("--digest", type=click.Choice(["blake3", "sha256"]), default=None, section="Result",
               help="Add a cryptographic digest of each tensor to the manifest."),
        option("--check-load", is_flag=True, section="Result",
               help="Load the result with transformers (names and shapes only) before it appears."),
        option("--allow-nonfinite", is_flag=True, section="Result",
               help="Do not stop at NaN, infinity or overflow."),
        option("--random-seed", "--seed", "seed", type=click.IntRange(min=0), metavar="N", default=None,
               section="Result", help="Seed of the methods that draw at random.  [default: 0]"),
        option("-j", "--threads", "--num-threads", "threads", type=ThreadCount(), metavar="N", default=None,
               section="Speed", help="Number of worker threads.  [default: all cores]"),
        option("--memory", metavar="SIZE", default=None, section="Speed",
               help="Memory that the tensors being merged may hold: 2GB.  [default: a quarter of what is available]"),
        option("--mmap/--no-mmap", default=None, section="Speed",
               help="Map the inputs into memory, or read them: a disk that fails is then an error and no SIGBUS.  "
               "[default: mapped, but read on network file systems and FUSE]"),
        option("--sync/--no-sync", "sync", default=None, section="Speed",
               help="Wait until the result is on the disk; with --no-sync a power cut may damage it.  [default: wait]"),
        option("--simd", type=click.Choice(["auto", "off", "avx2", "avx512"]), default="auto", hidden=True),
        option("--tile", type=click.IntRange(min=1), metavar="ELEMENTS", default=None, hidden=True),
        option("--device", metavar="DEVICE", default=None, section=None),
    ]  # fmt: skip
    for name, declaration, takes, _ in WITHOUT_EFFECT:
        decorators.append(option(declaration, name, default=None, metavar=takes, section=None,
                                 **({"is_flag": True} if takes is None else {})))  # fmt: skip
    for name, declaration in SAFETENSORS_ONLY:
        on, *off = declaration.split("/")
        decorators.append(option(f"{on}/{off[0]}", *(f" /{extra}" for extra in off[1:]), name, default=None,
                                 section=None))  # fmt: skip
    return _decorated(models(function), decorators)


def merge_options(console: Console, given: dict[str, Any]) -> MergeOptions:
    """Return the engine's options from the command's; those without effect are taken out, with a note.

    Raises:
        click.UsageError: An option that asks for what mol does not do, or cannot read.
    """
    from mol.merge.options import MergeOptions

    _say_without_effect(console, given)
    values = {name: value for name, value in given.items() if value is not None}
    for name in ("out_shard_size", "memory"):
        if name in values:
            values[name] = _size(name, values[name])
    return MergeOptions(**values)


def refuse_contradictions(recipe: MergeConfig, path: Path, given: dict[str, Any]) -> None:
    """Refuse a `--no-...` that the recipe overrules: what it asks for would not happen.

    Raises:
        click.UsageError: Naming the option and the recipe's key.
    """
    for name, granted in (("trust_remote_code", recipe.trust_remote_code), ("allow_crimes", recipe.allow_crimes)):
        if granted and given.get(name) is False:
            raise click.UsageError(
                f"--no-{name.replace('_', '-')} contradicts `{name}: true` in {path}; take the key out of the recipe"
            )


def _size(name: str, text: str) -> int:
    from mol.errors import ConfigError
    from mol.text import parse_size

    try:
        return parse_size(text)
    except ConfigError as error:
        raise click.UsageError(f"--{name.replace('_', '-')}: {error}") from error


def _say_without_effect(console: Console, given: dict[str, Any]) -> None:
    for name, declaration, _, reason in WITHOUT_EFFECT:
        wanted = given.pop(name, None)
        if wanted is not None:
            console.note(f"{declaration.split('/')[-1 if wanted is False else 0]} has no effect: {reason}")
    for name, declaration in SAFETENSORS_ONLY:
        wanted = given.pop(name, None)
        if wanted is False:
            raise click.UsageError(
                f"{declaration.split('/')[1]} is refused: pickle files can run code when loaded; mol writes SafeTensors"
            )
        if wanted is True:
            console.note(f"{declaration.split('/')[0]} has no effect: SafeTensors is all that mol writes")
    if given.get("sync"):
        console.note("--sync has no effect: a merge waits for the disk unless --no-sync is given")
    device = given.pop("device", None)
    if device is not None and device != "cpu":
        kind = device.partition(":")[0]
        if kind not in ("auto", "cuda", "mps", "xpu", "rocm"):
            raise click.UsageError(f"--device {device!r} is no device; use cpu, cuda or auto")
        console.note(f"--device {device} has no effect: merges run on the CPU, at the speed of the disk")
