"""MoLRuntime: the host, the experts beside its blocks, and the calls that run and write with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mol.config.mol_config import MoLConfig
from mol.core.fusion import Fusion, Pass
from mol.core.loading import load_host, load_source, load_tokenizer
from mol.core.losses import compute_load_balancing_loss, compute_router_entropy
from mol.core.mol_layer import Expert, ExpertSpec, MoLLayer, Routing
from mol.core.source import Source
from mol.errors import ConfigError, MolError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mol.core.cache import FusedCache
    from mol.core.causal_lm import MoLForCausalLM

__all__ = ["LayerSpec", "MoLConfig", "MoLLayer", "MoLRuntime"]

LayerSpec = ExpertSpec


class HostHead(nn.Module):
    """The host's final norm and head, as its own forward applies them."""

    def __init__(self, runtime: MoLRuntime) -> None:
        """Belong to a runtime, without being part of its modules twice."""
        super().__init__()
        self.__dict__["_runtime"] = runtime

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Turn the stream after the last layer (B, T, H) into logits (B, T, V)."""
        host: Source = self.__dict__["_runtime"].host
        batch, length, _ = hidden_states.shape
        tokens = torch.ones(batch, length, dtype=torch.long, device=hidden_states.device)
        last = host.layout.to_block(hidden_states)
        _, result = host.calls.capture(lambda: host.model(input_ids=tokens, attention_mask=tokens), last=last)
        logits: torch.Tensor = result.logits
        return logits


class MoLRuntime(nn.Module):
    """A host model whose layers are shared with blocks of other models.

    Only adapters and routers are its parameters: the models are frozen and stay outside of `state_dict`.

    Attributes:
        config: its settings.
        layers: the fused layers, in the order in which they were added; `positions` says where each is.
        positions: the host's layer that each fused layer stands for.
        lm_head: logits from hidden states; None until `setup_lm_head`.
    """

    def __init__(self, config: MoLConfig) -> None:
        """Start with the host alone, in eval mode, as loaded models are. Models are loaded when they are first needed.

        Args:
            config: its settings; the first model is the host unless `setup_embeddings` names another.
        """
        super().__init__()
        import mol.core.causal_lm  # noqa: F401 - registers fused models with transformers

        self.config = config
        self.layers = nn.ModuleList()
        self.positions: list[int] = []
        self.lm_head: HostHead | None = None
        self._host_name = config.models[0]
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.train(mode=False)
        # Plain, so that state_dict, to() of the trained parts and FSDP see adapters and routers only.
        self.__dict__["_sources"] = {}

    @property
    def host_name(self) -> str:
        """Name of the host."""
        return self._host_name

    @property
    def host(self) -> Source:
        """The model that gives embeddings, positions, masks, final norm and head."""
        return self.source(self._host_name)

    @property
    def target_hidden_dim(self) -> int:
        """Width H of the fused stream: the host's."""
        return self.host.width

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The host's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._host_name, self.config)
        return self._tokenizer

    def source(self, name: str) -> Source:
        """Give a model of the fusion, loaded.

        Raises:
            ConfigError: `name` is not one of `config.models`.
            MolError: its blocks cannot be run alone.
            OSError: it cannot be had.
        """
        sources: dict[str, Source] = self.__dict__["_sources"]
        if name not in sources:
            if name not in self.config.models:
                raise ConfigError(f"{name!r} is not one of the models of this fusion: {', '.join(self.config.models)}")
            load: Callable[[str, MoLConfig], PreTrainedModel] = load_host if name == self._host_name else load_source
            wants_causal = name != self._host_name and self.is_causal
            stack = self.config.stacks.get(name)
            sources[name] = Source(load(name, self.config), name, stack=stack, causal=wants_causal)
        return sources[name]

    @property
    def is_causal(self) -> bool:
        """Whether the host predicts the next token, so that no layer may look ahead."""
        return self.host.causal

    def setup_embeddings(self, primary_model: str | None = None) -> None:
        """Choose the host, whose embeddings, positions and masks are used; the first model if None.

        Raises:
            ConfigError: it is not one of the models, or layers were added for another host.
            MolError: it cannot be a host, or `target_hidden_dim` is not its width.
        """
        name = primary_model or self.config.models[0]
        if name not in self.config.models:
            raise ConfigError(f"{name!r} is not one of the models of this fusion: {', '.join(self.config.models)}")
        if name != self._host_name:
            if len(self.layers):
                raise ConfigError(f"layers were added for the host {self._host_name}; call setup_embeddings before")
            self._host_name = name
            self._tokenizer = None
            self.__dict__["_sources"].clear()
        wanted = self.config.target_hidden_dim
        if wanted is not None and wanted != self.host.width:
            raise MolError(
                f"target_hidden_dim is {wanted}, but the fused stream has the width of its host {name}: "
                f"{self.host.width}; leave it out or choose another host"
            )

    def setup_lm_head(self, primary_model: str | None = None) -> None:
        """Make `lm_head`; final norm and head are the host's, so naming another model is refused.

        Raises:
            ConfigError: `primary_model` is not the host.
        """
        if primary_model not in (None, self._host_name):
            raise ConfigError(
                f"the head reads the stream of the host, {self._host_name}; make {primary_model!r} the host with "
                "setup_embeddings"
            )
        self.lm_head = HostHead(self)

    def add_layer(self, layer_specs: Sequence[tuple[str, int | range]], layer_idx: int | None = None) -> None:
        """Put blocks of several models in the place of one of the host's.

        Args:
            layer_specs: (model, number of a block) for each expert, or (model, range of numbers) for several in a row.
            layer_idx: which of the host's layers they stand for; the one after the last added if None.

        Raises:
            ConfigError: a model, a block or the place does not exist, or the place is taken.
            MolError: blocks cannot be run alone, or look ahead in a causal model.
        """
        position = max(self.positions, default=-1) + 1 if layer_idx is None else layer_idx
        problems = []
        if len(self.layers) == self.config.max_layers:
            problems.append(f"max_layers is {self.config.max_layers}, and so many layers were added")
        if not 0 <= position < len(self.host):
            problems.append(f"layer_idx is {position}, the host {self._host_name} has layers 0 to {len(self.host) - 1}")
        if position in self.positions:
            problems.append(f"layer_idx {position} was added before")
        if not layer_specs:
            problems.append("no block is named")
        specs = []
        for name, given in layer_specs:
            blocks = tuple(given) if isinstance(given, range) else (given,)
            count = len(self.source(name))
            if not blocks or not all(0 <= block < count for block in blocks):
                problems.append(f"{name} has blocks 0 to {count - 1}, not {given}")
            specs.append(ExpertSpec(name, blocks))
        if problems:
            raise ConfigError.listing(f"layer {position} cannot be added", problems)
        self._check_causal(specs)
        own = ExpertSpec(self._host_name, (position,))
        experts = [
            Expert.build(
                spec,
                self.host.width,
                self.source(spec.model).width,
                None if spec == own else self.config.adapter_type,
            )
            for spec in specs
        ]
        layer = MoLLayer.build(
            experts,
            self.host.width,
            router_type=self.config.router_type,
            temperature=self.config.temperature,
            top_k=self.config.top_k_experts,
        )
        weight = next(self.host.model.parameters())
        self.layers.append(layer.to(weight.device).train(self.training))
        self.positions.append(position)

    def fusion(self) -> Fusion:
        """Give the parts that a forward needs."""
        layers = {
            position: layer
            for position, layer in zip(self.positions, self.layers, strict=True)
            if isinstance(layer, MoLLayer)
        }
        names = {spec.model for layer in layers.values() for spec in layer.specs}
        sources = {name: self.source(name) for name in sorted(names | {self._host_name})}
        return Fusion(self.host, sources, self._host_name, layers, self.config.keep_host_layers)

    def run_host(
        self,
        forward: Callable[[], Any],
        mask: torch.Tensor,
        length: int,
        cache: FusedCache | None = None,
    ) -> tuple[Any, Pass]:
        """Run a forward of the host with the fused layers in it.

        Args:
            forward: calls the host's model, or a part of it that drives the blocks.
            mask: (B, P + T) over all tokens so far.
            length: T, the number of new tokens.
            cache: what earlier forwards left.
        """
        run = Pass(self.fusion(), mask, length, cache)
        return run.run(forward), run

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, return_router_stats: bool = False
    ) -> tuple[torch.Tensor, dict[str, dict[str, Any]] | None]:
        """Run all layers.

        Args:
            input_ids: (B, T), of the host's tokenizer.
            attention_mask: (B, T), 0 for padding.
            return_router_stats: tell what the routers said.

        Returns:
            The stream after the last layer (B, T, H), before the host's final norm, for `lm_head`; and for each fused
            layer `layer_{position}`: `expert_weights` (B, T, E) on the CPU, `router_entropy` in nats,
            `load_balancing_loss` (1 is balanced) and `num_experts`; None unless asked for.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        body = self.host.model.base_model
        inputs = self.host.token_inputs(body, input_ids, mask)
        _, run = self.run_host(lambda: body(**inputs), mask, input_ids.shape[1])
        assert run.hidden is not None  # the last block was called, or Pass.run had raised
        stats = {f"layer_{i}": _stats(routing, mask) for i, routing in sorted(run.routings.items())}
        return run.hidden, stats if return_router_stats else None

    def as_causal_lm(self) -> MoLForCausalLM:
        """Return the same model as transformers know models: logits, loss, `generate`, Trainer.

        Raises:
            MolError: the host does not predict the next token.
        """
        from mol.core.causal_lm import MoLForCausalLM

        return MoLForCausalLM.from_runtime(self)

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        do_sample: bool = True,
        top_k: int | None = None,
        top_p: float | None = None,
        **options: Any,  # noqa: ANN401 - whatever transformers' generate takes
    ) -> torch.Tensor:
        """Write on from `input_ids` (B, T); returns (B, T + new).

        Args:
            input_ids: the prompt, of the host's tokenizer.
            attention_mask: (B, T), 0 for padding.
            max_new_tokens: how many tokens to add, 50 unless `max_length` is given.
            temperature: of sampling; 0 is greedy.
            do_sample: draw tokens instead of taking the likeliest.
            top_k: draw from the k likeliest only.
            top_p: draw from the likeliest that hold this probability only.
            options: anything else that transformers' `generate` takes.
        """
        if max_new_tokens is None and "max_length" not in options:
            max_new_tokens = 50
        if not do_sample or temperature == 0.0:
            options["do_sample"] = False
        else:
            options |= {"do_sample": True, "temperature": temperature, "top_k": top_k or 0, "top_p": top_p or 1.0}
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        model: Any = self.as_causal_lm()  # whose `generate` has a type for each kind of model that there is
        written: torch.Tensor = model.generate(input_ids, attention_mask=attention_mask, **options)
        return written

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MoLRuntime:
        """Move the models too where the runtime is moved or cast."""
        sources: dict[str, Source] = self.__dict__["_sources"]
        for source in sources.values():
            source.model._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _check_causal(self, specs: Sequence[ExpertSpec]) -> None:
        if not self.is_causal or self.config.allow_bidirectional:
            return
        looking = [
            f"{spec.model}[{block}] ({type(self.source(spec.model).blocks[0]).__name__})"
            for spec in specs
            for block in spec.blocks
            if not self.source(spec.model).is_causal(block)
        ]
        if looking:
            raise MolError.listing(
                f"the host {self._host_name} predicts the next token, and these blocks look ahead of it even with "
                "causal masks; choose others, or pass allow_bidirectional=True if nothing is trained or written",
                looking,
            )


def _stats(routing: Routing, mask: torch.Tensor) -> dict[str, Any]:
    weights = routing.weights.detach()
    entropy = 0.0 if routing.logits is None else compute_router_entropy(routing.logits.detach(), mask).item()
    return {
        "expert_weights": weights.cpu(),
        "router_entropy": entropy,
        "load_balancing_loss": compute_load_balancing_loss(weights, mask).item(),
        "num_experts": weights.shape[-1],
    }
