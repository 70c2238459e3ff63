"""Writing: how a model with a `FusedCache` takes part in transformers' `generate`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar  # ClassVar at run time: transformers reads subclasses' annotations

from transformers import GenerationMixin

from mol.core.cache import CACHE_NAME, FusedCache
from mol.core.host import checked_mask
from mol.errors import MolError

if TYPE_CHECKING:
    import torch


class Writing(GenerationMixin):
    """A model that predicts the next token and remembers what it has seen in a `FusedCache`.

    transformers takes a class for one that can `generate` only if GenerationMixin itself is among its bases.

    Attributes:
        called: what messages call it.
    """

    called: ClassVar[str]

    @abstractmethod
    def new_cache(self) -> FusedCache:
        """Return an empty cache."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool = True,
        **others: Any,  # noqa: ANN401 - what generate passes besides
    ) -> dict[str, Any]:
        """Give a step of `generate` its inputs: the tokens that the cache has not seen."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache}
        inputs |= {name: others[name] for name in ("output_attentions", "output_hidden_states") if name in others}
        if not use_cache:
            return inputs
        given = others.get(CACHE_NAME)
        cache = given if isinstance(given, FusedCache) else self.new_cache()
        return {**inputs, "input_ids": input_ids[:, cache.seen :], CACHE_NAME: cache}

    def _begin(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        cache: FusedCache | None,
        use_cache: bool | None,
        return_dict: bool | None,
    ) -> tuple[FusedCache | None, torch.Tensor]:
        """Give a forward its cache, a new one if it is asked for one, and the mask (B, P + T) of all tokens.

        Raises:
            MolError: `return_dict` is False, or a shape is another one.
        """
        if return_dict is False:
            raise MolError(f"{self.called} returns its outputs by name: return_dict=False is not supported")
        if cache is None and use_cache:
            cache = self.new_cache()
        return cache, checked_mask(input_ids, mask, 0 if cache is None else cache.seen)
