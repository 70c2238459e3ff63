"""MoLRuntime: what a fused model offers: layers are added, suggested and described, and texts generated."""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING, Any

from mol.config.mol_config import MoLConfig
from mol.core.building import build_layer
from mol.core.fitting.calibration import checked_texts, fit_layer, replaced_layers
from mol.core.fitting.suggest import suggest_layers
from mol.core.host import HostHead
from mol.core.mol_layer import ExpertSpec, MoLLayer
from mol.core.pretrained.causal_lm import MoLForCausalLM
from mol.core.pretrained.fused_model import FusedModel
from mol.core.pretrained.generating import with_defaults
from mol.core.pretrained.task_models import (
    MoLForImageClassification,
    MoLForMaskedLM,
    MoLForSequenceClassification,
    MoLForTokenClassification,
)
from mol.core.reports.routing_report import write_routing_report
from mol.core.reports.summary import summarise
from mol.core.saved_runtime import SavedRuntime
from mol.errors import ConfigError, FusionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from mol.core.fitting.suggest import Similarity, Suggestions
    from mol.core.reports.summary import Summary

__all__ = [
    "LayerSpec",
    "MoLConfig",
    "MoLForCausalLM",
    "MoLForImageClassification",
    "MoLForMaskedLM",
    "MoLForSequenceClassification",
    "MoLForTokenClassification",
    "MoLLayer",
    "MoLRuntime",
    "push_mol_to_hf",
]

LayerSpec = ExpertSpec


class MoLRuntime(SavedRuntime):
    """A host model whose layers are shared with blocks of other models; see `Runtime` for its attributes."""

    @property
    def target_hidden_dim(self) -> int:
        """Width H of the fused stream: that of the open host."""
        return self.host.width

    @property
    def is_causal(self) -> bool:
        """Whether the open host predicts the next token, so that no layer may attend to later ones."""
        return self.host.known_causal is True

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The host's tokenizer, loaded when it is first used."""
        # The one attribute that reads files: examples call it so, and most fusions never need it.
        return self.load_tokenizer()

    def setup_embeddings(self, primary_model: str | None = None) -> None:
        """Choose the host, whose embeddings, positions and masks are used, and open it; the first model if None.

        Raises:
            ConfigError: it is not one of the models, or layers were added for another host.
            MolError: it cannot be a host, or `target_hidden_dim` is not its width.
            OSError: it cannot be loaded.
        """
        name = primary_model or self.config.models[0]
        self.choose_host(name)
        wanted, found = self.config.target_hidden_dim, self.open_host().width
        if wanted not in (None, found):
            raise FusionError(
                f"target_hidden_dim is {wanted}, but the fused stream has the width of its host {name}: "
                f"{found}; leave it out or choose another host"
            )

    def setup_lm_head(self, primary_model: str | None = None) -> None:
        """Make `lm_head` of the host, which is opened: final norm and head are its own, so another model is refused.

        Raises:
            ConfigError: `primary_model` is not the host.
        """
        if primary_model not in (None, self.host_name):
            raise ConfigError(
                f"the head reads the stream of the host, {self.host_name}; make {primary_model!r} the host with "
                "setup_embeddings"
            )
        self.lm_head = HostHead(self.open_host())

    def suggest_layers(
        self,
        texts: Sequence[str],
        *,
        layers: Collection[int] | None = None,
        by: Similarity = "r2",
        max_tokens: int = 4096,
    ) -> Suggestions:
        """Score blocks of the other models for the host's layers; see `mol.core.fitting.suggest.suggest_layers`."""
        return suggest_layers(self, texts, layers=layers, by=by, max_tokens=max_tokens)

    def add_layer(
        self,
        layer_specs: Sequence[tuple[str, int | Iterable[int]]],
        layer_idx: int | None = None,
        *,
        calibration: Sequence[str] | None = None,
        fit: bool = True,
    ) -> None:
        """Replace one of the host's layers by blocks of several models.

        Without `keep_host_layers` it replaces all up to the next layer that is added, and the first one those before it
        too. Fitted adapters then are for all of them, so adding a layer fits its neighbours again.

        Args:
            layer_specs: (model, number of a block) for each expert, or (model, range or list of numbers) for several
                that run in a row.
            layer_idx: which of the host's layers they replace; the one after the last added if None.
            calibration: texts to fit adapters on where `adapter_init` requires it; those of `calibrate` if None.
            fit: without it adapters that would be fitted start as the identity, for weights to be loaded into.

        Raises:
            ConfigError: a model, a block or the layer does not exist, or the layer was added before; or adapters are to
                be fitted and cannot be.
            MolError: blocks cannot be run alone, or attend to later tokens in a causal model.
        """
        position = max(self.positions, default=-1) + 1 if layer_idx is None else index(layer_idx)
        layer = build_layer(self, layer_specs, position).train(self.training)
        if fit and self.config.adapter_init != "identity":
            texts = self._calibration if calibration is None else checked_texts(calibration)
            self._fit(layer, position, texts)
        self.put_layer(layer, position)

    def _fit(self, layer: MoLLayer, position: int, texts: Sequence[str] | None) -> None:
        """Fit a layer that is about to be added, and its neighbours if they replace other layers of the host then."""
        count, keep = len(self.host), self.config.keep_host_layers
        before = replaced_layers(self.positions, count, keep=keep)
        layers = {**dict(zip(self.positions, self.fused, strict=True)), position: layer}
        for start, replaced in replaced_layers(list(layers), count, keep=keep).items():
            if start == position or replaced != before[start]:
                fit_layer(layers[start].built, replaced, self.host, self.config, texts)

    def summary(self) -> Summary:
        """Describe models, experts, parameters and memory; it prints as a table. Nothing is loaded for it."""
        return summarise(self)

    def routing_report(self, text: str | Sequence[str], path: str | Path = "routing.html") -> Path:
        """Write what the routers choose for a text as one HTML page that needs no network and no server.

        The page shows the text coloured by expert, token by token, in a row for each fused layer, with the weights of
        each token, shares and entropies.

        Args:
            text: one text, or several, which are run one by one.
            path: where to write the page; an existing file is replaced.

        Returns:
            The path.

        Raises:
            ConfigError: no layer was added, the runtime is in training mode, or a text is empty or too long.
            OSError: the page cannot be written.
        """
        return write_routing_report(self, text, path)

    def __repr__(self) -> str:
        """Show the summary."""
        return str(self.summary())

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
        **options: Any,  # noqa: ANN401 - whatever transformers' generate takes, which differs between its versions
    ) -> torch.Tensor:
        """Generate a continuation of `input_ids` (B, T); returns (B, T + new).

        An option that is None here is taken from `generation_config`, else from the fusion's (at first the host's),
        else it has the default named here.

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
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if do_sample is False or temperature == 0.0:
            do_sample, sampling = False, {}
        given = {"max_new_tokens": max_new_tokens, "do_sample": do_sample, **sampling}
        given = {name: value for name, value in given.items() if value is not None}
        model: Any = self.as_causal_lm()  # its `generate` has an overload for each kind of model that there is
        options = with_defaults(model, {**given, **options}, generation_config)
        generated: torch.Tensor = model.generate(input_ids, attention_mask=attention_mask, **options)
        return generated


push_mol_to_hf = MoLRuntime.push_to_hf
"""The same as a function of the runtime."""

# as_model makes a FusedModel from a runtime, and from_pretrained a runtime for a FusedModel: of two classes that make
# each other one imports the other, and is made known to it.
FusedModel.runtime_class = MoLRuntime
