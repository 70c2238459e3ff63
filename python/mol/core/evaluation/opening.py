"""Opens what is to be measured: a language model with its tokenizer, from a directory, the Hub or memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mol.architecture.source import read_config
from mol.config.model_reference import ModelReference
from mol.config.mol_config import MoLConfig
from mol.core.models.causality import attends_to_later_tokens
from mol.core.models.loading import load_tokenizer, load_whole
from mol.core.mol_runtime import MoLForCausalLM, MoLRuntime
from mol.core.pretrained.checkpoint_file import find_checkpoint
from mol.core.pretrained.fused_model import FusedModel
from mol.core.pretrained.mixture import MoLMixture
from mol.core.runtime import Runtime
from mol.errors import ConfigError, FusionError
from mol.io.hub import resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

_SAVED: Final = {"mol": MoLForCausalLM, "mol_mixture": MoLMixture}


_DTYPES: Final = ("auto", "float32", "float64", "bfloat16", "float16")


class EvaluationOptions(TypedDict, total=False):
    """How a model is loaded that is given by name, as in transformers; None is the default of each."""

    device: Any
    dtype: Any
    attn_implementation: str | None
    trust_remote_code: bool
    token: str | None
    cache_dir: str | Path | None


def open_model(
    given: Any,  # noqa: ANN401 - see below
    options: EvaluationOptions,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[Any, PreTrainedTokenizerBase, str]:
    """Return a language model, its tokenizer, and its name.

    Args:
        given: a directory, the file of a saved runtime, a name on the Hub; or a runtime, or a model of transformers.
        options: how a model is loaded; none for one that is loaded already.
        tokenizer: the one to use; the model's own if None.

    Raises:
        ConfigError: options are given for a model that is loaded already, or it has no tokenizer that can be found.
        FusionError: it does not predict each token from those before it.
        MolError: it cannot be loaded.
        OSError: something is missing.
    """
    chosen = {name: value for name, value in options.items() if value not in (None, False)}
    if isinstance(given, str | Path):
        model, own, name = *_load(str(given), chosen), str(given)
    elif chosen:
        raise ConfigError(f"{', '.join(chosen)} is for a model that is given by name; set it where this one is loaded")
    elif isinstance(given, Runtime):
        model, own, name = MoLForCausalLM.from_runtime(given), given.load_tokenizer, given.host_name
    elif isinstance(given, PreTrainedModel):
        name = given.name_or_path or type(given).__name__
        model, own = given, given.runtime.load_tokenizer if isinstance(given, FusedModel) else None
    else:
        raise ConfigError(f"the model is a {type(given).__name__}, wanted a directory, a name, a runtime or a model")
    _check_kind(model, name)
    if tokenizer is None:
        if own is None and not Path(name).is_dir():
            raise ConfigError(f"{name} has no tokenizer that can be found: give tokenizer=")
        tokenizer = load_tokenizer(name, MoLConfig(models=[name])) if own is None else own()
    return model, tokenizer, name


def _load(name: str, chosen: Mapping[str, Any]) -> tuple[Any, Any]:
    """Load a model by name, and return it with a function that loads its tokenizer."""
    device = chosen.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    loading = {key: value for key, value in chosen.items() if key != "device"} | {"device_map": str(device)}
    if "dtype" in loading:
        loading["dtype"] = str(loading["dtype"]).removeprefix("torch.")
        if loading["dtype"] not in _DTYPES:
            raise ConfigError(f"dtype is {loading['dtype']!r}, wanted {', '.join(_DTYPES)}")
        if loading["dtype"] == "auto":
            del loading["dtype"]
    path = Path(name)
    if not path.is_dir() and (path.is_file() or path.with_suffix(".safetensors").is_file()):
        runtime = MoLRuntime.load_checkpoint(find_checkpoint(path), **loading)
        return runtime.as_causal_lm(), runtime.load_tokenizer
    directory, revision = path, None
    if not path.is_dir():
        reference = ModelReference.parse(name)
        directory, name, revision = _resolved(reference, chosen), reference.name, reference.revision
    model_type = str(read_config(directory).get("model_type"))
    settings = MoLConfig(models=[name], revisions={name: revision} if revision else {}, **loading)
    if model_type in _SAVED:
        at = {"revision": revision} if revision else {}
        model: Any = _SAVED[model_type].from_pretrained(name, **at, **loading)
        own = model.runtime.load_tokenizer if isinstance(model, FusedModel) else None
        return model, own or (lambda: load_tokenizer(name, settings))
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not settings.trust_remote_code:
        raise FusionError(
            f"{name} is a {model_type}, of which transformers has no causal language model: only models that predict "
            "the next token can be measured"
        )
    return load_whole(AutoModelForCausalLM, name, settings)[0], lambda: load_tokenizer(name, settings)


def _resolved(reference: ModelReference, chosen: Mapping[str, Any]) -> Path:
    """Return the directory in the cache with the config of a model on the Hub."""
    return resolve(reference, weights=False, cache_dir=chosen.get("cache_dir"), token=chosen.get("token"))[0]


def _check_kind(model: PreTrainedModel, name: str) -> None:
    kind = f"{name} ({type(model).__name__})"
    if not model.can_generate() or model.config.is_encoder_decoder:
        raise FusionError(f"{kind} cannot be measured: it is no causal language model with a head")
    training = model.training
    looks = attends_to_later_tokens(model)
    model.train(training)
    if looks:
        raise FusionError(
            f"{kind} cannot be measured: its outputs depend on later tokens, so it does not predict them; encoders "
            "and fusions with allow_bidirectional give a text no likelihood"
        )
