"""Runtime: what a fused model is: its settings, its models, its layers, and the forward that runs them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mol.config.mol_config import BIAS_UPDATE_RATE
from mol.core.blocks.placement import Memory
from mol.core.expert_loads import ExpertLoads
from mol.core.frozen import Frozen, NamesModels, names_in
from mol.core.fusion import Fusion, HostRun, Pass
from mol.core.host import HostHead, check_noise, host_inputs
from mol.core.models.loading import load_tokenizer, open_host, open_source
from mol.core.reports.starved import ShareWatch
from mol.core.reports.stats import LayerStats, RouterStats
from mol.errors import ConfigError, FusionError, InternalError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Self

    from mol.config.mol_config import MoLConfig
    from mol.core.blocks.source import Source
    from mol.core.cache import FusedCache
    from mol.core.mol_layer import MoLLayer
    from mol.core.reports.notes import Note


class Runtime(NamesModels, nn.Module):
    """A host model whose layers are shared with blocks of other models.

    Only adapters and routers are its parameters: the models are frozen and stay outside of `state_dict`.

    Attributes:
        config: its settings.
        layers: the fused layers, in the order in which they were added; `positions` says where each is.
        positions: the host's layer that each fused layer replaces.
        lm_head: logits from hidden states; None until it is made.
        opened: the models that are open, by name.
        notes: what blocks of a model do without in this host, by the model's name.
        loads: the tokens of each expert since `update_expert_biases`; counted if a router has a bias.
        gradient_checkpointing: in training, run layers again in the backward pass instead of keeping their activations.
    """

    def __init__(self, config: MoLConfig) -> None:
        """Start with the host alone, in eval mode, as loaded models are. Models are opened when they are first needed.

        Args:
            config: its settings; the first model is the host unless `choose_host` names another.
        """
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList()
        self.positions: list[int] = []
        self.lm_head: HostHead | None = None
        self.gradient_checkpointing = config.use_gradient_checkpointing
        # Sources are no modules, so that state_dict, to() of the trained parts and FSDP see adapters and routers only.
        self.opened: dict[str, Source] = {}
        self.notes: dict[str, list[Note]] = {}
        self.loads = ExpertLoads()
        self._host_name = config.models[0]
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._memory = Memory(config.expert_bytes)
        self._frozen: dict[Source, tuple[list[str], Frozen]] = {}
        self.watch_shares(config.balance_loss_coeff, config.entropy_penalty_coeff)
        self._opening = threading.RLock()
        self.train(mode=False)

    @property
    def host_name(self) -> str:
        """Name of the host."""
        return self._host_name

    @property
    def host(self) -> Source:
        """The model whose embeddings, positions, masks, final norm and head are used; `open_host` opens it.

        Raises:
            FusionError: it is not open yet.
        """
        if self._host_name not in self.opened:
            raise FusionError(
                f"the host {self._host_name} is not open yet: setup_embeddings, add_layer and every forward open it, "
                f"and so does source({self._host_name!r})"
            )
        return self.opened[self._host_name]

    @property
    def fused(self) -> list[MoLLayer]:
        """The fused layers, typed; a wrapped one passes on the attributes that are read of it."""
        return list(self.layers)  # type: ignore[arg-type]

    def source(self, name: str) -> Source:
        """Open a model of the fusion, and return it.

        Raises:
            ConfigError: `name` is not one of `config.models`.
            MolError: its blocks cannot be run alone; or its files are damaged, or do not fit its config.
            OSError: it cannot be loaded.
        """
        found = self.opened.get(name)
        if found is not None:
            return found
        with self._opening:  # threads that come at once get one and the same
            if name not in self.opened:
                self._check_named(name)
                if name == self._host_name:
                    host = open_host(name, self.config)
                    host.is_causal()  # whatever runs in it depends on that
                    self.opened[name] = host
                else:
                    self.opened[name] = open_source(name, self.config, self._memory)
            return self.opened[name]

    def open_host(self) -> Source:
        """Open the host, and return it; see `source`."""
        return self.source(self._host_name)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the host's tokenizer once, and return it.

        Raises:
            OSError: there is none.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._host_name, self.config)
        return self._tokenizer

    def choose_host(self, name: str) -> None:
        """Make a model the host, if it is not yet.

        Raises:
            ConfigError: it is not one of `config.models`, or layers were added for another host.
            MolError: `lm_head` was made, and it cannot be a host.
        """
        self._check_named(name)
        if name == self._host_name:
            return
        if len(self.layers):
            raise ConfigError(f"layers were added for the host {self._host_name}; call setup_embeddings before")
        self._host_name = name
        self._tokenizer = None
        self.opened.clear()
        self._frozen.clear()
        if self.lm_head is not None:
            self.lm_head = HostHead(self.open_host())

    def put_layer(self, layer: MoLLayer, position: int) -> None:
        """Replace a layer of the host by a fused one."""
        self.layers.append(layer)
        self.positions.append(position)

    def frozen_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules of the open models by name."""
        for source in self.opened.values():
            if source not in self._frozen:
                self._frozen[source] = list(names_in(source)), Frozen()
            names, module = self._frozen[source]
            yield from ((name, module) for name in names)

    def watch_shares(self, load_balancing_coeff: float, entropy_penalty_coeff: float) -> None:
        """Watch the shares of experts anew; warnings name these coefficients, of whoever trains."""
        balance = self.config.balance
        self._watch = ShareWatch(load_balancing_coeff, entropy_penalty_coeff, balance)

    def update_expert_biases(self, rate: float = BIAS_UPDATE_RATE) -> None:
        """Move the biases by which routers choose, after an optimiser step; see `MoLConfig.balance`.

        b_e += rate * sign(mean load - load_e), as in Wang et al. (2024, arXiv 2408.15664), where the load of an expert
        are the tokens that chose it in the training forwards since the last call, in all processes of
        torch.distributed, which all call this. `MoLTrainer` does so itself.

        Args:
            rate: how far a bias moves, in logits.

        Raises:
            ConfigError: no router has a bias.
        """
        self.loads.update(self.fusion().layers, rate)

    def fusion(self) -> Fusion:
        """Return the parts that a forward needs, with the models of all layers open."""
        layers = dict(zip(self.positions, self.fused, strict=True))
        names = {spec.model for layer in layers.values() for spec in layer.specs}
        sources = {name: self.source(name) for name in sorted(names | {self._host_name})}
        return Fusion(
            sources[self._host_name],
            sources,
            self._host_name,
            layers,
            self.config.keep_host_layers,
            self.config.dispatch,
            self.config.router_prefix,
        )

    def run_host(
        self,
        forward: Callable[[], Any],
        mask: torch.Tensor,
        length: int,
        cache: FusedCache | None = None,
        prompt: int | None = None,
    ) -> tuple[Any, Pass]:
        """Run a forward of the host with the fused layers in it.

        Args:
            forward: calls the host's model, or a part of it that drives the blocks.
            mask: (B, P + T) over all tokens so far.
            length: T, the number of new tokens.
            cache: from earlier forwards.
            prompt: the number of first columns by which rows choose their experts, see `Pass`.
        """
        done: tuple[Any, Pass] = self(host_run=HostRun(forward, mask, length, cache, prompt))
        return done

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        return_router_stats: bool = False,
        *,
        host_run: HostRun | None = None,
        **others: Any,  # noqa: ANN401 - inputs of the host's forward, which differ from model to model
    ) -> tuple[torch.Tensor, RouterStats | None]:
        """Run all layers.

        Args:
            input_ids: (B, T), of the host's tokenizer.
            attention_mask: (B, T), 0 for padding.
            return_router_stats: return what the routers chose.
            host_run: from `run_host`, replaces all the others; every run is a call of this module, so that hooks act.
            others: inputs of the host's own: `token_type_ids`, or `pixel_values` (B, C, height, width) of a host that
                reads images, whose patches are the tokens then.

        Returns:
            The stream after the last layer (B, T, H), before the host's final norm, for `lm_head`; and for each fused
            layer `layer_{position}` what `LayerStats` lists, `expert_weights` (B, T, E) first; None unless requested.

        Raises:
            FusionError: it is traced, or an input is not known or of another kind or shape.
        """
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise FusionError(
                "a fusion cannot be traced (torch.jit.trace): which experts run depends on the tokens, and a trace "
                "would repeat what those of its example chose; torch.compile(model) runs it"
            )
        fusion = self.fusion()
        if host_run is not None:
            done: tuple[Any, Any] = self._run_pass(fusion, host_run)
            return done
        host = fusion.host
        body = host.model.base_model
        inputs, mask = host_inputs(host, body, input_ids, attention_mask, others)
        _, run = self._run_pass(fusion, HostRun(lambda: body(**inputs), mask, mask.shape[1]))
        if run.hidden is None:
            raise InternalError(f"the host {host.name} called its blocks, and no stream came out of the last one")
        if not return_router_stats:
            return run.hidden, None
        return run.hidden, RouterStats(
            {
                f"layer_{position}": LayerStats.of(routing, mask, fusion.layers[position].specs)
                for position, routing in sorted(run.routings.items())
            }
        )

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401 - as object has it
        """Refuse to be copied or pickled: its models are open files, and may be larger than memory.

        Raises:
            FusionError: always.
        """
        raise FusionError(
            "a fusion cannot be copied or pickled; as_model().save_pretrained writes it, and from_pretrained makes a "
            "second one"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Move or cast the models together with the runtime."""
        super()._apply(fn, recurse)
        for source in self.opened.values():
            source.apply(fn)
        return self

    def _run_pass(self, fusion: Fusion, host_run: HostRun) -> tuple[Any, Pass]:
        fusion.host.require(fusion.host_blocks())
        learns = self.training and torch.is_grad_enabled()
        if learns:
            check_noise(fusion.host)
        recompute = learns and self.gradient_checkpointing
        run = Pass(fusion, host_run.mask, host_run.length, host_run.cache, host_run.prompt, recompute=recompute)
        output = run.run_host(host_run.forward)
        if learns:
            self.loads.see(run.routings, fusion.layers)
            self._watch.see(run.routings, {position: layer.specs for position, layer in fusion.layers.items()})
        return output, run

    def _check_named(self, name: str) -> None:
        if name not in self.config.models:
            named = ", ".join(self.config.models)
            raise ConfigError(f"{name!r} is not one of the models of this fusion: {named}")
