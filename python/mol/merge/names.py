"""What the name of a tensor tells: its side of the model, its role, and its name in a sister checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from mol.merge.layers import Stack, Structure

Side = Literal["first", "last", "unknown"]

# The table of sides, first match wins. Weights before the layers take the first slice's sources and the start of a
# gradient, weights after them the last slice's and the end.
_WORDS: Final[tuple[tuple[str, Side], ...]] = (
    (
        # Heads, before the embeddings, since `embed_out` is a head.
        r"lm_head\w*|embed_out|output_layer|output|output_projection|head|heads|\w+_head|generator\w*|cls|predictions"
        r"|\w+_predictions|score|classifier|pre_classifier|qa_outputs|pooler|vocab_\w+|final_logits_bias",
        "last",
    ),
    (
        r"\w*embeddings?|embed\w*|\w+_embed|wte|wpe|tok_\w+|word_emb\w*|pos_emb\w*|shared|cls_token"
        r"|embeddings?_\w+|\w+_embeddings?_\w+|ln_pre|pre_layrnorm|emb_norm|project_in|layernorm_embedding"
        r"|rotary_emb|relative_attention_bias|patch_\w+|position_ids|masked_spec_embed",
        "first",
    ),
    (
        r"norm|ln_f|norm_f|f_norm|final_\w*norm|\w*layer_?norm|ln_post|norm_out|project_out|last_\w+|out_norm",
        "last",
    ),
)
_SIDES: Final = tuple((re.compile(rf"(?:^|\.)(?:{words})(?:\.|$)"), side) for words, side in _WORDS)

HEAD: Final = re.compile(
    r"(?:^|\.)(?:(?:lm_|generator_lm_)?head\.decoder|(?:generator_)?lm_head(?:\.out_proj)?|embed_out|output_layer|output"
    r"|output_projection|proj_out|vocab_projector|predictions\.decoder|pred_layer\.proj|lm_loss|^decoder)\.weight$"
)
"""The matrix that turns hidden states into scores of tokens."""

EMBEDDING: Final = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings?|embed_in|tok_embeddings|shared|embeddings?|token_embedding|tokens_embed)\.weight$"
)
"""The matrix that turns tokens into hidden states."""

_INTEGER: Final = re.compile(r"[0-9]{1,9}")  # longer ones are no counts, and int() refuses very long ones
_BUFFER: Final = re.compile(r"(?:^|\.)(?:rotary_emb\.(?:inv_freq|\w+_cached)|attn\.masked_bias|position_ids)$")
_MASK: Final = re.compile(r"(?:^|\.)attn(?:ention)?\.(?:bias|mask)$")


def side_of(name: str) -> Side:
    """Tell the side of a weight outside the layers."""
    for pattern, side in _SIDES:
        if pattern.search(name):
            return side
    return "unknown"


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Tell a table that the model's code computes by itself: causal masks, rotary frequencies.

    Older versions of transformers saved them and newer ones do not, so siblings may differ in them.
    """
    return _BUFFER.search(name) is not None or (
        len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] and _MASK.search(name) is not None
    )


@lru_cache(maxsize=65536)
def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort names by their words and their numbers: 2 before 10."""
    return tuple((int(part), "") if _INTEGER.fullmatch(part) else (-1, part) for part in name.split("."))


@dataclass(frozen=True)
class Alignment:
    """How the names of one checkpoint map onto the donor's.

    Attributes:
        pairs: prefixes, the donor's and the other's, most specific first; "" stands for none.
        stacks: prefix of a donor's stack -> the other's stack that corresponds, None where it has none.
        roles: tensors of the donor outside the layers -> the other's of the same role, where no prefix relates them.
    """

    pairs: tuple[tuple[str, str], ...]
    stacks: Mapping[str, Stack | None]
    roles: Mapping[str, str] = field(default_factory=dict)

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
        """Give the name among the donor's tensors of a tensor of the other, or the one that the donor would give it."""
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
    return replace(by_prefix, roles=_pair_roles(donor, other, by_prefix))


def head_beside(prefix: str) -> str:
    """Name the head of a model whose layers are at a path: `lm_head` stands beside the outermost module `model`."""
    words = prefix.split(".")
    around = words[: words.index("model")] if "model" in words else []
    return ".".join((*around, "lm_head.weight"))


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
