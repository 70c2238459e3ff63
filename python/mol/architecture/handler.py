"""UniversalArchitectureHandler: a model's name becomes its ArchitectureInfo, and that finds parts in a loaded model."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mol.architecture.detect import Hub, detect
from mol.architecture.disk_cache import DiskCache
from mol.architecture.source import find_directory, read_config
from mol.config.mol_config import REMOTE_CODE_WARNING
from mol.errors import ArchitectureError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedModel

    from mol.architecture.info import ArchitectureInfo

_log = logging.getLogger("mol")


class UniversalArchitectureHandler:
    """Detects what models are, and caches it: in memory by name, on disk by the contents of config.json.

    Attributes:
        trust_remote_code: run code that comes with a model whose type transformers does not know.
        architecture_cache: what was detected, by name.
    """

    def __init__(
        self,
        trust_remote_code: bool = False,
        *,
        cache_dir: Path | str | None = None,
        hub_cache_dir: Path | str | None = None,
        token: str | None = None,
    ) -> None:
        """Start with nothing in memory.

        Args:
            trust_remote_code: run code that comes with a model whose type transformers does not know.
            cache_dir: where to keep what was detected; `$MOL_CACHE/architectures` if None, or
                `~/.cache/mol/architectures` without that variable.
            hub_cache_dir: the Hub cache, huggingface_hub's own if None.
            token: the Hub token, huggingface_hub's own if None.
        """
        self.trust_remote_code = trust_remote_code
        self.architecture_cache: dict[str, ArchitectureInfo] = {}
        self._disk = DiskCache(cache_dir)
        self._hub = Hub(hub_cache_dir, token)
        if trust_remote_code:
            _log.warning(REMOTE_CODE_WARNING)

    def detect_architecture(self, name: str) -> ArchitectureInfo:
        """Return what a model is, from its config.json; no weights are read, and none downloaded.

        Args:
            name: a local directory, or the id of a repository on the Hub, `@revision` after it if wanted.

        Returns:
            The architecture, the same object each time until `clear_cache`.

        Raises:
            ArchitectureError: transformers does not know the model's type, or cannot build it from this config.
            CheckpointError: config.json is damaged, or the Hub cannot give it.
            FileNotFoundError: no such model, or it has no config.json.
            PermissionError: the Hub does not let the token read it.
        """
        info = self.architecture_cache.get(name)
        if info is None:
            info = self.architecture_cache[name] = self._look_up(name)
        return info

    def clear_cache(self) -> None:
        """Forget what is in memory; what is on disk is named by contents and never wrong."""
        self.architecture_cache.clear()

    def get_layers(self, model: PreTrainedModel, info: ArchitectureInfo) -> nn.ModuleList:
        """Return the list of a loaded model's blocks.

        Args:
            model: the model, with or without its head.
            info: its architecture.

        Raises:
            ArchitectureError: the architecture has no such list, or the model is of another one.
        """
        from torch import nn

        found = _required(model, info, "layer_path", info.layer_path)
        if not isinstance(found, nn.ModuleList):
            raise ArchitectureError(
                f"{info.model_name}: `{info.layer_path}` of {type(model).__name__} is a {type(found).__name__}, wanted "
                "a list of blocks; detect the architecture of the model that was loaded"
            )
        return found

    def get_embeddings(self, model: PreTrainedModel, info: ArchitectureInfo) -> nn.Module:
        """Return a loaded model's input embeddings.

        Raises:
            ArchitectureError: the architecture has none, or the model is of another one.
        """
        return _required(model, info, "embedding_path", info.embedding_path)

    def get_lm_head(self, model: PreTrainedModel, info: ArchitectureInfo) -> nn.Module | None:
        """Return a loaded model's language model head, None where it was loaded without, or has none."""
        return None if info.lm_head_path is None else _find(model, info.lm_head_path)

    def get_parameter_signature(self, name: str) -> dict[str, bool] | None:
        """Return the parameters of a model's blocks' forward, and whether each must be given; None without blocks."""
        return self.detect_architecture(name).model_signature

    def get_rope_info(self, name: str) -> dict[str, Any] | None:
        """Return a model's rotary positions as transformers normalises them, None where it has none."""
        return self.detect_architecture(name).rope_info

    def analyze_model_capabilities(self, model: PreTrainedModel, name: str) -> dict[str, Any]:
        """Report what a loaded model is and can do, from its architecture and its modules; nothing is run.

        Args:
            model: the model.
            name: what it was loaded from.
        """
        info = self.detect_architecture(name)
        blocks = None if info.layer_path is None else self.get_layers(model, info)
        embeddings = None if info.embedding_path is None else _find(model, info.embedding_path)
        head = self.get_lm_head(model, info)
        shared = {id(parameter) for parameter in (() if embeddings is None else embeddings.parameters())}
        return {
            "architecture_family": str(info.architecture_family),
            "architecture_type": info.architecture_type,
            "model_class": type(model).__name__,
            "block_class": type(blocks[0]).__name__ if blocks else None,
            "num_blocks": None if blocks is None else len(blocks),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "block_parameters": None if blocks is None else sum(parameter.numel() for parameter in blocks.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "has_lm_head": head is not None,
            "has_tied_head": head is not None and any(id(parameter) in shared for parameter in head.parameters()),
            "has_rotary_positions": info.rope_info is not None,
            "supports_causal_lm": info.supports_causal_lm,
            "supports_masked_lm": info.supports_masked_lm,
            "supports_generation": bool(model.can_generate()),
            "supports_gradient_checkpointing": bool(model.supports_gradient_checkpointing),
            "requires_remote_code": info.requires_remote_code,
        }

    def _look_up(self, name: str) -> ArchitectureInfo:
        # transformers names no model classes without torch, and says of each type that it can do nothing.
        missing = [package for package in ("torch", "transformers") if find_spec(package) is None]
        if missing:
            raise ArchitectureError(
                f"{name}: detecting its architecture takes {' and '.join(missing)}; install what is missing with "
                "`pip install 'mol-merge[fusion]'`"
            )
        directory = find_directory(name, hub_cache_dir=self._hub.cache_dir, token=self._hub.token)
        config = read_config(directory)
        info = self._disk.read(config, name)
        if info is None:
            found = detect(name, directory, config, trust_remote_code=self.trust_remote_code, hub=self._hub)
            info = found.info
            if found.lasting:
                self._disk.write(config, info)
        return info


def _required(model: PreTrainedModel, info: ArchitectureInfo, field: str, path: str | None) -> nn.Module:
    if path is None:
        raise ArchitectureError(f"{info.model_name} ({info.architecture_type}) has no {field}: it has no such part")
    found = _find(model, path)
    if found is None:
        raise ArchitectureError(
            f"{info.model_name}: {type(model).__name__} has no `{path}`, the {field} of {info.architecture_type}; "
            "detect the architecture of the model that was loaded"
        )
    return found


def _find(model: PreTrainedModel, path: str) -> nn.Module | None:
    """Return the module at a path, in the class that the path is of or in its base model or the other way round."""
    prefix = f"{model.base_model_prefix}."
    for candidate in (path, path.removeprefix(prefix), prefix + path):
        try:
            module: nn.Module = model.get_submodule(candidate)
        except AttributeError:  # how torch says that there is none
            continue
        return module
    return None
