"""Fused models as transformers know models: their config, and how they are made, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from mol.config.mol_config import MoLConfig
from mol.core.models.heads import (  # Head at run time: transformers reads the annotations of its subclasses
    Head,
    head_of,
)
from mol.core.mol_runtime import MoLRuntime
from mol.errors import MolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_F = TypeVar("_F", bound="FusedModel")


class MoLModelConfig(PreTrainedConfig):
    """config.json of a fused model.

    Attributes:
        fusion: the fields of MoLConfig.
        host: name of the host.
        fused_layers: for each layer its `position` and its `experts`, each with `model` and `blocks`.
    """

    model_type = "mol"

    def __init__(
        self,
        fusion: Mapping[str, Any] | None = None,
        host: str | None = None,
        fused_layers: list[dict[str, Any]] | None = None,
        **others: Any,  # noqa: ANN401 - the fields of PreTrainedConfig
    ) -> None:
        """Keep the fields; all are None in the default config that transformers makes to compare with."""
        self.fusion = None if fusion is None else dict(fusion)
        self.host = host
        self.fused_layers = fused_layers
        super().__init__(**others)


class FusedModel(PreTrainedModel):
    """A fused model with its host's head.

    `save_pretrained` writes what was trained, adapters and routers, and the names of the models; `from_pretrained`
    loads those models again.

    Attributes:
        head: the head that its host must have.
        runtime: the fusion.
    """

    config_class = MoLModelConfig
    base_model_prefix = "runtime"
    _supports_sdpa = True
    # The host's loss is a mean over what it was given, whatever number of items Trainer counts in a step.
    accepts_loss_kwargs = False
    head: ClassVar[Head]

    def __init__(self, config: MoLModelConfig) -> None:
        """Build the fusion that a config describes, with fresh adapters and routers.

        Raises:
            MolError: the config describes none, or its host has another head.
        """
        super().__init__(config)
        if config.fusion is None or config.fused_layers is None:
            raise MolError("the config describes no fusion; make one with MoLRuntime.as_model()")
        runtime = MoLRuntime(MoLConfig(**config.fusion))
        runtime.setup_embeddings(config.host)
        for layer in config.fused_layers:
            specs = [(expert["model"], _blocks(expert["blocks"])) for expert in layer["experts"]]
            runtime.add_layer(specs, layer["position"], fit=False)
        self._adopt(runtime)

    @classmethod
    def from_runtime(cls: type[_F], runtime: MoLRuntime) -> _F:
        """Wrap a runtime; both share everything.

        Raises:
            MolError: its host has another head.
        """
        model = cls.__new__(cls)
        PreTrainedModel.__init__(model, _config_of(runtime))
        model._adopt(runtime)
        return model

    @classmethod
    def from_pretrained(
        cls: type[_F],
        pretrained_model_name_or_path: str | Path,
        *args: Any,  # noqa: ANN401 - what transformers passes
        **kwargs: Any,  # noqa: ANN401
    ) -> _F:
        """Load what `save_pretrained` wrote, and the models that it names.

        Raises:
            MolError: an option is not supported, or the weights do not fit the config.
            OSError: something is missing.
        """
        if not Path(pretrained_model_name_or_path).is_dir():
            raise MolError(
                f"{pretrained_model_name_or_path}: no such directory; a fused model is loaded from what "
                "save_pretrained wrote, and loading it from the Hub comes later"
            )
        config = kwargs.pop("config", None) or MoLModelConfig.from_pretrained(pretrained_model_name_or_path)
        # What the Auto classes add by themselves means nothing here.
        others = {key for key, value in kwargs.items() if value not in (None, False, "auto", "main")}
        others -= {"adapter_kwargs", "_from_auto", "_commit_hash"}
        if args or others:
            raise MolError(f"from_pretrained of a fused model does not take {', '.join(sorted(others)) or args}")
        model = cls(config)
        weights = load_file(Path(pretrained_model_name_or_path) / "model.safetensors")
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if missing or unexpected:
            raise MolError.listing(
                f"{pretrained_model_name_or_path}: its weights are not those that its config describes",
                [*(f"{name} is missing" for name in missing), *(f"{name} is not wanted" for name in unexpected)],
            )
        model.train(mode=False)
        return model

    def _adopt(self, runtime: MoLRuntime) -> None:
        host = runtime.host
        head = head_of(host.model.config)
        if head is not self.head:
            raise MolError(
                f"the host {runtime.host_name} ({type(host.model).__name__}) does not {self.head.does}, as that of a "
                f"{type(self).__name__} must; it was made to {head.does}, and MoLRuntime.as_model() gives what does"
            )
        self.runtime = runtime
        self.train(runtime.training)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave modules as they were built."""

    @property
    def device(self) -> torch.device:
        """Where the host is."""
        device: torch.device = self.runtime.host.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the host's weights."""
        return self.runtime.host.dtype

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the host's."""
        embeddings: torch.nn.Module = self.runtime.host.model.get_input_embeddings()
        return embeddings


def _config_of(runtime: MoLRuntime) -> MoLModelConfig:
    host = runtime.host.model.config
    text = host.get_text_config()
    layers = [
        {"position": position, "experts": [{"model": s.model, "blocks": list(s.blocks)} for s in layer.specs]}
        for position, layer in runtime.fusion().layers.items()
    ]
    return MoLModelConfig(
        fusion=runtime.config.to_dict(),
        host=runtime.host_name,
        fused_layers=layers,
        num_hidden_layers=len(runtime.host),
        hidden_size=runtime.host.width,
        id2label=host.id2label,
        label2id=host.label2id,
        **{key: getattr(text, key, None) for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
    )


def _blocks(numbers: list[int]) -> int | range:
    return numbers[0] if len(numbers) == 1 else range(numbers[0], numbers[-1] + 1)


AutoConfig.register(MoLModelConfig.model_type, MoLModelConfig)
