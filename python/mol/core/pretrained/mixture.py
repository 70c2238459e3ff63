"""MoLMixture: the average of the next-token probabilities of several whole language models.

This is the baseline that a fusion of blocks has to beat: it costs the sum of its models and needs no adapters.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import GENERATION_CONFIG_NAME

from mol.core.blocks.inputs import CACHE_NAMES, positions_of, takes
from mol.core.blocks.lengths import Limit
from mol.core.cache import CACHE_NAME, ExpertCache, FusedCache
from mol.core.frozen import FROZEN, Frozen, NamesModels
from mol.core.host import UNKNOWN_TO_EXPERTS, check_longest, checked_labels, set_options
from mol.core.models.loading import read_generation_config
from mol.core.pretrained.bundle import Kind, check_kind_of_save, save_models
from mol.core.pretrained.cards import card_of_mixture
from mol.core.pretrained.digests import ModelUse, check_model, find_models
from mol.core.pretrained.generating import Generating
from mol.core.pretrained.mixed_models import check_kind, check_vocabularies, load_all, load_one, load_stated
from mol.core.pretrained.mixture_config import (
    WEIGHTS,
    MixtureWeights,
    MoLMixtureConfig,
    check_mixture_config,
    mixture_described_in,
)
from mol.core.pretrained.options import OF_MODELS, check_offline, checked_options, config_of_call
from mol.core.pretrained.posterior import posterior
from mol.core.pretrained.refused import OutsideModels
from mol.core.pretrained.saving import KEY, read_saved, refuse_other_ways, saved_directory, write_save
from mol.core.pretrained.step_loss import share_of, weigh
from mol.core.pretrained.tokenizers import write_extra
from mol.core.routers import SimpleRouter
from mol.errors import ConfigError, FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from typing_extensions import Unpack

    from mol.core.pretrained.options import LoadOptions
    from mol.io.checkpoint import Checkpoint


class MoLMixture(Generating, NamesModels, OutsideModels, GenerationMixin):
    """p(x_t+1) = sum over models e of w_e(t) p_e(x_t+1), for models of one vocabulary.

    The weights w_e(t) are

    - "uniform": 1/E;
    - "posterior": proportional to the probability of the tokens up to t by model e (Li et al., 2022,
      "Branch-Train-Merge"), without the first one, which no model predicts;
    - "router": of a `SimpleRouter` over the first model's last hidden states, the mean of those up to t.

    No weight depends on later tokens. The models are frozen and stay outside of `state_dict`; a router can be trained.

    Attributes:
        models: the models.
        router: None unless the weights are "router".
    """

    config_class = MoLMixtureConfig
    called = "a mixture"
    accepts_loss_kwargs = True

    def __init__(self, config: MoLMixtureConfig) -> None:
        """Load the models that a config names; see `from_models`."""
        super().__init__(config)
        check_mixture_config(config)
        names = list(config.models)
        self._adopt(*load_all(names, {}), names)

    @classmethod
    def _from_config(cls, config: MoLMixtureConfig, **kwargs: Any) -> MoLMixture:  # noqa: ANN401 - as in transformers
        """Load the models that a config names, with options of `from_pretrained`; the Auto classes call it."""
        check_mixture_config(config)
        given = checked_options("from_config of a mixture", OF_MODELS, config, (), kwargs)
        mixture = cls._around(config, *load_stated(config, given), [*config.models], given)
        config.dtype = mixture.dtype
        return mixture

    @classmethod
    def from_models(cls, models: Sequence[str | PreTrainedModel], weights: MixtureWeights = "uniform") -> MoLMixture:
        """Mix models.

        Args:
            models: names (Hub ids or directories), whose tokenizers are compared; or models, of which only the sizes of
                vocabularies can be compared, so the caller must know that they read the same tokens. They are frozen
                and put into eval mode.
            weights: "uniform", "posterior" or "router".

        Raises:
            ConfigError: no model is given, there is no such kind of weights, or the vocabularies differ.
            MolError: a model does not predict the next token from those before it alone.
            OSError: a model or its tokenizer cannot be loaded.
        """
        if not models:
            raise ConfigError("a mixture needs at least one model")
        if weights not in WEIGHTS:
            raise ConfigError(f"weights is {weights!r}, wanted one of {', '.join(WEIGHTS)}")
        found = [load_one(model, {}) if isinstance(model, str) else (model, None) for model in models]
        loaded, checkpoints = [model for model, _ in found], [checkpoint for _, checkpoint in found]
        names = [given if isinstance(given, str) else given.name_or_path for given in models]
        text = loaded[0].config.get_text_config()
        most = [getattr(model.config.get_text_config(), "max_position_embeddings", None) for model in loaded]
        tokens = {key: getattr(text, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = MoLMixtureConfig(
            models=names,
            mixture_weights=weights,
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            max_position_embeddings=min(filter(None, most), default=None),
            **tokens,
        )
        return cls._around(config, loaded, checkpoints, [given for given in models if isinstance(given, str)])

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,  # noqa: ANN401 - as in transformers
        **kwargs: Unpack[LoadOptions],
    ) -> MoLMixture:
        """Load what `save_pretrained` wrote, the names of the models and the router, and the models.

        Args:
            pretrained_model_name_or_path: the directory, or `user/name` on the Hub.
            args: none.
            kwargs: `config`; or `attn_implementation`, `cache_dir`, `device_map`, `dtype`, `paths`, `token` and
                `trust_remote_code`, as `MoLConfig` has them. With `allow_changed_models` models may differ from
                those that the mixture was saved with.

        Raises:
            MolError: an option is not supported, the save is damaged or of a later mol, a model changed, or was
                mixed without a name.
            OSError: something is missing.
        """
        directory = saved_directory(pretrained_model_name_or_path, "a mixture", kwargs)
        changed, offline = kwargs.pop("allow_changed_models", False), kwargs.pop("local_files_only", False)
        saved = read_saved(directory, MoLMixtureConfig.model_type)
        called = "from_pretrained of a mixture"
        config: Any = config_of_call(MoLMixtureConfig, directory, called, ("models", "mixture_weights"), kwargs)
        given = checked_options(called, OF_MODELS, config, args, kwargs)
        check_mixture_config(config)
        saved.check_description(mixture_described_in(saved.content))
        given["paths"] = find_models(saved.models, directory, given.get("paths", {}))
        check_offline(offline, set(config.models) - given["paths"].keys())
        models, checkpoints = load_all(config.models, given)
        for name, checkpoint in zip(config.models, checkpoints, strict=True):
            if not changed:
                check_model(saved.models.get(name), ModelUse(checkpoint))
        mixture = cls._around(config, models, checkpoints, config.models, given)
        saved.check_names(mixture.state_dict())
        mixture.load_state_dict(saved.load())
        read_generation_config(mixture, saved.holds(GENERATION_CONFIG_NAME))
        return mixture

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        *args: Any,  # noqa: ANN401 - as in transformers
        kind: Kind = "runtime",
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Save the router and the names of the models, and copies of them in a "bundle"; see `FusedModel`.

        Raises:
            ConfigError: there is no such kind, or a "bundle" is to be made of models that have no files.
            FusionError: push_to_hub or distributed_checkpoint is requested.
            OSError: something cannot be written.
        """
        refuse_other_ways(kwargs)
        check_kind_of_save(kind)
        save = partial(super().save_pretrained, is_main_process=is_main_process, *args, **kwargs)  # noqa: B026
        if not is_main_process:
            save(save_directory)
            return
        directory = Path(save_directory)
        pairs = list(zip(self.config.models, self.checkpoints, strict=True))
        bare = [name or "a model without a name" for name, each in pairs if each is None]
        if kind == "bundle" and bare:
            raise ConfigError(
                f"{', '.join(bare)}: mixed as a model in memory, which has no files to copy; save it, and give its name"
            )
        uses = {name: ModelUse(each) for name, each in pairs if each is not None}
        models = partial(save_models, kind, uses, self.config.models, directory)
        card = card_of_mixture(dict(pairs), self.config.mixture_weights, kind)
        extra = partial(write_extra, self.checkpoints[0], card)
        setattr(self.config, KEY, write_save(directory, save, mixture_described_in, models, extra))

    @classmethod
    def _around(
        cls,
        config: MoLMixtureConfig,
        models: list[PreTrainedModel],
        checkpoints: Sequence[Checkpoint | None],
        names: list[str],
        given: Mapping[str, Any] = MappingProxyType({}),
    ) -> MoLMixture:
        mixture = cls.__new__(cls)
        PreTrainedModel.__init__(mixture, config)
        mixture._adopt(models, checkpoints, names, given)
        return mixture

    def _adopt(
        self,
        models: list[PreTrainedModel],
        checkpoints: Sequence[Checkpoint | None],
        names: list[str],
        given: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        check_vocabularies(names, models, given)
        for model in models:
            check_kind(model)
            model.requires_grad_(requires_grad=False).train(mode=False)
        self.__dict__["models"] = models  # no modules, so that state_dict and optimisers see the router only
        self.__dict__["checkpoints"] = list(checkpoints)
        self.router: SimpleRouter | None = None
        if self.config.mixture_weights == "router":
            self.router = SimpleRouter(self.config.hidden_size, len(models)).to(models[0].device)
        self.generation_config = copy.deepcopy(models[0].generation_config)
        self.loss_type = "ForCausalLM"  # so that Trainer does not count the first label of each row
        self.train(mode=False)

    def frozen_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Yield the names of the modules of the models, by their numbers."""
        for number, model in enumerate(self.models):
            yield from ((f"{FROZEN}.{number}.{name}", Frozen()) for name, _ in model.named_modules() if name)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave modules as they were built."""

    @property
    def device(self) -> torch.device:
        """Device of the first model."""
        device: torch.device = self.models[0].device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first model's weights."""
        dtype: torch.dtype = self.models[0].dtype
        return dtype

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the first model's."""
        embeddings: torch.nn.Module = self.models[0].get_input_embeddings()
        return embeddings

    def new_cache(self) -> FusedCache:
        """Return an empty cache: one for each model."""
        cache = FusedCache(None)
        for number, model in enumerate(self.models):
            cache.experts[0, number] = ExpertCache(model.config.get_text_config())
        return cache

    def _takes_chunks(self) -> bool:
        return not any(model._is_stateful for model in self.models)

    def _longest(self) -> dict[str, Limit]:
        return {model.name_or_path or type(model).__name__: Limit.of(model) for model in self.models}

    def _drivers(self, cache: FusedCache) -> Iterable[tuple[PreTrainedModel, ExpertCache | None]]:
        for number, model in enumerate(self.models):
            own = cache.experts[0, number]
            own.seen = cache.seen
            yield model, own

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: FusedCache | None = None,
        past_key_values: FusedCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **others: Any,  # noqa: ANN401 - refused unless they are None or False
    ) -> CausalLMOutputWithPast:
        """Run all models, and mix their probabilities.

        Args:
            input_ids: (B, T).
            attention_mask: (B, P + T) with the P tokens of the cache, 0 for padding.
            labels: (B, T), shifted inside; -100 does not count.
            cache: from an earlier forward or `new_cache`; grows.
            past_key_values: the same, its name before transformers 5.24.
            use_cache: return a cache; as `config.use_cache` says if None, see `Generating`.
            return_dict: must not be False.
            num_items_in_batch: number of labels that count in all batches of an optimiser's step; the loss is then the
                part of these in the mean over all.
            others: none.

        Returns:
            `logits` (B, T, V) are log-probabilities, float32 or wider: their softmax is the mixture. `loss` is the mean
            negative log-probability of the labels.

        Raises:
            FusionError: an input is not known or of another kind or shape, or `return_dict` is False.
        """
        if unknown := set_options(others):
            why = f": {UNKNOWN_TO_EXPERTS['position_ids']}" if "position_ids" in unknown else ""
            raise FusionError(f"a mixture does not take {', '.join(sorted(unknown))}{why}")
        step = self._begin(
            input_ids, attention_mask, past_key_values if cache is None else cache, use_cache, return_dict
        )
        least = self.config.max_position_embeddings
        if least and step.mask.shape[1] > least:
            check_longest(self._longest(), int(step.mask.sum(1).max()), generated=False)
        logits, hidden = self._run_models(step.ids, step.mask, step.read)
        state = None if step.read is None else step.read.routes.get(0)
        log_weights, state = self._weigh(logits, hidden, step.ids, step.mask[:, -step.ids.shape[1] :], state)
        if step.read is not None and state is not None:
            step.read.routes[0] = state
        mixed: torch.Tensor | None = None
        for each, log_weight in zip(map(step.cut, logits), step.cut(log_weights).unbind(-1), strict=True):
            wide = each.to(torch.promote_types(each.dtype, torch.float32)).log_softmax(-1)
            term = wide + log_weight[..., None].to(wide)
            mixed = term if mixed is None else torch.logaddexp(mixed, term)
        assert mixed is not None  # there is at least one model
        loss = None
        if labels is not None:
            labels = checked_labels(labels, step.cut(step.ids))
            loss = functional.nll_loss(mixed[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(mixed.device))
            if num_items_in_batch is not None:
                loss = weigh(loss, share_of(labels, num_items_in_batch, shifted=True), mixed)
        return CausalLMOutputWithPast(loss=loss, logits=mixed, **{CACHE_NAME: step.done()})

    @torch.no_grad()
    def _run_models(
        self, input_ids: torch.Tensor, mask: torch.Tensor, cache: FusedCache | None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Return each model's logits (B, T, V) and, for a router, the first one's last hidden states (B, T, H)."""
        logits, hidden = [], None
        for number, model in enumerate(self.models):
            ids, shown = input_ids.to(model.device), mask.to(model.device)
            inputs: dict[str, Any] = {"attention_mask": shown, "use_cache": cache is not None}
            if takes(model, "position_ids"):
                inputs["position_ids"] = positions_of(shown, ids.shape[1])
            if takes(model, "output_router_logits"):  # they need the whole text, which a cached step has not
                inputs["output_router_logits"] = False
            if cache is None:
                inputs["input_ids"] = ids
            else:
                own = cache.experts[0, number]
                own.seen = cache.seen
                # Some models take other inputs in a step than in a prompt, like those with a state another mask.
                name = next(name for name in CACHE_NAMES if takes(model, name))
                inputs |= {name: own, "is_first_iteration": cache.seen == 0}
                inputs = {**model.prepare_inputs_for_generation(ids, **inputs), name: own}
            wanted = number == 0 and self.router is not None
            output = model(**inputs, output_hidden_states=wanted)
            logits.append(output.logits.to(input_ids.device))
            if wanted:
                hidden = output.hidden_states[-1].to(input_ids.device)
        return logits, hidden

    def _weigh(
        self,
        logits: list[torch.Tensor],
        hidden: torch.Tensor | None,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        state: Any,  # noqa: ANN401 - an Evidence, or a RouterState
    ) -> tuple[torch.Tensor, Any]:
        """Return log w_e(t) (B, T, E), and the state after these tokens."""
        if self.router is not None and hidden is not None:
            _, scores, state = self.router(hidden, mask, state=state, remember=True)
            return scores.log_softmax(-1), state
        if self.config.mixture_weights == "posterior":
            return posterior(logits, input_ids, mask.bool(), state)
        return logits[0].new_full((*input_ids.shape, len(logits)), -math.log(len(logits)), dtype=torch.float64), None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MoLMixture:
        """Move or cast the models together with the mixture."""
        super()._apply(fn, recurse)
        for model in self.models:
            model._apply(fn)
        return self


AutoModelForCausalLM.register(MoLMixtureConfig, MoLMixture)
# Trainer shifts the labels of the models in this table before it smooths them.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MoLMixtureConfig.model_type] = MoLMixture.__name__
