"""Holds a result of mergekit against mol's and both against float64, and says how they differ and why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import choices
import numpy as np

from tests.engine.toolkit import SIGNIFICAND_BITS, STORAGE, Case, Stored, decode, encode, expected, read_header, takes
from tests.merge.toolkit import made_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mol.merge.planned import PlannedMerge

Array = np.ndarray[Any, Any]
Stores = dict[str, Stored]

# How far mergekit may be from the truth by rounding alone: in units of the last place of the largest number there is.
# In bf16 it rounds after every step; in f32 its sums are f32, and its angles come from them.
_ROUNDING: Final = {"BF16": 4.0, "F32": 32.0}
# The engine's working precision, where that is not f64: as tests/engine/toolkit.py has it.
_NOISE: Final = 2.0**-20

ENDS: Final = "it takes a gradient's first value for the tensors behind the last layer"
EXPERTS: Final = "it takes the experts of a layer as one tensor"
BY_TOKEN: Final = ("model.embed_tokens.weight", "lm_head.weight")
ORDER: Final = "it numbers the tokens that the base lacks in an order of its own, so rows are compared by token"


@dataclass(frozen=True)
class Made:
    """How mol makes an output tensor, and what tests/reference makes of the same: float64, flat."""

    case: Case
    truth: Array

    @staticmethod
    def by(case: Case, name: str) -> Made:
        """Ask the reference."""
        return Made(case, expected(case, name))


@dataclass
class Verdict:
    """How two results compare.

    Attributes:
        word: `equal`, `rounding`, `ties`, `differs`, `fails`, `drawn` or `unexplained`.
        reasons: why, a line each.
        elements: how many there are.
        unlike: how many of them differ.
        ours: mol's largest distance from the truth, in units in the last place.
        theirs: mergekit's, where it is rounding.
    """

    word: str = "equal"
    reasons: list[str] = field(default_factory=list)
    elements: int = 0
    unlike: int = 0
    ours: float = 0.0
    theirs: float = 0.0

    def note(self, word: str, *reasons: str) -> None:
        """Keep the gravest word, and each reason once."""
        self.word = max(self.word, word, key=("equal", "rounding", "ties", "differs", "unexplained").index)
        self.reasons += [reason for reason in reasons if reason not in self.reasons]


def read_all(directory: Path) -> Stores:
    """Read the tensors of a directory, whatever their order in the files."""
    found: Stores = {}
    for path in sorted(directory.glob("*.safetensors")):
        header, start = read_header(path)
        content = path.read_bytes()[start:]
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                data = np.frombuffer(content[begin:end], dtype=STORAGE[entry["dtype"]])
                found[name] = Stored(entry["dtype"], data.reshape(entry["shape"]))
    return found


def made_by(planned: PlannedMerge, scratch: Path) -> dict[str, Made]:
    """Return each output tensor as the plan makes it."""
    return {name: Made.by(case, name) for name, case in made_of(planned, scratch).items()}


def by_token(theirs: Stores, their_tokenizer: Path, our_tokenizer: Path) -> tuple[Stores, list[int]]:
    """Put the rows of mergekit's embedding and head into mol's order; return which are taken where it was another."""
    theirs_by_id, ours_by_id = (
        [token["content"] for token in json.loads(path.read_text(encoding="utf-8"))["added_tokens"]]
        for path in (their_tokenizer, our_tokenizer)
    )
    if theirs_by_id == ours_by_id or sorted(theirs_by_id) != sorted(ours_by_id):
        return theirs, []
    found, first = dict(theirs), len(theirs[BY_TOKEN[0]].data) - len(ours_by_id)
    rows = [*range(first), *(first + theirs_by_id.index(token) for token in ours_by_id)]
    for name in BY_TOKEN:
        found[name] = Stored(theirs[name].dtype, theirs[name].data[rows])
    return found, rows


def compare(theirs: Stores, ours: Stores, made: Mapping[str, Made]) -> Verdict:
    """Compare mergekit's result with mol's, tensor by tensor."""
    verdict = Verdict()
    first = next(iter(made.values())).case.method
    ours, made = stacked(ours, made, theirs)
    for names, word, line in (
        (sorted(ours.keys() - theirs.keys()), "differs", "it leaves out"),
        (sorted(theirs.keys() - ours.keys()), "unexplained", "mol lacks"),
    ):
        if names:
            verdict.note(word, f"{line} `{names[0]}`" + (f" and {len(names) - 1} more" if names[1:] else ""))
    for name in sorted(ours.keys() & theirs.keys()):
        their, our = theirs[name], ours[name]
        verdict.elements += our.data.size
        if their.data.shape != our.data.shape:
            verdict.note("unexplained", f"`{name}` is {their.data.shape} in mergekit's, {our.data.shape} in mol's")
            continue
        if their.dtype != our.dtype:
            verdict.note("differs", f"it writes {their.dtype} where the recipe says {our.dtype}")
            their = encode(decode(their).reshape(their.data.shape), our.dtype)
        if our.data.tobytes() != their.data.tobytes():
            _judge(verdict, name, decode(their), decode(our), made[name], first)
    return verdict


def _judge(
    verdict: Verdict, name: str, theirs: Array, ours: Array, made: Made, first: dict[str, dict[str, Any]]
) -> None:
    """Add one tensor of unlike bytes to a verdict."""
    verdict.unlike += int((theirs != ours).sum())
    unit = _unit(made)
    off = np.abs(ours - made.truth) / unit
    whole = "experts." in name and made.case.sources[0].data.ndim == 3
    # Experts were merged one by one, and the truth of them is that of the stack only where no statistic is taken. The
    # methods that rank values do so in f32, and compute in it.
    ranks = takes(made.case.method, "precision")
    allowed = 0.5 + (4 if ranks and made.case.dtype == "F32" else _NOISE * 2.0 ** (SIGNIFICAND_BITS[made.case.dtype]))
    if not whole:
        verdict.ours = max(verdict.ours, float(off.max()))
        if float(off.max()) > allowed:
            verdict.note("unexplained", f"mol is {off.max():.2f} units off in `{name}`")
            return
    word, reasons, distance = _explained(theirs, made)
    if word == "unexplained" and not whole and made.case.method != first:
        word, _, distance = _explained(theirs, Made.by(replace(made.case, method=first), name))
        word, reasons = ("differs", [ENDS]) if word != "unexplained" else (word, reasons)
    elif word != "unexplained" and whole and float(off.max()) > allowed:
        word, reasons = "differs", [EXPERTS]
    if word == "unexplained":
        reasons = [f"`{name}`: mergekit is {distance:.1f} units off"]
    verdict.note(word, *reasons)
    verdict.theirs = max(verdict.theirs, distance)


def _explained(theirs: Array, made: Made) -> tuple[str, list[str], float]:
    """How mergekit's result follows from the method: a word, reasons, and its distance where no choice explains it."""
    off = np.abs(theirs - made.truth) / _unit(made)
    free, reasons = choices.free(made.case, theirs, made.truth)
    distance = float(off[~free].max(initial=0.0))
    if distance > _ROUNDING[made.case.dtype]:
        return "unexplained", [], distance
    if not (off[free] > _ROUNDING[made.case.dtype]).any():
        return "rounding", [], distance
    known = {choices.PICKS: "differs", choices.ANGLES: "rounding", choices.RATIOS: "rounding"}
    return known.get(reasons[0], "ties"), reasons, distance


def _unit(made: Made) -> Array:
    """A unit in the last place of the largest number that each element is made of, at least of a sixteenth of all's."""
    largest = np.max([np.abs(made.truth), *(np.abs(decode(source)) for source in made.case.sources)], axis=0)
    largest = np.maximum(np.maximum(largest, largest.max(initial=0.0) / 16), 1e-30)
    unit: Array = np.exp2(np.floor(np.log2(largest)) + 1 - SIGNIFICAND_BITS[made.case.dtype])
    return unit


def stacked(ours: Stores, made: Mapping[str, Made], wanted: Mapping[str, Any]) -> tuple[Stores, dict[str, Made]]:
    """Stack experts that lie one by one into the tensors of transformers 5, where mergekit writes those."""
    # GPT-2 is stored with or without the name of its body, and loads either way.
    other = {name: f"transformer.{name}" for name in ours if f"transformer.{name}" in wanted}
    ours = {other.get(name, name): stored for name, stored in ours.items()}
    made = {other.get(name, name): of for name, of in made.items()}
    for name in wanted:
        kind = re.fullmatch(r"(.*)\.mlp\.experts\.(gate_up_proj|down_proj)", name)
        if kind is None or name in ours:
            continue
        at = f"{kind[1]}.block_sparse_moe.experts"
        words = ("w1", "w3") if kind[2] == "gate_up_proj" else ("w2",)
        count = sum(1 for key in ours if re.fullmatch(rf"{re.escape(at)}\.\d+\.{words[0]}\.weight", key))
        parts = [[f"{at}.{expert}.{word}.weight" for word in words] for expert in range(count)]
        cases = [[made[key].case for key in row] for row in parts]
        of = [_stack([[case.sources[i] for case in row] for row in cases]) for i in range(len(cases[0][0].sources))]
        case = replace(cases[0][0], sources=tuple(of))
        made[name] = Made.by(case, name)
        ours[name] = _stack([[ours.pop(key) for key in row] for row in parts])
    for name in [name for name in wanted if ".mlp.gate." in name and name not in ours]:
        old = name.replace(".mlp.", ".block_sparse_moe.")
        ours[name], made[name] = ours.pop(old), made[old]
    return ours, made


def _stack(parts: Sequence[Sequence[Stored]]) -> Stored:
    data = np.stack([np.concatenate([part.data for part in row]) for row in parts])  # (experts, rows, columns)
    return Stored(parts[0][0].dtype, data)


@dataclass(frozen=True)
class Draws:
    """What can be said of one model's differences after some were dropped at random.

    Attributes:
        kept: the share that is left.
        low: that of the smaller half of each row.
        high: that of the larger half.
        mass: what is left of the sum of magnitudes.
        elements: how many there are.
    """

    kept: float
    low: float
    high: float
    mass: float
    elements: int


def draws(result: Stores, made: Mapping[str, Made]) -> Draws:
    """Look at the matrices of a result that one model's differences were added to."""
    kept = low = high = elements = 0
    before = after = 0.0
    for name, stored in result.items():
        how = made.get(name) or made.get(name.removeprefix("transformer."))
        if stored.data.ndim != 2 or how is None:
            continue
        base, model = (decode(source).reshape(stored.data.shape) for source in how.case.sources)
        delta, found = model - base, decode(stored).reshape(stored.data.shape) - base
        # Where a model does not differ nothing can be seen.
        there, left = delta != 0, found != 0
        rank = np.abs(delta).argsort(axis=1).argsort(axis=1) >= delta.shape[1] / 2
        kept += int((left & there).sum())
        elements += int(there.sum())
        low += int((left & there & ~rank).sum())
        high += int((left & there & rank).sum())
        before += float(np.abs(delta).sum())
        after += float(np.abs(found).sum())
    return Draws(kept / elements, low / elements, high / elements, after / before, elements)
