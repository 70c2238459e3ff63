"""SavedRuntime: a runtime as transformers' model of its kind, as files, as one static model, and on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mol.core.fitting.calibration import checked_texts
from mol.core.models.heads import head_of
from mol.core.pretrained.bundle import Kind, check_kind_of_save
from mol.core.pretrained.causal_lm import MoLForCausalLM
from mol.core.pretrained.checkpoint_file import find_checkpoint, read_checkpoint, write_checkpoint
from mol.core.pretrained.collapse import load_collapsed
from mol.core.pretrained.fused_model import FusedModel, MoLModel
from mol.core.pretrained.publishing import Publication, publish
from mol.core.pretrained.task_models import (
    MoLForImageClassification,
    MoLForMaskedLM,
    MoLForSequenceClassification,
    MoLForTokenClassification,
)
from mol.core.runtime import Runtime
from mol.core.safetensors_io import weights_file
from mol.errors import ConfigError
from mol.io.upload import Destination

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel
    from typing_extensions import Self, Unpack

    from mol.config.mol_config import MoLConfig
    from mol.core.pretrained.collapse import FusionMethod
    from mol.core.pretrained.options import FusionLoadOptions
    from mol.core.pretrained.publishing import FusionType

_MODELS: tuple[type[FusedModel], ...] = (
    MoLForCausalLM,
    MoLForMaskedLM,
    MoLForSequenceClassification,
    MoLForTokenClassification,
    MoLForImageClassification,
)


class SavedRuntime(Runtime):
    """A runtime that can be saved, loaded, averaged and uploaded; see `Runtime` for its attributes."""

    def __init__(self, config: MoLConfig) -> None:
        """Start with the host alone, in eval mode, as loaded models are. Models are opened when they are first needed.

        Args:
            config: its settings; the first model is the host unless `setup_embeddings` names another.
        """
        super().__init__(config)
        self._calibration: list[str] | None = None

    def calibrate(self, texts: Sequence[str]) -> None:
        """Keep text for the layers that are added from now on, to fit their adapters on; see `add_layer`.

        Raises:
            ConfigError: it is one string, or empty, or holds something else than text.
        """
        self._calibration = checked_texts(texts)

    def as_causal_lm(self) -> MoLForCausalLM:
        """Return the same model as a transformers model: logits, loss, `generate`, Trainer.

        Raises:
            MolError: the host does not predict the next token.
        """
        return MoLForCausalLM.from_runtime(self)

    def as_model(self) -> FusedModel:
        """Return the same model as a transformers model, in the class that goes with the host's head.

        `MoLForCausalLM`, `MoLForMaskedLM`, `MoLForSequenceClassification`, `MoLForTokenClassification` or
        `MoLForImageClassification`; both share everything.

        Raises:
            MolError: a host with a causal head attends to later tokens.
        """
        head = head_of(self.open_host().model.config)
        return next(kind for kind in _MODELS if kind.head is head).from_runtime(self)

    def save_checkpoint(
        self, path: str | os.PathLike[str], use_safetensors: bool = True, *, kind: Kind = "runtime"
    ) -> Path:
        """Save the fusion; an older save of the same name is replaced in one step.

        A "runtime" is one SafeTensors file of adapters and routers, with settings, layers, and of each model its commit
        and digests of what is used of it. A "bundle" is a directory with copies of all that is used of the models, so
        that it loads where they are not; see `save_pretrained`. Whatever ends the process leaves the old save or the
        new one.

        Args:
            path: the file. `model`, `model.pt` and `model.safetensors` all name `model.safetensors`, and for a bundle
                the directory `model`.
            use_safetensors: must be True.
            kind: "runtime" or "bundle".

        Returns:
            The file or the directory.

        Raises:
            ConfigError: the path names no file of this kind, there is no such kind, or `use_safetensors` is False.
            MolError: a model cannot be opened.
            OSError: the file cannot be written; what was there before is as it was.
        """
        if use_safetensors is not True:
            raise ConfigError(
                f"use_safetensors={use_safetensors!r} would be a pickle, which runs code when it is loaded: leave it "
                "out; mol writes SafeTensors only, also if the path ends in .pt"
            )
        check_kind_of_save(kind)
        if kind == "runtime":
            return write_checkpoint(self, path)
        directory = weights_file(path).with_suffix("")
        self.save_pretrained(directory, kind="bundle")
        return directory

    @classmethod
    def load_checkpoint(cls, path: str | os.PathLike[str], **options: Unpack[FusionLoadOptions]) -> Self:
        """Load what `save_checkpoint` or `save_pretrained` wrote, and the models that it names; in eval mode.

        Args:
            path: the file, with or without its suffix, or the directory.
            options: `attn_implementation`, `cache_dir`, `device_map`, `dtype`, `max_expert_memory`, `paths`, `token`
                and `trust_remote_code` as `MoLConfig` has them; `allow_changed_models` accepts models that differ
                from those that the fusion was saved with.

        Raises:
            CheckpointError: the file is damaged or altered, something else wrote it, or a model changed.
            ConfigError: a later version of mol wrote it, or the path names no save, or two.
            FusionError: an option is not supported.
            OSError: the file or a model is missing.
        """
        if find_checkpoint(path).is_dir():
            return cls.from_pretrained(find_checkpoint(path), **options)
        return read_checkpoint(cls, path, options)

    def save_pretrained(self, directory: str | os.PathLike[str], *, kind: Kind = "runtime") -> None:
        """Save as a directory that transformers' Auto classes load; see `FusedModel.save_pretrained`.

        Raises:
            MolError: the host's head and its blocks do not go together.
            OSError: something cannot be written.
        """
        self.as_model().save_pretrained(Path(directory), kind=kind)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], **options: Unpack[FusionLoadOptions]) -> Self:
        """Load what `save_pretrained` or `push_to_hf` wrote, and the models that it names.

        Args:
            path: the directory, or `user/name` on the Hub, with `@revision` if wanted.
            options: as `load_checkpoint` has them, and `revision`.

        Raises:
            MolError: an option is not supported, the save is damaged or of a later mol, or a model changed.
            OSError: something is missing.
        """
        model: Any = MoLModel.from_pretrained(Path(path), **options)
        runtime: Self = model.runtime
        return runtime

    def create_fused_model(
        self,
        fusion_method: FusionMethod = "weighted_average",
        *,
        calibration: Sequence[str] | None = None,
        drop_adapters: bool = False,
    ) -> PreTrainedModel:
        """Return one static model of the host's class: in each fused layer the experts' weights are averaged.

        That is a merge, so the experts must have the host's shapes. It has neither routers nor adapters, and another
        loss than the fusion; both are measured where there is text.

        Args:
            fusion_method: "weighted_average" is the mean; "learned_weights" weighs experts by the mean of the router's
                weights on the text; "best_expert" takes the blocks of the one model whose loss on the text is lowest.
            calibration: the text; that of `calibrate` if None.
            drop_adapters: leave out adapters that are not the identity, instead of refusing them.

        Raises:
            ConfigError: there is no such method, or it needs text.
            FusionError: the fusion cannot be one static model; every reason is listed.
            MolError: the experts do not fit together, as the merge says.
            OSError: something cannot be read or written.
        """
        texts = self._calibration if calibration is None else checked_texts(calibration)
        return load_collapsed(self, fusion_method, texts, drop=drop_adapters)

    def push_to_hf(
        self,
        repo_id: str,
        fusion_type: FusionType = "runtime",
        token: str | None = None,
        commit_message: str | None = None,
        private: bool = False,
        create_pr: bool = False,
        fusion_method: FusionMethod = "weighted_average",
        *,
        revision: str | None = None,
        calibration: Sequence[str] | None = None,
        drop_adapters: bool = False,
        evaluation: Mapping[str, object] | None = None,
        dry_run: str | os.PathLike[str] | None = None,
    ) -> str:
        """Upload the fusion to the Hub, with a card: its models and their licenses, layers, settings, how to load it.

        Args:
            repo_id: `user/name`; created if it does not exist.
            fusion_type: "runtime" has adapters and routers, and names its models; "bundle" also has copies of all that
                is used of them; "fused" is one static model, see `create_fused_model`.
            token: of the Hub; that of `hf auth login` or HF_TOKEN if None.
            commit_message: the first line of the commit's message.
            private: whether only its owner may read the repository.
            create_pr: open a pull request instead of committing.
            fusion_method: of a "fused" model.
            revision: branch to commit to, created if it is missing; main if None.
            calibration: text of a "fused" model; that of `calibrate` if None.
            drop_adapters: of a "fused" model.
            evaluation: what was measured, for the card: a value by its name.
            dry_run: a new directory: write what would be uploaded, and upload nothing.

        Returns:
            The address of the commit or of the pull request; the directory of a dry run.

        Raises:
            ConfigError: an argument does not hold, or a "runtime" names paths of this machine.
            FusionError: a "fused" model cannot be made; every reason is listed.
            PermissionError: there is no token, or it may not write there.
            ConnectionError: the Hub failed, asks to wait, or the connection broke.
            MolError: something else is refused; the message says what.
            OSError: something cannot be read or written.
        """
        return publish(
            self.as_model(),
            Destination(repo_id, private, create_pr, revision, commit_message, token),
            Publication(
                fusion_type,
                fusion_method,
                self._calibration if calibration is None else checked_texts(calibration),
                drop_adapters,
                evaluation or {},
            ),
            None if dry_run is None else Path(dry_run),
        )
