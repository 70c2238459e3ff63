"""Make the seeded models that bench_fusion.py fuses, once, and put the fusions together."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from mol.config.mol_config import MoLConfig
from mol.core.adapters import IdentityAdapter, LinearAdapter
from mol.core.mol_layer import MoLLayer
from mol.core.mol_runtime import MoLRuntime

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

SEED = 0
EXPERTS = 4


@dataclass(frozen=True)
class Sizes:
    """How large models and inputs are.

    Attributes:
        width: of the GPT-2-like and the Llama-like model.
        layers: of both.
        other_width: of the second foreign model.
        routed_width: of the model whose blocks are chosen by row.
        routed_layers: of that.
        large: width and layers of the model that is opened, which has the shape of TinyLlama 1.1B.
        vocabulary: of all.
        tokens: of a prompt that is read.
        prompt: of one that is written on from.
        new: tokens written.
        batches: numbers of rows.
        routed_rows: rows of a batch that is split between experts.
    """

    width: int = 768
    layers: int = 12
    other_width: int = 640
    routed_width: int = 512
    routed_layers: int = 6
    large: tuple[int, int] = (2048, 22)
    vocabulary: int = 32000
    tokens: int = 512
    prompt: int = 32
    new: int = 64
    batches: tuple[int, ...] = (1, 2, 4)
    routed_rows: int = 8


TINY = Sizes(64, 2, 32, 64, 2, (64, 4), 256, 16, 4, 4, (1, 2), 4)
"""Sizes whose times say nothing: to see that a row works."""


class Models:
    """The models under a directory."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        """Keep them in a directory of their size."""
        self._directory = directory / "x".join(map(str, (sizes.width, sizes.layers, *sizes.large)))
        self.sizes = sizes
        common = {"vocab_size": sizes.vocabulary, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        large, deep = sizes.large
        gpt2 = {"n_embd": sizes.width, "n_layer": sizes.layers, "n_head": sizes.width // 64, "n_positions": 1024}
        self._configs: dict[str, dict[str, Any]] = {
            "gpt2": {"model_type": "gpt2", **gpt2, **common},
            "llama": {**_llama(sizes.width, sizes.layers), **common},
            "other": {**_llama(sizes.other_width, sizes.layers), **common},
            "routed": {**_llama(sizes.routed_width, sizes.routed_layers), **common},
            "large": {**_llama(large, deep, kv_heads=max(1, large // 512), inner=large * 11 // 4), **common},
        }

    def path(self, name: str) -> str:
        """Where a model is; it is made if it is not there."""
        path = self._directory / name
        if not path.is_dir():
            partial = path.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            torch.manual_seed(SEED)
            settings = dict(self._configs[name])
            config = AutoConfig.for_model(settings.pop("model_type"), **settings)
            dtype = torch.bfloat16 if name == "large" else torch.float32
            AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(partial)
            partial.rename(path)
        return str(path)

    def parent(self, name: str, *, head: bool = True, **options: str) -> PreTrainedModel:
        """The model as transformers loads it."""
        kind: Any = AutoModelForCausalLM if head else AutoModel
        model: PreTrainedModel = kind.from_pretrained(self.path(name), **options)
        return model.eval().requires_grad_(False)

    def identity(self, name: str, **settings: str) -> MoLRuntime:
        """A fusion whose every layer has one expert: the block of the host that it replaces."""
        path = self.path(name)
        runtime = MoLRuntime(MoLConfig([path], max_layers=self.sizes.layers, **dict[str, Any](settings)))
        for index in range(self.sizes.layers):
            runtime.add_layer([(path, index)], index)
        return runtime

    def two_experts(self) -> MoLRuntime:
        """A fusion whose every layer has two foreign experts of different widths, behind maps that were drawn.

        They have the form of fitted ones: a bias on the way down, none on the way up.
        """
        host, *others = (self.path(name) for name in ("gpt2", "llama", "other"))
        runtime = MoLRuntime(MoLConfig([host, *others], max_layers=self.sizes.layers))
        for index in range(self.sizes.layers):
            runtime.add_layer([(other, index) for other in others], index)
        torch.manual_seed(SEED)
        for layer in _layers(runtime):
            for expert in layer.built:
                width, inner = expert.down.input_dim, expert.down.output_dim
                expert.down = LinearAdapter.from_map(torch.randn(inner, width) / width**0.5, torch.randn(inner))
                expert.up = LinearAdapter.from_map(torch.randn(width, inner) / inner**0.5)
        return runtime

    def routed(self, *, exact: bool) -> MoLRuntime:
        """A fusion whose every layer has four experts of the host's own width, of which a row chooses one.

        Args:
            exact: leave the adapters out, so that what is measured is the dispatch; with them as they start otherwise.
        """
        host, layers = self.path("routed"), self.sizes.routed_layers
        settings: dict[str, Any] = {"dispatch": "sequence", "top_k_experts": 1, "max_layers": layers}
        runtime = MoLRuntime(MoLConfig([host], **settings))
        for index in range(layers):
            runtime.add_layer([(host, (index + step) % layers) for step in range(EXPERTS)], index)
        torch.manual_seed(SEED)
        for layer in _layers(runtime):
            for expert in layer.built if exact else ():
                expert.down = expert.up = IdentityAdapter(self.sizes.routed_width)
            assert layer.router is not None
            layer.router.classifier.weight.data.normal_()  # fresh routers send all rows the same way
        return runtime


def _llama(width: int, layers: int, *, kv_heads: int | None = None, inner: int | None = None) -> dict[str, Any]:
    heads = width // 64 or 1
    return {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner or width * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "max_position_embeddings": 2048,
    }


def _layers(runtime: MoLRuntime) -> list[MoLLayer]:
    return [layer for layer in runtime.layers if isinstance(layer, MoLLayer)]
