"""Opens the models of a fusion: the host with its head, the others as bare models; of each, the blocks that run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import GENERATION_CONFIG_NAME

from mol.architecture.detect import check_remote_code
from mol.architecture.source import read_config
from mol.config.model_reference import ModelReference, is_local
from mol.core.blocks.placement import Memory, Place, device_of
from mol.core.blocks.source import Source
from mol.core.models.heads import head_class
from mol.core.models.weights import ModelWeights, build_hollow
from mol.errors import ConfigError, FusionError
from mol.io.checkpoint import Checkpoint
from mol.io.hub import resolve
from mol.io.side_files import is_tokenizer_file

if TYPE_CHECKING:
    from pathlib import Path

    from mol.config.mol_config import MoLConfig


_log: Final = logging.getLogger("mol")
_offline: Final[set[str]] = set()
"""Models that were reported to be used from the cache, offline."""


def open_host(name: str, settings: MoLConfig) -> Source:
    """Open a model with its head; all but its blocks is loaded, and blocks when they are needed.

    Raises:
        MolError: it cannot be a host; or its files are damaged, or do not fit its config.
        OSError: it cannot be loaded.
    """
    directory, revision = _located(name, settings)
    config = _config(name, directory, settings)
    checkpoint = Checkpoint.open(directory, name=name, revision=revision)
    model, weights = _opened(head_class(config), checkpoint, config, settings)
    if weights is not None:
        read_generation_config(model, directory)
        if not _is_placed_whole(name, settings):
            raise ConfigError(
                f"device_map places single blocks of {name}, or puts it on disk, and it is the host, which runs as a "
                "whole"
            )
    for part in (model.config, model.config.get_text_config()):
        if getattr(part, "output_router_logits", False):
            # Its loss over them needs those of every block and token, and fused layers run others or some.
            part.output_router_logits = False
    host = Source(model, name, stack=settings.stacks.get(name), weights=weights)
    host.revision, host.checkpoint = revision, checkpoint
    host.require_rest()
    return host


def open_source(name: str, settings: MoLConfig, memory: Memory) -> Source:
    """Open a model for its blocks, which are loaded when they first run.

    Args:
        name: the model.
        settings: of the fusion.
        memory: the memory that blocks share.

    Raises:
        MolError: its blocks cannot be run alone; or its files are damaged, or do not fit its config.
        OSError: it cannot be loaded.
    """
    directory, revision = _located(name, settings)
    config = _config(name, directory, settings)
    checkpoint = Checkpoint.open(directory, name=name, revision=revision)
    model, weights = _opened(AutoModel, checkpoint, config, settings)
    source = Source(model, name, stack=settings.stacks.get(name), weights=weights, memory=memory)
    source.revision, source.checkpoint = revision, checkpoint
    whole = _place(settings.devices.get(name))
    source.places = {
        index: _place(settings.devices.get(f"{name}[{index}]")) or Place(None, whole is None or whole.stays)
        for index in range(len(source))
    }
    return source


def load_whole(auto_class: Any, name: str, settings: MoLConfig) -> tuple[PreTrainedModel, Checkpoint]:  # noqa: ANN401 - an Auto class
    """Load a whole model, and return it with its files.

    Raises:
        MolError: its files are damaged or quantized, or its type is not known.
        OSError: it cannot be loaded.
    """
    directory, revision = _located(name, settings)
    _config(name, directory, settings)  # refuses unknown types
    checkpoint = Checkpoint.open(directory, name=name, revision=revision)
    return _whole(auto_class, checkpoint, settings), checkpoint


def load_tokenizer(name: str, settings: MoLConfig) -> PreTrainedTokenizerBase:
    """Load a tokenizer; if it has no padding token, it pads with the end of text, as is usual.

    Raises:
        OSError: there is none.
    """
    directory, _ = _located(name, settings, weights=False)
    if not any(is_tokenizer_file(file.name) for file in directory.iterdir()):
        raise FileNotFoundError(f"{name}: no tokenizer next to its config.json in {directory}; save one there")
    trusted = settings.trust_remote_code
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=trusted)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_generation_config(model: Any, directory: Path) -> None:  # noqa: ANN401 - its type says nothing of the config
    """Load the generation config next to a model's weights into it, if there is one and it can generate."""
    if model.can_generate() and (directory / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(directory)


def _located(name: str, settings: MoLConfig, *, weights: bool = True) -> tuple[Path, str | None]:
    """Return a model's directory, and its commit if its name is one of the Hub."""
    path = settings.paths.get(name, name)
    reference = ModelReference(path, settings.revisions.get(name) if path == name else None)
    cache_dir, token, code = settings.cache_dir, settings.token, settings.trust_remote_code
    cached: list[str] = []
    directory, commit = resolve(reference, weights=weights, code=code, cache_dir=cache_dir, token=token, offline=cached)
    if cached:
        _report_offline(cached[0])
    return directory, None if is_local(path) else commit


def _report_offline(which: str) -> None:
    """Warn of the first model that is used from the cache offline, and log the others at level INFO."""
    level = logging.INFO if _offline else logging.WARNING
    if which not in _offline:
        _offline.add(which)
        of_others = "" if level == logging.INFO else "; for other models this is logged at level INFO"
        _log.log(level, "offline: using the cached commit %s%s", which, of_others)


def _opened(
    auto_class: Any,  # noqa: ANN401 - one of the Auto classes
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    settings: MoLConfig,
) -> tuple[PreTrainedModel, ModelWeights | None]:
    """Open a model without its weights and return both, or load it whole."""
    if not settings.memory_efficient:
        return _whole(auto_class, checkpoint, settings), None
    weights = _hollow(auto_class, checkpoint, config, settings)
    return weights.model, weights


def _config(name: str, directory: Path, settings: MoLConfig) -> PreTrainedConfig:
    document = read_config(directory)
    model_type = str(document.get("model_type"))
    if model_type in ("mol", "mol_mixture"):
        raise FusionError(f"{name} is a fusion or a mixture itself, which cannot be part of another: name its models")
    if model_type not in CONFIG_MAPPING:
        check_remote_code(name, document, model_type, trust_remote_code=settings.trust_remote_code)
    config: PreTrainedConfig = AutoConfig.from_pretrained(directory, trust_remote_code=settings.trust_remote_code)
    if "/" in str(config._attn_implementation):  # from the file: none was passed here
        raise ConfigError(
            f"{name}: its config.json has the attn_implementation {config._attn_implementation}, a kernel of the Hub, "
            "which is run as code: remove it there, and give attn_implementation yourself if you trust it"
        )
    config.name_or_path = name
    return config


def _whole(auto_class: Any, checkpoint: Checkpoint, settings: MoLConfig) -> PreTrainedModel:  # noqa: ANN401
    name = checkpoint.name
    if not _is_placed_whole(name, settings):
        raise ConfigError(f"device_map places single blocks of {name}, which takes memory_efficient=True")
    place = _place(settings.devices.get(name))
    # Pickles are never read.
    model: PreTrainedModel = auto_class.from_pretrained(
        checkpoint.directory,
        use_safetensors=True,
        dtype=settings.dtype_of(name) or "auto",
        trust_remote_code=settings.trust_remote_code,
        **_attention(settings),
    )
    return model if place is None or place.device is None else model.to(place.device)


def _hollow(
    auto_class: Any,  # noqa: ANN401 - one of the Auto classes
    checkpoint: Checkpoint,
    config: PreTrainedConfig,
    settings: MoLConfig,
) -> ModelWeights:
    name = checkpoint.name
    options = {"trust_remote_code": True} if settings.trust_remote_code else {}
    dtype = _dtype(name, checkpoint, config, settings)
    model = build_hollow(auto_class, config, dtype=dtype, **_attention(settings), **options)
    weights = ModelWeights(model, checkpoint)
    place = _place(settings.devices.get(name))
    if place is not None and place.device is not None:
        device = place.device
        weights.apply(lambda tensor: tensor.to(device))
    return weights


def _dtype(name: str, checkpoint: Checkpoint, config: PreTrainedConfig, settings: MoLConfig) -> torch.dtype:
    """Choose as `from_pretrained` does: the requested dtype, that of the config, that of the first tensor."""
    wanted = settings.dtype_of(name)
    if wanted is None:
        found = [info.dtype for info in checkpoint.tensors.values() if info.dtype in _DTYPES]
        return config.dtype or (_DTYPES[found[0]] if found else torch.float32)
    dtype = getattr(torch, wanted, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype is {wanted!r}, wanted float32, bfloat16 or float16")
    return dtype


_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def _attention(settings: MoLConfig) -> dict[str, str]:
    chosen = settings.attn_implementation
    return {} if chosen is None else {"attn_implementation": chosen}


def _is_placed_whole(name: str, settings: MoLConfig) -> bool:
    """Return whether all of a model is on one device and stays there."""
    single = any(key.startswith(f"{name}[") for key in settings.devices)
    return not single and settings.devices.get(name) != "disk"


def _place(setting: str | None) -> Place | None:
    if setting is None:
        return None
    return Place(None, stays=False) if setting == "disk" else Place(device_of(setting))
