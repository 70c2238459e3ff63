"""Tied embeddings: which inputs use their embedding as their head, and what that makes of the output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mol.structure.heads import ends_of
from mol.structure.model_config import set_tie, tie_flag
from mol.structure.names import head_next_to

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.merge.model import Model


class Tying(NamedTuple):
    """What becomes of the head.

    Attributes:
        head: its name in the output.
        embedding: name of the embedding in the output.
        heads: for each model what its scores are computed with: its own tensor, or its embedding when it ties them;
            None where it has no head.
        in_donor: the donor has a tensor of that name.
        as_embedding: the output ties: its head, if written at all, is made as the embedding is.
        untied: `tie_word_embeddings` must be false; else it is left as the donor's.
        unused: head tensors on disk that their own model ignores, by model.
        notes: lines for people.
    """

    head: str
    embedding: str
    heads: dict[int, str | None]
    in_donor: bool
    as_embedding: bool
    untied: bool
    unused: dict[int, str]
    notes: tuple[str, ...]


class _Ends(NamedTuple):
    """The two ends of one model: names of its matrices, and whether the head is the embedding."""

    embedding: str | None
    head: str | None
    flag: bool | None
    tied: bool

    def tied_by_class(self) -> _Ends:
        """Return the ends as they are if the model's class ties: a head on disk counts only if the config says so."""
        return self if self.head is None or self.flag is not None else self._replace(tied=True)


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
    assert mine.embedding is not None  # a tied model has one, and a head is only found with one
    own = [m for m in with_head if not ends[m.index].tied and (ends[m.index].flag is False or not mine.tied)]
    heads = {index: end.embedding if end.tied else end.head for index, end in ends.items()}
    if mine.head is not None:
        head = mine.head
    else:
        first = (own or with_head)[0]
        theirs = ends[first.index].head or ""
        head = first.alignment.to_donor(theirs, donor.checkpoint.tensors)
        if f".{theirs}".endswith(".lm_head.weight") and donor.structure.main is not None:
            head = head_next_to(donor.structure.main.prefix)
    stays_tied = mine.tied and not own
    unused = {
        index: end.head
        for index, end in ends.items()
        if end.head is not None and (end.tied or (stays_tied and index != donor.index))
    }
    if stays_tied:
        return Tying(head, mine.embedding, heads, mine.head is not None, True, False, unused, ())
    notes = []
    tied_labels = [model.label for model in models if ends[model.index].tied]
    if tied_labels:
        notes.append(
            f"head and embedding are tied in {', '.join(tied_labels)} and not in all inputs: their embedding is taken "
            f"for `{head}`, and the output is not tied"
        )
    return Tying(head, mine.embedding, heads, mine.head is not None, False, True, unused, tuple(notes))


def state_untied(config: dict[str, Any], head: str) -> str | None:
    """State in the output's config.json that its head is not tied, or return a note why that cannot be stated.

    In models of an encoder and a decoder the flag ties their embeddings too (and scales the last states of a T5), and
    where the head is a `decoder` inside a module, the bias of that module.
    """
    if config.get("is_encoder_decoder") is not True and not head.endswith("decoder.weight"):
        set_tie(config, tied=False)
        return None
    return (
        f"`{head}` is a head of its own, and tie_word_embeddings is left as it is, since it ties more than the head in "
        "models of this kind; version 5 of transformers uses the head that is stored, version 4 may not"
    )


def own_head(donor: Model, tying: Tying | None) -> str | None:
    """Name the head of the output where its config.json must say that it is not the embedding."""
    if tying is not None and tying.untied:
        return tying.head
    return ends_of(donor.checkpoint, donor.structure)[1] if donor.own_head else None


def own_head_note(model: Model) -> str | None:
    """Return a note that the weights of a model contradict its config.json, None where they do not."""
    if not model.own_head or tie_flag(model.checkpoint.config) is not True:
        return None
    embedding, head = ends_of(model.checkpoint, model.structure)
    return (
        f"config.json of {model.label} says that head and embedding are tied, and `{head}` differs from "
        f"`{embedding}`: it is a head of its own, as transformers loads it"
    )


def _ends(model: Model) -> _Ends:
    embedding, head = ends_of(model.checkpoint, model.structure)
    flag = False if model.own_head else tie_flag(model.checkpoint.config)
    if head is not None:
        return _Ends(embedding, head, flag, flag is True)
    tied = embedding is not None and (flag is True or (flag is None and has_scores(model.checkpoint.config)))
    return _Ends(embedding, None, flag, tied)


def has_scores(config: Mapping[str, Any]) -> bool:
    """Return whether the saved class has a language model's head, which then can only be the embedding."""
    architectures = config.get("architectures")
    words = ("ForCausalLM", "LMHead", "ForConditionalGeneration", "ForMaskedLM", "ForPreTraining")
    return isinstance(architectures, list) and any(
        isinstance(name, str) and word in name for name in architectures for word in words
    )
