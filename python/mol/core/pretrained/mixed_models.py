"""Loads the models of a mixture and checks that they can be mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from mol.config.mol_config import MoLConfig
from mol.core.models.causality import attends_to_later_tokens
from mol.core.models.loading import load_tokenizer, load_whole
from mol.core.pretrained.fused_model import FusedModel
from mol.errors import ConfigError, FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mol.core.pretrained.mixture_config import MoLMixtureConfig
    from mol.io.checkpoint import Checkpoint


def load_one(name: str, given: Mapping[str, Any]) -> tuple[PreTrainedModel, Checkpoint]:
    """Load a model with these settings, and return it with its files."""
    return load_whole(AutoModelForCausalLM, name, _settings(name, given))


def load_all(names: Sequence[str], given: Mapping[str, Any]) -> tuple[list[PreTrainedModel], list[Checkpoint]]:
    """Load models, with these settings, and return them with their files."""
    found = [load_one(name, given) for name in names]
    return [model for model, _ in found], [checkpoint for _, checkpoint in found]


def load_stated(config: MoLMixtureConfig, given: Mapping[str, Any]) -> tuple[list[PreTrainedModel], list[Checkpoint]]:
    """Load the models of a config, with these settings; without a `dtype` in them, in that of the config.

    config.json states the dtype of the first model, so that models which differ keep theirs unless it was changed.
    """
    models, checkpoints = load_all(config.models, given)
    stated = str(config.dtype or models[0].dtype).removeprefix("torch.")
    if "dtype" in given or f"torch.{stated}" == str(models[0].dtype):
        return models, checkpoints
    del models  # they may be narrower, so that a cast is not what the files hold
    return load_all(config.models, {**given, "dtype": stated})


def _settings(name: str, given: Mapping[str, Any]) -> MoLConfig:
    """Return the settings to load one model with; those by model name contain all models."""
    mine: dict[str, Any] = {
        key: {name: value[name]} if isinstance(value, dict) and name in value else value
        for key, value in given.items()
        if not isinstance(value, dict) or name in value or set(value) == {""}
    }
    return MoLConfig(models=[name], **mine)


def check_kind(model: PreTrainedModel) -> None:
    """Check that a model predicts each token from those before it.

    Raises:
        FusionError: it does not.
    """
    kind = f"{type(model).__name__} ({model.name_or_path or 'unnamed'})"
    if isinstance(model, FusedModel) or not model.can_generate() or model.config.is_encoder_decoder:
        raise FusionError(f"{kind} cannot be mixed: it is no single language model with a head")
    if attends_to_later_tokens(model):
        raise FusionError(f"{kind} cannot be mixed: its outputs depend on later tokens, so it does not predict them")


def check_vocabularies(names: list[str], models: list[PreTrainedModel], given: Mapping[str, Any]) -> None:
    """Check that models read the same tokens.

    Args:
        names: of those models whose tokenizers are compared.
        models: all of them.
        given: settings that tokenizers are loaded with.

    Raises:
        ConfigError: they do not.
    """
    sizes = [model.config.get_text_config().vocab_size for model in models]
    problems = [
        f"model 1 has {sizes[0]} tokens, model {number} ({model.name_or_path}) has {size}"
        for number, (model, size) in enumerate(zip(models, sizes, strict=True), 1)
        if size != sizes[0]
    ]
    if len(names) > 1 and not problems:
        first, *others = (load_tokenizer(name, _settings(name, given)).get_vocab() for name in names)
        for name, other in zip(names[1:], others, strict=True):
            apart = sorted(dict(first.items() ^ other.items()), key=str)
            if apart:
                some = ", ".join(repr(token) for token in apart[:3])
                problems.append(f"{names[0]} and {name} number {len(apart)} tokens differently, such as {some}")
    if problems:
        raise ConfigError.listing("models of different vocabularies cannot be mixed", problems)
