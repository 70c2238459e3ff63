"""MoLRuntime: the host, the experts beside its blocks, and the calls that run and write with them."""

from __future__ import annotations

import threading
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mol.config.mol_config import MoLConfig
from mol.core.blocks.placement import Memory
from mol.core.building import build_layer
from mol.core.fitting.calibration import checked_texts, fit_layer
from mol.core.frozen import Frozen, NamesModels, names_in
from mol.core.fusion import Fusion, HostRun, Pass
from mol.core.host import HostHead, check_noise, host_inputs
from mol.core.models.loading import load_tokenizer, open_host, open_source
from mol.core.mol_layer import ExpertSpec, MoLLayer
from mol.core.reports.starved import ShareWatch
from mol.core.reports.stats import LayerStats, RouterStats
from mol.errors import ConfigError, MolError
from mol.later import method

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from mol.core.blocks.source import Source
    from mol.core.cache import FusedCache
    from mol.core.fitting.suggest import Suggestions
    from mol.core.pretrained.causal_lm import MoLForCausalLM
    from mol.core.pretrained.fused_model import FusedModel
    from mol.core.reports.summary import Summary

__all__ = ["LayerSpec", "MoLConfig", "MoLLayer", "MoLRuntime"]

LayerSpec = ExpertSpec


class MoLRuntime(NamesModels, nn.Module):
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
        import mol.core.pretrained.task_models  # noqa: F401 - registers fused models with transformers

        self.config = config
        self.layers = nn.ModuleList()
        self.positions: list[int] = []
        self.lm_head: HostHead | None = None
        self._host_name = config.models[0]
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._calibration: list[str] | None = None
        self._watch = ShareWatch(config)
        self._opening = threading.RLock()
        self.train(mode=False)
        # Plain, so that state_dict, to() of the trained parts and FSDP see adapters and routers only.
        self.__dict__["_sources"] = {}
        self.__dict__["_frozen"] = {}
        self.__dict__["_memory"] = Memory(config.expert_bytes)

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
        with self._opening:  # threads that come together get one and the same
            if name not in sources:
                if name not in self.config.models:
                    named = ", ".join(self.config.models)
                    raise ConfigError(f"{name!r} is not one of the models of this fusion: {named}")
                if name == self._host_name:
                    sources[name] = open_host(name, self.config)
                else:
                    sources[name] = open_source(name, self.config, self.__dict__["_memory"], causal=self.is_causal)
            return sources[name]

    @property
    def is_causal(self) -> bool:
        """Whether the host predicts the next token, so that no layer may look ahead."""
        return self.host.causal

    def frozen_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Name the modules of the models that are open."""
        for source in self.__dict__["_sources"].values():
            names, module = self._names_of(source)
            yield from ((name, module) for name in names)

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
            self.__dict__["_frozen"].clear()
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

    def calibrate(self, texts: Sequence[str]) -> None:
        """Keep text for the layers that are added from now on, to fit their adapters on; see `add_layer`.

        Raises:
            ConfigError: it is one string, or empty, or holds something else than text.
        """
        self._calibration = checked_texts(texts)

    def suggest_layers(self, texts: Sequence[str], **options: Any) -> Suggestions:  # noqa: ANN401 - of that function
        """Score blocks of the other models for the host's layers; see `mol.core.fitting.suggest.suggest_layers`."""
        from mol.core.fitting.suggest import suggest_layers

        return suggest_layers(self, texts, **options)

    def add_layer(
        self,
        layer_specs: Sequence[tuple[str, int | Iterable[int]]],
        layer_idx: int | None = None,
        *,
        calibration: Sequence[str] | None = None,
        fit: bool = True,
    ) -> None:
        """Put blocks of several models in the place of one of the host's.

        Args:
            layer_specs: (model, number of a block) for each expert, or (model, range or list of numbers) for several
                that run in a row.
            layer_idx: which of the host's layers they stand for; the one after the last added if None.
            calibration: texts to fit adapters on where `adapter_init` asks for it; those of `calibrate` if None.
            fit: without it adapters that would be fitted start as the identity, for weights to be loaded into.

        Raises:
            ConfigError: a model, a block or the place does not exist, or the place is taken; or adapters are to be
                fitted and cannot be.
            MolError: blocks cannot be run alone, or look ahead in a causal model.
        """
        position = max(self.positions, default=-1) + 1 if layer_idx is None else index(layer_idx)
        layer = build_layer(self, layer_specs, position).train(self.training)
        if fit and self.config.adapter_init != "identity":
            texts = self._calibration if calibration is None else checked_texts(calibration)
            fit_layer(layer.built, position, self.host, self.config, texts)
        self.layers.append(layer)
        self.positions.append(position)

    def summary(self) -> Summary:
        """Describe models, experts, parameters and memory; it prints as a table. Nothing is loaded for it."""
        from mol.core.reports.summary import summarise

        return summarise(self)

    def routing_report(self, text: str | Sequence[str], path: str | Path = "routing.html") -> Path:
        """Write what the routers say of a text as one HTML page that needs nothing besides: no network, no server.

        The page shows the text coloured by expert, token by token, in a row for each fused layer, with the weights of
        each token, shares and entropies.

        Args:
            text: one text, or several, which are run one by one.
            path: where to write the page; a file that is there is replaced.

        Returns:
            The path.

        Raises:
            ConfigError: no layer was added, the runtime is in training mode, or a text is empty or too long.
            OSError: the page cannot be written.
        """
        from mol.core.reports.routing_report import write_routing_report

        return write_routing_report(self, text, path)

    def __repr__(self) -> str:
        """Show the summary."""
        return str(self.summary())

    def fusion(self) -> Fusion:
        """Give the parts that a forward needs."""
        layers = dict(zip(self.positions, self.fused, strict=True))
        names = {spec.model for layer in layers.values() for spec in layer.specs}
        sources = {name: self.source(name) for name in sorted(names | {self._host_name})}
        settings = self.config
        return Fusion(
            self.host,
            sources,
            self._host_name,
            layers,
            settings.keep_host_layers,
            settings.dispatch,
            settings.router_prefix,
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
            cache: what earlier forwards left.
            prompt: the number of first columns that rows choose their experts by, see `Pass`.
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
        **others: Any,  # noqa: ANN401 - what the host's forward takes besides
    ) -> tuple[torch.Tensor, RouterStats | None]:
        """Run all layers.

        Args:
            input_ids: (B, T), of the host's tokenizer.
            attention_mask: (B, T), 0 for padding.
            return_router_stats: tell what the routers said.
            host_run: what `run_host` was asked for, instead of all the others; every run is a call of this module, so
                that what is hooked to it acts.
            others: inputs of the host's own: `token_type_ids`, or `pixel_values` (B, C, height, width) of a host that
                reads images, whose patches are the tokens then.

        Returns:
            The stream after the last layer (B, T, H), before the host's final norm, for `lm_head`; and for each fused
            layer `layer_{position}` what `LayerStats` lists, `expert_weights` (B, T, E) first; None unless asked for.
        """
        if host_run is not None:
            done: tuple[Any, Any] = self._run(host_run)
            return done
        body = self.host.model.base_model
        inputs, mask = host_inputs(self.host, body, input_ids, attention_mask, others)
        _, run = self._run(HostRun(lambda: body(**inputs), mask, mask.shape[1]))
        assert run.hidden is not None  # the last block was called, or Pass.run had raised
        if not return_router_stats:
            return run.hidden, None
        layers = self.fusion().layers
        return run.hidden, RouterStats(
            {f"layer_{i}": LayerStats.of(said, mask, layers[i].specs) for i, said in sorted(run.routings.items())}
        )

    def as_causal_lm(self) -> MoLForCausalLM:
        """Return the same model as transformers know models: logits, loss, `generate`, Trainer.

        Raises:
            MolError: the host does not predict the next token.
        """
        from mol.core.pretrained.causal_lm import MoLForCausalLM

        return MoLForCausalLM.from_runtime(self)

    def as_model(self) -> FusedModel:
        """Return the same model as transformers know models, in the class that goes with the host's head.

        `MoLForCausalLM`, `MoLForMaskedLM`, `MoLForSequenceClassification`, `MoLForTokenClassification` or
        `MoLForImageClassification`.
        """
        from mol.core.pretrained.task_models import model_of

        return model_of(self)

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        do_sample: bool | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        generation_config: GenerationConfig | None = None,
        **options: Any,  # noqa: ANN401 - whatever transformers' generate takes
    ) -> torch.Tensor:
        """Write on from `input_ids` (B, T); returns (B, T + new).

        What is None here goes by `generation_config`, then by the host's generation_config.json, then by the default
        that is named here.

        Args:
            input_ids: the prompt, of the host's tokenizer.
            attention_mask: (B, T), 0 for padding.
            max_new_tokens: how many tokens to add; 50 unless a `max_length` is set.
            temperature: of sampling; 0 is greedy; 1.0.
            do_sample: draw tokens instead of taking the likeliest; True.
            top_k: draw from the k likeliest only; from all.
            top_p: draw from the likeliest that hold this probability only; from all.
            generation_config: settings, as transformers' `generate` takes them.
            options: anything else that transformers' `generate` takes.

        Raises:
            MolError: see `MoLForCausalLM.generate`.
        """
        from mol.core.pretrained.writing import with_defaults

        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if do_sample is False or temperature == 0.0:
            do_sample, sampling = False, {}
        asked = {"max_new_tokens": max_new_tokens, "do_sample": do_sample, **sampling}
        asked = {name: value for name, value in asked.items() if value is not None}
        model: Any = self.as_causal_lm()  # whose `generate` has a type for each kind of model that there is
        options = with_defaults(model, {**asked, **options}, generation_config)
        written: torch.Tensor = model.generate(input_ids, attention_mask=attention_mask, **options)
        return written

    create_fused_model = method("create_fused_model")
    load_checkpoint = method("load_checkpoint")
    push_to_hf = method("push_to_hf")
    save_checkpoint = method("save_checkpoint")

    def __reduce_ex__(self, protocol: Any) -> Any:  # noqa: ANN401 - as object has it
        """Refuse to be copied or pickled: its models are open files, and may be larger than memory.

        Raises:
            MolError: always.
        """
        raise MolError(
            "a fusion cannot be copied or pickled; as_model().save_pretrained writes it, and from_pretrained gives a "
            "second one"
        )

    def _names_of(self, source: Source) -> tuple[list[str], Frozen]:
        known: dict[Source, tuple[list[str], Frozen]] = self.__dict__["_frozen"]
        if source not in known:
            known[source] = list(names_in(source)), Frozen()
        return known[source]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> MoLRuntime:
        """Move the models too where the runtime is moved or cast."""
        sources: dict[str, Source] = self.__dict__["_sources"]
        for source in sources.values():
            source.apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _run(self, asked: HostRun) -> tuple[Any, Pass]:
        self.host.require(self._host_blocks())
        fusion = self.fusion()
        learns = self.training and torch.is_grad_enabled()
        if learns:
            check_noise(self.host)
        run = Pass(fusion, asked.mask, asked.length, asked.cache, asked.prompt)
        output = run.run(asked.forward)
        if learns:
            self._watch.see(run.routings, {position: layer.specs for position, layer in fusion.layers.items()})
        return output, run

    @property
    def fused(self) -> list[MoLLayer]:
        """The fused layers, to read what they are; those that are wrapped pass on what they are asked."""
        return list(self.layers)  # type: ignore[arg-type]

    def _host_blocks(self) -> set[int]:
        """Return the host's blocks that run: those without a fused layer, and its own among the experts."""
        experts = {
            block
            for layer in self.fused
            for spec in layer.specs
            if spec.model == self._host_name
            for block in spec.blocks
        }
        kept = set(range(len(self.host))) - set(self.positions) if self.config.keep_host_layers else set()
        return experts | kept
