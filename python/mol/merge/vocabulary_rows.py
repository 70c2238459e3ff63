"""Finds the tensors of a merge with one row for each token, and has their rows gathered where vocabularies differ."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from mol.merge.gathers import Gathers, is_vocabulary
from mol.structure.layers import is_side_tower
from mol.structure.model_config import second_vocabulary, set_vocab_size, text_sections
from mol.structure.names import EMBEDDING, EXPERTS_OF_TOKENS, HEAD, LOGITS_BIAS, TOKENS_PER_LAYER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mol.io.checkpoint import TensorInfo
    from mol.merge.gathers import Gathered
    from mol.merge.joined import Joined
    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Model
    from mol.merge.tied import Tying

_PER_LAYER: Final = "vocab_size_per_layer_input"
_WITHOUT_BIAS: Final = (
    "leave such models out, or, where it holds nothing but zeros, which transformers makes if it is missing, save the "
    "models without it"
)


class VocabularyRows:
    """The tensors of a merge that have one row for each token."""

    def __init__(self, donor: Model, models: Sequence[Model], tying: Tying | None) -> None:
        """Find them.

        Args:
            donor: the model whose names the output has.
            models: every model of the recipe.
            tying: what becomes of the head, where that needs care.
        """
        self._donor = donor
        self._models = models
        self._tying = tying
        structure, tensors = donor.structure, donor.checkpoint.tensors
        self._names = dict.fromkeys(
            name for name in structure.loose if is_vocabulary(name, tensors[name].shape) and not is_side_tower(name)
        )
        heights = {tensors[name].shape[0] for name in self._names if EMBEDDING.search(name)}
        per_layer = [name for name in structure.loose if TOKENS_PER_LAYER.search(name)]
        # The class takes the first row for tokens behind the last one of a shorter table.
        self._short = [name for name in per_layer if tensors[name].shape[0] not in heights]
        self._names.update((name, None) for name in per_layer if name not in self._short)
        if tying is not None:
            self._names[tying.head] = None
        self._gathers: Gathers | None = None
        self._size: int | None = None
        self._joined: Joined | None = None

    def has(self, name: str) -> bool:
        """Return whether a tensor of the output is one of them."""
        return name in self._names

    def unequal(self, models: Sequence[Model]) -> str | None:
        """Describe unequal numbers of rows; None where they are equal."""
        for name in self._names:
            theirs = self._everywhere(name)
            rows = {model.label: self._info(model, theirs).shape[0] for model in models if model.index in theirs}
            if len(set(rows.values())) > 1:
                return ", ".join(f"{count} rows in {label}" for label, count in rows.items())
        return None

    def join(self, joined: Joined) -> None:
        """Gather rows by token from now on."""
        self._joined = joined
        self._gathers = Gathers(joined, self._models)

    @property
    def joined(self) -> Joined | None:
        """The vocabulary of the output."""
        return self._joined

    @property
    def tables(self) -> Mapping[str, Mapping[str, Any]]:
        """The row tables of the plan."""
        return {} if self._gathers is None else self._gathers.tables

    def gather(self, name: str, info: TensorInfo) -> tuple[TensorInfo, Callable[[Model], Gathered]]:
        """Return what a tensor of the output is like, and what is read of each model.

        Args:
            name: the tensor.
            info: the same in the donor.
        """
        assert self._gathers is not None  # `join` comes first
        names = self._everywhere(name)
        tensors = {index: self._models[index].checkpoint.tensors[theirs] for index, theirs in names.items()}
        size = self._gathers.size(tensors, info.shape[0])
        if self._size is None or EMBEDDING.search(name):
            self._size = size
        info = info._replace(shape=(size, *info.shape[1:]), bytes=info.bytes // max(info.shape[0], 1) * size)
        return info, partial(self._gathers.gather, tensors=tensors, names=names, size=size)

    def finish(
        self,
        config: dict[str, Any],
        problems: Mismatches,
        notes: dict[str, None],
        warnings: dict[str, None],
    ) -> None:
        """Write the size into config.json, and report what was found."""
        gathers, joined = self._gathers, self._joined
        assert gathers is not None  # `join` comes first
        assert joined is not None
        for problem in gathers.problems:
            problems.add(problem)
        if self._size is None:
            return
        rows = {self._info(self._donor, names).shape[0] for names in map(self._everywhere, self._names)}
        if rows != {self._size}:
            set_vocab_size(config, self._size)
            for section in text_sections(config):
                if _PER_LAYER in section and not self._short:
                    section[_PER_LAYER] = self._size
            notes[f"the vocabulary of the output has {len(joined.tokens)} tokens and {self._size} rows"] = None
        tokens = joined.tokens
        for label, count in gathers.lacking.items():
            notes[f"{label} lacks {count} of the output's {len(tokens)} tokens; their rows come from others"] = None
        for label, count in gathers.beyond.items():
            warnings[f"{label}: {count} of its tokens have no row, since their ids lie behind its embedding"] = None
        if gathers.zeros:
            token = tokens[min(gathers.zeros)]
            warnings[
                f"no model has a row for {len(gathers.zeros)} of the output's {len(tokens)} tokens, "
                f"e.g. {token!r}: zeros"
            ] = None
        if gathers.tables:
            for name in self._tail_ends():
                problems.add(
                    f"`{name}` of {self._donor.label} predicts further tokens and has a row for each: it is copied and "
                    "cannot follow another vocabulary; choose the tokenizer of the base, or remove these layers"
                )
        if gathers.tables and (second := second_vocabulary(config)):
            problems.add(
                f"config.json of {self._donor.label} states two vocabularies (`{second}`), and rows follow one "
                "tokenizer; merge models of the same vocabularies, without `tokenizer_source`"
            )
        tensors = self._donor.checkpoint.tensors
        biases = [name for name in self._donor.structure.loose if LOGITS_BIAS.search(name)]
        copied = [name for name in tensors if EXPERTS_OF_TOKENS.search(name)]
        for name in (*self._short, *biases, *copied):
            count = tensors[name].shape[-1 if name in biases else 0]
            others = ", ".join(self._numbered_otherwise(name, joined))
            if others or (count != self._size and name not in self._short):
                found = f"those of {others}" if others else f"as many ({self._size}, wanted {count})"
                problems.add(
                    f"`{name}` of {self._donor.label} is paired by the numbers of tokens, and the output's are not "
                    f"{found}; {_WITHOUT_BIAS if name in biases else 'leave such models out'}"
                )

    def _numbered_otherwise(self, name: str, joined: Joined) -> Iterator[str]:
        """Yield the models that have a tensor and do not number the tokens of its rows as the output does."""
        for index, theirs in self._everywhere(name).items():
            model = self._models[index]
            first, *rest = model.checkpoint.tensors[theirs].shape
            rows = rest[0] if first == 1 and rest else first
            if joined.rows_of(model.checkpoint.directory, rows, rows)[:rows].tolist() != list(range(rows)):
                yield model.label

    def _tail_ends(self) -> Iterator[str]:
        """Yield the embeddings and heads of what predicts further tokens behind the layers of the donor."""
        for tail in self._donor.structure.tails:
            for layer in range(len(tail)):
                yield from (name for name in tail.names(layer) if EMBEDDING.search(name) or HEAD.search(name))

    def _everywhere(self, name: str) -> dict[int, str]:
        """Return what a tensor of the output is called in each model that has it, by the model's index."""
        found = {}
        for model in self._models:
            if self._tying is not None and name == self._tying.head and model.index in self._tying.heads:
                theirs = self._tying.heads[model.index]
            else:
                theirs = model.alignment.find(name, model.checkpoint.tensors)
            if theirs is not None:
                found[model.index] = theirs
        return found

    def _info(self, model: Model, names: Mapping[int, str]) -> TensorInfo:
        return model.checkpoint.tensors[names[model.index]]
