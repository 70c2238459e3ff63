"""Writes docs/support.md from the rows of all model types."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from checks import HOSTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Row = dict[str, Any]

CHECKS: Final[dict[str, tuple[str, ...]]] = {
    "source": ("source",),
    "host": ("host",),
    **{name: tuple(f"{name} {host}" for host in HOSTS) for name in ("expert", "causal", "greedy", "beams")},
}
"""The columns, and the checks that all must hold for a yes."""
_MOST_WORDS: Final = 110
# Why a type is not in the table, in a few words: what its error says, and how that is recognised.
_REASONS: Final[tuple[tuple[str, str], ...]] = (
    (r"requires the (\w+) library|No module named '(\w+)'", "needs the package {}"),
    (r"no list of blocks was found", "no list of blocks in its modules"),
    (r"its blocks change the shape", "its blocks change the shape of the hidden states"),
    (r"does not reach call \d+ unchanged", "what goes from block to block cannot be followed"),
    (r"calls none of its blocks", "no input is known that reaches its blocks"),
)

_TOP: Final = """# What can be fused

`make support-table` wrote this page with transformers {transformers}. It builds every model type that transformers can
configure, {types} of them, from a tiny config with weights drawn at random, in fp32 on a CPU, and tries six things.
Nothing here is about trained weights, about quality, or about other dtypes and devices.

| check | what a yes means | text ({text}) | other ({other}) | all ({types}) |
|---|---|---|---|---|
{counts}

A type is text if text is all that it reads; the others read images, video, sound, or more than one of them. Checks 3 to
6 are of one fused model: up to four blocks of the type, from first to last, each next to a block of GPT-2 of width 48,
and again next to one of Llama of width 32. A yes means both hosts; "gpt2" or "llama" for that one alone; "-" for a
check that was not run, because the blocks attend to later tokens even with causal masks and are refused in a host that
predicts the next token.

What the numbers do not say:

- Which stack: `stack` is the list of blocks that was taken. **named** means that mol takes another by itself, which
  cannot be run alone, so that `stacks={{...}}` has to name this one; **fused** names the one of checks 3 to 6 where the
  first cannot be made causal, an encoder, and another of the model can.
- **content** ({content} types): the model hands its blocks more of its input than hidden states (embeddings of the
  tokens for each layer, the first hidden state once more). Next to a host they are handed what a blank input gives, one
  token over and over or zeros: checks 3 to 6 hold with that dummy content. The replay of check 1 is exact in a blank
  context for {blank} types; {given} of the content types need the context of the same input, and are counted with it.
- **image**, **sound**, **signal**: a blank one of the model's own size makes the context. A blank context holds nothing
  of the host's text but its length, so such blocks cannot distinguish padding from it.
- **padded**: the blocks run only at the length that the model gave the hidden states, so that shorter texts are padded
  to it, and texts that are longer than the model takes are refused.
- **causal**: the blocks attend to later tokens by themselves, and their masks were replaced by causal ones.
- **unpadded** ({unpadded} types): padding before a text would change what the blocks make of it, so it is refused
  next to a host that generates. With all others neither such padding nor another text in the batch moves an output by
  more than 1e-4, or the last column says so, and in checks 5 and 6 one of two texts has it.
- Texts of checks 3 to 6 have 8 to 13 tokens. Blocks that attend to the best k tokens are given a k of
  16: with weights drawn at random scores tie, and which of equals is taken changes with the length of a text.
- A type that took over 150 seconds or 8 GiB was ended, and what it had not come to is a "-".
- Check 2 drives the whole model with inputs of its own kind, drawn at random. Where none were found that it takes the
  check counts as a no, with the reason in the last column.

"""
_NOTES: Final = {"pixel": "image", "input_values": "sound", "input_features": "sound"}


def write(rows: Sequence[Row]) -> str:
    """Return the page."""
    judged = [row for row in rows if "stack" in row and "source" in row["checks"]]
    left = [row for row in rows if row not in judged]
    content = [row for row in judged if row.get("content")]
    given = [row for row in judged if row["checks"]["source"]["note"] == "content"]
    top = _TOP.format(
        transformers=rows[0]["transformers"],
        types=len(rows),
        text=sum(map(is_text, rows)),
        unpadded=sum(map(_is_unpadded, judged)),
        other=sum(not is_text(row) for row in rows),
        counts="\n".join(_counts(rows)),
        content=len(content),
        blank=sum(holds(row, "source") for row in judged) - len(given),
        given=len(given),
    )
    head = f"| type | family | stack | {' | '.join(CHECKS)} | notes |\n|{'---|' * (len(CHECKS) + 4)}"
    lines = [
        f"| {row['type']} | {row['family']} | `{row['stack']}` | {' | '.join(_cell(row, name) for name in CHECKS)} | "
        f"{_notes(row)} |"
        for row in judged
    ]
    rest = [f"| {row['type']} | {row.get('family', '-')} | {_reason(row)} |" for row in left]
    return (
        f"{top}## {len(judged)} types\n\n{head}\n"
        + "\n".join(lines)
        + f"\n\n## {len(left)} types that were not judged\n\n"
        "| type | family | why |\n|---|---|---|\n" + "\n".join(rest) + "\n"
    )


def is_text(row: Row) -> bool:
    """Return whether a type reads text and nothing else."""
    return bool(row.get("reads") == ["text"])


def holds(row: Row, check: str) -> bool:
    """Return whether all that a column means held."""
    return all(row["checks"].get(part, {}).get("holds", False) for part in CHECKS[check])


def holds_all(row: Row) -> bool:
    """Return whether all six checks held."""
    return all(holds(row, check) for check in CHECKS)


def _counts(rows: Sequence[Row]) -> list[str]:
    what: list[tuple[str, str, Callable[[Row], bool]]] = [
        ("built", "a tiny model could be made and its blocks traced", lambda row: "stack" in row)
    ]
    meaning = {
        "source": "blocks run one after another, each alone, give the last one's output bit for bit",
        "host": "the model driven with its own blocks as experts gives its own output bit for bit",
        "expert": "output and gradients are finite, every adapter gets one, every block's weights change the output",
        "causal": "another last token changes no output before it by more than 1e-5",
        "greedy": "`generate` writes the same with and without a cache",
        "beams": "so it does with three beams",
    }
    for number, (name, said) in enumerate(meaning.items(), 1):
        what.append((f"{number} {name}", said, lambda row, name=name: holds(row, name)))
    what.append(("all six", "", holds_all))
    lines = []
    for name, said, test in what:
        passed = [row for row in rows if test(row)]
        text = sum(map(is_text, passed))
        lines.append(f"| {name} | {said} | {text} | {len(passed) - text} | {len(passed)} |")
    return lines


def _cell(row: Row, check: str) -> str:
    found = [row["checks"].get(part) for part in CHECKS[check]]
    if all(one is None for one in found):
        return "-"
    passed = [bool(one and one["holds"]) for one in found]
    if all(passed):
        return "yes"
    return next((host for host, good in zip(HOSTS, passed, strict=False) if good and len(passed) > 1), "no")


def _notes(row: Row) -> str:
    notes = ["named"] if "named" in row else []
    if row.get("fused_stack", row["stack"]) != row["stack"]:
        notes.append(f"fused `{row['fused_stack']}`")
    name = row["way"].split()[0]
    if "tokens" not in row["way"]:
        notes.append(next((said for start, said in _NOTES.items() if name.startswith(start)), "signal"))
    notes += [
        said for said, key in (("content", "content"), ("padded", "fixed"), ("causal", "made_causal")) if row.get(key)
    ]
    if _is_unpadded(row):
        notes.append("unpadded")
    for check, found in row["checks"].items():
        if not found["holds"]:
            notes.append(f"{check}: {_short(found['note'])}")
    if "fused" in row and "attend to later tokens" not in row["fused"]:
        notes.append(f"fused: {_short(row['fused'])}")
    if "ended" in row:
        notes.append(row["ended"])
    return "; ".join(notes)


def _is_unpadded(row: Row) -> bool:
    return any(row["checks"].get(f"padding {host}", {}).get("note") == "unpadded" for host in HOSTS)


def _reason(row: Row) -> str:
    said = row.get("ended") or row.get("failed", "")
    for pattern, told in _REASONS:
        found = re.search(pattern, said)
        if found:
            return told.format(next((group for group in found.groups() if group), ""))
    if "cannot be run alone" in said:
        return f"no input was found that its blocks run from: {_short(said.split(' - ')[-1])}"
    stage = {"config": "no tiny config: ", "model": "not built: "}.get(row.get("failed_in", ""), "")
    return stage + _short(said)


def _short(said: str) -> str:
    said = re.sub(r"^StrictDataclass\w+: Class validation error for validator '\w+': \w+: ", "", said)
    text = said if len(said) <= _MOST_WORDS else f"{said[:_MOST_WORDS].rstrip()} ..."
    return text.replace("|", "\\|").replace("<", "\\<")
