"""Compares mergekit's results with those of `precision: mergekit`: equal bits, or which elements differ and why."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import choices
import compare
import compared
import numpy as np
import torch
import worlds

from mol.config.precision import METHODS_AS_MERGEKIT
from mol.merge import plan_recipe, run_merge
from tests.engine import stepwise as torchs
from tests.engine.toolkit import SIGNIFICAND_BITS, decode
from tests.merge.toolkit import made_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from compared import Compared

    from tests.engine.toolkit import Case, Stored

SINES: Final = "torch's sines and arc cosines are not rounded correctly, so that values differ in the last place"
WHOLE: Final = "it takes the experts of a layer as one tensor, and here each is one on disk"
SUMS: Final = "it numbers the tokens that the base lacks in an order of its own, and sums over a tensor in that order"
MEANS: Final = "rows of tokens that a model lacks are means of others' rows, which it rounds at every step and mol once"
_TORCH: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ANGLES: Final = ("slerp", "nuslerp")
_WHOLE: Final = (
    "slerp", "nuslerp", "multislerp", "ties", "breadcrumbs", "breadcrumbs_ties", "sce", "model_stock",
)  # fmt: skip


@dataclass
class Bits:
    """How bits compare.

    Attributes:
        word: `equal`, `sines`, `means`, `sums`, `ties`, `other` or `unexplained`.
        reasons: why they are not equal.
        elements: how many there are.
        unlike: how many differ.
    """

    word: str = "equal"
    reasons: list[str] = field(default_factory=list)
    elements: int = 0
    unlike: int = 0

    def note(self, word: str, reason: str) -> None:
        """Keep the gravest word, and each reason once."""
        self.word = max(self.word, word, key=("equal", "sines", "means", "sums", "ties", "other", "unexplained").index)
        if reason not in self.reasons:
            self.reasons.append(reason)


def has(one: Compared) -> bool:
    """Return whether mol can make a recipe in mergekit's arithmetic."""
    return one.method in METHODS_AS_MERGEKIT


def judge(one: Compared, models: Path, made: Path, scratch: Path) -> Bits:
    """Run mol on a recipe with `precision: mergekit` and hold the result against mergekit's in `made`."""
    recipe = {**one.recipe(models), "precision": "mergekit"}
    planned = plan_recipe(recipe)
    run_merge(recipe, scratch / "stepwise")
    theirs, ours = compare.read_all(made), compare.read_all(scratch / "stepwise")
    order: list[int] = []
    if one.form == "union":
        theirs, order = compare.by_token(theirs, made / "tokenizer.json", scratch / "stepwise" / "tokenizer.json")
    cases = {
        name: replace(case, method=case.method.get("mergekit", {}).get("by", case.method))
        for name, case in made_of(planned, scratch).items()
    }
    ours, how = compare.stacked(ours, {name: compare.Made(case, np.empty(0)) for name, case in cases.items()}, theirs)
    found = Bits()
    for name in sorted(ours.keys() | theirs.keys()):
        if name in ours and name in theirs:
            known = worlds.VOCAB if one.form == "union" else 0
            rows = order if name in compare.BY_TOKEN else []
            pair = Pair(name, theirs[name], ours[name], how[name].case, rows)
            _compare(found, pair, known, worlds.DTYPES[one.dtype][0])
        elif name in theirs:
            found.note("unexplained", f"mol lacks `{name}`")
    return found


class Pair(NamedTuple):
    """A tensor that both have.

    Attributes:
        name: its name.
        theirs: mergekit's.
        ours: mol's.
        case: how it is made.
        order: the rows of mergekit's that were taken for mol's; empty where they have one order.
    """

    name: str
    theirs: Stored
    ours: Stored
    case: Case
    order: Sequence[int]

    def replayed(self) -> bool:
        """Return whether torch gives mergekit's bits, with its own sines and arc cosines, and rows in that order."""
        ((kind, numbers),) = self.case.method.items()
        shape, dtype = self.theirs.data.shape, _TORCH[self.theirs.dtype]
        order = torch.tensor(self.order or range(shape[0]))
        xs = []
        for source in self.case.sources:
            x = torch.empty(shape, dtype=dtype)
            x[order] = torch.from_numpy(decode(source)).to(dtype).reshape(shape)
            xs.append(x)
        own = {"own": True} if kind in _ANGLES else {}
        made = getattr(torchs, kind)(*xs, **own, **numbers)[order]
        return np.array_equal(made.double().numpy().ravel(), decode(self.theirs))


def _compare(found: Bits, pair: Pair, known: int, dtype: str) -> None:
    """Add one tensor.

    `known` is the number of tokens that all models have, 0 where all have all; `dtype` is the recipe's, which may be
    narrower than that of the result.
    """
    name, theirs, ours, case, order = pair
    found.elements += ours.data.size
    if theirs.dtype != ours.dtype or theirs.data.shape != ours.data.shape:
        found.note("unexplained", f"`{name}` is another tensor: {theirs.dtype} {theirs.data.shape}")
        return
    unlike = (theirs.data != ours.data).ravel()
    found.unlike += int(unlike.sum())
    if not unlike.any():
        return
    (kind,) = case.method
    if ours.data.ndim == 3 and "experts." in name and kind in _WHOLE:
        found.note("other", WHOLE)
        return
    x, y = decode(theirs), decode(ours)
    largest = np.max([np.abs(x), *(np.abs(decode(source)) for source in case.sources)], axis=0)
    unit = np.exp2(np.floor(np.log2(np.maximum(largest, 1e-30))) + 1 - SIGNIFICAND_BITS[dtype])
    near = bool((np.abs(x - y) <= 2 * unit).all())
    # Sources of a union have rows that are means, which mergekit rounds otherwise.
    if kind in _ANGLES and ((known and near) or pair.replayed()):
        found.note("sines", SINES)
        return
    # Rows of tokens that a model lacks are apart: their values may be unlike wherever they lie.
    shared = unlike.reshape(len(ours.data), -1)[: known or None].ravel()
    by_threshold = kind in ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")
    if known and (near or by_threshold) and not shared.any():
        found.note("means", MEANS)
        return
    if order and kind in ("model_stock", "multislerp") and pair.replayed():
        found.note("sums", SUMS)
        return
    numbers = case.method[kind]
    if numbers.get("rescale") or kind == "sce":
        # What the others are multiplied by is a sum over those that are kept, which changes in the last place.
        shared &= (np.abs(x - y) > 2 * unit)[: len(shared)]
    if by_threshold and not (shared & ~choices.at_thresholds(case, numbers)[: len(shared)]).any():
        found.note("ties", choices.EQUALS)
        if len(shared) < len(unlike) and unlike[len(shared) :].any():
            found.note("means", MEANS)
        return
    found.note("unexplained", f"`{name}`: {int(unlike.sum())} of {unlike.size} differ, by {np.abs(x - y).max():.2g}")


def section(found: Mapping[Compared, Bits]) -> str:
    """Return the part of the page about them."""
    parts = [_TOP]
    for dtype in worlds.DTYPES:
        words = {(one.setting, one.form): bits.word for one, bits in found.items() if one.dtype == dtype}
        rows = [
            f"| {method} | " + " | ".join(words.get((method, form), "") for form in compared.FORMS) + " |"
            for method in compared.METHODS
            if method in METHODS_AS_MERGEKIT
        ]
        settings = [
            f"| {one.setting} | {line(bits)} |"
            for one, bits in found.items()
            if one.dtype == dtype and one.setting != one.method
        ]
        head = f"| {dtype} | {' | '.join(compared.FORMS)} |\n|---|{'---|' * len(compared.FORMS)}"
        parts += [
            "\n".join(["", head, *rows, ""]),
            "\n".join(["", f"| {dtype}, on Llama | |\n|---|---|", *settings, ""]),
        ]
    reasons = {reason for bits in found.values() for reason in bits.reasons}
    parts.append("".join(f"\n- {word}: {reason}." for word, reason in _MEANINGS if reason in reasons) + "\n")
    return "".join(parts)


def line(found: Bits) -> str:
    """Return how bits compare as one line."""
    if found.word == "equal":
        return "equal"
    return f"{found.word} ({found.unlike} of {found.elements} values differ): {'; '.join(found.reasons)}"


_MEANINGS: Final = (("sines", SINES), ("means", MEANS), ("sums", SUMS), ("ties", choices.EQUALS), ("other", WHOLE))
_TOP: Final = """
## With `precision: mergekit`

The same recipes in mergekit's arithmetic, where mol has it ([methods](merging.md#bit-for-bit-as-mergekit)); `equal` is
every bit of every tensor. mergekit ran with one thread of torch.
"""


def summary(found: Mapping[Compared, Any]) -> str:
    """Return how many are equal, for the end of the command."""
    equal = sum(bits.word == "equal" for bits in found.values())
    return f"with precision: mergekit {equal} of {len(found)} are equal bit for bit"
