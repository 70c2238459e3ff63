"""Maps the names of one checkpoint's tensors onto those of another: by its stacks of layers, then by roles."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from mol.structure.names import HEAD

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from mol.structure.layers import Stack, Structure


class Alignment(NamedTuple):
    """How the names of one checkpoint map onto the donor's.

    Attributes:
        pairs: prefixes, the donor's and the other's, most specific first; "" is none.
        stacks: prefix of a donor's stack -> the other's stack that corresponds, None where it has none.
        roles: tensors of the donor outside the layers -> the other's of the same role, where no prefix relates them.
    """

    pairs: tuple[tuple[str, str], ...]
    stacks: Mapping[str, Stack | None]
    roles: Mapping[str, str] = {}

    def find(self, name: str, tensors: Container[str]) -> str | None:
        """Find the other's tensor for a donor's name, or None."""
        if name in tensors:
            return name
        for ours, theirs in self.pairs:
            if name.startswith(ours):
                candidate = theirs + name[len(ours) :]
                if candidate in tensors:
                    return candidate
        return self.roles.get(name)

    def to_donor(self, name: str, tensors: Container[str]) -> str:
        """Translate one of the other's tensor names into the donor's naming."""
        for ours, theirs in self.roles.items():
            if theirs == name:
                return ours
        named = [ours + name[len(theirs) :] for ours, theirs in self.pairs if name.startswith(theirs)]
        existing = (candidate for candidate in named if candidate in tensors)
        prefixed = (ours + name[len(theirs) :] for ours, theirs in self.pairs if theirs and name.startswith(theirs))
        return next(existing, None) or next(prefixed, name)


def align(donor: Structure, other: Structure) -> Alignment:
    """Align the names of two checkpoints by their stacks of layers, else by the first word of their names."""
    stacks = _pair_stacks(donor.stacks, other.stacks)
    pairs: dict[tuple[str, str], None] = {}
    for prefix, stack in stacks.items():
        if stack is not None and stack.prefix != prefix:
            pairs[_strip_common(prefix, stack.prefix)] = None
    if not pairs:
        pairs.update(dict.fromkeys(_pair_loose(donor.loose, other.loose)))
    by_prefix = Alignment(tuple(sorted(pairs, key=lambda pair: -len(pair[0]))), stacks)
    return by_prefix._replace(roles=_pair_roles(donor, other, by_prefix))


def _pair_roles(donor: Structure, other: Structure, by_prefix: Alignment) -> dict[str, str]:
    """Pair what no prefix relates, such as `language_model.lm_head.weight` and `lm_head.weight`.

    Names are of one role when they end alike (or both name a head) and what stands before only says where the language
    model is in the whole: nothing, or words from the path of its layers. Roles that several names have are left alone.
    """
    theirs = set(other.loose)
    ours = [name for name in donor.loose if by_prefix.find(name, theirs) is None]
    taken = {found for name in donor.loose if (found := by_prefix.find(name, theirs)) is not None}
    around = {"model", *(word for part in (donor, other) if part.main for word in part.main.prefix.split("."))}
    ends: dict[str, tuple[list[str], list[str]]] = {}
    for side, names in enumerate((ours, [name for name in other.loose if name not in taken])):
        for name in names:
            words = name.split(".")
            shortest = 2 if words[-1] in {"weight", "bias"} else 1
            while len(words) > shortest and words[0] in around:
                words = words[1:]
            end = ".".join(words)
            ends.setdefault("lm_head.weight" if HEAD.fullmatch(end) else end, ([], []))[side].append(name)
    return {mine[0]: their[0] for mine, their in ends.values() if len(mine) == len(their) == 1}


def _pair_stacks(ours: Iterable[Stack], theirs: Iterable[Stack]) -> dict[str, Stack | None]:
    """Pair stacks of equal prefix, then those whose prefixes end alike, the longest common ending first."""
    paired: dict[str, Stack | None] = {}
    left = {stack.prefix: stack for stack in theirs}
    waiting = []
    for stack in ours:
        paired[stack.prefix] = left.pop(stack.prefix, None)
        if paired[stack.prefix] is None:
            waiting.append(stack)
    candidates = sorted(
        (
            (-_common_ending(a.prefix, b.prefix), -len(a.suffixes & b.suffixes), a.prefix, b.prefix)
            for a in waiting
            for b in left.values()
            if _common_ending(a.prefix, b.prefix) and not a.suffixes.isdisjoint(b.suffixes)
        ),
    )
    for _, _, a_prefix, b_prefix in candidates:
        if paired[a_prefix] is None and b_prefix in left:
            paired[a_prefix] = left.pop(b_prefix)
    return paired


def _common_ending(a: str, b: str) -> int:
    """Count the words that two dotted names share at their ends."""
    count = 0
    for x, y in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if x != y:
            break
        count += 1
    return count


def _strip_common(a: str, b: str) -> tuple[str, str]:
    """Drop the words that two prefixes share at their ends: what is left differs, with its dot."""
    common = _common_ending(a, b)
    left, right = a.split(".")[:-common], b.split(".")[:-common]
    return "".join(f"{word}." for word in left), "".join(f"{word}." for word in right)


def _pair_loose(ours: Iterable[str], theirs: Iterable[str]) -> list[tuple[str, str]]:
    """Try the commonest first word of either side as a prefix that the other lacks."""
    ours, theirs = set(ours), set(theirs)
    best, found = len(ours & theirs), []
    for prefix in _first_words(ours):
        hits = sum(name.startswith(prefix) and name[len(prefix) :] in theirs for name in ours)
        if hits > best:
            best, found = hits, [(prefix, "")]
    for prefix in _first_words(theirs):
        hits = sum(name.startswith(prefix) and name[len(prefix) :] in ours for name in theirs)
        if hits > best:
            best, found = hits, [("", prefix)]
    return found


def _first_words(names: Iterable[str]) -> list[str]:
    counts = Counter(name.partition(".")[0] for name in names if "." in name)
    return [f"{word}." for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]]
