"""Saving and loading modules under the names of a class, and a look into SafeTensors files of any origin."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from mol.core.safetensors_io import (
    is_safetensors_available,
    load_model_safe,
    read_header,
    save_model_safe,
    weights_file,
)

if TYPE_CHECKING:
    import os

__all__ = [
    "SAFETENSORS_AVAILABLE",
    "SafeTensorsManager",
    "is_safetensors_available",
    "load_model_safe",
    "safetensors_manager",
    "save_model_safe",
]

SAFETENSORS_AVAILABLE: Final = is_safetensors_available()
"""Whether modules can be saved and loaded here: torch and safetensors are installed."""


class SafeTensorsManager:
    """`save_model_safe` and `load_model_safe` as methods, and a look into files without reading a tensor. No state."""

    save_model_state = staticmethod(save_model_safe)
    load_model_state = staticmethod(load_model_safe)

    @staticmethod
    def list_tensors(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
        """Return shape, dtype (SafeTensors' name of it) and device (always `cpu`) of each tensor, by its name.

        Raises:
            CheckpointError: the file is damaged, or no SafeTensors file.
            OSError: it cannot be read.
        """
        header = read_header(weights_file(path))
        return {
            name: {"shape": entry["shape"], "dtype": entry["dtype"], "device": "cpu"}
            for name, entry in header.items()
            if name != "__metadata__"
        }

    @staticmethod
    def get_file_info(path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return `file_size`, `tensors` as `list_tensors` does, `metadata` with mol's own, and `total_parameters`.

        Raises:
            CheckpointError: the file is damaged, or no SafeTensors file.
            OSError: it cannot be read.
        """
        file, tensors = weights_file(path), SafeTensorsManager.list_tensors(path)
        return {
            "file_size": file.stat().st_size,
            "tensors": tensors,
            "metadata": read_header(file).get("__metadata__", {}),
            "total_parameters": sum(math.prod(tensor["shape"]) for tensor in tensors.values()),
        }


safetensors_manager: Final = SafeTensorsManager()
