"""Directories of tiny models, so that a name such as "gpt2" is found without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from mol.config.mol_config import MoLConfig
from mol.core.mol_runtime import MoLRuntime
from tests.core.zoo import LANGUAGE_MODELS, T5_DECODER, TYPES, body_of, language_model_of

if TYPE_CHECKING:
    from pathlib import Path

Fuse = Callable[..., MoLRuntime]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model of every type, the hosts with their heads."""
    root = tmp_path_factory.mktemp("models")
    for number, kind in enumerate(TYPES):
        make = language_model_of if kind in LANGUAGE_MODELS else body_of
        make(kind, seed=number).save_pretrained(root / kind)
    (root / T5_DECODER).symlink_to("t5")
    return root


@pytest.fixture
def fuse(models: Path, monkeypatch: pytest.MonkeyPatch) -> Fuse:
    """Make a runtime of models by name, with an expert of each in the given layers of the first."""
    monkeypatch.chdir(models)

    def make(*names: str, layers: tuple[int, ...] = (0, 2), seed: int = 0, **settings: object) -> MoLRuntime:
        import torch

        torch.manual_seed(seed)
        if T5_DECODER in names:
            settings = {"stacks": {T5_DECODER: "decoder"}, **settings}
        runtime = MoLRuntime(MoLConfig(models=list(dict.fromkeys(names)), **settings)).eval()
        for layer in layers:
            runtime.add_layer([(name, layer) for name in names], layer)
        return runtime

    return make
