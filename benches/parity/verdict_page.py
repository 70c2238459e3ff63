"""Writes docs/parity.md from the verdicts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import compared
import peer
import worlds
from compare import Draws, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compared import Compared

_WORDS: Final = {
    "equal": "equal", "ties": "ties", "rounding": "nearer", "differs": "other", "fails": "fails", "drawn": "drawn",
    "unexplained": "UNEXPLAINED",
}  # fmt: skip

_TOP: Final = """# Results compared with mergekit's

`make parity` wrote this page with mergekit {version}, installed into an environment of its own and used by its command
alone. Both programs merge tiny models of random weights, a base of normal deviates of .02 and fine-tunes that differ
from it by .002 on two elements of three: {count} recipes, every method that both have, in bf16 and in f32 (models,
`dtype` and result), over four architectures, tied embeddings, slices, gradients, filters by name and a union of
vocabularies. The truth is the method's definition in float64 (`tests/reference`) on the same inputs.

| word | what it means | recipes |
|---|---|---|
{counts}

The distance of every value from the truth is checked, in units in the last place of the largest number that it is made
of. mol is at most {bf16:.2f} of them off in bf16 and {f32:.2f} in f32: it computes in f32 or wider and rounds once, and
methods that rank values compute in f32. A difference that nothing explains ends the command with an error.
"""

_MEANINGS: Final = {
    "equal": "all bits are equal",
    "rounding": "mol is within one rounding of the truth, mergekit further from it by its roundings on the way",
    "ties": "the same, but for elements that both programs may decide either way, as the notes say",
    "differs": "mergekit does something else, as the notes say; that it does just this is checked",
    "fails": "mergekit ends with an error; the notes have its words",
    "drawn": "the method draws at random, from another stream than mergekit: shares kept and their sizes are compared",
    "unexplained": "a difference that nothing explains",
}


def write(verdicts: Mapping[Compared, Verdict]) -> str:
    """Return the page."""
    number = {word: sum(found.word == word for found in verdicts.values()) for word in _WORDS}
    counts = "\n".join(
        f"| {_WORDS[word]} | {text} | {number[word]} |" for word, text in _MEANINGS.items() if number[word]
    )
    off = {dtype: max(found.ours for one, found in verdicts.items() if one.dtype == dtype) for dtype in worlds.DTYPES}
    parts = [_TOP.format(version=peer.VERSION, count=len(verdicts), counts=counts, **off)]
    for dtype in worlds.DTYPES:
        parts.append(f"\n## {dtype}\n\n{_table(verdicts, dtype)}")
        settings = [_row(one, found) for one, found in verdicts.items() if _is_setting(one) and one.dtype == dtype]
        parts.append("\nWith more settings, on Llama:\n\n| recipe | |\n|---|---|\n" + "\n".join(settings) + "\n")
    parts.append("\n## Notes\n\n`It` is mergekit.\n\n" + "\n".join(_notes(verdicts)) + "\n")
    return "".join(parts)


def _is_setting(one: Compared) -> bool:
    return one.setting != one.method


def _row(one: Compared, found: Verdict) -> str:
    return f"| {one.setting} | {line(found)} |"


def _table(verdicts: Mapping[Compared, Verdict], dtype: str) -> str:
    by_key = {
        (one.method, one.form): found for one, found in verdicts.items() if one.dtype == dtype and not _is_setting(one)
    }
    head = f"| method | {' | '.join(compared.FORMS)} |\n|---|{'---|' * len(compared.FORMS)}"
    rows = [
        f"| {method} | "
        + " | ".join(_WORDS[by_key[method, form].word] if (method, form) in by_key else "" for form in compared.FORMS)
        + " |"
        for method in compared.METHODS
    ]
    return "\n".join([head, *rows]) + "\n"


def _notes(verdicts: Mapping[Compared, Verdict]) -> list[str]:
    """Each reason once, with the methods that it holds for in each dtype, and the form if it is one alone."""
    found: dict[str, list[Compared]] = {}
    for one, verdict in verdicts.items():
        for reason in verdict.reasons:
            found.setdefault(reason, []).append(one)
    lines = []
    for reason, where in found.items():
        recipes = []
        for dtype in worlds.DTYPES:
            of_dtype = [one for one in where if one.dtype == dtype]
            forms = {one.form for one in of_dtype}
            form = f", {forms.pop()}" if len(forms) == 1 else ""
            if of_dtype:
                recipes.append(f"{dtype}{form}: {', '.join(dict.fromkeys(one.method for one in of_dtype))}")
        lines.append(f"- {reason[0].upper()}{reason[1:]}. ({'; '.join(recipes)})")
    return lines


def line(found: Verdict) -> str:
    """Return a verdict as one line."""
    text = _WORDS[found.word]
    if found.word in ("ties", "rounding", "differs", "unexplained") and found.elements:
        share = 100 * found.unlike / found.elements
        text += f" ({share:.2g}% of values differ; mol {found.ours:.2f} units off at most, mergekit {found.theirs:.2f})"
    return ": ".join([text, "; ".join(found.reasons)]) if found.reasons else text


def of_draws(theirs: Draws, ours: Draws) -> Verdict:
    """Compare what two random streams kept: both within five standard deviations of each other."""
    reasons = []
    for what in ("kept", "low", "high"):
        a, b = getattr(theirs, what), getattr(ours, what)
        count = ours.elements / (1 if what == "kept" else 2)
        if abs(a - b) > 5 * (0.5 / count) ** 0.5:
            reasons.append(f"the share {what} is {a:.3f} in mergekit's, {b:.3f} in mol's")
    if abs(theirs.mass - ours.mass) > 0.01:
        reasons.append(f"the mass is {theirs.mass:.3f} in mergekit's, {ours.mass:.3f} in mol's")
    return Verdict("unexplained" if reasons else "drawn", reasons, ours.elements)


def last_words(said: str) -> str:
    """Return the message of the error that ended mergekit, without paths and numbers of its own."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    text = (errors or lines or ["nothing was said"])[-1]
    return "it says: " + re.sub(r"/\S+/", "", text)[:110].replace("|", "\\|")
