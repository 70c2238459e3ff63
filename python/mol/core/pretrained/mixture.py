"""MoLMixture: the next token by several whole language models at once, their probabilities averaged.

This is the baseline that a fusion of blocks has to beat: it costs the sum of its models and needs no adapters.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mol.config.mol_config import MoLConfig
from mol.core.blocks.inputs import CACHE_NAMES, Tokens
from mol.core.blocks.source import Source
from mol.core.cache import CACHE_NAME, ExpertCache, FusedCache
from mol.core.host import asked_for
from mol.core.models.loading import load_tokenizer, load_whole, read_generation_config
from mol.core.pretrained.fused_model import FusedModel
from mol.core.pretrained.step_loss import share_of, weigh
from mol.core.pretrained.writing import Writing
from mol.core.routers import SimpleRouter
from mol.errors import ConfigError, MolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MixtureWeights = Literal["uniform", "posterior", "router"]
_WEIGHTS: Final[tuple[str, ...]] = get_args(MixtureWeights)


class MoLMixtureConfig(PreTrainedConfig):
    """config.json of a mixture.

    Attributes:
        models: their names.
        mixture_weights: "uniform", "posterior" or "router".
    """

    model_type = "mol_mixture"

    def __init__(
        self,
        models: Sequence[str] = (),
        mixture_weights: str = "uniform",
        **others: Any,  # noqa: ANN401 - the fields of PreTrainedConfig
    ) -> None:
        """Keep the fields."""
        self.models = list(models)
        self.mixture_weights = mixture_weights
        super().__init__(**others)


@dataclass
class Evidence:
    """What the tokens so far say of each model.

    Attributes:
        total: (B, E), float64, log-probability that each gave to them.
        last: (B, E, V), float64, log-probabilities of the token that comes next.
        started: (B, 1), whether the row has a token, before which there is no `last`.
    """

    total: torch.Tensor
    last: torch.Tensor
    started: torch.Tensor

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        for name, tensor in list(vars(self).items()):
            setattr(self, name, tensor.index_select(0, rows.to(tensor.device)))


class MoLMixture(Writing, PreTrainedModel, GenerationMixin):
    """p(x_t+1) = sum over models e of w_e(t) p_e(x_t+1), for models of one vocabulary.

    The weights w_e(t) are
    - "uniform": 1/E;
    - "posterior": proportional to the probability that model e gave to the tokens up to t (Li et al., 2022,
      "Branch-Train-Merge"), the first one left out, which none has predicted;
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
        self._adopt([_load(name) for name in config.models], config.models)

    @classmethod
    def from_models(cls, models: Sequence[str | PreTrainedModel], weights: MixtureWeights = "uniform") -> MoLMixture:
        """Mix models.

        Args:
            models: names (Hub ids or directories), whose tokenizers are compared; or models, of which the caller knows
                that they read the same tokens, for only the sizes of their vocabularies can be compared. They are
                frozen and put into eval mode.
            weights: "uniform", "posterior" or "router".

        Raises:
            ConfigError: no model is given, there is no such kind of weights, or the vocabularies differ.
            MolError: a model does not predict the next token from those before it alone.
            OSError: a model or its tokenizer cannot be had.
        """
        if not models:
            raise ConfigError("a mixture needs at least one model")
        if weights not in _WEIGHTS:
            raise ConfigError(f"weights is {weights!r}, wanted one of {', '.join(_WEIGHTS)}")
        loaded = [_load(model) if isinstance(model, str) else model for model in models]
        names = [given if isinstance(given, str) else given.name_or_path for given in models]
        text = loaded[0].config.get_text_config()
        tokens = {key: getattr(text, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = MoLMixtureConfig(
            models=names, mixture_weights=weights, vocab_size=text.vocab_size, hidden_size=text.hidden_size, **tokens
        )
        mixture = cls.__new__(cls)
        PreTrainedModel.__init__(mixture, config)
        mixture._adopt(loaded, [given for given in models if isinstance(given, str)])
        return mixture

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        **kwargs: Any,  # noqa: ANN401 - refused
    ) -> MoLMixture:
        """Load what `save_pretrained` wrote, the names of the models and the router, and the models.

        Raises:
            MolError: an option is given, or a model was mixed that has no name.
            OSError: something is missing.
        """
        if kwargs:
            raise MolError(f"from_pretrained of a mixture does not take {', '.join(sorted(kwargs))}")
        config = MoLMixtureConfig.from_pretrained(pretrained_model_name_or_path)
        if not all(config.models):
            raise MolError(
                f"{pretrained_model_name_or_path}: not all models of the mixture have names: {config.models}"
            )
        mixture = cls.from_models(config.models, config.mixture_weights)
        if mixture.router is not None:
            mixture.load_state_dict(load_file(Path(pretrained_model_name_or_path) / "model.safetensors"))
        read_generation_config(mixture, Path(pretrained_model_name_or_path))
        return mixture

    def _adopt(self, models: list[PreTrainedModel], names: list[str]) -> None:
        _check_vocabularies(names, models)
        for model in models:
            _check_model(model)
            model.requires_grad_(requires_grad=False).train(mode=False)
        self.__dict__["models"] = models  # plain, so that state_dict and optimisers see the router only
        self.router: SimpleRouter | None = None
        if self.config.mixture_weights == "router":
            self.router = SimpleRouter(self.config.hidden_size, len(models)).to(models[0].device)
        self.generation_config = copy.deepcopy(models[0].generation_config)
        self.loss_type = "ForCausalLM"  # so that Trainer counts labels without the first of each row
        self.train(mode=False)

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave modules as they were built."""

    @property
    def device(self) -> torch.device:
        """Where the first model is."""
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

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: FusedCache | None = None,
        past_key_values: FusedCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **others: Any,  # noqa: ANN401 - refused unless they are None or False
    ) -> CausalLMOutputWithPast:
        """Run all models and mix.

        Args:
            input_ids: (B, T).
            attention_mask: (B, P + T) with the P tokens of the cache, 0 for padding.
            labels: (B, T), shifted inside; -100 does not count.
            cache: from an earlier forward; grows.
            past_key_values: the same, as it was called before transformers 5.24.
            use_cache: return a cache.
            return_dict: must not be False.
            num_items_in_batch: number of labels that count in all batches of an optimiser's step; the loss is then the
                part of these in the mean over all.
            others: none.

        Returns:
            `logits` (B, T, V) are log-probabilities, float32 or wider: their softmax is the mixture. `loss` is the mean
            negative log-probability of the labels.

        Raises:
            MolError: an input is not known or of another shape, or `return_dict` is False.
        """
        unknown = asked_for(others)
        if unknown:
            raise MolError(f"a mixture does not take {', '.join(sorted(unknown))}")
        cache, attention_mask = self._begin(
            input_ids, attention_mask, past_key_values if cache is None else cache, use_cache, return_dict
        )
        batch, length = input_ids.shape
        logits, hidden = self._run(input_ids, attention_mask, cache)
        mask = attention_mask[:, -length:]
        state = None if cache is None else cache.routes.get(0)
        log_weights, state = self._weigh(logits, hidden, input_ids, mask, state)
        if cache is not None:
            cache.seen += length
            cache.batch = batch
            if state is not None:
                cache.routes[0] = state
        mixed: torch.Tensor | None = None
        for each, log_weight in zip(logits, log_weights.unbind(-1), strict=True):
            wide = each.to(torch.promote_types(each.dtype, torch.float32)).log_softmax(-1)
            term = wide + log_weight[..., None].to(wide)
            mixed = term if mixed is None else torch.logaddexp(mixed, term)
        assert mixed is not None  # there is at least one model
        loss = None
        if labels is not None:
            loss = functional.nll_loss(mixed[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(mixed.device))
            if num_items_in_batch is not None:
                loss = weigh(loss, share_of(labels, num_items_in_batch, shifted=True), mixed)
        return CausalLMOutputWithPast(loss=loss, logits=mixed, **{CACHE_NAME: cache})

    @torch.no_grad()
    def _run(
        self, input_ids: torch.Tensor, mask: torch.Tensor, cache: FusedCache | None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Give each model's logits (B, T, V) and, for a router, the first one's last hidden states (B, T, H)."""
        logits, hidden = [], None
        for number, model in enumerate(self.models):
            ids, shown = input_ids.to(model.device), mask.to(model.device)
            inputs: dict[str, Any] = {"attention_mask": shown, "use_cache": cache is not None}
            if Source.takes(model, "position_ids"):
                inputs["position_ids"] = Tokens.of(shown, ids.shape[1], model.dtype).positions
            if cache is None:
                inputs["input_ids"] = ids
            else:
                own = cache.experts[0, number]
                own.seen = cache.seen
                # A model may want something else in a step than in a prompt, as those with a state do of the mask.
                name = next(name for name in CACHE_NAMES if Source.takes(model, name))
                inputs |= {name: own, "is_first_iteration": cache.seen == 0}
                inputs = model.prepare_inputs_for_generation(ids, **inputs)
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
        """Give log w_e(t) (B, T, E), and what is to be remembered of these tokens."""
        if self.router is not None and hidden is not None:
            _, scores, state = self.router(hidden, mask, state=state, remember=True)
            return scores.log_softmax(-1), state
        if self.config.mixture_weights == "posterior":
            return _posterior(logits, input_ids, mask.bool(), state)
        return logits[0].new_full((*input_ids.shape, len(logits)), -math.log(len(logits)), dtype=torch.float64), None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MoLMixture:
        """Move the models too where the mixture is moved or cast."""
        for model in self.models:
            model._apply(fn)
        super()._apply(fn, recurse)
        return self


def _posterior(
    logits: list[torch.Tensor], input_ids: torch.Tensor, mask: torch.Tensor, state: Evidence | None
) -> tuple[torch.Tensor, Evidence]:
    """Sum up what each model gave to each token: log weights (B, T, E), float64, by the tokens up to each."""
    rows = torch.arange(len(input_ids), device=mask.device)[:, None]
    columns = torch.arange(mask.shape[1], device=mask.device)
    latest = torch.where(mask, columns, -1).cummax(1).values
    before = functional.pad(latest, (1, -1), value=-1)  # the token that each was predicted at
    started = mask.new_zeros(len(mask), 1) if state is None else state.started
    scores, last = [], []
    for number, each in enumerate(logits):
        log_p = each.double().log_softmax(-1)
        score = log_p[rows, before.clamp(min=0), input_ids].masked_fill(before < 0, 0.0)
        ahead = log_p[rows, latest[:, -1:].clamp(min=0)][:, 0]
        if state is not None:
            score = torch.where((before < 0) & started, state.last[:, number].gather(1, input_ids), score)
            ahead = torch.where(latest[:, -1:] < 0, state.last[:, number], ahead)
        scores.append(score.masked_fill(~mask, 0.0).cumsum(1))
        last.append(ahead)
    total = torch.stack(scores, -1)
    if state is not None:
        total = total + state.total[:, None]
    after = Evidence(total[:, -1], torch.stack(last, 1), started | mask.any(1, keepdim=True))
    return total.log_softmax(-1), after


def _load(name: str) -> PreTrainedModel:
    return load_whole(AutoModelForCausalLM, name, MoLConfig(models=[name]))


def _check_model(model: PreTrainedModel) -> None:
    kind = f"{type(model).__name__} ({model.name_or_path or 'unnamed'})"
    if isinstance(model, FusedModel) or not model.can_generate() or model.config.is_encoder_decoder:
        raise MolError(f"{kind} cannot be mixed: it is no single language model with a head")
    ids = torch.arange(4, device=model.device)[None]
    with torch.no_grad():
        first, other = (model.eval()(input_ids=tokens).logits[:, :-1] for tokens in (ids, ids + ids.eq(3)))
    if not torch.allclose(first, other, rtol=0.0, atol=1e-5):
        raise MolError(f"{kind} cannot be mixed: its outputs depend on later tokens, so it does not predict them")


def _check_vocabularies(names: list[str], models: list[PreTrainedModel]) -> None:
    sizes = [model.config.get_text_config().vocab_size for model in models]
    problems = [
        f"model 1 has {sizes[0]} tokens, model {number} ({model.name_or_path}) has {size}"
        for number, (model, size) in enumerate(zip(models, sizes, strict=True), 1)
        if size != sizes[0]
    ]
    if len(names) > 1 and not problems:
        first, *others = (load_tokenizer(name, MoLConfig(models=[name])).get_vocab() for name in names)
        for name, other in zip(names[1:], others, strict=True):
            apart = sorted(dict(first.items() ^ other.items()), key=str)
            if apart:
                some = ", ".join(repr(token) for token in apart[:3])
                problems.append(f"{names[0]} and {name} number {len(apart)} tokens differently, such as {some}")
    if problems:
        raise ConfigError.listing("models of different vocabularies cannot be mixed", problems)
