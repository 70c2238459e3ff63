"""Fused models as transformers know models: their config, and how they are made, saved and loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from mol.config.mol_config import PERSONAL, MoLConfig
from mol.core.cache import CACHE_NAME
from mol.core.frozen import FROZEN, refused
from mol.core.host import OutputEmbeddings, asked_for, most_positions
from mol.core.models.heads import (  # Head at run time: transformers reads the annotations of its subclasses
    Head,
    head_of,
)
from mol.core.models.loading import read_generation_config
from mol.core.mol_runtime import MoLRuntime
from mol.core.pretrained.described import TORCH_ATTENTION, Description, config_from, read_description
from mol.core.pretrained.digests import check_model, find_models, record_model
from mol.core.pretrained.options import OF_MODELS, check_offline, checked_options
from mol.core.pretrained.refused import OutsideModels
from mol.core.pretrained.saving import KEY, read_saved, refuse_other_ways, saved_directory, write_save
from mol.core.pretrained.tokenizers import copy_inputs
from mol.errors import MolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from mol.core.blocks.source import Source

_F = TypeVar("_F", bound="FusedModel")
_HEAD_SETTINGS: Final = (
    "final_logit_softcapping", "lm_head_multiplier", "logit_scale", "logits_scaling", "output_multiplier",
)  # fmt: skip
"""What a host's head does beside multiplying, which trainers that apply it themselves read in the config."""
_GRADIENT_CHECKPOINTING: Final = (
    "gradient checkpointing comes in a later version of mol: pass gradient_checkpointing=False (trainers of TRL have "
    "it True by default), and train on smaller batches"
)


class MoLModelConfig(PreTrainedConfig):
    """config.json of a fused model.

    Attributes:
        fusion: the fields of MoLConfig.
        host: name of the host.
        fused_layers: for each layer its `position` and its `experts`, each with `model` and `blocks`.
    """

    model_type = "mol"
    auto_map: ClassVar[dict[str, str]] = {}  # TRL looks here for the Auto class of a class that transformers lacks
    keys_to_ignore_at_inference: ClassVar = [CACHE_NAME]

    def __init__(
        self,
        fusion: Mapping[str, Any] | None = None,
        host: str | None = None,
        fused_layers: list[dict[str, Any]] | None = None,
        **others: Any,  # noqa: ANN401 - the fields of PreTrainedConfig
    ) -> None:
        """Keep the fields; all are None in the default config that transformers makes to compare with."""
        self.fusion = dict(fusion) if isinstance(fusion, dict) else fusion
        self.host = host
        self.fused_layers = fused_layers
        super().__init__(**others)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:  # noqa: ANN401 - as transformers has it
        """Make a config of what config.json holds.

        Raises:
            ConfigError: it holds what no config can.
        """
        return config_from(super().from_dict, config_dict, kwargs)


class FusedModel(OutsideModels):
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
        self._adopt(_build(read_description(config.fusion, config.host, config.fused_layers), {}))

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
                `max_expert_memory`; and `cache_dir`, `device_map`, `paths`, `token`, `trust_remote_code`, which never
                are. `paths` are directories, by name, of models that are not where they were. With
                `allow_changed_models` models may be others than the fusion was saved with.

        Raises:
            MolError: an option is not supported, the save is damaged or of a later mol, a model is not what it was, or
                brings code of its own and `trust_remote_code` is not given.
            OSError: something is missing.
        """
        directory = saved_directory(pretrained_model_name_or_path, "a fused model")
        changed, offline = kwargs.pop("allow_changed_models", False), kwargs.pop("local_files_only", False)
        saved = read_saved(directory)
        config = kwargs.pop("config", None) or MoLModelConfig.from_pretrained(directory)
        given = checked_options("a fused model", (*OF_MODELS, "max_expert_memory"), config, args, kwargs)
        described = read_description(
            config.fusion, config.host, config.fused_layers, given=given, written_by=saved.version
        )
        saved.check_description(_description_in(saved.content))
        given["paths"] = find_models(saved.models, directory, given.get("paths", {}))
        check_offline(offline, {*described.settings["models"]} - given["paths"].keys())
        runtime = _build(described, given)
        if not changed:
            for name, (source, blocks) in _used(runtime).items():
                if source.checkpoint is not None:
                    check_model(saved.models.get(name), source.checkpoint, source, blocks)
        model = cls._around(runtime, config)
        saved.check_names(model.state_dict())
        weights = saved.load()
        for name, parameter in model.named_parameters():  # to be what was saved bit for bit
            parameter.data = parameter.data.to(weights[name].dtype)
        model.load_state_dict(weights)
        if model.can_generate():
            read_generation_config(model, saved.holds(GENERATION_CONFIG_NAME))
        model.train(mode=False)
        return model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        *args: Any,  # noqa: ANN401 - what transformers takes
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Write the fusion as it is now: layers may have been added, and models moved to another dtype.

        Where a save is already, it is replaced, and whatever ends the process meanwhile, the one or the other is there.

        Args:
            save_directory: where to; what else is in it stays.
            is_main_process: whether this is the one of several processes that writes.
            args: as transformers takes them.
            kwargs: the same.

        Raises:
            MolError: push_to_hub or distributed_checkpoint is requested.
            OSError: something cannot be written.
        """
        refuse_other_ways(kwargs)
        self.config.update(_described(self.runtime))
        save = partial(super().save_pretrained, is_main_process=is_main_process, *args, **kwargs)  # noqa: B026
        if not is_main_process:
            save(save_directory)
            return
        directory = Path(save_directory)
        models = {
            name: record_model(source.checkpoint, directory, source, blocks)
            for name, (source, blocks) in _used(self.runtime).items()
            if source.checkpoint is not None
        }
        copy = partial(copy_inputs, self.runtime.host.checkpoint)
        setattr(self.config, KEY, write_save(directory, save, _description_in, models, copy))

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
        self.output_embeddings = OutputEmbeddings(runtime)
        self.train(runtime.training)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave modules as they were built."""

    @property
    def base_model(self) -> FusedModel:
        """The same model without its host's head; see `MoLModel`."""
        from mol.core.pretrained.body import MoLModel

        body: FusedModel | None = self.__dict__.get("_body")
        if body is None:
            body = self.__dict__["_body"] = MoLModel.from_model(self)  # no module of this one, which it would be twice
        return body

    @property
    def device(self) -> torch.device:
        """Where the host is."""
        device: torch.device = self.runtime.host.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the host's weights."""
        return self.runtime.host.dtype

    def get_submodule(self, target: str) -> torch.nn.Module:
        """Give a module by name.

        Raises:
            FrozenError: it is one of the models'.
            AttributeError: there is none.
        """
        if target.startswith(f"{self.base_model_prefix}.{FROZEN}"):
            raise refused(target)
        module: torch.nn.Module = super().get_submodule(target)
        return module

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the host's."""
        embeddings: torch.nn.Module = self.runtime.host.model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Refuse others than the host's, which are not saved with the fusion.

        Raises:
            MolError: always.
        """
        raise self._not_ours()

    def get_output_embeddings(self) -> torch.nn.Module | None:
        """Return the host's, None if it has none."""
        return None if self.runtime.host.model.get_output_embeddings() is None else self.output_embeddings

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        """Refuse others than the host's, which are not saved with the fusion.

        Raises:
            MolError: always.
        """
        raise self._not_ours()

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        *args: Any,  # noqa: ANN401 - what transformers takes
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.nn.Module:
        """Return the host's embeddings where they have this size.

        Raises:
            MolError: they have another, and nothing is changed.
        """
        embeddings: Any = self.get_input_embeddings()
        if (new_num_tokens or len(embeddings.weight)) != len(embeddings.weight) or args or asked_for(kwargs):
            raise self._not_ours()
        return self.get_input_embeddings()

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - what transformers takes
        """Refuse: it is not there yet.

        Raises:
            MolError: always.
        """
        raise MolError(_GRADIENT_CHECKPOINTING)

    activation_checkpointing_enable = gradient_checkpointing_enable

    def _not_ours(self) -> MolError:
        return MolError(
            f"the embeddings are those of the host, {self.runtime.host_name}, and not saved with the fusion: change "
            "and save that model, and fuse it then"
        )


def _config_of(runtime: MoLRuntime) -> MoLModelConfig:
    host = runtime.host.model.config
    text = host.get_text_config()
    heads = {name: getattr(text, name) for name in _HEAD_SETTINGS if getattr(text, name, None) is not None}
    if text.model_type == "hyperclovax":  # which multiplies by what all others divide by
        heads["logit_scale"] = heads.pop("logits_scaling", None)
    # Layers and heads are the host's: so many hidden states come out, of its width, and what tools compute of the two
    # (the width of a head, say) is right for the host's blocks; the least of all models would be right for none. Nobody
    # sizes a cache by them, for the only one that is taken is `FusedCache`, which asks each model.
    return MoLModelConfig(
        **_described(runtime),
        num_hidden_layers=len(runtime.host),
        hidden_size=runtime.host.width,
        **heads,
        **asked_for({"max_position_embeddings": most_positions(runtime.fusion().sources)}),
        **asked_for({"num_attention_heads": getattr(text, "num_attention_heads", None)}),
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
    attention = settings.attn_implementation if settings.attn_implementation in TORCH_ATTENTION else None
    now = {
        "dtype": {name: dtype for name, dtype in dtypes.items() if dtype},
        "revisions": {**settings.revisions, **commits},
    }
    return {
        "fusion": {**settings.to_dict(), **now, "attn_implementation": attention},
        "host": runtime.host_name,
        "fused_layers": [
            {"position": position, "experts": [{"model": s.model, "blocks": list(s.blocks)} for s in layer.specs]}
            for position, layer in fusion.layers.items()
        ],
    }


def _description_in(content: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as JSON holds it
    """Take from config.json what describes the fusion."""
    fusion = content.get("fusion")
    if isinstance(fusion, dict):
        fusion = {name: value for name, value in fusion.items() if name not in PERSONAL}
    return [fusion, content.get("host"), content.get("fused_layers")]


def _used(runtime: MoLRuntime) -> dict[str, tuple[Source, set[int] | None]]:
    """Return each model and the blocks of it that are used, None for all of it."""
    fusion = runtime.fusion()
    blocks: dict[str, set[int]] = {}
    for layer in fusion.layers.values():
        for spec in layer.specs:
            blocks.setdefault(spec.model, set()).update(spec.blocks)
    return {
        name: (source, None if name == runtime.host_name else blocks[name]) for name, source in fusion.sources.items()
    }


def _build(described: Description, given: Mapping[str, Any]) -> MoLRuntime:
    """Build the fusion of a description, with these settings in the place of those that it has."""
    runtime = MoLRuntime(MoLConfig(**{**described.settings, **given}))
    runtime.setup_embeddings(described.host)
    for position, specs in described.layers:
        runtime.add_layer(specs, position, fit=False)
    return runtime


AutoConfig.register(MoLModelConfig.model_type, MoLModelConfig)
