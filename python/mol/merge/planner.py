"""plan_merge: recipe and checkpoints in, everything that will be done out, or every reason why not."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from mol.dtypes import DTYPE_WORDS, DTYPES
from mol.errors import ConfigError, MergeError
from mol.merge.account import Account, span_of
from mol.merge.combine import idle_filters
from mol.merge.complete import check_complete
from mol.merge.experts import in_one_layout, router_warning
from mol.merge.inputs import layers_for, open_models
from mol.merge.kinship import check_kinship
from mol.merge.mismatch import Mismatches
from mol.merge.model import ModelLayer, OutputSpec
from mol.merge.options import MergeOptions
from mol.merge.parts import Parts
from mol.merge.plan import COPY
from mol.merge.planned import PlannedMerge
from mol.merge.ruled import idle_rules, rule_lines
from mol.merge.settings import compare_settings
from mol.merge.stacking import Stacker
from mol.merge.stepwise import as_mergekit, ends_otherwise, outside_layers
from mol.merge.tasks import TaskBuilder
from mol.merge.tied import Tying, find_tying, own_head, own_head_note, state_untied
from mol.merge.vocabulary_rows import VocabularyRows
from mol.structure.experts import expert_rows
from mol.structure.heads import ends_of
from mol.structure.layers import find_structures, in_side_tower, is_side_tower
from mol.structure.model_config import set_dtype
from mol.structure.names import natural_key, side_of
from mol.text import ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from mol.config.merge_config import MergeConfig, ModelReference
    from mol.io.checkpoint import Checkpoint
    from mol.merge.joined import Joined
    from mol.merge.model import Model, Slice
    from mol.structure.layers import Stack, Structure


def plan_merge(
    config: MergeConfig,
    checkpoints: Mapping[ModelReference, Checkpoint],
    *,
    options: MergeOptions | None = None,
    own_heads: Container[ModelReference] = (),
    join: Callable[[], Joined] | None = None,
    structures: Mapping[ModelReference, Structure] | None = None,
) -> PlannedMerge:
    """Plan a merge. Pure: reads no file, and takes time in proportion to the number of tensors.

    Args:
        config: the recipe.
        checkpoints: every model of `config.model_references()`.
        options: `out_shard_size`, `strict_tensors`, `allow_crimes`, `allow_nonfinite`, `seed` and `dtype` count here.
        own_heads: the models whose head is known not to be their embedding, from `find_own_heads`.
        join: joins the vocabularies of the models; called where the recipe chooses a tokenizer, or where their
            vocabularies are of unequal size, which is refused if it is None.
        structures: the layers of the models, from `find_structures`; found here if None.

    Raises:
        MergeError: the checkpoints do not fit together or the recipe does not fit them; lists every problem.
    """
    options = options or MergeOptions()
    found = dict(find_structures(checkpoints) if structures is None else structures)
    models = in_one_layout(checkpoints, config.donor(), options.expert_layout)
    changed = {name: model for name, model in models.items() if model is not checkpoints[name]}
    found.update(find_structures(changed))
    return _Planner(config, models, options, own_heads, join, found).plan()


def output_dtype(config: MergeConfig, options: MergeOptions) -> str | None:
    """Return the safetensors name of the dtype that float tensors get, None where each keeps the donor's.

    Raises:
        ConfigError: the option is not the name of a float dtype.
    """
    if options.dtype is None:
        return config.out_dtype or config.dtype
    word = str(options.dtype).removeprefix("torch.")
    if word not in DTYPE_WORDS:
        raise ConfigError(f"dtype {options.dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPE_WORDS[word]


class _Planner:
    def __init__(
        self,
        config: MergeConfig,
        checkpoints: Mapping[ModelReference, Checkpoint],
        options: MergeOptions,
        own_heads: Container[ModelReference],
        join: Callable[[], Joined] | None,
        structures: Mapping[ModelReference, Structure],
    ) -> None:
        self._config = config
        self._join = join
        self._options = options
        models, self._donor = open_models(config, checkpoints, structures, own_heads)
        self._models = list(models.values())
        self._problems = Mismatches()
        self._notes: dict[str, None] = dict.fromkeys(config.notes)
        self._notes.update((line, None) for model in self._models for line in model.checkpoint.notes)
        self._warnings = dict.fromkeys(config.warnings)
        self._warnings.update((line, None) for model in self._models for line in model.checkpoint.warnings)
        self._parts = Parts(config, models, self._donor, self._problems, self._notes)
        self._dtype = output_dtype(config, options)
        if config.out_dtype and config.dtype and options.dtype is None and config.precision == "exact":
            self._notes["`dtype` has no effect with `out_dtype`: inputs are read as they are, and rounded once"] = None
        stored = self._donor.checkpoint.tensors
        self._builder = TaskBuilder(
            self._problems,
            dtype=self._dtype,
            strict=options.strict_tensors,
            shard_size=options.out_shard_size,
            fused_experts=any(len(info.shape) == 3 and expert_rows(name, stored) > 1 for name, info in stored.items()),
            stepwise=as_mergekit(config, self._problems, self._notes),
        )
        self._model_config = copy.deepcopy(self._donor.checkpoint.config)
        self._tying: Tying | None = None
        self._vocabulary: VocabularyRows | None = None
        self._account = Account(self._donor, self._parts, self._problems, strict=options.strict_tensors)

    def plan(self) -> PlannedMerge:
        models = list({model.index: model for model in (self._donor, *self._taking_part())}.values())
        allowed = self._config.allow_crimes or self._options.allow_crimes
        check_kinship(models, self._problems, self._notes, self._warnings, allowed=allowed)
        check_complete(models, self._problems)
        self._note_alignments()
        self._refuse()  # what follows relies on ranges and inputs that hold
        self._notes.update((note, None) for model in models if (note := own_head_note(model)) is not None)
        self._tying = find_tying(self._donor, self._writing())
        head = own_head(self._donor, self._tying)
        if head is not None and (note := state_untied(self._model_config, head)):
            self._notes[note] = None
        self._join_vocabularies()
        sides = self._sides()
        for name in sides["first"]:
            self._add_loose(name, "first")
        stacker = Stacker(self._donor, self._builder, self._model_config, self._problems, self._notes)
        for stack in self._donor.structure.stacks:
            slices = self._parts.of(stack.prefix)
            if stack is self._parts.stack(slices):
                stacker.add(stack, slices)
            else:
                self._add_stack(stack, slices[0])
            self._add_tail(stack, slices)
        for name in sides["last"]:
            self._add_loose(name, "last")
        if self._tying is not None:
            self._finish_head(self._tying)
        if self._vocabulary is not None:
            self._vocabulary.finish(self._model_config, self._problems, self._notes, self._warnings)
        self._notes.update(dict.fromkeys(self._builder.notes(self._donor.label)))
        self._account.close(self._taking_part())
        self._warnings.update(dict.fromkeys(self._account.warnings))
        compare_settings(
            self._donor,
            self._taking_part(),
            allow_crimes=self._config.allow_crimes or self._options.allow_crimes,
            problems=self._problems,
            notes=self._notes,
            warnings=self._warnings,
        )
        self._refuse()
        return self._result()

    def _taking_part(self) -> list[Model]:
        """Return the models that are inputs of some slice, once each."""
        return _models_of(slice_ for slices in self._parts.all() for slice_ in slices)

    def _writing(self) -> list[Model]:
        """Return the models that are inputs of the part with the embedding, once each."""
        embedding, _ = ends_of(self._donor.checkpoint, self._donor.structure)
        return self._taking_part() if embedding is None else _models_of(self._parts.of(embedding))

    def _note_alignments(self) -> None:
        for model in self._taking_part():
            for ours, theirs in model.alignment.pairs:
                self._notes[
                    f"names of {model.label} are aligned with {self._donor.label}: `{theirs}*` is `{ours}*`"
                ] = None

    def _join_vocabularies(self) -> None:
        """Join the vocabularies of the models, if the recipe chooses a tokenizer or their sizes differ."""
        if self._join is None:
            return
        found = VocabularyRows(self._donor, self._models, self._tying)
        unequal = found.unequal(self._writing())
        if self._config.tokenizer_source is None and not unequal:
            return
        joined = self._join()
        for problem in joined.problems:
            self._problems.add(problem)
        for reason in joined.by_number:
            if unequal:
                self._problems.add(f"{reason}, and vocabularies differ in size ({unequal}); add the tokenizer")
            self._warnings[
                f"{reason} but by number; with a tokenizer.json they would be, which transformers writes: "
                "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            ] = None
        if self._config.tokenizer_source is None:
            self._warnings[
                f"the recipe chooses no tokenizer and vocabularies differ in size ({unequal}): rows are paired by the "
                f"tokens of {self._donor.label}, as with `tokenizer_source: base`"
            ] = None
        if self._config.tokenizer_source == "union" and not joined.new:
            self._notes[f"`tokenizer_source: union`: {self._donor.label} has all tokens, so its tokenizer is taken"] = (
                None
            )
        self._warnings.update(dict.fromkeys(joined.warnings))
        found.join(joined)
        self._vocabulary = found

    def _sides(self) -> dict[str, list[str]]:
        sides: dict[str, list[str]] = {"first": [], "last": []}
        unknown = []
        for name in sorted(self._donor.structure.loose, key=natural_key):
            side = side_of(name)
            slices = self._parts.of(name)
            # The side decides nothing where all tensors are made alike.
            if side == "unknown" and (len(slices) > 1 or slices[0].combine.fixed is None):
                unknown.append(name)
            sides["last" if side == "last" else "first"].append(name)
        if unknown:
            listed = ", ".join(f"`{name}`" for name in unknown)
            self._notes[f"assumed to come before the layers, since their names do not show it: {listed}"] = None
        return sides

    def _add_loose(self, name: str, side: str) -> None:
        """Make a tensor outside the layers."""
        donor = self._donor
        tying = self._tying
        slices = self._parts.of(name)
        slice_, position = outside_layers(self._config, slices, side, self._problems)
        if not self._parts.divided and in_side_tower(donor.structure, name):
            slice_ = slices[0]  # it is not sliced, so all of it comes from one slice
        decide_as = None
        if tying is not None and name == tying.head and tying.as_embedding:
            slice_, position, decide_as = self._parts.of(tying.embedding)[0], 0.0, tying.embedding
        models = slice_.models
        if tying is not None and name == tying.head:
            if tying.as_embedding:
                donor.used.add(name)
            names = [tying.heads[model.index] for model in models]
        else:
            names = [model.alignment.find(name, model.checkpoint.tensors) for model in models]
        for model, found in zip(models, names, strict=True):
            if found is not None:
                model.used.add(found)
        info, gather = donor.checkpoint.tensors[name], None
        if self._vocabulary is not None and self._vocabulary.has(name):
            info, gather = self._vocabulary.gather(name, info)
        self._notes.update(dict.fromkeys(ends_otherwise(slices, slice_, names, name, position)))
        spec = OutputSpec(name, info, donor, name, position, name, None)
        self._builder.add(spec, models, names, slice_.combine, decide_as, gather)

    def _finish_head(self, tying: Tying) -> None:
        """Write the head that a tied donor lacks, and report heads on disk that are ignored."""
        if not tying.in_donor and not tying.as_embedding:
            slices = self._parts.of(tying.embedding)
            slice_, position = outside_layers(self._config, slices, "last", self._problems)
            models = slice_.models
            names = [tying.heads[model.index] for model in models]
            for model, found in zip(models, names, strict=True):
                if found is not None:
                    model.used.add(found)
            info, gather = self._donor.checkpoint.tensors[tying.embedding], None
            if self._vocabulary is not None:
                info, gather = self._vocabulary.gather(tying.head, info)
            spec = OutputSpec(tying.head, info, self._donor, tying.embedding, position, tying.head, None)
            self._builder.add(spec, models, names, slice_.combine, gather=gather)
        for index, name in tying.unused.items():
            model = self._models[index]
            if name not in model.used:
                model.used.add(name)
                reason = "its scores are made with the embedding, to which it is tied"
                self._account.drop(f"{name} of {model.label}: {reason}")
        self._notes.update(dict.fromkeys(tying.notes))

    def _add_stack(self, stack: Stack, slice_: Slice) -> None:
        """Make a tower of layers from whole models: in order, as many as the donor has."""
        donor = self._donor
        lacking = [model.label for model in slice_.models if model.alignment.stacks.get(stack.prefix) is None]
        if lacking and not self._parts.divided and is_side_tower(stack.prefix) and stack is not donor.structure.main:
            self._carry(stack, ", ".join(dict.fromkeys(lacking)))
            return
        strict = self._config.layer_alignment == "strict"
        found = [
            layers_for(stack, model, donor, strict=strict, problems=self._problems, warnings=self._warnings)
            for model in slice_.models
        ]
        mapped = [layers for layers in found if layers is not None]
        if len(mapped) < len(found):
            return
        last = len(stack) - 1
        for layer in range(len(stack)):
            inputs = [
                ModelLayer(model, theirs, mapping[layer])
                for model, (theirs, mapping) in zip(slice_.models, mapped, strict=True)
            ]
            position = layer / last if last else 1.0
            self._builder.add_layer(
                stack.start(layer), ModelLayer(donor, stack, layer), inputs, slice_.combine, position, layer
            )

    def _carry(self, stack: Stack, lacking: str) -> None:
        """Copy a tower from the donor that some inputs lack, such as one for images that a fine-tune on texts lacks."""
        if self._options.strict_tensors:
            self._problems.add(f"`{stack.prefix}` of {self._donor.label} is lacking in {lacking} (--strict-tensors)")
            return
        count = self._builder.add_copies(stack, self._donor, stack.first)
        self._builder.copied.append(f"{span_of(stack, self._donor, count)}: copied, lacking in {lacking}")
        self._notes[f"{lacking} has no `{stack.prefix}`: it is carried over from {self._donor.label} as it is"] = None

    def _add_tail(self, stack: Stack, slices: Sequence[Slice]) -> None:
        """Copy what predicts further tokens behind the layers of the donor, numbered on from the output's."""
        for tail in self._donor.structure.tails:
            if tail.prefix != stack.prefix:
                continue
            sliced = stack is self._parts.stack(slices)
            depth = sum(slice_.length for slice_ in slices) if sliced else len(stack)
            count = self._builder.add_copies(tail, self._donor, depth)
            line = f"{span_of(tail, self._donor, count)}: copied, predicts further tokens and is no layer of the stack"
            numbered = "" if depth == tail.first else f"; it is numbered {depth} in the output"
            self._builder.copied.append(line + numbered)
            self._notes[
                f"`{tail.prefix}.{ranges(tail.first + i for i in range(len(tail)))}` of {self._donor.label} predicts "
                f"further tokens: it is copied, and the {len(stack)} layers before it are what is merged"
            ] = None

    def _refuse(self) -> None:
        if not self._problems:
            return
        header = f"these models cannot be merged by {self._config.method}"
        if self._problems.call_for_fusion:
            header += (
                "; a merge needs one architecture and tensors of equal shapes. Models of unequal widths can be run "
                "together instead: see fusion (MoLRuntime)"
            )
        raise MergeError.listing(header, self._problems.lines(self._donor))

    def _result(self) -> PlannedMerge:
        options, tasks = self._options, self._builder.tasks
        main = tasks.main_dtype()
        if main is not None:
            set_dtype(self._model_config, main)
        vocabulary = self._vocabulary
        plan = tasks.build(
            self._models,
            seed=options.seed,
            allow_nonfinite=options.allow_nonfinite,
            tables={
                **({} if vocabulary is None else vocabulary.tables),
                **{name: rows for model in self._models for name, rows in model.checkpoint.tables.items()},
            },
        )
        for model in self._taking_part():
            if not tasks.reads(model):
                note = f"{model.label} has no effect: the recipe gives it no weight in any tensor"
                self._notes[note] = None
        self._warnings.update(dict.fromkeys(idle_filters(self._config, plan)))
        if any("experts." in tensor.name for tensor in plan.tensors):
            merged = (plan.tensors[task.tensor].name for task in plan.tasks if task.by is not COPY)
            if warning := router_warning(merged, self._donor.label):
                self._warnings[warning] = None
        ruled = self._builder.ruled
        self._notes.update(dict.fromkeys(rule_lines(self._config, ruled)))
        if self._config.rules:
            self._warnings.update(dict.fromkeys(idle_rules(self._config, ruled, plan.tensors)))
        return PlannedMerge(
            plan,
            self._config,
            self._donor.checkpoint,
            tuple(model.checkpoint for model in self._models),
            self._model_config,
            dict(sorted(tasks.methods.items())),
            tuple(self._builder.copied),
            tuple(self._account.lines),
            self._account.tensors,
            tuple(self._notes),
            tuple(self._warnings),
            tasks.bytes_read,
            tasks.bytes_written,
            joined=None if vocabulary is None else vocabulary.joined,
            ruled=ruled,
        )


def _models_of(slices: Iterable[Slice]) -> list[Model]:
    """Return the models that are inputs of some slice, once each."""
    return list({model.index: model for slice_ in slices for model in slice_.models}.values())
