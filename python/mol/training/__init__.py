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
        "mol.training.callbacks": ("TrainingCallback",),
        "mol.training.config": ("TrainingConfig",),
        "mol.training.data": ("create_simple_dataset",),
        "mol.training.trainer": ("MoLTrainer",),
    }

    def __getattr__(name: str) -> object:
        from mol.later import find

        value = globals()[name] = find("mol.training", name, _HOMES)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
