"""Tied embeddings: which inputs use their embedding as their head, and what that makes of the output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mol.merge.model_config import tie_flag
from mol.merge.names import EMBEDDING, HEAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mol.merge.inputs import Model


@dataclass(frozen=True)
class Tying:
    """What becomes of the head.

    Attributes:
        head: its name in the output.
        embedding: name of the embedding in the output.
        heads: for each model what its scores are computed with: its own tensor, or its embedding when it ties them;
            None where it has no head.
        in_donor: the donor has a tensor of that name.
        as_embedding: the output ties: its head, if written at all, is made as the embedding is.
        flag: what `tie_word_embeddings` must say, None to leave it as the donor's.
        unused: head tensors on disk that their own model ignores, by model.
        notes: lines for people.
    """

    head: str
    embedding: str
    heads: dict[int, str | None]
    in_donor: bool
    as_embedding: bool
    flag: bool | None
    unused: dict[int, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Ends:
    """The two ends of one model: names of its matrices, and whether the head is the embedding."""

    embedding: str | None
    head: str | None
    flag: bool | None
    tied: bool

    def tied_by_class(self) -> _Ends:
        """Give the ends as they are where the model's class ties: a head on disk counts only if the config says so."""
        return self if self.head is None or self.flag is not None else replace(self, tied=True)


def find_tying(donor: Model, models: Sequence[Model]) -> Tying | None:
    """Compare how the models make their scores; None where nothing needs care.

    Nothing does where the donor makes no scores, where no model has a head of its own on disk, and where no model
    ties: the head then is a tensor like any other.
    """
    ends = {model.index: _ends(model) for model in models}
    mine = ends[donor.index] if donor.index in ends else _ends(donor)
    if any(end.tied and end.flag is None for end in (mine, *ends.values())):
        ends = {index: end.tied_by_class() for index, end in ends.items()}
        mine = mine.tied_by_class()
    with_head = [model for model in models if ends[model.index].head is not None]
    has_scores = mine.tied or mine.head is not None
    if not (has_scores and (with_head or mine.head) and (mine.tied or any(end.tied for end in ends.values()))):
        return None
    assert mine.embedding is not None  # a tied model has one, and a head is only found beside one
    own = [m for m in with_head if not ends[m.index].tied and (ends[m.index].flag is False or not mine.tied)]
    heads = {index: end.embedding if end.tied else end.head for index, end in ends.items()}
    if mine.head is not None:
        head = mine.head
    else:
        first = (own or with_head)[0]
        head = first.alignment.to_donor(ends[first.index].head or "", donor.checkpoint.tensors)
    stays_tied = mine.tied and not own
    unused = {
        index: end.head
        for index, end in ends.items()
        if end.head is not None and (end.tied or (stays_tied and index != donor.index))
    }
    if stays_tied:
        return Tying(head, mine.embedding, heads, mine.head is not None, True, None, unused, ())
    notes = []
    tied_labels = [model.label for model in models if ends[model.index].tied]
    if tied_labels:
        notes.append(
            f"head and embedding are tied in {', '.join(tied_labels)} and not in all inputs: their embedding is taken "
            f"for `{head}`, and the output is not tied"
        )
    return Tying(head, mine.embedding, heads, mine.head is not None, False, False, unused, tuple(notes))


def _ends(model: Model) -> _Ends:
    tensors = model.checkpoint.tensors
    matrices = [name for name in model.structure.loose if len(tensors[name].shape) == 2]
    embeddings = [name for name in matrices if EMBEDDING.search(name)]
    heads = [
        (head, embedding)
        for head in matrices
        if HEAD.search(head)
        for embedding in embeddings
        if tensors[head].shape == tensors[embedding].shape
    ]
    flag = tie_flag(model.checkpoint.config)
    if heads:
        head, embedding = heads[0]
        return _Ends(embedding, head, flag, flag is True)
    first = next(iter(embeddings), None)
    tied = first is not None and (flag is True or (flag is None and _has_scores(model)))
    return _Ends(first, None, flag, tied)


def _has_scores(model: Model) -> bool:
    """Tell whether the saved class is one with a language model's head, which then can only be the embedding."""
    architectures = model.checkpoint.config.get("architectures")
    words = ("ForCausalLM", "LMHead", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining")
    return isinstance(architectures, list) and any(
        isinstance(name, str) and word in name for name in architectures for word in words
    )
