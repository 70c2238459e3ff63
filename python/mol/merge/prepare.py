"""Plans all that a run of a recipe writes: weights, and the files next to them, of each result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mol.config.model_reference import ModelReference
from mol.errors import MergeError, MolError
from mol.merge.opening import adapted_step, resolve_checkpoints, tokenizer_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from mol.config import MergeConfig
    from mol.io.checkpoint import Checkpoint
    from mol.io.vocabulary import Vocabulary
    from mol.merge.card import Card
    from mol.merge.options import MergeOptions
    from mol.merge.planned import PlannedMerge
    from mol.merge.side_files import SideFilePlan
    from mol.merge.vocabularies import VocabularyRemarks


class Result(NamedTuple):
    """A planned merge, where its tokenizer comes from, what else goes into the output, and what its card quotes.

    Attributes:
        steps: what is made before it; files of theirs may be copied, and are there as long as these are.
    """

    planned: PlannedMerge
    tokenizer: Path
    side: SideFilePlan
    card: Card
    steps: tuple[Checkpoint, ...]


class Prepared(NamedTuple):
    """What is run, and its results by their directories in the output: that of a sweep has several, others one, ""."""

    planned: PlannedMerge
    results: Mapping[str, Result]


def prepare(
    config: MergeConfig, options: MergeOptions, checkpoints: Mapping[ModelReference, Checkpoint] | None
) -> Prepared:
    """Open the models of a recipe, unless they are given, and plan all that a run writes.

    Raises:
        MolError: with every reason why this cannot be merged.
        OSError: a file is missing or may not be read.
    """
    from mol.merge.identity import refuse_unnameable
    from mol.merge.sweep import join

    opened = resolve_checkpoints(config, options) if checkpoints is None else checkpoints
    refuse_unnameable(opened)
    if not config.sweep:
        result = _prepare_one(config, options, opened)
        return Prepared(result.planned, {"": result})
    results = {name: _prepare_one(swept.config, options, opened) for name, swept in config.sweep.items()}
    return Prepared(join(config, {name: result.planned for name, result in results.items()}), results)


def _prepare_one(config: MergeConfig, options: MergeOptions, opened: Mapping[ModelReference, Checkpoint]) -> Result:
    from mol.merge.card import prepare_card
    from mol.merge.identity import same_weights
    from mol.merge.side_files import output_files, plan_side_files

    models = dict(opened)
    for name, stage in config.stages.items():
        try:
            step = _step(name, stage, config, models, replace(options, dtype=None, copy_tokenizer=True))
        except MolError as error:
            raise MergeError.listing(f"the stage {name} cannot be made", error.problems or [str(error)]) from error
        models |= {ModelReference(name): step, **adapted_step(name, step, config, options)}
    planned, tokenizer, vocabularies, tokens = _plan(config, config, models, options)
    side = plan_side_files(planned, tokenizer, vocabularies, options)
    remarks = [*tokens.notes, *_idle_templates(config, models, side.chat_template, tokenizer)]
    if tokenizer != planned.donor.directory:
        remarks.append(f"the tokenizer is that of {planned.config.tokenizer_source}")
    if options.dtype is not None:
        remarks.append(f"dtype {options.dtype} is set by an option, which overrides the recipe")
    card = prepare_card(planned, options)
    planned = planned._replace(
        notes=(*planned.notes, *remarks, *side.notes, *card.notes),
        warnings=(*planned.warnings, *same_weights(opened), *tokens.warnings, *side.warnings),
    )
    card = card._replace(remarks=(*planned.warnings, *planned.notes))
    files = output_files(planned, side, card, options)
    planned = planned._replace(notes=(*planned.notes, *side.left_out), side_files=files)
    return Result(planned, tokenizer, side, card, tuple(models[ModelReference(name)] for name in config.stages))


def _step(
    name: str,
    stage: MergeConfig,
    whole: MergeConfig,
    models: Mapping[ModelReference, Checkpoint],
    options: MergeOptions,
) -> Checkpoint:
    """Plan a stage, and return it as a model for what is made of it."""
    from mol.io.step_files import StepFiles
    from mol.merge.side_files import plan_side_files
    from mol.merge.stages import as_checkpoint
    from mol.structure.model_config import stated_vocab_size

    planned, tokenizer, vocabularies, tokens = _plan(stage, whole, models, options)
    planned = planned._replace(warnings=(*planned.warnings, *tokens.warnings))
    donor, joined = planned.donor, planned.joined
    if joined is None and tokenizer == donor.directory and stage.chat_template is None:
        return as_checkpoint(name, planned, None)
    # Its rows are of the tokens of its own tokenizer, which what is made of it reads.
    side = plan_side_files(planned, tokenizer, vocabularies, options)
    kept = tokenizer == donor.directory or vocabularies[tokenizer].same_file(vocabularies[donor.directory])
    added = joined is not None and bool(joined.new)
    as_many = stated_vocab_size(planned.model_config) == stated_vocab_size(donor.config)
    planned = planned._replace(
        notes=(*planned.notes, *tokens.notes, *side.notes), warnings=(*planned.warnings, *side.warnings)
    )
    return as_checkpoint(name, planned, StepFiles(side.copies, side.texts, renamed=as_many and (added or not kept)))


def _idle_templates(
    config: MergeConfig, models: Mapping[ModelReference, Checkpoint], chosen: str | None, tokenizer: Path
) -> Iterator[str]:
    """Yield notes on chat templates that stages choose and the result does not have."""
    from mol.merge.chat_template import chat_template_of

    for name, stage in config.stages.items():
        own = models[ModelReference(name)].directory
        if stage.chat_template is not None and chat_template_of(own) != (chosen or chat_template_of(tokenizer)):
            yield f"`chat_template` of the step `{name}` has no effect: the result does not have it"


def _plan(
    config: MergeConfig, whole: MergeConfig, models: Mapping[ModelReference, Checkpoint], options: MergeOptions
) -> tuple[PlannedMerge, Path, dict[Path, Vocabulary], VocabularyRemarks]:
    """Plan one document of a recipe, `whole`; return its plan, whose tokenizer it has, vocabularies and remarks."""
    from mol.io.vocabulary import read_vocabularies
    from mol.merge.auto_weights import find_weights
    from mol.merge.identity import refuse_overridden, spelled_twice
    from mol.merge.joined import join_models
    from mol.merge.planner import plan_merge
    from mol.merge.vocabularies import VocabularyRemarks, check_vocabularies
    from mol.structure.heads import find_own_heads
    from mol.structure.layers import find_structures

    named = config.model_references()
    refuse_overridden({name: models[name] for name in named})
    config = config.with_one_name_each(
        spelled_twice({name: models[name] for name in named if not whole.is_stage(name)})
    )
    donor = models[config.donor()]
    leader = tokenizer_directory(config, models, options)
    tokenizer = leader if options.copy_tokenizer else donor.directory
    directories = (donor.directory, *(models[name].directory for name in config.model_references()), leader)
    vocabularies = read_vocabularies(directories)
    for vocabulary in vocabularies.values():
        vocabulary.check()
    join = partial(join_models, config, models, vocabularies, leader)
    structures = find_structures({name: models[name] for name in named})
    config = find_weights(config, models, structures, options)
    own_heads = find_own_heads({name: models[name] for name in named}, structures)
    planned = plan_merge(config, models, options=options, own_heads=own_heads, join=join, structures=structures)
    tokens = VocabularyRemarks((), ())
    if planned.joined is None:
        crimes = options.allow_crimes or config.allow_crimes
        tokens = check_vocabularies(planned, vocabularies, allow_crimes=crimes)
    return planned, tokenizer, vocabularies, tokens
