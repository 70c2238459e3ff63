"""Names that users of earlier plans for mol import from here; what there is of them is in `safetensors_utils`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mol.core.safetensors_io import is_safetensors_available, load_model_safe, save_model_safe
from mol.utils.safetensors_utils import SAFETENSORS_AVAILABLE, SafeTensorsManager, safetensors_manager

__all__ = [
    "SAFETENSORS_AVAILABLE",
    "SafeTensorsManager",
    "is_safetensors_available",
    "load_model_safe",
    "safetensors_manager",
    "save_model_safe",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        from mol.later import missing

        raise missing("mol.utils", name)
