"""MoLForCausalLM: a fused model as transformers know models, with logits, loss, cache and `generate`.

Importing this registers it: AutoConfig and AutoModelForCausalLM then load what `save_pretrained` wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mol.config.mol_config import MoLConfig
from mol.core.cache import CACHE_NAME, FusedCache
from mol.core.mol_runtime import MoLRuntime
from mol.errors import MolError

if TYPE_CHECKING:
    from collections.abc import Mapping


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


class MoLForCausalLM(PreTrainedModel, GenerationMixin):
    """A fused causal language model.

    `save_pretrained` writes what was trained, adapters and routers, and the names of the models; `from_pretrained`
    loads those models again.
    """

    config_class = MoLModelConfig
    base_model_prefix = "runtime"
    _supports_sdpa = True

    def __init__(self, config: MoLModelConfig) -> None:
        """Build the fusion that a config describes, with fresh adapters and routers.

        Raises:
            MolError: the config describes none, or its host does not predict the next token.
        """
        super().__init__(config)
        if config.fusion is None or config.fused_layers is None:
            raise MolError("the config describes no fusion; make one with MoLRuntime.as_causal_lm()")
        runtime = MoLRuntime(MoLConfig(**config.fusion))
        runtime.setup_embeddings(config.host)
        for layer in config.fused_layers:
            specs = [(expert["model"], _blocks(expert["blocks"])) for expert in layer["experts"]]
            runtime.add_layer(specs, layer["position"])
        self._adopt(runtime)

    @classmethod
    def from_runtime(cls, runtime: MoLRuntime) -> MoLForCausalLM:
        """Wrap a runtime; both share everything.

        Raises:
            MolError: its host does not predict the next token.
        """
        model = cls.__new__(cls)
        PreTrainedModel.__init__(model, _config_of(runtime))
        model._adopt(runtime)
        return model

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,  # noqa: ANN401 - what transformers passes
        **kwargs: Any,  # noqa: ANN401
    ) -> MoLForCausalLM:
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
        # What AutoModelForCausalLM adds by itself means nothing here.
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
        if not host.causal:
            raise MolError(
                f"the host {runtime.host_name} ({type(host.model).__name__}) does not predict the next token, so the "
                "fusion cannot write"
            )
        self.runtime = runtime
        self.generation_config = host.model.generation_config
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
        if not use_cache:
            return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        given = others.get(CACHE_NAME)
        cache = given if isinstance(given, FusedCache) else self.new_cache()
        new = input_ids[:, cache.seen :]
        return {"input_ids": new, "attention_mask": attention_mask, CACHE_NAME: cache, "use_cache": True}

    def new_cache(self) -> FusedCache:
        """Return an empty cache."""
        return FusedCache(self.runtime.host.new_cache())

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: FusedCache | None = None,
        past_key_values: FusedCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **_: Any,  # noqa: ANN401 - what Trainer and generate pass besides
    ) -> CausalLMOutputWithPast:
        """Run the host's forward with the fused layers in it.

        Args:
            input_ids: (B, T).
            attention_mask: (B, P + T) with the P tokens of the cache, 0 for padding.
            labels: (B, T), shifted inside as the host does; -100 does not count.
            cache: from an earlier forward; grows.
            past_key_values: the same, as it was called before transformers 5.24.
            use_cache: return a cache.
            logits_to_keep: logits of so many last tokens only; all if 0.
            return_dict: must not be False.
        """
        if return_dict is False:
            raise MolError("a fused model returns its outputs by name: return_dict=False is not supported")
        cache = past_key_values if cache is None else cache
        if cache is None and use_cache:
            cache = self.new_cache()
        batch, length = input_ids.shape
        seen = 0 if cache is None else cache.seen
        if attention_mask is None:
            attention_mask = torch.ones(batch, seen + length, dtype=torch.long, device=input_ids.device)
        host = self.runtime.host
        inputs = host.token_inputs(host.model, input_ids, attention_mask, None if cache is None else cache.host)
        if cache is not None and cache.host is not None:
            cache.host.seen = seen
        if labels is not None:
            inputs["labels"] = labels
        elif host.takes(host.model, "logits_to_keep"):
            inputs["logits_to_keep"] = logits_to_keep
        output, run = self.runtime.run_host(lambda: host.model(**inputs), attention_mask, length, cache)
        self.routings = run.routings
        return CausalLMOutputWithPast(loss=output.loss, logits=output.logits, **{CACHE_NAME: cache})


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
        vocab_size=text.vocab_size,
        num_hidden_layers=len(runtime.host),
        hidden_size=runtime.host.width,
        **{key: getattr(text, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )


def _blocks(numbers: list[int]) -> int | range:
    return numbers[0] if len(numbers) == 1 else range(numbers[0], numbers[-1] + 1)


AutoConfig.register(MoLModelConfig.model_type, MoLModelConfig)
AutoModelForCausalLM.register(MoLModelConfig, MoLForCausalLM)
