"""Fused models as transformers know models: their config, and how they are made, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from mol.config.mol_config import MoLConfig
from mol.core.host import asked_for
from mol.core.models.heads import (  # Head at run time: transformers reads the annotations of its subclasses
    Head,
    head_of,
)
from mol.core.models.loading import read_generation_config
from mol.core.mol_runtime import MoLRuntime
from mol.errors import ConfigError, MolError
from mol.io.weight_files import weight_files

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

_F = TypeVar("_F", bound="FusedModel")
_SETTINGS: Final = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "max_expert_memory",
    "token",
    "trust_remote_code",
)
"""What `from_pretrained` takes in the place of the settings that were saved."""
_MEANINGLESS: Final = frozenset({"adapter_kwargs", "_from_auto", "_commit_hash", "low_cpu_mem_usage"})
"""What the Auto classes add by themselves, and what transformers ignores too."""
_AS_IT_IS: Final = {"dtype": "auto", "torch_dtype": "auto", "revision": "main", "use_safetensors": True}
"""What asks for nothing else than what is done anyway."""


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

    `save_pretrained` writes what was trained, adapters and routers, and the names, commits and dtypes of the models;
    `from_pretrained` loads those models again.

    Attributes:
        head: the head that its host must have.
        runtime: the fusion.
    """

    config_class = MoLModelConfig
    base_model_prefix = "runtime"
    _supports_sdpa = True
    # Trainer then tells the number of labels in all batches of a step, see `step_loss`.
    accepts_loss_kwargs = True
    head: ClassVar[Head]

    def __init__(self, config: MoLModelConfig) -> None:
        """Build the fusion that a config describes, with fresh adapters and routers.

        Raises:
            MolError: the config describes none, or its host has another head, or its models bring code of their own.
        """
        super().__init__(config)
        self._adopt(_build(config, {}))

    @classmethod
    def from_runtime(cls: type[_F], runtime: MoLRuntime) -> _F:
        """Wrap a runtime; both share everything.

        Raises:
            MolError: its host has another head.
        """
        return cls._around(runtime, _config_of(runtime))

    @classmethod
    def from_pretrained(
        cls: type[_F],
        pretrained_model_name_or_path: str | Path,
        *args: Any,  # noqa: ANN401 - what transformers passes
        **kwargs: Any,  # noqa: ANN401
    ) -> _F:
        """Load what `save_pretrained` wrote, and the models that it names.

        Args:
            pretrained_model_name_or_path: the directory.
            args: none.
            kwargs: `config`; or these of `MoLConfig`, in the place of what was saved: `attn_implementation`, `dtype`,
                `max_expert_memory`; and `cache_dir`, `device_map`, `token`, `trust_remote_code`, which never are.

        Raises:
            MolError: an option is not supported, the weights do not fit the config, or a model brings code of its own
                and `trust_remote_code` is not given.
            OSError: something is missing.
        """
        directory = Path(pretrained_model_name_or_path)
        if not directory.is_dir():
            raise MolError(
                f"{directory}: no such directory; a fused model is loaded from what save_pretrained wrote, and loading "
                "it from the Hub comes later"
            )
        config = kwargs.pop("config", None) or MoLModelConfig.from_pretrained(directory)
        model = cls._around(_build(config, _settings_of(config, args, kwargs)), config)
        weights: dict[str, torch.Tensor] = {}
        # Where there is nothing to train, transformers writes no weights.
        for file in weight_files(directory) if model.state_dict() else ():
            weights |= load_file(directory / file)
        for name, parameter in model.named_parameters():
            if name in weights:  # to be what was saved bit for bit
                parameter.data = parameter.data.to(weights[name].dtype)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if missing or unexpected:
            raise MolError.listing(
                f"{directory}: its weights are not those that its config describes",
                [*(f"{name} is missing" for name in missing), *(f"{name} is not wanted" for name in unexpected)],
            )
        read_generation_config(model, directory)
        model.train(mode=False)
        return model

    def save_pretrained(
        self,
        save_directory: str | Path,
        *args: Any,  # noqa: ANN401 - what transformers takes
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Write the fusion as it is now: layers may have been added, and models moved to another dtype."""
        self.config.update(_described(self.runtime))
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def _around(cls: type[_F], runtime: MoLRuntime, config: MoLModelConfig) -> _F:
        model = cls.__new__(cls)
        PreTrainedModel.__init__(model, config)
        model._adopt(runtime)
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

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Refuse others than the host's, which are not saved with the fusion.

        Raises:
            MolError: always.
        """
        raise MolError(
            f"the embeddings are those of the host, {self.runtime.host_name}, and not saved with the fusion: change "
            "and save that model, and fuse it then"
        )


def _config_of(runtime: MoLRuntime) -> MoLModelConfig:
    host = runtime.host.model.config
    text = host.get_text_config()
    return MoLModelConfig(
        **_described(runtime),
        num_hidden_layers=len(runtime.host),
        hidden_size=runtime.host.width,
        id2label=host.id2label,
        label2id=host.label2id,
        **{key: getattr(text, key, None) for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
    )


def _described(runtime: MoLRuntime) -> dict[str, Any]:
    """Give the fields of `MoLModelConfig`, with the commit that each model is of and the dtype that it has now."""
    fusion, settings = runtime.fusion(), runtime.config
    dtypes = {name: settings.dtype_of(name) for name in settings.models}
    dtypes |= {name: str(source.dtype).removeprefix("torch.") for name, source in fusion.sources.items()}
    commits = {name: source.revision for name, source in fusion.sources.items() if source.revision}
    now = {
        "dtype": {name: dtype for name, dtype in dtypes.items() if dtype},
        "revisions": {**settings.revisions, **commits},
    }
    return {
        "fusion": {**settings.to_dict(), **now},
        "host": runtime.host_name,
        "fused_layers": [
            {"position": position, "experts": [{"model": s.model, "blocks": list(s.blocks)} for s in layer.specs]}
            for position, layer in fusion.layers.items()
        ],
    }


def _settings_of(config: MoLModelConfig, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings that `from_pretrained` was called with.

    Raises:
        MolError: it was called with something else.
    """
    given = {
        name: value
        for name, value in asked_for(kwargs).items()
        if name not in _MEANINGLESS and _AS_IT_IS.get(name) != value
    }
    if "torch_dtype" in given:  # as transformers called it
        given.setdefault("dtype", given.pop("torch_dtype"))
    if config._attn_implementation is not None:  # where the Auto classes put it
        given.setdefault("attn_implementation", config._attn_implementation)
    others = sorted(given.keys() - set(_SETTINGS))
    if args or others:
        raise MolError(
            f"from_pretrained of a fused model does not take {', '.join(others) or args}; it takes "
            f"{', '.join(_SETTINGS)}"
        )
    return given


def _build(config: MoLModelConfig, given: Mapping[str, Any]) -> MoLRuntime:
    """Build the fusion that a config describes, with these settings in the place of those that it has."""
    if config.fusion is None or config.fused_layers is None:
        raise MolError("the config describes no fusion; make one with MoLRuntime.as_model()")
    if config.fusion.get("trust_remote_code") and "trust_remote_code" not in given:
        raise ConfigError(
            "models of this fusion bring code of their own, which is run only if whoever loads it says so: read it, "
            "and call from_pretrained(..., trust_remote_code=True)"
        )
    runtime = MoLRuntime(MoLConfig(**{**config.fusion, **given}))
    runtime.setup_embeddings(config.host)
    for layer in config.fused_layers:
        specs = [(expert["model"], expert["blocks"]) for expert in layer["experts"]]
        runtime.add_layer(specs, layer["position"], fit=False)
    return runtime


AutoConfig.register(MoLModelConfig.model_type, MoLModelConfig)
