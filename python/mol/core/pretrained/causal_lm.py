"""MoLForCausalLM: a fused causal language model as a transformers model, with logits, loss, cache and `generate`.

It is registered with AutoModelForCausalLM, which then loads what `save_pretrained` wrote.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mol.core.blocks.inputs import takes, token_inputs
from mol.core.blocks.lengths import turns
from mol.core.cache import CACHE_NAME, FusedCache
from mol.core.fusion import choosing
from mol.core.host import UNKNOWN_TO_EXPERTS, checked_labels, checked_tokens, host_options, warn_once
from mol.core.losses import compute_routing_loss
from mol.core.models.heads import CAUSAL_LM
from mol.core.pretrained.fused_model import FusedModel
from mol.core.pretrained.generating import Generating, Step
from mol.core.pretrained.model_config import MoLModelConfig
from mol.core.pretrained.step_loss import share_of, train_with, weigh
from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

    from mol.core.blocks.lengths import Limit
    from mol.core.cache import ExpertCache
    from mol.core.runtime import Runtime


class MoLForCausalLM(Generating, FusedModel, GenerationMixin):
    """A fused causal language model; see `FusedModel`.

    In training the loss is that of the next token and, over the layers whose router has a choice, the mean of
    `load_balancing_coeff` times the load balancing loss and `entropy_penalty_coeff` times the entropy of a token's
    choice, in nats; in eval mode it is that of the next token alone. Where Trainer accumulates gradients, each batch
    counts by its labels, so that the batches of a step train like one.

    With `dispatch="sequence"` each row chooses its experts once. The choice uses the same tokens with or without a
    cache: the whole prompt in `generate` and in a first cached forward, otherwise the first `router_prefix` tokens, or
    the first `prompt_length` columns, which `generate` passes. So a prompt may be shorter or longer than
    `router_prefix`. Outputs at the tokens of the choice may depend on later ones, up to the last of them, and labels
    at them do not count in the loss.
    """

    head = CAUSAL_LM
    called = "a fused model"

    def _adopt(self, runtime: Runtime) -> None:
        super()._adopt(runtime)
        host = runtime.host
        if not host.is_causal():
            raise FusionError(
                f"the host {runtime.host_name} ({type(host.model).__name__}) does not predict the next token: its "
                "blocks attend to later tokens, so the fusion cannot generate"
            )

    @property
    def generation_config(self) -> GenerationConfig | None:
        """The settings of `generate`: those of the host, shared by all that share the fusion, and saved with it."""
        runtime = self._modules.get("runtime")  # transformers sets it before there is one
        return None if runtime is None else runtime.host.model.generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        if "runtime" in self._modules:
            self.runtime.host.model.generation_config = config

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,  # noqa: ANN401 - as transformers' generate
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - as transformers' generate returns it
        """Generate a continuation of a prompt (B, T), as transformers' `generate`; each step gets the prompt's length.

        Raises:
            MolError: see `Generating.generate`; or rows choose by the whole prompt, and it is given in chunks.
        """
        prompt = kwargs.get("input_ids") if inputs is None else inputs
        kwargs.setdefault("prompt_length", 1 if prompt is None else checked_tokens(prompt).shape[1])  # or it is BOS
        return super().generate(inputs, *args, **kwargs)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:  # noqa: ANN401 - as transformers
        processors = super()._get_logits_processor(*args, **kwargs)
        for each in processors:
            # With `guidance_scale` it runs a text of its own, by whose prompt rows are to choose in every forward.
            if isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor) and each.model is self:
                prompt = each.unconditional_context["input_ids"]
                each.model = partial(self, prompt_length=1 if prompt is None else prompt.shape[1])
        return processors

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *,
        prompt_length: int | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,  # noqa: ANN401 - further options; generate looks for this name
    ) -> dict[str, Any]:
        """Return the inputs of a step of `generate`: the tokens that the cache has not seen, and those of the host."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        inputs["logits_to_keep"] = logits_to_keep  # generate uses the last token of a prompt only
        inputs |= {name: value for name, value in kwargs.items() if name not in inputs and self._is_for_host(name)}
        for name in ("token_type_ids",):  # as long as the text, which grows
            if inputs.get(name) is not None:
                inputs[name] = inputs[name][:, -inputs["input_ids"].shape[1] :]
        return inputs if CACHE_NAME in inputs else {**inputs, "prompt_length": prompt_length}

    def new_cache(self) -> FusedCache:
        """Return an empty cache, for `generate` or `forward`; if the host takes none, all tokens are run again."""
        return FusedCache(self.runtime.host.new_cache() if self._continues() else None)

    def _continues(self) -> bool:
        host = self.runtime.host
        if host.cache_mask() is None:
            warn_once(
                f"{self.runtime.host_name} ({type(host.model).__name__}) does not continue from a cache: as host it "
                "runs all tokens again at every step"
            )
        return host.cache_mask() is not None

    def _takes_chunks(self) -> bool:
        fusion = self.runtime.fusion()
        experts = [(fusion.sources[spec.model], block) for spec in fusion.foreign() for block in spec.blocks]
        return fusion.host.takes_chunks() and all(
            source.block_takes_chunks(block) for source, block in experts if source.has_native_cache(block)
        )

    def _must_restart(self, mask: torch.Tensor, new: int) -> bool:
        fusion = self.runtime.fusion()
        turning = {spec.model for spec in fusion.foreign() if fusion.sources[spec.model].has_turns()}
        if turning:
            lengths = set(zip(mask[:, :-new].sum(1).tolist(), mask.sum(1).tolist(), strict=True))
            if any(layer.mode(fusion.dispatch) == "token" for layer in fusion.layers.values()):
                # There positions switch when a token beyond the length is routed to an expert, however late.
                lengths = {(0, after) for _, after in lengths}
            drivers = [fusion.sources[name].driver for name in turning]
            if any(turns(driver, before, after) for driver in drivers for before, after in lengths):
                return True
        return super()._must_restart(mask, new)

    def _drivers(self, cache: FusedCache) -> Iterable[tuple[PreTrainedModel, ExpertCache | None]]:
        if cache.host is not None:
            cache.host.seen = cache.seen
        return [(self.runtime.host.model, cache.host)]

    def _is_for_host(self, name: str) -> bool:
        """Return whether an argument of `generate` is one that the host's forward takes and experts need not know."""
        host = self.runtime.host
        return name not in UNKNOWN_TO_EXPERTS and takes(host.model, name)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        named = {name: value for name, value in model_kwargs.items() if not self._is_for_host(name)}
        super()._validate_model_kwargs(named)

    def _longest(self) -> dict[str, Limit]:
        return {name: source.limit for name, source in self.runtime.fusion().sources.items()}

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        *args: Any,  # noqa: ANN401 - as in transformers
    ) -> None:
        if generation_config.prefill_chunk_size is not None and self.runtime.fusion().pins:
            raise FusionError(
                'with dispatch="sequence" rows choose their experts by the whole prompt, so a fused model does not '
                "take it in chunks: leave out prefill_chunk_size"
            )
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: FusedCache | None = None,
        past_key_values: FusedCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        prompt_length: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **others: Any,  # noqa: ANN401 - further inputs of the host's forward
    ) -> CausalLMOutputWithPast:
        """Run the host's forward with the fused layers in it.

        Args:
            input_ids: (B, T).
            attention_mask: (B, P + T) with the P tokens of the cache, 0 for padding.
            labels: (B, T), shifted inside as the host does; -100 does not count.
            cache: from an earlier forward or `new_cache`; grows.
            past_key_values: the same, its name before transformers 5.24.
            use_cache: return a cache; as `config.use_cache` says if None, see `Generating`.
            logits_to_keep: logits of so many last tokens only, or of the tokens with these numbers; all if 0.
            return_dict: must not be False.
            prompt_length: without a cache, rows with "sequence" dispatch choose by so many first columns.
            num_items_in_batch: number of labels that count in all batches of an optimiser's step; the loss is then the
                part of these in the mean over all. Without labels, as in Trainer with label smoothing, the losses
                of the routers are trained with whatever loss is computed from the logits.
            others: `output_hidden_states`, and inputs that only the host knows: `token_type_ids` of some.

        Raises:
            FusionError: an input is not known or of another kind or shape, `return_dict` is False, or no label is left
                to count.
        """
        host = self.runtime.host
        options = host_options(host, host.model, self._requested(others))
        step = self._begin(
            input_ids, attention_mask, past_key_values if cache is None else cache, use_cache, return_dict
        )
        read, before = step.read, step.ids.shape[1] - step.new
        prompt = prompt_length
        if step.cache is not None:
            prompt = step.cache.prompt = prompt_length or step.cache.prompt
        cache_mask = None if read is None or read.host is None else host.cache_mask()
        if read is None or read.host is None or cache_mask is None:
            inputs = token_inputs(host.model, step.ids, step.mask, positions=True)
        else:
            read.host.seen = read.seen
            inputs = token_inputs(host.model, step.ids, step.mask, read.host, positions=True, cache_mask=cache_mask)
        inputs |= options
        if labels is not None:
            labels = self._counted(checked_labels(labels, step.ids[:, before:]), step, prompt)
            # With a cache the first new token is not scored: nothing in this forward predicts it.
            inputs["labels"] = functional.pad(labels[:, 1:], (before + 1, 0), value=-100) if before else labels
        elif takes(host.model, "logits_to_keep"):
            kept = logits_to_keep if isinstance(logits_to_keep, torch.Tensor) else logits_to_keep or step.new
            inputs["logits_to_keep"] = kept + before if isinstance(kept, torch.Tensor) else kept
        output, run = self.runtime.run_host(lambda: host.model(**inputs), step.mask, step.ids.shape[1], read, prompt)
        self.routings = run.routings
        loss, logits = output.loss, step.cut(output.logits)
        share = None
        if loss is not None and num_items_in_batch is not None:
            share = share_of(inputs["labels"], num_items_in_batch, shifted=True)
            loss = weigh(loss, share, logits)
        shown = step.mask[:, -step.ids.shape[1] :]
        if self.training and labels is not None and self.adds_routing_loss:
            added = self._routing_loss(shown)
            loss = loss + (added if share is None else added * share.to(added.device)).to(loss.device)
        elif self.training and num_items_in_batch is not None and self._trains_routers:
            logits = train_with(logits, self._routing_loss(shown), shown, num_items_in_batch)
        hidden = output.get("hidden_states")
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=None if hidden is None else tuple(map(step.cut, hidden)),
            **{CACHE_NAME: step.done()},
        )

    def count_labels(self, labels: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the number of labels (B, T) that count; the first of a row is predicted by nothing."""
        if self.runtime.fusion().pins:
            labels = self._without_choosing(labels, attention_mask, None)
        return super().count_labels(labels[:, 1:], attention_mask)

    def _without_choosing(self, labels: torch.Tensor, mask: torch.Tensor, prompt: int | None) -> torch.Tensor:
        chosen = choosing(mask, self.runtime.config.router_prefix, prompt)[:, -labels.shape[1] :]
        return labels.masked_fill(chosen.to(labels.device), -100)

    @property
    def _trains_routers(self) -> bool:
        settings = self.runtime.config
        return bool(settings.balance_loss_coeff or settings.entropy_penalty_coeff)

    def _routing_loss(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the loss of the routers of the last forward; the mask (B, S) is that of its tokens."""
        settings = self.runtime.config
        return compute_routing_loss(
            self.routings.values(),
            mask,
            load_balancing_coeff=settings.balance_loss_coeff,
            entropy_penalty_coeff=settings.entropy_penalty_coeff,
        )

    def _counted(self, labels: torch.Tensor, step: Step, prompt: int | None) -> torch.Tensor:
        """Return the labels without those of tokens by which rows choose their experts."""
        if not self.runtime.fusion().pins or step.mask.shape[1] > step.new:  # they chose in an earlier forward
            return labels
        prefix = self.runtime.config.router_prefix
        counted = self._without_choosing(labels, step.mask, prompt)
        if counted[:, 1:].eq(-100).all():
            why = (
                f"rows choose their experts by the first {prefix} tokens: give longer rows, or shorten router_prefix"
                if prompt is None
                else "rows choose their experts by all of the prompt: leave out the cache and prompt_length"
            )
            raise FusionError(f'with dispatch="sequence" no label is left to count, for {why}')
        return counted


AutoModelForCausalLM.register(MoLModelConfig, MoLForCausalLM)
# Trainer shifts the labels of the models in this table before it smooths them.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[MoLModelConfig.model_type] = MoLForCausalLM.__name__
