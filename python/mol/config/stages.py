"""Recipes of several documents: which one is the result, and in which order the others are made before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from mol.config.document import Items, Location, Problems, Table, shown
from mol.config.model_reference import ModelReference, is_local
from mol.text import closest

_ALIKE: Final = 0.85  # names of which one is taken for a typing error of the other

MERGED: Final = "merged"
"""What the steps of `then` call the result of the recipe that they stand in."""

if TYPE_CHECKING:
    from collections.abc import Container, Sequence


class Document(NamedTuple):
    """One document of a recipe, as far as the others are concerned.

    Attributes:
        name: what the others call its result; None where it has none.
        location: where its name stands, or it does.
        models: what it names as models.
    """

    name: str | None
    location: Location
    models: tuple[ModelReference, ...]


def name_of(table: Table, problems: Problems) -> str | None:
    """Read the name of a document; one that could be taken for something else is a problem and None."""
    name, location = table.get("name"), table.at("name")
    if name is None:
        return None
    if not isinstance(name, str) or not name.strip() or any(sign in name for sign in "+@"):
        problems.add(location, f"`name` of a document is a word without `+` and `@`, not {shown(name)}")
    elif is_local(name):
        problems.add(location, f"`name: {name}`: there is a directory or file of that name, too; choose another")
    else:
        return name
    return None


def steps_of(table: Table, problems: Problems) -> list[Table]:
    """Return a recipe with `then` as the documents that it means, in their order.

    The result of the recipe is `merged` in the steps after it, that of the second one `merged2`, or what `name` says.
    """
    after = table["then"]
    entries = after if isinstance(after, Items) else [after]
    steps = [table.without("then")]
    for number, entry in enumerate(entries):
        if isinstance(entry, Table):
            steps.append(entry.without())
        else:
            where = after.locations[number] if isinstance(after, Items) else table.at("then")
            problems.add(where, f"`then` is a recipe for what is made above, or a list of recipes, not {shown(entry)}")
    if table.get("stages") is not None:
        problems.add(table.at("stages"), "`stages` and `then` in one recipe; name every step in `stages`")
    for number, step in enumerate(steps[:-1], start=1):
        if step.get("name") is None:
            step.put("name", _implied(number), step.at("name"))
        if "then" in step:
            problems.add(step.at("then"), "`then` inside of `then`; a list under the first one holds all steps")
    return steps


def _implied(number: int) -> str:
    return MERGED if number == 1 else f"{MERGED}{number}"


def _name_of_step(step: Table, number: int, problems: Problems) -> str | None:
    """Read the name of a step, `merged` also where a directory has it: `then` says what is meant, not `./merged`."""
    implied = _implied(number)
    return implied if step.get("name") == implied else name_of(step, problems)


def refuse_idle(
    tables: Sequence[Table], named: Sequence[tuple[str | None, Table]], used: Container[str], problems: Problems
) -> None:
    """Refuse steps before a `then` that nothing is made of, where `named` are all steps and `used` those that count."""
    idle = ", ".join(f"`{name}`" for name, _ in named[:-1] if name not in used)
    for table in tables:
        if idle and table.get("then") is not None:
            problems.add(
                table.at("then"), f"no step of `then` has {idle} among its models, which is what is made before"
            )


def arrange(documents: Sequence[Document], problems: Problems, notes: list[str]) -> tuple[list[int], int]:
    """Sort documents in the order in which they are made.

    The result is the one without a name; where all have one, the one that no other names.

    Args:
        documents: in the order of the recipe.
        problems: collects why there is no such order.
        notes: collects what has no effect.

    Returns:
        The numbers of the documents that the result needs, each after those that it needs itself; and the result's.
    """
    numbers: dict[str, int] = {}
    for number, document in enumerate(documents):
        if document.name is not None and numbers.setdefault(document.name, number) != number:
            problems.add(document.location, f"two documents have the name `{document.name}`")
    needs = [_needs(document, numbers) for document in documents]
    needed = {other for of_one in needs for other in of_one}
    unnamed = [number for number, document in enumerate(documents) if document.name is None]
    ends = unnamed or [number for number in range(len(documents)) if number not in needed]
    if len(ends) != 1:
        what = "have no `name`" if unnamed else "are named by no other"
        listed = ", ".join(str(documents[number].location) for number in ends) or "none"
        problems.add(
            documents[ends[-1] if ends else 0].location,
            f"one document is the result, the one without `name` or that no other names; here {listed} {what}",
        )
        return [], 0
    (result,) = ends
    order: list[int] = []
    _visit(result, needs, documents, order, [], problems)
    names = {model.name for document in documents for model in document.models if "/" not in model.name}
    unknown = [name for name in names if name not in numbers and not is_local(name)]
    for number, document in enumerate(documents):
        if number in order:
            continue
        near = closest(str(document.name), sorted(unknown), cutoff=_ALIKE)
        if near is not None:
            problems.add(
                document.location,
                f"no document uses `{document.name}`, and one names a model `{near}`; did you mean this document?",
            )
        notes.append(f"the document `{document.name}` has no effect: the result needs it for nothing")
    return order[:-1], result


def _needs(document: Document, numbers: dict[str, int]) -> list[int]:
    found = []
    for model in document.models:
        if model.name in numbers and model.revision is None:
            found.append(numbers[model.name])
    return list(dict.fromkeys(found))


def _visit(
    number: int,
    needs: Sequence[Sequence[int]],
    documents: Sequence[Document],
    order: list[int],
    path: list[int],
    problems: Problems,
) -> None:
    """Add a document after those that it needs."""
    if number in order:
        return
    if number in path:
        circle = " -> ".join(str(documents[step].name) for step in (*path[path.index(number) :], number))
        problems.add(documents[number].location, f"a document is made of itself: {circle}")
        return
    for other in needs[number]:
        _visit(other, needs, documents, order, [*path, number], problems)
    if number not in order:
        order.append(number)


def named_tables(table: Table, problems: Problems, *, alone: bool) -> list[tuple[str | None, Table]]:
    """Return a document with its name, after those that stand in its `stages` with theirs."""
    found: list[tuple[str | None, Table]] = []
    if table.get("then") is not None:
        if not alone:
            problems.add(table.at("then"), "`then` in one of several documents; write that step as a document, too")
        *before, result = steps_of(table, problems)
        named = [(_name_of_step(step, number, problems), step) for number, step in enumerate(before, start=1)]
        return [*named, (None, result)]
    stages = table.get("stages")
    if stages is not None and not isinstance(stages, Table):
        problems.add(table.at("stages"), f"`stages` is a map from names to recipes, not {shown(stages)}")
    elif stages is not None:
        for word, stage in stages.items():
            if not isinstance(stage, Table):
                problems.add(stages.at(word), f"`{word}` in `stages` is a recipe, not {shown(stage)}")
                continue
            stage.put("name", word, stages.at(word))
            found.append((name_of(stage, problems), stage))
    rest = table.without("stages")
    return [*found, (None if alone else name_of(rest, problems), rest)]
