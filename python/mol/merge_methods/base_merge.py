"""BaseMergeMethod: load the models, merge them lazily, save the result."""

from __future__ import annotations

import tempfile
from abc import ABC
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mol.config import MergeConfig
from mol.config.methods import METHODS
from mol.errors import ArchitectureError, ConfigError, MergeError
from mol.merge.opening import resolve_checkpoints
from mol.merge.run import plan_recipe, run_merge

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    import numpy as np
    from typing_extensions import Unpack

    from mol.config import ModelReference
    from mol.io.checkpoint import Checkpoint
    from mol.merge.options import MergeOptions, OptionFields
    from mol.merge.planned import PlannedMerge
    from mol.merge.run import MergeReport, Progress

    class RunFields(OptionFields, total=False):
        """What `run_merge` takes other than recipe, output, options and checkpoints."""

        on_progress: Progress | None
        cancel: threading.Event | None


__all__ = ["BaseMergeMethod", "MergeConfig", "PendingMerge"]


@dataclass(frozen=True)
class PendingMerge:
    """A merge that is planned and checked but not run: no weight has been read.

    Attributes:
        planned: the plan, what is copied and dropped, notes and warnings.
        checkpoints: the models.
        options: how it will run.
    """

    planned: PlannedMerge
    checkpoints: Mapping[ModelReference, Checkpoint]
    options: MergeOptions | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, in the order of the output files."""
        return {tensor.name: tensor.shape for tensor in self.planned.plan.tensors}

    def save(self, out: Path | str | None = None, **options: Unpack[RunFields]) -> MergeReport:
        """Run the merge into `out` (the recipe's `output_path` if None); see `run_merge` for the rest."""
        return run_merge(self.planned.config, out, checkpoints=self.checkpoints, options=self.options, **options)

    def state_dict(self) -> dict[str, np.ndarray[Any, Any]]:
        """Run the merge and return every tensor as a numpy array: the whole model in memory.

        BF16, which numpy lacks, comes as float32; no value changes by that. Weights pass through a temporary
        directory (`TMPDIR` says where), so there must be room for the model on that disk.

        Raises:
            ImportError: numpy, which a merge alone does not need, is not installed.
            MolError: see `run_merge`.
            OSError: see `run_merge`.
        """
        from mol.io.arrays import need_numpy, read_arrays

        need_numpy()
        with tempfile.TemporaryDirectory(prefix="mol-") as folder:
            report = self.save(Path(folder, "merged"))
            arrays: dict[str, np.ndarray[Any, Any]] = {}
            for file in report.files:
                arrays |= read_arrays(report.out / file["name"])
        return arrays

    def to_module(self) -> Any:  # noqa: ANN401 - a torch module, and a merge does not know torch
        """Run the merge and load the result with transformers, as the class that config.json names.

        Raises:
            ImportError: torch or transformers is not installed.
            ArchitectureError: transformers has no class of the name in config.json.
            MolError: see `run_merge`.
            OSError: see `run_merge`.
        """
        try:
            import torch  # noqa: F401 - reported before transformers would
            import transformers
        except ImportError as error:
            raise ImportError("to_module() needs torch and transformers: pip install 'mol-merge[fusion]'") from error

        names = self.planned.model_config.get("architectures") or ["AutoModel"]
        if names[0] not in dir(transformers):
            raise ArchitectureError(
                f"transformers has no class {names[0]!r}, which config.json of {self.planned.donor.name} names; "
                "save the merge and load it with the model's own code"
            )
        with tempfile.TemporaryDirectory(prefix="mol-") as folder:
            report = self.save(Path(folder, "merged"))
            return getattr(transformers, names[0]).from_pretrained(report.out, dtype="auto")


class BaseMergeMethod(ABC):
    """A merge in three steps: `load_models`, `merge`, `save_merged_model`.

    Attributes:
        method: the method's name in a recipe.
        config: the checked recipe.
        options: how the merge runs.
    """

    method: ClassVar[str]

    def __init_subclass__(cls) -> None:
        """Describe the class as the table of methods does, unless it describes itself."""
        spec = METHODS.get(getattr(cls, "method", ""))
        if spec is not None and not cls.__doc__:
            cls.__doc__ = f"Merge by {spec.name}, {spec.title}: {spec.about}."

    def __init__(self, config: MergeConfig, options: MergeOptions | None = None) -> None:
        """Store a recipe of this method.

        Raises:
            ConfigError: the recipe is for another method.
        """
        if config.method != self.method:
            raise ConfigError(f"{type(self).__name__} merges by {self.method}, but the recipe says {config.method}")
        self.config = config
        self.options = options

    def load_models(self) -> dict[str, Checkpoint]:
        """Find or download the models and read their headers; of weights only a few rows that adapters change are read.

        Returns:
            Checkpoints by the model's name in the recipe, the base among them.

        Raises:
            MolError: a model is not available or is damaged.
            OSError: a model is missing or may not be read.
        """
        return {str(ref): found for ref, found in resolve_checkpoints(self.config, self.options).items()}

    def merge(self, models: Mapping[str, Checkpoint] | None = None) -> PendingMerge:
        """Plan the merge and check all that can be checked from headers; nothing is written.

        Args:
            models: what `load_models` gave; loaded now if None.

        Raises:
            MergeError: with every reason why these models cannot be merged.
        """
        models = self.load_models() if models is None else models
        references = {str(reference): reference for reference in self.config.inputs()}
        missing = [name for name in references if name not in models]
        if missing:
            raise MergeError.listing("the recipe names models that were not given", missing)
        checkpoints = {reference: models[name] for name, reference in references.items()}
        return PendingMerge(plan_recipe(self.config, self.options, checkpoints=checkpoints), checkpoints, self.options)

    def save_merged_model(
        self,
        merged: PendingMerge,
        output_path: Path | str | None = None,
        **options: Unpack[RunFields],
    ) -> MergeReport:
        """Run the merge into `output_path`, the recipe's if None.

        Args:
            merged: what `merge` gave.
            output_path: the output directory.
            options: see `run_merge`, e.g. `overwrite=True` or `on_progress=...`.

        Raises:
            MolError: see `run_merge`.
            OSError: see `run_merge`.
        """
        return merged.save(output_path, **options)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        from mol.later import missing

        raise missing("mol.merge_methods.base_merge", name)
