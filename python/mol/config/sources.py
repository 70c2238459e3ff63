"""SourceConfig and SliceConfig: which models, and which of their layers, go into one range of output layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mol.config.parameters import ParameterMap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.config.model_reference import ModelReference


class SourceConfig(NamedTuple):
    """One input of a slice, or of a merge of whole models.

    Attributes:
        model: the model.
        layer_range: first layer and the layer after the last, counted from 0; None means all.
        parameters: values for this input, of highest precedence.
    """

    model: ModelReference
    layer_range: tuple[int, int] | None = None
    parameters: ParameterMap = ParameterMap()

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as YAML holds it."""
        entry: dict[str, Any] = {"model": self.model.to_plain()}
        if self.layer_range is not None:
            entry["layer_range"] = list(self.layer_range)
        if self.parameters:
            entry["parameters"] = self.parameters.to_dict()
        return entry


class SliceConfig(NamedTuple):
    """A range of output layers and the inputs that it is made of; all ranges of a slice have equal length.

    Attributes:
        sources: the inputs, in order.
        base_model: the base of this slice; None means the recipe's.
        parameters: values for this slice.
    """

    sources: tuple[SourceConfig, ...]
    base_model: ModelReference | None = None
    parameters: ParameterMap = ParameterMap()

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as YAML holds it."""
        entry: dict[str, Any] = {"sources": [source.to_dict() for source in self.sources]}
        if self.base_model is not None:
            entry["base_model"] = self.base_model.to_plain()
        if self.parameters:
            entry["parameters"] = self.parameters.to_dict()
        return entry


def rename(part: SliceConfig, names: Mapping[ModelReference, ModelReference]) -> SliceConfig:
    """Return a slice with other names of models."""
    sources = tuple(source._replace(model=names.get(source.model, source.model)) for source in part.sources)
    base = None if part.base_model is None else names.get(part.base_model, part.base_model)
    return part._replace(sources=sources, base_model=base)
