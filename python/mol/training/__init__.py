"""Training of adapters and routers, on accelerate. Nothing heavy is imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mol.training.callbacks import TrainingCallback
    from mol.training.config import TrainingConfig
    from mol.training.data import create_simple_dataset
    from mol.training.trainer import MoLTrainer

__all__ = ["MoLTrainer", "TrainingCallback", "TrainingConfig", "create_simple_dataset"]

if not TYPE_CHECKING:
    _HOMES = {
        "MoLTrainer": "mol.training.trainer",
        "TrainingCallback": "mol.training.callbacks",
        "TrainingConfig": "mol.training.config",
        "create_simple_dataset": "mol.training.data",
    }

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _HOMES:
            raise import_module("mol.later").missing("mol.training", name)
        try:
            value = getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in ("torch", "transformers", "accelerate"):
                raise
            raise ImportError(f"{name} needs {error.name}: pip install 'mol-merge[fusion]'") from error
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
