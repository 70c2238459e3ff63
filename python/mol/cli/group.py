"""`mol-merge` as a click group: `merge` is the default verb, and options may stand anywhere."""

from __future__ import annotations

import re
from collections import UserDict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mol.cli.console import Console, wrap
from mol.regex import regex
from mol.text import closest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEFAULT_VERB = "merge"
SAID = "Output"
LATER_VERBS = (
    "evolve", "extract-lora", "layershuffle", "moe", "multi", "pytorch", "tokensurgeon",  # of mergekit
)  # fmt: skip
_UNIT = regex(r"[KMGTB]|[KMGT]i?B|bytes?", re.IGNORECASE)
_GROUP_OPTIONS = ("--help", "-h", "--version")


class SectionOption(click.Option):
    """An option that `--help` lists under a heading, or, without one, only by name among those without effect."""

    def __init__(self, *args: Any, section: str | None = "Options", **kwargs: Any) -> None:  # noqa: ANN401
        """Take what `click.Option` takes, and the heading."""
        super().__init__(*args, **{"hidden": section is None, **kwargs})
        self.section = section


class Verb(click.Command):
    """One verb, its options grouped by what they are about."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each heading with its options, then the names of those that are accepted without effect."""
        sections: dict[str, list[tuple[str, str]]] = {}
        without_effect: list[str] = []
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Argument):
                continue
            if isinstance(parameter, SectionOption) and parameter.section is None:
                without_effect.extend(name for name in parameter.opts if name.startswith("--"))
                continue
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = parameter.section if isinstance(parameter, SectionOption) else SAID
                sections.setdefault(heading or SAID, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)
        if without_effect:
            with formatter.section("Accepted without effect; each says why"):
                for line in wrap("  " + ", ".join(sorted(without_effect)), formatter.width, hang=0):
                    formatter.write(f"{line}\n")


class Verbs(UserDict[str, Any]):
    """The verbs; the module of each is loaded when it is looked up."""

    def __init__(self, names: Iterable[str]) -> None:
        """Take the names of verbs, for each of which there is a module here."""
        super().__init__(dict.fromkeys(names))

    def __getitem__(self, name: str) -> click.Command:
        """Return the verb of this name."""
        if self.data[name] is None:
            self.data[name] = import_module(f"mol.cli.{name.replace('-', '_')}").command
        verb: click.Command = self.data[name]
        return verb


class VerbGroup(click.Group):
    """Puts the verb first, `merge` where none is named, and suggests the verb that was probably meant."""

    def __init__(self, verbs: Mapping[str, str], **kwargs: Any) -> None:  # noqa: ANN401
        """Take the verbs, each with its line in the help, and what `click.Group` takes."""
        super().__init__(commands=Verbs(verbs), **kwargs)
        self.lines = verbs

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the two forms of a command line."""
        formatter.write_usage(ctx.command_path, "[OPTIONS] CONFIG [OUT]")
        formatter.write_usage(ctx.command_path, "[OPTIONS] VERB [ARGUMENTS]", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs, then what holds for every line."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(self.lines.items()))
        with formatter.section("Options"):
            formatter.write_dl([r for p in self.get_params(ctx) if (r := p.get_help_record(ctx)) is not None])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command whose verb may be missing, or follow options."""
        return super().parse_args(ctx, self._verb_first(ctx, list(args)))

    def _verb_first(self, ctx: click.Context, args: list[str]) -> list[str]:
        _refuse_split_size(ctx, args)
        at = self._first_word(args)
        if at is None:
            asked = [arg for arg in args if arg in _GROUP_OPTIONS]
            return asked[:1] if asked or not args else [DEFAULT_VERB, *args]
        word = args[at]
        if at > 0 and args[at - 1] == "--":
            return [DEFAULT_VERB, *args]
        if word in self.commands:
            if Path(word).is_file() and isinstance(ctx.obj, Console):
                ctx.obj.pending.append(
                    f"`{word}` is taken as the verb; to merge the recipe of that name type `mol-merge ./{word} OUT`"
                )
            return [word, *args[:at], *args[at + 1 :]]
        if word in ("help", "version") and not Path(word).is_file():
            named = args[at + 1 : at + 2] if word == "help" else []
            return [*(name for name in named if name in self.commands), f"--{word}"]
        self._refuse_near_verb(ctx, word)
        return [DEFAULT_VERB, *args]

    def _refuse_near_verb(self, ctx: click.Context, word: str) -> None:
        path = Path(word)
        if path.exists() or path.suffix or len(path.parts) > 1:
            return
        if word in LATER_VERBS:
            raise click.UsageError(f"{word!r} comes in a later version of mol", ctx)
        near = closest(word, (*self.commands, *LATER_VERBS), cutoff=0.7)
        if near:
            raise click.UsageError(f"{word!r} is neither a verb nor a recipe that exists; did you mean {near!r}?", ctx)

    def _first_word(self, args: Sequence[str]) -> int | None:
        """Return the index of the first argument that is neither an option nor an option's value."""
        at = 0
        while at < len(args):
            arg = args[at]
            if arg == "--":
                return at + 1 if at + 1 < len(args) else None
            if not arg.startswith("-") or arg == "-":
                return at
            at += 2 if arg not in _GROUP_OPTIONS and self._value_follows(arg, self._options_with_value()) else 1
        return None

    @staticmethod
    def _value_follows(arg: str, takes_value: frozenset[str]) -> bool:
        if arg.startswith("--"):
            return arg in takes_value
        # A cluster such as -vj4 or -vj 4: the first letter that takes a value takes the rest, if there is any.
        for position, letter in enumerate(arg[1:], start=2):
            if f"-{letter}" in takes_value:
                return position == len(arg)
        return False

    def _options_with_value(self) -> frozenset[str]:
        return frozenset(
            name
            for verb in self.commands.values()
            for parameter in verb.params
            if isinstance(parameter, click.Option) and not parameter.is_flag and not parameter.count
            for name in parameter.opts
        )


def _refuse_split_size(ctx: click.Context, args: Sequence[str]) -> None:
    """Refuse `--out-shard-size 5 GB`, which would make files of 5 bytes and a directory GB."""
    for option, number, unit in zip(args, args[1:], args[2:], strict=False):
        if option == "--out-shard-size" and number.isdecimal() and _UNIT.fullmatch(unit):
            raise click.UsageError(f"--out-shard-size {number} {unit}: write the size as one word, {number}{unit}", ctx)


def usage_text(error: click.UsageError, columns: int | None) -> str:
    """Return why a command is wrong, and where to read on."""
    text = error.format_message()
    lines = wrap(text if text.endswith((".", "?", "!", ")")) else f"{text}.", columns, hang=2)
    if error.ctx is not None:
        lines.append(f"`{error.ctx.command_path} --help` lists what can be given.")
    return "\n".join(lines)
