"""Finds out what a model is: its config through transformers, then family, sizes, and where its parts are."""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mol.architecture.classes import Kind, find_class, find_kind, find_remote_kind
from mol.architecture.family import find_family
from mol.architecture.info import ArchitectureFamily, ArchitectureInfo
from mol.architecture.names import guess_paths
from mol.architecture.sizes import most_layers, read_rope, read_sizes
from mol.architecture.skeleton import Paths, read_paths
from mol.architecture.source import tensor_names
from mol.config.model_reference import whole_model
from mol.errors import ArchitectureError
from mol.text import closest

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

_log = logging.getLogger("mol")

# Whose class is used for a model that names none, by family: the first head that the type has, else its bare class.
_HEADS: Final = {
    ArchitectureFamily.DECODER_ONLY: ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT"),
    ArchitectureFamily.ENCODER_ONLY: ("MASKED_LM",),
    ArchitectureFamily.ENCODER_DECODER: ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "TEXT_TO_WAVEFORM"),
    ArchitectureFamily.MULTIMODAL: ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "CAUSAL_LM"),
}
_ENCODING: Final = frozenset({ArchitectureFamily.ENCODER_ONLY, ArchitectureFamily.ENCODER_DECODER})
# Which class of a model's own code is built, the first that its auto_map has.
_REMOTE_CLASSES: Final = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModelForMaskedLM",
    "AutoModel",
)
_FUSED: Final = "mol"
# Ten times the deepest there are; building the modules of a billion would take this machine down.
_MOST_LAYERS: Final = 10_000
_NO_PATHS: Final = Paths(None, None, None, None, None, None)


class Hub(NamedTuple):
    """How the Hub is queried; None means huggingface_hub's own settings.

    Attributes:
        cache_dir: its cache.
        token: its token.
    """

    cache_dir: Path | str | None = None
    token: str | None = None


class Found(NamedTuple):
    """What was found out.

    Attributes:
        info: the architecture.
        lasting: whether it follows from config.json alone, not from files next to it or packages that are missing.
    """

    info: ArchitectureInfo
    lasting: bool


def detect(
    name: str, directory: Path, document: dict[str, Any], *, trust_remote_code: bool, hub: Hub | None = None
) -> Found:
    """Find out what a model is.

    Args:
        name: what the caller calls it.
        directory: where its config.json lies.
        document: what that holds.
        trust_remote_code: run code that comes with the model if transformers does not know its type.
        hub: where that code is fetched, of a model that is no local directory.

    Raises:
        ArchitectureError: transformers does not know the type, or cannot build the model from this config.
        CheckpointError: the class cannot be imported here, and the weights next to config.json are damaged.
    """
    model_type = document.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ArchitectureError(
            f"{directory / 'config.json'} has no `model_type`, so there is no telling what {name} is; add the one of "
            'its family, e.g. "model_type": "llama"'
        )
    if model_type == _FUSED:
        raise ArchitectureError(
            f"{name} is a fused model, which has no architecture of its own: ask for its host, {document.get('host')}, "
            "or for another of the models that its config.json names"
        )
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    remote = model_type not in CONFIG_MAPPING
    if remote:
        auto_map = check_remote_code(name, document, model_type, trust_remote_code=trust_remote_code)
        config, kind = _run_remote_code(name, auto_map, hub or Hub())
    else:
        config = _read_config(name, directory, model_type)
        kind = find_kind(config)
    if most_layers(config) > _MOST_LAYERS:
        raise ArchitectureError(
            f"{directory / 'config.json'} says that {name} has {most_layers(config)} layers; no model has more than "
            f"{_MOST_LAYERS}; check the file"
        )
    architecture = _architecture(document)
    family = find_family(config, kind, architecture)
    model_class = kind.model_class if remote else _choose_class(config, kind, family, architecture)
    paths = _read_paths(model_class, config, name, family)
    lasting = paths is not None and not remote
    if paths is None:
        names = tensor_names(directory)
        paths = _NO_PATHS if names is None else guess_paths(names, document)
    sizes = read_sizes(config, paths.tower)
    info = ArchitectureInfo(
        model_name=name,
        architecture_family=family,
        architecture_type=model_type,
        layer_path=paths.layers,
        embedding_path=paths.embeddings,
        lm_head_path=paths.head,
        hidden_dim=sizes.hidden_dim,
        num_layers=paths.blocks if sizes.num_layers is None else sizes.num_layers,
        num_attention_heads=sizes.num_attention_heads,
        intermediate_size=sizes.intermediate_size,
        vocab_size=sizes.vocab_size,
        max_position_embeddings=sizes.max_position_embeddings,
        layer_norm_eps=sizes.layer_norm_eps,
        supports_causal_lm="CAUSAL_LM" in kind.heads and family not in _ENCODING,
        supports_masked_lm="MASKED_LM" in kind.heads,
        requires_remote_code=remote,
        model_signature=paths.signature,
        rope_info=read_rope(config, paths.tower),
    )
    return Found(info, lasting)


def _read_config(name: str, directory: Path, model_type: str) -> PreTrainedConfig:
    """Build the config of a type that transformers knows; no code of the model is run."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        config: PreTrainedConfig = CONFIG_MAPPING[model_type].from_pretrained(str(directory))
    except (AttributeError, LookupError, RecursionError, StrictDataclassError, TypeError, ValueError) as error:
        raise ArchitectureError(
            f"{name}: its config.json is not one of a `{model_type}` as transformers {version('transformers')} knows "
            f"it ({' '.join(str(error).split())}); check the file, or install the release that the model was made with"
        ) from error
    return config


def _run_remote_code(name: str, auto_map: dict[str, Any], hub: Hub) -> tuple[PreTrainedConfig, Kind]:
    """Build the config of a type that only code of the model knows, which the caller trusts."""
    from transformers import AutoConfig
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    reference = whole_model(name)
    revision = reference.revision or "main"  # which a local directory does not look at
    config = AutoConfig.from_pretrained(reference.name, trust_remote_code=True, revision=revision, **hub._asdict())
    written = next((auto_map[auto] for auto in _REMOTE_CLASSES if auto in auto_map), None)
    model_class: type[PreTrainedModel] | None = None
    if written is not None:
        model_class = get_class_from_dynamic_module(written, reference.name, revision=revision, **hub._asdict())
    return config, find_remote_kind(model_class, auto_map)


def check_remote_code(
    name: str, document: dict[str, Any], model_type: str, *, trust_remote_code: bool
) -> dict[str, Any]:
    """Return the `auto_map` of a model whose type transformers does not know.

    Raises:
        ArchitectureError: it brings no code for the type, or is not trusted.
    """
    auto_map = document.get("auto_map")
    if not isinstance(auto_map, dict) or "AutoConfig" not in auto_map:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        near = closest(model_type, CONFIG_MAPPING)
        hint = f" (did you mean `{near}`?)" if near else ""
        raise ArchitectureError(
            f"{name}: transformers {version('transformers')} does not know the model_type `{model_type}` of its "
            f"config.json{hint}; install a release that does: pip install -U transformers"
        )
    if not trust_remote_code:
        raise ArchitectureError(
            f"{name}: transformers {version('transformers')} does not know the model_type `{model_type}`, and the "
            f"model brings code of its own for it (auto_map: {auto_map['AutoConfig']}), which is not run by default; "
            "read that code and pass trust_remote_code=True (--trust-remote-code), or install a release of "
            "transformers that knows the type"
        )
    return auto_map


def _architecture(document: dict[str, Any]) -> str | None:
    named = document.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None


def _choose_class(
    config: PreTrainedConfig, kind: Kind, family: ArchitectureFamily, architecture: str | None
) -> type[PreTrainedModel] | None:
    """Return the class that the checkpoint names, else that of its family's head, else the bare one."""
    if architecture is not None:
        named = find_class(config, architecture)
        if named is not None and named.config_class is not None and isinstance(config, named.config_class):
            return named
    heads = (find_class(config, kind.classes[head]) for head in _HEADS.get(family, ()) if head in kind.classes)
    found = next((found for found in heads if found is not None), kind.model_class)
    if found is None or kind.classes or found.config_class is type(config):
        return found
    return None  # a class of what the type is a part of, which does not take the config of a part


def _read_paths(
    model_class: type[PreTrainedModel] | None, config: PreTrainedConfig, name: str, family: ArchitectureFamily
) -> Paths | None:
    """Find the parts of a model, None where a package that it needs is not installed."""
    if model_class is None:
        return None
    try:
        return read_paths(model_class, config, name, encoder=family is ArchitectureFamily.ENCODER_DECODER)
    except ImportError as error:
        _log.warning(
            "%s: its parts are located by the names of its tensors, if at all, since %s cannot be built here: %s",
            name, model_class.__name__, " ".join(str(error).split()),
        )  # fmt: skip
        return None
