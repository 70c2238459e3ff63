"""Applies an adapter to a model: each of its tensors becomes part of an expression, which the engine makes by tiles."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from mol.dtypes import BYTES, FLOAT_DTYPES
from mol.errors import MergeError
from mol.io.checkpoint import Checkpoint, Made, Part
from mol.io.expressions import Expr, Leaf
from mol.merge.tied import has_scores
from mol.structure.heads import ends_of
from mol.structure.layers import find_structure
from mol.structure.model_config import set_tie, tie_flag
from mol.structure.names import EMBEDDING, HEAD, head_next_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mol.io.adapter import Adapter, Factors
    from mol.io.checkpoint import TensorInfo

# Models that keep their matrices as [in, out], whatever the settings of the adapter say: peft goes by the class, too.
_STORED_TRANSPOSED: Final = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_CONV1D: Final = ("c_attn", "c_proj", "c_fc", "q_attn")
_LISTED: Final = 8


def with_adapter(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """Return a model with an adapter on it: W + scale * B A where the adapter has factors, its own tensors elsewhere.

    Raises:
        MergeError: a tensor of the adapter matches no tensor of the model; lists all of them.
    """
    return _Application(base, adapter).result()


class _Application:
    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self._base = base
        self._adapter = adapter
        self._problems: list[str] = []
        self._tensors = dict(base.tensors)
        self._made = dict(base.made)
        self._config = base.config
        self._notes: list[str] = []
        self._names = _Names(base.tensors)
        self._file = len(base.files)  # the number of the adapter's

    def result(self) -> Checkpoint:
        base, adapter = self._base, self._adapter
        tied = self._untie()
        replaced = {}
        for name, own in adapter.whole.items():
            target = self._target(name, tied)
            if target is not None:
                replaced[target] = own
                self._replace(target, own)
        for module, factors in adapter.factors.items():
            target = self._target(f"{module}.weight", tied)
            if target is not None:
                self._add(target, module, replaced.get(target), factors)
        if self._problems:
            raise MergeError.listing(
                f"the adapter {adapter.name} does not fit {base.name}; every tensor of an adapter has to be applied",
                self._problems,
            )
        part = Part(adapter.name, adapter.directory, adapter.revision, (adapter.file,), adapter.digests, "adapter")
        return Checkpoint(
            f"{base.name}+{adapter.name}",
            base.directory,
            base.revision,
            (*base.files, adapter.file),
            self._tensors,
            self._config,
            (*base.warnings, *self._warnings()),
            (*base.notes, self._summary(), *self._notes, *self._names.notes(adapter.name, base.name)),
            self._made,
            base.tables,
            (*base.directories(), part),
            base.own_files,
        )

    def _target(self, name: str, tied: Mapping[str, str]) -> str | None:
        """Find the tensor of the model that a tensor of the adapter belongs to."""
        found = self._names.find(name)
        found = tied.get(name) if found is None else found
        if found is None:
            which = " (an expert: in this model they may be fused)" if ".experts" in name else ""
            self._problems.append(f"`{name}`: the model has no such tensor{which}")
        elif self._tensors[found].dtype not in FLOAT_DTYPES:
            self._problems.append(f"`{name}`: it is {self._tensors[found].dtype} in the model, and no float")
            return None
        elif self._base.own_files is not None and self._base.own_files.renamed and _has_tokens(found):
            self._problems.append(
                f"`{name}`: rows of {self._base.name} are of other tokens than its base's, and this adapter's may be "
                "of either; put it on a model of that step"
            )
        return found

    def _current(self, target: str) -> Expr:
        """Return what the model has now under a name."""
        made = self._made.get(target)
        return Leaf(self._base.tensors[target].file, target) if made is None else made.of[0]

    def _read(self, name: str) -> Leaf:
        return Leaf(self._file, name)

    def _replace(self, target: str, own: str) -> None:
        """Replace a tensor of the model by one that was trained as a whole."""
        info, mine = self._tensors[target], self._adapter.tensors[own]
        if mine.shape != info.shape:
            rows = self._own_tokens(target)
            if not rows and mine.shape[1:] == info.shape[1:]:
                rows = " (tokens were added for its training)"
            self._problems.append(f"`{own}` has shape {list(mine.shape)}, the model's {list(info.shape)}{rows}")
        elif mine.dtype not in FLOAT_DTYPES:
            self._problems.append(f"`{own}` is {mine.dtype}, wanted a float")
        self._made[target] = Made((self._read(own),), mine.bytes)

    def _own_tokens(self, target: str) -> str:
        """Return why a tensor may have rows of tokens that the adapter does not know, as a message ends."""
        if self._base.own_files is None or not _has_tokens(target):
            return ""
        return f" ({self._base.name} has a vocabulary of its own; put the adapter on a model of that step)"

    def _add(self, target: str, module: str, own: str | None, factors: Factors) -> None:
        """Add the product of two factors, turned as the model keeps its matrix, to it or to the adapter's own of it."""
        of = self._current(target) if own is None else self._read(own)
        double = (self._tensors[target] if own is None else self._adapter.tensors[own]).dtype == "F64"
        found = {kind: self._read(name) for kind, name in factors.tensors.items()}
        shapes = {kind: self._adapter.tensors[name].shape for kind, name in factors.tensors.items()}
        shape = self._tensors[target].shape
        magnitude = found.get("lora_magnitude_vector")
        a: Expr
        b: Expr
        if "lora_embedding_A" in found:
            a, b = {"transpose": found["lora_embedding_B"]}, {"transpose": found["lora_embedding_A"]}
            wanted = (shapes["lora_embedding_A"][1], shapes["lora_embedding_B"][0])
            turned = False
        else:
            a, b = found["lora_A"], found["lora_B"]
            wanted = (shapes["lora_B"][0], shapes["lora_A"][1])
            turned = self._is_turned(target, shape, wanted)
            if turned:
                wanted = (wanted[1], wanted[0])
        if shape != wanted:
            why = self._own_tokens(target)
            self._problems.append(
                f"`{module}` has factors for a matrix {list(wanted)}, the model's is {list(shape)}{why}"
            )
            return
        if magnitude is not None and math.prod(shapes["lora_magnitude_vector"]) != shapes["lora_B"][0]:
            self._problems.append(f"`{module}` has magnitudes of shape {list(shapes['lora_magnitude_vector'])}")
            return
        if turned and magnitude is not None:
            # The norms that DoRA divides by are of columns here.
            of = {"transpose": of}
        elif turned:
            a, b = {"transpose": b}, {"transpose": a}
        made: Expr = {"lora": {"of": of, "a": a, "b": b, "scale": factors.scale, "magnitude": magnitude}}
        if turned and magnitude is not None:
            made = {"transpose": made}
        self._made[target] = Made((made,), shape[0] * shape[1] * BYTES["F64" if double else "F32"])

    def _is_turned(self, target: str, shape: tuple[int, ...], wanted: tuple[int, int]) -> bool:
        """Return whether a matrix is kept as [in, out]; `wanted` is (out, in)."""
        if wanted[0] != wanted[1]:
            return shape == (wanted[1], wanted[0])
        if self._base.config.get("model_type") in _STORED_TRANSPOSED:
            return target.split(".")[-2] in _CONV1D
        if not self._adapter.config.get("fan_in_fan_out"):
            return False
        # The word is one for all modules, so one that is not square shows what it means here.
        for module, factors in self._adapter.factors.items():
            other = self._names.find(f"{module}.weight")
            if other is not None and "lora_A" in factors.tensors:
                out, rows = (self._adapter.tensors[factors.tensors[kind]].shape for kind in ("lora_B", "lora_A"))
                if out[0] != rows[1]:
                    return self._base.tensors[other].shape == (rows[1], out[0])
        self._problems.append(
            f"`{target}` is square: whether it is kept turned, as `fan_in_fan_out` says, cannot be seen"
        )
        return False

    def _untie(self) -> dict[str, str]:
        """Part head and embedding where the adapter changes one of two that the model ties.

        Without the merge the other one stays as it was, so it does in the output. Returns how the head is called where
        the model has none of its own.
        """
        base, adapter = self._base, self._adapter
        structure = find_structure(base.tensors, base.config)
        embedding, head = ends_of(base, structure)
        flag = tie_flag(base.config)
        ties = flag is True or (flag is None and head is None and has_scores(base.config))
        if embedding is None or not ties:
            return {}
        usual = head_next_to(structure.main.prefix if structure.main is not None else "")
        touched = [*adapter.whole, *(f"{module}.weight" for module in adapter.factors)]
        of_head = [name for name in touched if (self._names.find(name) or name) in (head, usual)]
        of_embedding = [name for name in touched if self._names.find(name) == embedding]
        if not of_head and not of_embedding:
            return {}
        if base.config.get("is_encoder_decoder") is True:
            self._problems.append(f"`{(of_head or of_embedding)[0]}`: the model ties it to more than one matrix")
            return dict.fromkeys(of_head, head or embedding)
        if adapter.config.get("ensure_weight_tying") and not (of_head and of_embedding):
            # What is saved of both is equal; of one alone, the embedding is what the other follows.
            if of_head:
                self._problems.append(f"`{of_head[0]}`: `ensure_weight_tying`, and nothing of the embedding is there")
            return dict.fromkeys(of_head, head or embedding)
        self._config = copy.deepcopy(base.config)
        set_tie(self._config, tied=False)
        if head is None:
            head = usual
            self._tensors[head] = base.tensors[embedding]
            self._made[head] = Made((self._current(embedding),), base.tensors[embedding].bytes)
        which = "head" if of_head and not of_embedding else "embedding" if not of_head else "head and embedding"
        self._notes.append(
            f"{base.name} ties head and embedding, and {adapter.name} changes the {which}: the output ties neither"
        )
        return dict.fromkeys(of_head, head)

    def _warnings(self) -> Iterable[str]:
        """Warn of a model that is not the one that the adapter was trained on."""
        trained_on = self._adapter.config.get("base_model_name_or_path")
        if not isinstance(trained_on, str) or not trained_on.strip():
            return
        known: set[str] = set()
        # A step of a recipe is as near as any of the models that it is made of.
        for ours in self._base.directories():
            directory = ours.directory.resolve()
            known |= {_last_word(ours.name), directory.name.lower()}
            known |= {part.rpartition("--")[2].lower() for part in directory.parts if part.startswith("models--")}
        if _last_word(trained_on) not in known:
            yield (
                f"the adapter {self._adapter.name} was trained on {trained_on}, and is applied to {self._base.name}: "
                "unless they are one model, the result is none"
            )

    def _summary(self) -> str:
        """Describe how many tensors were applied, and to what."""
        adapter = self._adapter
        count = len(adapter.tensors)
        modules = Counter(module.rpartition(".")[2] for module in adapter.factors)
        listed = [f"{module} {n}" for module, n in modules.most_common(_LISTED)]
        if len(modules) > _LISTED:
            listed.append(f"{len(modules) - _LISTED} other names")
        kind = "DoRA" if adapter.config.get("use_dora") else "rsLoRA" if adapter.config.get("use_rslora") else "LoRA"
        ranks = sorted({factors.rank for factors in adapter.factors.values()})
        scales = sorted({factors.scale for factors in adapter.factors.values()})
        parts = []
        if adapter.factors:
            parts.append(
                f"{kind} of rank {_range(ranks)} and scale {_range(scales)} on {len(adapter.factors)} modules "
                f"({', '.join(listed)})"
            )
        if adapter.whole:
            names = [f"`{name}`" for name in list(adapter.whole)[:_LISTED]]
            more = f" and {len(adapter.whole) - _LISTED} more" if len(adapter.whole) > _LISTED else ""
            parts.append(f"{len(adapter.whole)} tensors as a whole: {', '.join(names)}{more}")
        return f"all {count} tensors of {adapter.name} are applied to {self._base.name}: {'; '.join(parts)}"


def _has_tokens(name: str) -> bool:
    return EMBEDDING.search(name) is not None or HEAD.search(name) is not None


def _range(numbers: list[int] | list[float]) -> str:
    return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g} to {numbers[-1]:g}"


def _last_word(name: str) -> str:
    """Return the last part of a path or an id, without a revision."""
    return name.rstrip("/").rpartition("/")[2].partition("@")[0].lower()


class _Names:
    """Finds the model's name of a tensor: its own, or one that differs in what stands before the layers' path."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._by_end: dict[str, list[str]] | None = None
        self._pairs: dict[tuple[str, str], None] = {}

    def find(self, name: str) -> str | None:
        """Return the name in the model, None where there is none or more than one."""
        if name in self._tensors:
            return name
        words = name.split(".")
        numbers = [i for i, word in enumerate(words) if word.isdecimal()]
        # What is cut off says where the language model stands in the whole, and never which layer it is.
        last = numbers[0] - 1 if numbers else len(words) - 2
        for cut in range(last + 1):
            end = ".".join(words[cut:])
            found = self._ending(end)
            if len(found) == 1:
                start = ".".join(words[:cut])
                self._pairs[start, found[0].removesuffix(end).rstrip(".")] = None
                return found[0]
            if found:
                return None
        return None

    def _ending(self, end: str) -> list[str]:
        if self._by_end is None:
            self._by_end = {}
            for name in self._tensors:
                words = name.split(".")
                for cut in range(len(words)):
                    self._by_end.setdefault(".".join(words[cut:]), []).append(name)
                    if words[cut].isdecimal():
                        break
        return self._by_end.get(end, [])

    def notes(self, adapter: str, base: str) -> Iterable[str]:
        """Report names that differ."""
        for theirs, ours in self._pairs:
            yield f"names of {adapter} are aligned with {base}: `{theirs}.*` is `{ours}.*`".replace("`.*`", "`*`")
