"""FusedModel: a fused model as a transformers model, made, saved and loaded; MoLModel: the same without its head."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import GENERATION_CONFIG_NAME

from mol.core.frozen import check_target
from mol.core.host import HostHead, OutputEmbeddings, host_inputs
from mol.core.models.heads import (  # Head at run time: transformers reads the annotations of its subclasses
    Head,
    head_of,
)
from mol.core.models.loading import read_generation_config
from mol.core.pretrained.bundle import Kind, check_kind_of_save, save_models
from mol.core.pretrained.cards import card_of_fusion
from mol.core.pretrained.described import read_description
from mol.core.pretrained.embeddings import HostEmbeddings
from mol.core.pretrained.model_config import ATTRIBUTES, MoLModelConfig, config_of, described, description_in
from mol.core.pretrained.options import OF_MODELS, checked_options, config_of_call
from mol.core.pretrained.rebuilding import build_runtime, load_weights, rebuild, used_models
from mol.core.pretrained.refused import OutsideModels
from mol.core.pretrained.saving import KEY, read_saved, refuse_other_ways, saved_directory, write_save
from mol.core.pretrained.tokenizers import write_extra
from mol.core.runtime import Runtime  # noqa: TC001 - at run time for the same reason
from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from typing_extensions import Unpack

    from mol.core.pretrained.options import FusionLoadOptions

_log: Final = logging.getLogger("mol")
_F = TypeVar("_F", bound="FusedModel")


class FusedModel(HostEmbeddings, OutsideModels):
    """A fused model with its host's head.

    `save_pretrained` writes what was trained, adapters and routers, and the names, commits and dtypes of the models;
    `from_pretrained` loads those models again.

    Attributes:
        head: the head that its host must have.
        runtime: the fusion.
        adds_routing_loss: whether the loss has that of the routers in it, in training; a trainer may add its own.
        runtime_class: the class to build a `runtime` of; `mol.core.mol_runtime` sets it.
    """

    config_class = MoLModelConfig
    base_model_prefix = "runtime"
    _supports_sdpa = True
    supports_gradient_checkpointing = True
    # Trainer then passes the number of labels in all batches of a step, see `step_loss`.
    accepts_loss_kwargs = True
    head: ClassVar[Head]
    adds_routing_loss = True
    runtime_class: ClassVar[type[Runtime] | None] = None

    def __init__(self, config: MoLModelConfig) -> None:
        """Build the fusion that a config describes, with fresh adapters and routers.

        Raises:
            FusionError: the config describes none, or its host has another head, or its models bring code of their own.
        """
        super().__init__(config)
        description = read_description(config.fusion, config.host, config.fused_layers)
        self._adopt(build_runtime(self._runtime_class(), description, {}))

    @classmethod
    def _from_config(cls: type[_F], config: MoLModelConfig, **kwargs: Any) -> _F:  # noqa: ANN401 - as in transformers
        """Build the fusion that a config describes, with options of `from_pretrained`; the Auto classes call it."""
        given = checked_options("from_config of a fused model", (*OF_MODELS, "max_expert_memory"), config, (), kwargs)
        description = read_description(config.fusion, config.host, config.fused_layers, given=given)
        dtypes = description.settings.get("dtype")
        saved = dtypes.get(description.host) if isinstance(dtypes, dict) else dtypes
        if config.dtype is not None and str(config.dtype).removeprefix("torch.") != saved:
            given.setdefault("dtype", config.dtype)
        model = cls._around(build_runtime(cls._runtime_class(), description, given), config)
        config.dtype = model.dtype
        return model

    @classmethod
    def from_runtime(cls: type[_F], runtime: Runtime) -> _F:
        """Wrap a runtime; both share everything.

        Raises:
            FusionError: its host has another head.
        """
        return cls._around(runtime, config_of(runtime))

    @classmethod
    def from_pretrained(
        cls: type[_F],
        pretrained_model_name_or_path: str | Path,
        *args: Any,  # noqa: ANN401 - as in transformers
        **kwargs: Unpack[FusionLoadOptions],
    ) -> _F:
        """Load what `save_pretrained` wrote, and the models that it names.

        Args:
            pretrained_model_name_or_path: the directory, or `user/name` on the Hub.
            args: none.
            kwargs: `config`; or these of `MoLConfig`, which replace what was saved: `attn_implementation`, `dtype`,
                `max_expert_memory`; attributes of the config that a fused model reads, such as `use_cache`; and
                `cache_dir`, `device_map`, `paths`, `subfolder`, `token`, `trust_remote_code`, which are never saved.
                `paths` are directories, by name, of models that were moved. With
                `allow_changed_models` models may differ from those that the fusion was saved with.

        Raises:
            MolError: an option is not supported, the save is damaged or of a later mol, a model changed, or brings
                code of its own and `trust_remote_code` is not given.
            OSError: something is missing.
        """
        directory = saved_directory(pretrained_model_name_or_path, "a fused model", kwargs)
        changed, offline = kwargs.pop("allow_changed_models", False), kwargs.pop("local_files_only", False)
        saved = read_saved(directory, MoLModelConfig.model_type)
        called = "from_pretrained of a fused model"
        config = config_of_call(MoLModelConfig, directory, called, ATTRIBUTES, kwargs)
        given = checked_options(called, (*OF_MODELS, "max_expert_memory"), config, args, kwargs)
        description = read_description(
            config.fusion, config.host, config.fused_layers, given=given, written_by=saved.version
        )
        saved.check_description(description_in(saved.content))
        runtime = rebuild(
            cls._runtime_class(), description, saved.models, directory, given, allow_changed=changed, offline=offline
        )
        read_generation_config(runtime.host.model, saved.holds(GENERATION_CONFIG_NAME))
        model = cls._around(runtime, config)
        saved.check_names(model.state_dict())
        load_weights(model, saved.load(), runtime.host.dtype if "dtype" in given else None)
        if saved.record.get("lm_head"):
            runtime.lm_head = HostHead(runtime.host)
        model.train(mode=False)
        return model

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        *args: Any,  # noqa: ANN401 - as in transformers
        kind: Kind = "runtime",
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Save the fusion as it is now: layers may have been added, and models moved to another dtype.

        A "runtime" names its models, with digests of what is used of them. A "bundle" also has copies of the blocks
        that are used, and of the host, so that it loads where its models are not. An existing save is replaced; if the
        process is killed meanwhile, one of the two is complete.

        Args:
            save_directory: of the save; other files in it stay.
            is_main_process: whether this is the one of several processes that writes.
            args: as transformers takes them.
            kind: "runtime" or "bundle".
            kwargs: as transformers takes them.

        Raises:
            ConfigError: there is no such kind, a model cannot be copied, or a "runtime" would replace the bundle that
                it was loaded from.
            FusionError: push_to_hub or distributed_checkpoint is requested.
            OSError: something cannot be written.
        """
        refuse_other_ways(kwargs)
        check_kind_of_save(kind)
        self.config.update(described(self.runtime))
        save = partial(super().save_pretrained, is_main_process=is_main_process, *args, **kwargs)  # noqa: B026
        if not is_main_process:
            save(save_directory)
            return
        directory = Path(save_directory)
        uses = used_models(self.runtime)
        models = partial(save_models, kind, uses, self.runtime.config.models, directory)
        extra = partial(write_extra, self.runtime.host.checkpoint, card_of_fusion(self.runtime, uses, kind))
        head = self.runtime.lm_head is not None
        setattr(self.config, KEY, write_save(directory, save, description_in, models, extra, lm_head=head))

    @classmethod
    def _runtime_class(cls) -> type[Runtime]:
        if cls.runtime_class is None:
            raise FusionError(f"{cls.__name__} was imported from a module inside of mol.core: import it from mol.core")
        return cls.runtime_class

    @classmethod
    def _around(cls: type[_F], runtime: Runtime, config: MoLModelConfig) -> _F:
        model = cls.__new__(cls)
        PreTrainedModel.__init__(model, config)
        model._adopt(runtime)
        return model

    def _adopt(self, runtime: Runtime) -> None:
        host = runtime.open_host()
        head = head_of(host.model.config)
        if head is not self.head:
            raise FusionError(
                f"the host {runtime.host_name} ({type(host.model).__name__}) does not {self.head.does}, as that of a "
                f"{type(self).__name__} must; it was made to {head.does}, and MoLRuntime.as_model() returns what does"
            )
        self.runtime = runtime
        self.output_embeddings = OutputEmbeddings(host)
        self.train(runtime.training)

    def count_labels(self, labels: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the number of labels of a batch that count in its loss, which is the mean over them.

        Args:
            labels: as `forward` takes them, -100 for what does not count.
            attention_mask: (B, T), 0 for padding.
        """
        return labels.ne(-100).sum()

    def _requested(self, others: Mapping[str, Any]) -> dict[str, Any]:
        """Return further inputs of a forward, with those that the config requests, as in transformers."""
        if others.get("output_hidden_states") is None:
            return {**others, "output_hidden_states": self.config.output_hidden_states}
        return dict(others)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave modules as they were built."""

    @property
    def base_model(self) -> FusedModel:
        """The same model without its host's head; see `MoLModel`."""
        body: FusedModel | None = self.__dict__.get("_body")
        if body is None:
            body = self.__dict__["_body"] = MoLModel.from_model(self)  # no submodule: parameters would be listed twice
        return body

    @property
    def device(self) -> torch.device:
        """Device of the host."""
        device: torch.device = self.runtime.host.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the host's weights."""
        return self.runtime.host.dtype

    def get_submodule(self, target: str) -> torch.nn.Module:
        """Return a module by name.

        Raises:
            FrozenError: it is one of the models'.
            AttributeError: there is none.
        """
        check_target(target, f"{self.base_model_prefix}.")
        module: torch.nn.Module = super().get_submodule(target)
        return module

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Run layers again in the backward pass of training instead of keeping their activations.

        Args:
            activation_checkpointing_kwargs: `use_reentrant` must not be True; nothing else in it has an effect.
            every_n_layers: must be 1, for all layers.
            offload: must be False.

        Raises:
            FusionError: an option is not supported.
        """
        problems = []
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            problems.append("use_reentrant is True, which loses the gradients of routers")
        if every_n_layers != 1:
            problems.append(f"every_n_layers is {every_n_layers}; it is all layers or none")
        if offload:
            problems.append("offload is True; hidden states stay where they are")
        if problems:
            raise FusionError.listing("a fused model cannot checkpoint its activations so: leave this out", problems)
        self.runtime.gradient_checkpointing = True

    def activation_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass again."""
        self.runtime.gradient_checkpointing = False

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,  # noqa: ANN401 - as in transformers
    ) -> None:
        """Do what `activation_checkpointing_enable` does, under its former name.

        Raises:
            FusionError: an option is not supported.
        """
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    gradient_checkpointing_disable = activation_checkpointing_disable


class MoLModel(FusedModel):
    """A fused model without its host's head: hidden states as the head reads them, after the final norm.

    It keeps no cache and has no loss: a trainer that computes its own from hidden states, as those of TRL do, trains
    routers without the losses that `MoLForCausalLM` adds if it is given labels.
    """

    @classmethod
    def from_model(cls, model: FusedModel) -> MoLModel:
        """Return the body of a model; both share everything."""
        return cls._around(model.runtime, model.config)

    def _adopt(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._has_warned = False
        self.train(runtime.training)

    @property
    def base_model(self) -> FusedModel:
        """The model itself."""
        return self

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,  # noqa: ANN401 - further inputs of the host's forward
    ) -> BaseModelOutputWithPast:
        """Run the host's forward, all but its head, with the fused layers in it.

        Args:
            input_ids: (B, T), of a host that reads tokens.
            attention_mask: (B, T), 0 for padding.
            use_cache: no cache is kept.
            return_dict: must not be False.
            others: `output_hidden_states`, and inputs that only the host knows.

        Returns:
            `last_hidden_state` (B, T, H).

        Raises:
            FusionError: an input is not known or of another shape, or the host's body returns no hidden states.
        """
        if return_dict is False:
            raise FusionError("a fused model returns its outputs by name: return_dict=False is not supported")
        host = self.runtime.host
        body = host.model.base_model
        inputs, mask = host_inputs(host, body, input_ids, attention_mask, self._requested(others))
        output, run = self.runtime.run_host(lambda: body(**inputs), mask, mask.shape[1])
        self.routings = run.routings
        last = output.get("last_hidden_state")
        if last is None:
            raise FusionError(f"the host {host.name} ({type(body).__name__}) returns no hidden states without its head")
        if self.runtime.training:
            self._warn_of_untrained_losses()
        return BaseModelOutputWithPast(last_hidden_state=last, hidden_states=output.get("hidden_states"))

    def _warn_of_untrained_losses(self) -> None:
        settings = self.runtime.config
        chosen = any(logits is not None for _, logits in self.routings.values())
        if chosen and (settings.balance_loss_coeff or settings.entropy_penalty_coeff) and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "the loss is computed outside of the model, so routers are trained without load_balancing_coeff and "
                "entropy_penalty_coeff, which apply only if the model is given labels"
            )


AutoModel.register(MoLModelConfig, MoLModel)
