"""mol-merge methods: the table of merge methods, and what each takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mol.cli.console import Console, field
from mol.cli.group import Verb
from mol.cli.options import option, speaking
from mol.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mol.config.method_spec import MethodSpec, ParameterSpec, Scalar


@click.command(
    "methods",
    cls=Verb,
    help="List the merge methods; with NAME, describe one: its parameters with defaults and ranges, its inputs, the "
    "paper, and a recipe to start from.",
)
@click.argument("name", metavar="[NAME]", required=False)
@option("--markdown", is_flag=True, help="The list, or the row of NAME, as Markdown, as in mol's README.")
@speaking
def command(console: Console, name: str | None, markdown: bool) -> None:
    """Show the table, or one row of it."""
    from mol.config.examples import example_text
    from mol.config.method_spec import DEPTH_SCALE, STUDY
    from mol.config.methods import METHODS, method_named

    if name is not None:
        spec = method_named(name)
        console.document(_document(spec) | {"example": example_text(spec)})
        lines = _table([spec]) if markdown else [*_described(spec), "", example_text(spec).rstrip()]
        console.result("\n".join(lines))
        return
    console.document({"methods": [_document(spec) for spec in METHODS.values()]})
    if markdown:
        console.result("\n".join(_table(METHODS.values())))
        return
    rows = [[spec.name, spec.title] for spec in METHODS.values()]
    console.result("\n".join(table(("method", "what it is"), rows, right=frozenset())))
    console.result()
    console.result(field("any", f"{DEPTH_SCALE.name}: {DEPTH_SCALE.about}"))
    for spec in METHODS.values():
        if spec.evidence:
            console.result(field("study", f"{spec.name}: {spec.evidence}"))
    console.result(field("", f"({STUDY}; the other methods here were not in it)"))
    console.note("`mol-merge methods NAME` shows parameters, defaults and a recipe")


def _described(spec: MethodSpec) -> list[str]:
    from mol.config.method_spec import STUDY

    entries = {"method": f"{spec.name}: {spec.title}", "result": spec.about, "inputs": spec.inputs, "source": spec.url}
    if spec.evidence:
        entries["study"] = f"{spec.evidence} ({STUDY})"
    lines = [field(label, text) for label, text in entries.items()]
    rows = []
    for each in spec.parameters.values():
        default = _default(each) or "required"
        if each.flat_default is not None:
            default += f"; {_shown(each.flat_default)} in the short form"
        rows.append([each.name, "model" if each.per_model else "merge", _values(each), default])
    return (
        [*lines, "", *table(("parameter", "of each", "values", "default"), rows, right=frozenset())] if rows else lines
    )


def _table(specs: Iterable[MethodSpec]) -> list[str]:
    return ["| `merge_method` | result | inputs | parameters (default) |", "|---|---|---|---|", *map(_markdown, specs)]


def _markdown(spec: MethodSpec) -> str:
    of_model = [_named(each) for each in spec.parameters.values() if each.per_model]
    shared = [_named(each) for each in spec.parameters.values() if not each.per_model]
    groups = [f"{', '.join(of_model)} per model"] * bool(of_model) + [", ".join(shared)] * bool(shared)
    return f"| `{spec.name}` | [{spec.title}]({spec.url}): {spec.about} | {spec.inputs} | {'; '.join(groups)} |"


def _named(parameter: ParameterSpec) -> str:
    choices = ", or ".join(f"`{choice}`" for choice in parameter.choices)
    default = choices or _default(parameter)
    return f"`{parameter.name}` ({default})" if default else f"`{parameter.name}`"


def _default(parameter: ParameterSpec) -> str:
    """Return the default in a recipe's words; nothing where there is none."""
    from mol.config.method_spec import Required

    return "" if isinstance(parameter.default, Required) else _shown(parameter.default)


def _values(parameter: ParameterSpec) -> str:
    """Return what a parameter may be, in words."""
    if parameter.choices:
        return " or ".join(parameter.choices)
    if parameter.kind == "bool":
        return "true or false"
    number = "any number" if parameter.kind == "float" else "any whole number"
    return parameter.bounds.removeprefix("from ") or number


def _shown(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _document(spec: MethodSpec) -> dict[str, object]:
    from mol.config.method_spec import Required

    return {
        "name": spec.name,
        "title": spec.title,
        "about": spec.about,
        "url": spec.url,
        "evidence": spec.evidence,
        "base": spec.base,
        "min_models": spec.min_models,
        "max_models": spec.max_models,
        "parameters": [
            {
                "name": each.name,
                "about": each.about,
                "per_model": each.per_model,
                "kind": each.kind,
                "required": isinstance(each.default, Required),
                "default": None if isinstance(each.default, Required) else each.default,
                "short_form_default": each.flat_default,
                "low": each.low,
                "high": each.high,
                "choices": list(each.choices),
                "aliases": list(each.aliases),
            }
            for each in spec.parameters.values()
        ],
    }
