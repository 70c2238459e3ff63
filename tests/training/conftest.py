"""A few of the tiny models of tests/core, and trainers of fusions of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from mol.training.trainer import MoLTrainer, TrainingConfig
from tests.core.conftest import fuse  # noqa: F401 - a fixture
from tests.core.zoo import body_of, language_model_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.core.conftest import Fuse

Train = Callable[..., MoLTrainer]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the models that are trained here."""
    root = tmp_path_factory.mktemp("models")
    for number, kind in enumerate(("gpt2", "llama", "qwen3")):
        language_model_of(kind, seed=number).save_pretrained(root / kind)
    body_of("t5", seed=3).save_pretrained(root / "t5")
    return root


@pytest.fixture
def trainer(fuse: Fuse, tmp_path: Path) -> Train:  # noqa: F811
    """Make a trainer of a fusion of gpt2 and llama, or others, without a warm-up and checkpoints on the way."""

    def make(
        *names: str, fusion: dict[str, Any] | None = None, noise: bool = True, options: dict[str, Any] | None = None,
        **settings: Any,  # noqa: ANN401 - of TrainingConfig
    ) -> MoLTrainer:  # fmt: skip
        mol = fuse(*(names or ("gpt2", "llama")), **(fusion or {}))
        if not noise:
            still(mol)
        chosen = {"warmup_steps": 0, "eval_steps": None, "save_steps": None, "output_dir": str(tmp_path / "out")}
        return MoLTrainer(mol, TrainingConfig(**{**chosen, **settings}), **(options or {}))

    return make


def still(mol: Any) -> None:  # noqa: ANN401 - a runtime
    """Turn dropout and noise of a fusion's routers and adapters off."""
    for module in mol.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
        if hasattr(module, "noise_std"):
            module.noise_std = 0.0
