"""Generating: the base of models with a `FusedCache` that transformers' `generate` can use."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    NamedTuple,
    NoReturn,
)  # at run time: transformers reads annotations

import torch
from transformers import GenerationMixin

from mol.core.blocks.inputs import CACHE_NAMES, takes
from mol.core.cache import CACHE_NAME, FusedCache
from mol.core.host import check_longest, checked_mask, checked_tokens
from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import GenerationConfig, PreTrainedModel
    from transformers.cache_utils import Cache

    from mol.core.blocks.lengths import Limit

_log: Final = logging.getLogger("mol")
_CACHE_ARGUMENTS: Final = ("cache", "past_key_values")
"""Its names in calls, in all versions of transformers."""


class Step(NamedTuple):
    """The inputs of a forward.

    Attributes:
        ids: (B, S), the tokens that run: the new ones, or all of them again.
        mask: (B, P + T), of all tokens.
        new: T, the number of new tokens, the last ones.
        cache: to return to the caller, None for no cache.
        read: the same if the forward uses and extends it; None to run without.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    new: int
    cache: FusedCache | None
    read: FusedCache | None

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the new tokens of x (B, S, ...)."""
        return x if x.shape[1] <= self.new else x[:, -self.new :]

    def done(self) -> FusedCache | None:
        """Add the tokens to the cache, and return it."""
        if self.cache is not None:
            self.cache.extend(self.ids)
        return self.cache


class Generating(GenerationMixin):
    """A model that predicts the next token and keeps its state in a `FusedCache`.

    As in transformers' models a forward returns a cache unless `use_cache` or `config.use_cache` is false, or the model
    is in training mode. One that was neither given nor requested holds the tokens alone, so that scoring a text costs
    nothing; if it is used all the same, the next forward fills it from them.

    transformers accepts a class for `generate` only if GenerationMixin itself is among its bases.

    Attributes:
        called: its name in messages.
    """

    called: ClassVar[str]
    _is_stateful = True  # to remove tokens all are run again, so transformers refuses assisted generation

    @abstractmethod
    def new_cache(self) -> FusedCache:
        """Return an empty cache."""

    def _continues(self) -> bool:
        """Return whether forwards continue from a cache, instead of running all tokens again."""
        return True

    @abstractmethod
    def _takes_chunks(self) -> bool:
        """Return whether its models continue from a cache with several tokens per row; most with a state do not."""

    @abstractmethod
    def _drivers(self, cache: FusedCache) -> Iterable[tuple[PreTrainedModel, Cache | None]]:
        """Return the models whose own forward runs, each with its own cache of the tokens that `cache` has seen."""

    @abstractmethod
    def _longest(self) -> Mapping[str, Limit]:
        """Return the number of tokens that each of its models is made for, by name."""

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,  # noqa: ANN401 - as transformers' generate
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - as transformers' generate returns it
        """Generate a continuation of a prompt (B, T), as transformers' `generate` does.

        Raises:
            FusionError: the prompt is no tensor of tokens, or a cache of another kind is given or requested.
        """
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        if kwargs.get("inputs_embeds") is not None:
            raise FusionError(f"{self.called} does not take inputs_embeds: give input_ids")
        if prompt is not None:
            checked_tokens(prompt)
        for name in _CACHE_ARGUMENTS:
            if name in kwargs:
                kwargs[CACHE_NAME] = self._checked_cache(kwargs.pop(name))
        if kwargs.get("cache_implementation") is not None:
            self._refuse_implementation(kwargs["cache_implementation"])
        return super().generate(inputs, *args, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - what transformers takes
        """Refuse: generate_batch would return texts without a token.

        Raises:
            FusionError: always.
        """
        raise FusionError(
            f"generate_batch keeps pages of one model's cache, and {self.called} has a cache for each of its models: "
            "pass a padded batch to generate"
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *,
        next_sequence_length: int | None = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool = True,
        is_first_iteration: bool = False,
        **kwargs: Any,  # noqa: ANN401 - further options; generate looks for this name
    ) -> dict[str, Any]:
        """Return the inputs of a step of `generate`: the tokens that the cache has not seen.

        Raises:
            FusionError: it has seen all of them.
        """
        inputs: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": use_cache}
        inputs |= {name: kwargs[name] for name in ("output_attentions", "output_hidden_states") if name in kwargs}
        cache: FusedCache | None = kwargs.get(CACHE_NAME)
        if cache is None:
            return {**inputs, "input_ids": input_ids}
        inputs[CACHE_NAME] = cache
        if cache.seen and not cache.stale and self._is_dropped(cache, input_ids, next_sequence_length, attention_mask):
            cache.stale = True
        if next_sequence_length is None:
            return {**inputs, "input_ids": input_ids}
        if not 0 < next_sequence_length <= input_ids.shape[1]:
            raise FusionError(
                f"the cache holds {cache.seen} tokens, and input_ids are {input_ids.shape[1]}: give the whole text "
                "with at least one new token, or new tokens alone and the attention_mask of the whole text"
            )
        return {**inputs, "input_ids": input_ids[:, -next_sequence_length:]}

    def _is_dropped(
        self, cache: FusedCache, input_ids: torch.Tensor, new: int | None, mask: torch.Tensor | None
    ) -> bool:
        """Return whether one of the models would drop its cache, as Phi-3 does when its positions switch."""
        for model, own in self._drivers(cache):
            if (
                own is None
                or type(model).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation
            ):
                continue
            name = next(name for name in CACHE_NAMES if takes(model, name))
            options = {"next_sequence_length": new, "attention_mask": mask, "use_cache": True, name: own}
            if model.prepare_inputs_for_generation(input_ids, **options).get(name) is None:
                return True
        return False

    def _must_restart(self, mask: torch.Tensor, new: int) -> bool:
        """Return whether so many new tokens cannot continue from a cache, under the mask (B, P + T) of all tokens."""
        return (new > 1 or not bool(mask[:, -1].all())) and not self._takes_chunks()

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,  # noqa: ANN401 - as transformers has it
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Make the cache of a `generate` unless one is given or none is requested.

        Raises:
            FusionError: a cache of another kind is requested, or a prompt in chunks without a cache; or the text would
                become longer than its models accept.
        """
        mask = model_kwargs.get("attention_mask")
        check_longest(self._longest(), max_cache_length - (0 if mask is None else int(mask.eq(0).sum(1).min())))
        if model_kwargs.get(CACHE_NAME) is not None:
            super()._prepare_cache_for_generation(
                generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
            )
            return
        if generation_config.cache_implementation is not None:
            self._refuse_implementation(generation_config.cache_implementation)
        if generation_config.use_cache is not False:
            model_kwargs[CACHE_NAME] = self.new_cache()
        elif generation_config.prefill_chunk_size is not None:
            raise FusionError(f"{self.called} takes a prompt in chunks only with a cache: leave out use_cache=False")

    def _refuse_implementation(self, name: str) -> None:
        if name != "dynamic":
            raise FusionError(
                f"{self.called} keeps a cache for each of its models, which grows: leave out "
                f"cache_implementation={name!r}"
            )

    def _checked_cache(self, cache: Any) -> FusedCache | None:  # noqa: ANN401 - any argument
        if cache is not None and not isinstance(cache, FusedCache):
            raise FusionError(
                f"{self.called} keeps a cache for each of its models, and a {type(cache).__name__} is that of one: "
                "pass one from new_cache() or from a forward"
            )
        return cache

    def _begin(
        self,
        input_ids: torch.Tensor | None,
        mask: torch.Tensor | None,
        cache: Any,  # noqa: ANN401 - any argument
        use_cache: bool | None,
        return_dict: bool | None,
    ) -> Step:
        """Check the inputs of a forward, and return the tokens and the cache that it runs with.

        Raises:
            FusionError: `return_dict` is False, an input is missing or of another kind or shape, or the cache is not of
                this kind or holds other rows.
        """
        if return_dict is False:
            raise FusionError(f"{self.called} returns its outputs by name: return_dict=False is not supported")
        ids = checked_tokens(input_ids)
        cache = self._checked_cache(cache)
        mask = checked_mask(ids, mask, 0 if cache is None else cache.seen)
        new = ids.shape[1]
        if cache is None and not use_cache:
            if use_cache is False or self.training or not self.config.use_cache:
                return Step(ids, mask, new, None, None)
            cache = FusedCache(None)
            cache.stale = True
            return Step(ids, mask, new, cache, None)
        if cache is None:
            cache = self.new_cache()
        if cache.seen and cache.batch != len(ids):
            raise FusionError(
                f"the cache holds {cache.batch} rows, and {len(ids)} were given; its batch_repeat_interleave repeats "
                "rows"
            )
        if not cache.seen:
            cache.prompt = new
        if cache.stale or (cache.seen and (not self._continues() or self._must_restart(mask, new))):
            if cache.ids is not None and cache.seen:
                ids = torch.cat([cache.ids.to(ids.device), ids], 1)
            cache.restart(self.new_cache())
        return Step(ids, mask, new, cache, cache if self._continues() else None)


def with_defaults(model: PreTrainedModel, given: Mapping[str, Any], config: GenerationConfig | None) -> dict[str, Any]:
    """Return the options to call `generate` with: those of the call, and mol's defaults for those that are not set.

    Args:
        model: its `generation_config` takes precedence over the defaults.
        given: options of the call.
        config: settings of the call.
    """
    configs = [each for each in (config, model.generation_config) if each is not None]

    def found(name: str) -> Any:  # noqa: ANN401 - any setting
        values = (given.get(name), *(getattr(each, name) for each in configs))
        return next((value for value in values if value is not None), None)

    defaults: dict[str, Any] = {}
    if found("max_new_tokens") is None and found("max_length") is None:
        defaults["max_new_tokens"] = 50
    if found("do_sample") is None:
        defaults["do_sample"] = True
    if found("do_sample") is not False and found("top_k") is None:
        defaults["top_k"] = 0  # all, where transformers' own default is 50
    if config is None:
        return {**defaults, **given}
    settings = copy.deepcopy(config)  # transformers warns of settings mixed with options
    for name, value in defaults.items():
        setattr(settings, name, value)
    return {**given, "generation_config": settings}
