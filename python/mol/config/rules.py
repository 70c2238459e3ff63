"""RuleConfig: another method, or a plain copy, for the tensors whose names fit a filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mol.config.parameters import ParameterMap, chained
from mol.config.sources import SliceConfig, SourceConfig, rename

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.config.model_reference import ModelReference


class RuleConfig(NamedTuple):
    """One entry of `rules`; of several that fit a tensor the first is taken.

    Attributes:
        filter: which tensors of the output, as in `Rule`; None is every one.
        copy: the model whose tensor is copied; None where a method makes the tensor.
        method: the method; None is the recipe's.
        models: which inputs it takes, with parameters for each; None is all of the slice.
        base_model: its base; None means that of the slice.
        parameters: values, stronger than the recipe's where the method is the recipe's, else all that there are.
    """

    filter: str | None = None
    copy: ModelReference | None = None
    method: str | None = None
    models: tuple[SourceConfig, ...] | None = None
    base_model: ModelReference | None = None
    parameters: ParameterMap = ParameterMap()

    def __str__(self) -> str:
        """Describe the entry in a few words, as in "`self_attn`: copy of a"."""
        which = "all tensors" if self.filter is None else f"`{self.filter}`"
        if self.copy is not None:
            return f"{which}: copy of {self.copy}"
        parts = [self.method or "the recipe's method"]
        if self.models is not None:
            parts.append(f"of {', '.join(str(source.model) for source in self.models)}")
        values = [f"{name} {value}" for name, value in self.parameters.to_dict().items()]
        listed = f" ({', '.join(values)})" if values else ""
        return f"{which}: {' '.join(parts)}{listed}"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as YAML holds it."""
        entry: dict[str, Any] = {} if self.filter is None else {"filter": self.filter}
        if self.copy is not None:
            return {**entry, "copy": self.copy.to_plain()}
        if self.method is not None:
            entry["merge_method"] = self.method
        if self.models is not None:
            entry["models"] = [source.to_dict() for source in self.models]
        if self.base_model is not None:
            entry["base_model"] = self.base_model.to_plain()
        if self.parameters or len(entry) <= 1:
            entry["parameters"] = self.parameters.to_dict()
        return entry

    def renamed(self, names: Mapping[ModelReference, ModelReference]) -> RuleConfig:
        """Return the entry with other names of models."""

        def new(model: ModelReference | None) -> ModelReference | None:
            return None if model is None else names.get(model, model)

        models = None if self.models is None else rename(SliceConfig(self.models), names).sources
        return self._replace(copy=new(self.copy), models=models, base_model=new(self.base_model))

    def inputs(self, part: SliceConfig, base: ModelReference | None, *, own: bool) -> SliceConfig:
        """Return a slice with the inputs that the entry's method takes, and the parameters that hold for it.

        Args:
            part: the slice of the recipe.
            base: what the entry's method starts from, an input without being listed in `models`.
            own: the method is not the recipe's, so that none of the recipe's parameters hold.
        """
        given = {source.model: source.parameters for source in self.models or ()}
        sources = []
        for source in part.sources:
            if self.models is None or source.model in given or source.model == base:
                levels = [given.get(source.model, ParameterMap()), self.parameters]
                sources.append(source._replace(parameters=chained([*levels, *([] if own else [source.parameters])])))
        return SliceConfig(tuple(sources), self.base_model or part.base_model, self.over(part.parameters, own=own))

    def over(self, parameters: ParameterMap, *, own: bool) -> ParameterMap:
        """Return the entry's parameters, then those of the recipe unless the method is the entry's own."""
        return self.parameters if own else chained([self.parameters, parameters])
