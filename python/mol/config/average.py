"""`merge_method: average`: checkpoints of one run and a rule for their weights, written out as a linear merge."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mol.config.document import Items, Location, Problems, Table, shown
from mol.config.model_reference import expanded, is_local
from mol.regex import regex
from mol.text import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AVERAGE: Final = "average"
WORDS: Final = ("last", "weights")
"""What an average has parameters for."""

_RULES: Final = ("mean", "ema:BETA", "minus-sqrt", "wsm:linear", "wsm:cosine", "wsm:minus-sqrt")
_KEPT: Final = (
    "allow_crimes", "chat_template", "dtype", "layer_alignment", "name", "out_dtype", "output_path", "tokenizer",
    "tokenizer_source", "trust_remote_code",
)  # fmt: skip
_CURVES: Final[dict[str, Callable[[float], float]]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    "minus-sqrt": lambda x: 1.0 - math.sqrt(x),
}
# As transformers, OLMo, Megatron, DeepSpeed, NeMo and lit-gpt name what they save while they train.
_OF_A_RUN: Final = regex(r"(checkpoint|ckpt|global_?step|step|iteration|iter|epoch)[-_]?(\d+)(?:-hf|-unsharded)?")
_IN_A_NAME: Final = regex(r"(.*?(?:checkpoint|ckpt|step|iteration|iter|epoch)[-_]?)(\d+)(?!.*/)")


def is_average(table: Table) -> bool:
    """Return whether a recipe is one of an average."""
    return AVERAGE in (table.get("merge_method"), table.get("method"))


def checkpoint_weights(rule: str, count: int) -> list[float]:
    """Return the weights of checkpoints, oldest first; they sum to 1, but for those of the mean, which are all 1.

    `ema:BETA` is the exponential moving average of the checkpoints that starts at the first. `wsm:CURVE` emulates a
    decay of the learning rate after training at a constant one (Warmup-Stable and Merge, arXiv 2507.17634): a mean of
    checkpoints with weights c scales the update between the checkpoints i and i + 1 by the sum of the later weights.
    So the weights are the steps by which the curve falls from 1 to 0: c_i = f((i - 1) / n) - f(i / n). With `linear`
    that is the mean; `minus-sqrt` is short for `wsm:minus-sqrt`, f(x) = 1 - sqrt(x) (arXiv 2405.18392).

    Raises:
        ValueError: there is no such rule.
    """
    if rule == "mean":
        return [1.0] * count
    word, _, rest = rule.partition(":")
    if word == "ema":
        beta = float(rest)
        if not 0.0 < beta < 1.0:
            raise ValueError(rest)
        return [(1.0 if i == 0 else 1.0 - beta) * beta ** (count - 1 - i) for i in range(count)]
    name = "minus-sqrt" if rule == "minus-sqrt" else rest if word == "wsm" else ""
    if name not in _CURVES:
        raise ValueError(rule)
    curve = _CURVES[name]
    return [curve(i / count) - curve((i + 1) / count) for i in range(count)]


def write_out(table: Table, problems: Problems, notes: list[str]) -> Table:
    """Write an average out as the linear merge that it means; the newest checkpoint gives config and tokenizer.

    Args:
        table: the recipe, with `checkpoints` or `models`, and perhaps `last` and `weights`.
        problems: collects what is wrong with it.
        notes: collects what was filled in.
    """
    known = ("merge_method", "method", "checkpoints", "models", *WORDS, *_KEPT)
    for word in table:
        if word not in known and table[word] is not None:
            hint = suggestion(word, known) or "; an average has `checkpoints`, `last` and `weights`"
            problems.add(table.at(word), f"`{word}` in a recipe of {AVERAGE}{hint}")
    key = "checkpoints" if table.get("checkpoints") is not None else "models"
    location = table.at(key)
    if table.get("checkpoints") is not None and table.get("models") is not None:
        problems.add(table.at("models"), "`checkpoints` and `models` name the same; give one of them")
    names = _find(table.get(key), location, problems, notes)
    last = _read_last(table, names, key, problems)
    names = names[-last:]
    weights = _read_weights(table, len(names), problems)
    recipe = table.without("method", "checkpoints", "models", *WORDS)
    recipe.put("merge_method", "linear", table.at("merge_method"))
    models = Items(location)
    for name, weight in zip(names, weights, strict=True):
        parameters, entry = Table(location), Table(location)
        parameters.put("weight", weight, table.at("weights"))
        entry.put("model", name, location)
        entry.put("parameters", parameters, location)
        models.put(entry, location)
    if names:
        recipe.put("models", models, location)
        recipe.put("base_model", names[-1], location)
        rule = table.get("weights")
        by = "equal weights" if rule in (None, "mean") else f"the weights {shown(rule)}"
        notes.append(
            f"average of {len(names)} checkpoints with {by}, oldest first; config and tokenizer are the last's"
            if len(names) > 1
            else f"average of one checkpoint, {names[0]}, so nothing is averaged"
        )
    elif not len(problems):
        problems.add(location, f"{AVERAGE} needs `checkpoints`: a directory of them, a pattern, or a list")
    return recipe


def _find(value: Any, location: Location, problems: Problems, notes: list[str]) -> list[Any]:  # noqa: ANN401 - any value
    """Return the names of checkpoints, oldest first."""
    if isinstance(value, Items):
        entries = zip(value, value.locations, strict=True)
    else:
        entries = zip([] if value is None else [value], [location], strict=False)
    found: list[Any] = []
    for entry, where in entries:
        if isinstance(entry, Table) and {*entry} == {"model"}:
            entry = entry["model"]
        if isinstance(entry, Path):
            entry = str(entry)
        found += (
            _of_text(entry, where, problems, alone=not isinstance(value, Items)) if isinstance(entry, str) else [entry]
        )
    ordered = _by_step(found)
    if ordered != found:
        notes.append("the checkpoints are put in the order of their steps")
    return ordered


def _of_text(text: str, location: Location, problems: Problems, *, alone: bool) -> list[str]:
    """Return what one name means: a checkpoint, those of a run's directory, of a pattern, or several revisions."""
    path = expanded(text)
    if not is_local(text):
        name, at, revisions = text.rpartition("@")
        if at and "*" in revisions and not path.parent.is_dir():
            problems.add(
                location,
                f"{text}: which revisions fit is looked up on the Hub by `mol-merge average '{text}' OUT`; a recipe "
                f"names them, as in {name}@step1,step2",
            )
            return []
        if "*" in path.name:
            return _of_pattern(text, path, location, problems)
        if at and "," in revisions:
            return [f"{name}@{revision.strip()}" for revision in revisions.split(",")]
        return [text]
    if not path.is_dir() or ((path / "config.json").is_file() and not alone):
        return [text]
    kinds: dict[str, list[tuple[int, str]]] = {}
    for child in path.iterdir():
        match = _OF_A_RUN.fullmatch(child.name)
        if match is not None and child.is_dir():
            kinds.setdefault(match[1], []).append((int(match[2]), f"{text.rstrip('/')}/{child.name}"))
    if len(kinds) > 1:
        listed = ", ".join(f"{len(names)} of {word}" for word, names in kinds.items())
        problems.add(
            location, f"{text} holds checkpoints of several kinds ({listed}); give a pattern, as {text}/step-*"
        )
        return []
    if kinds:
        ((_, names),) = kinds.items()
        return [name for _, name in sorted(names)]
    if (path / "config.json").is_file() or not alone:
        return [text]
    problems.add(location, f"{text} holds no checkpoints (checkpoint-N, step_N, epoch-N); give a pattern or a list")
    return []


def _of_pattern(text: str, path: Path, location: Location, problems: Problems) -> list[str]:
    folder = text[: len(text) - len(path.name)]
    names = [child.name for child in path.parent.glob(path.name) if child.is_dir()] if path.parent.is_dir() else []
    numbered = {name: number[-1] for name in names if (number := re.findall(r"\d+", name))}
    if not names:
        problems.add(location, f"no directory is named like {text}")
    if len(numbered) < len(names):
        others = ", ".join(sorted(set(names) - set(numbered)))
        problems.add(location, f"{text} also fits {others}, whose name holds no step; give a pattern for the others")
    return [f"{folder}{name}" for name in sorted(numbered, key=lambda name: (int(numbered[name]), name))]


def _by_step(names: Sequence[Any]) -> list[Any]:
    """Return checkpoints in the order of their steps if they are of one run: their names differ in it alone."""
    matches = [_IN_A_NAME.match(name) if isinstance(name, str) else None for name in names]
    steps = [(match[1], int(match[2])) for match in matches if match is not None]
    if len(steps) < len(names) or len({start for start, _ in steps}) != 1:
        return list(names)
    return [names[i] for i in sorted(range(len(names)), key=lambda i: steps[i][1])]


def _read_last(table: Table, names: Sequence[Any], key: str, problems: Problems) -> int:
    """Return how many of the checkpoints are taken."""
    last = table.get("last")
    if last is None:
        return len(names)
    if isinstance(last, bool) or not isinstance(last, int) or last < 1:
        problems.add(table.at("last"), f"`last` is a number of checkpoints, 1 or more, not {shown(last)}")
    elif names and last > len(names):
        problems.add(table.at("last"), f"`last: {last}`, and `{key}` has {len(names)}; take fewer, or leave it out")
    else:
        return last
    return len(names)


def _read_weights(table: Table, count: int, problems: Problems) -> list[Any]:
    """Return the weights of the checkpoints that are taken."""
    rule, location = table.get("weights"), table.at("weights")
    if isinstance(rule, Items):
        if len(rule) == count:
            return list(rule)
        problems.add(location, f"`weights` has {len(rule)} entries for {count} checkpoints")
    elif rule is None or isinstance(rule, str):
        try:
            return checkpoint_weights("mean" if rule is None else rule, count)
        except ValueError:
            listed = ", ".join(f"`{word}`" for word in _RULES)
            problems.add(
                location, f"`weights` is one of {listed} (BETA above 0 and below 1), or a list, not {shown(rule)}"
            )
    else:
        problems.add(location, f"`weights` is a rule such as `ema:0.9`, or a list, not {shown(rule)}")
    return [1.0] * count
