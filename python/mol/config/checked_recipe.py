"""CheckedRecipe: what a recipe says, the models in it, and the value of each parameter for each tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mol.config.auto_weights import Auto
from mol.config.method_spec import DEPTH_SCALE, Required, Scalar
from mol.config.methods import METHODS
from mol.config.parameters import Chain, ParameterMap
from mol.config.sources import SliceConfig, SourceConfig
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mol.config.method_spec import ParameterSpec
    from mol.config.model_reference import ModelReference
    from mol.config.modules import ModuleConfig
    from mol.config.rules import RuleConfig
    from mol.config.tokenizer import TokenizerSection


@dataclass(frozen=True, init=False, eq=False, repr=False)
class CheckedRecipe:
    """The keys of one recipe, read and checked; `MergeConfig` reads, derives and writes one.

    Attributes:
        method: name of the merge method.
        models: whole models, as listed; None where the recipe has slices. Exactly one of the two is given. For a
            method that starts from its base, the base may be among them or not.
        slices: ranges of layers, stacked in order.
        modules: what each module is made of, where the recipe has `modules` instead of the two.
        base_model: the base of all slices that name none of their own; donor of config and tokenizer.
        parameters: parameters of lowest precedence.
        rules: other methods, or copies, for tensors by their names.
        dtype: safetensors name of the output's dtype ("F32", "F16", "BF16", "F64"); None keeps the donor's.
        out_dtype: the same, stronger than `dtype`.
        tokenizer_source: "base", "union" (with the tokens that only other models have), a model of the recipe, or None
            (the donor's, rows paired by number).
        tokenizer: rules for single tokens and padding, where the recipe has any; its source is `tokenizer_source`.
        chat_template: Jinja text, the name of a known one such as "chatml", "auto" (the one that most inputs have), or
            None (that of the tokenizer).
        precision: "exact" computes in f32 or wider and rounds once; "mergekit" rounds every operation as mergekit does.
        layer_alignment: "auto" maps layers of models of unequal depth proportionally, "strict" refuses them.
        output_path: where the Python classes save.
        trust_remote_code: also copy Python files of the donor.
        allow_crimes: as in MergeOptions.
        notes: one line for each thing in the recipe that has no effect, or that was filled in.
        warnings: the same for what has no effect in mergekit either, and might be meant to have one.
        source_text: the YAML as it was read.
        locations: where the recipe names each model first, as in "config.yml:4", for errors found later.
    """

    method: str
    models: tuple[SourceConfig, ...] | None
    slices: tuple[SliceConfig, ...] | None
    modules: tuple[ModuleConfig, ...]
    base_model: ModelReference | None
    parameters: ParameterMap
    rules: tuple[RuleConfig, ...]
    dtype: str | None
    out_dtype: str | None
    tokenizer_source: Literal["base", "union"] | ModelReference | None
    tokenizer: TokenizerSection | None
    chat_template: str | None
    precision: Literal["exact", "mergekit"]
    layer_alignment: Literal["auto", "strict"]
    output_path: str | None
    trust_remote_code: bool
    allow_crimes: bool
    notes: tuple[str, ...] = field(compare=False)
    warnings: tuple[str, ...] = field(init=False, compare=False)
    source_text: str | None = field(compare=False, repr=False)
    locations: dict[ModelReference, str] = field(init=False, compare=False, repr=False)
    _chains: dict[tuple[str, int, int | None], Chain] = field(init=False, compare=False, repr=False)

    def model_references(self) -> tuple[ModelReference, ...]:
        """Return every model whose weights are read, once: those that are merged, then those of rules for tokens."""
        rules = () if self.tokenizer is None else self.tokenizer.tokens
        return tuple(dict.fromkeys((*self.merged_models(), *(rule.model for rule in rules if rule.model is not None))))

    def needed_models(self) -> tuple[ModelReference, ...]:
        """Return every model whose weights or tokenizer are read, once."""
        source = self.tokenizer_source
        chosen = () if source is None or isinstance(source, str) else (source,)
        return tuple(dict.fromkeys((*self.model_references(), *chosen)))

    def merged_models(self) -> tuple[ModelReference, ...]:
        """Return every model that is merged, once, in the recipe's order; bases that are not listed come last."""
        parts = self._parts()
        found = [source.model for part in parts for source in part.sources]
        bases = (self.base_model, *(m.base_model for m in self.modules), *(part.base_model for part in parts))
        return tuple(dict.fromkeys((*found, *(base for base in bases if base is not None))))

    def _parts(self) -> tuple[SliceConfig, ...]:
        """Return the slices of the recipe and of its modules; models count as one."""
        own = (SliceConfig(self.models),) if self.models is not None else self.slices or ()
        return (*own, *(part for module in self.modules for part in module.parts()))

    def donor(self) -> ModelReference:
        """Return the model whose config and tokenizer the output has: the base, else the first model listed."""
        return self.base_model or self.model_references()[0]

    def filters(self) -> Iterator[tuple[str, str]]:
        """Yield each parameter with each filter that some value of it has, as often as the recipe holds them."""
        parts = self._parts()
        holders = [self.parameters, *(module.parameters for module in self.modules)]
        holders += [*(part.parameters for part in parts), *(rule.parameters for rule in self.rules)]
        sources = [source for part in parts for source in part.sources]
        sources += [source for rule in self.rules for source in rule.models or ()]
        for parameters in (*holders, *(source.parameters for source in sources)):
            for name, rules in parameters.items():
                yield from ((name, rule.filter) for rule in rules if rule.filter is not None)

    def resolve(
        self,
        name: str,
        *,
        slice_index: int,
        source: int | None,
        source_tensor: str,
        output_tensor: str,
        position: float,
    ) -> Scalar:
        """Return the value of a parameter for one tensor.

        The source's parameters are stronger than the slice's, those than the recipe's, those than the default.

        Args:
            name: a parameter of the method.
            slice_index: which slice; 0 where the recipe has models.
            source: which source of the slice, for a parameter that each model has; None for the others.
            source_tensor: name in the source's checkpoint; filters of parameters that each model has look at it.
            output_tensor: name in the output; filters of the other parameters look at it.
            position: from 0 at the first layer of the slice to 1 at its last; where a gradient is read.

        Raises:
            ConfigError: the recipe gives no value for this tensor, and the parameter has no default.
        """
        chain = self._chain(name, slice_index, source)
        if chain.constant is not None:
            return chain.constant
        spec = self._spec(name)
        value = chain.find(source_tensor if spec.per_model else output_tensor, position)
        if isinstance(value, Auto):
            raise ConfigError("the weights are found from the norms of the models, which were not read yet")
        if value is not None:
            return value
        if isinstance(spec.default, Required):
            raise ConfigError(
                f"{self._owner(slice_index, source)} has no `{name}` whose filter fits, and "
                f"{self.method} needs one; add a value without `filter` at the end of the list"
            )
        return spec.default

    def gives(self, name: str, slice_index: int) -> bool:
        """Return whether the recipe gives a parameter of the whole merge a value, in a slice."""
        return bool(self._chain(name, slice_index, None).links)

    def is_constant(self, name: str, *, slice_index: int, source: int | None) -> bool:
        """Return whether `resolve` returns the same value, or raises the same error, for every tensor."""
        chain = self._chain(name, slice_index, source)
        return chain.constant is not None or not chain.links or isinstance(chain.links[0][1], Auto)

    def _spec(self, name: str) -> ParameterSpec:
        return METHODS[self.method].parameters.get(name, DEPTH_SCALE)

    def _chain(self, name: str, slice_index: int, source: int | None) -> Chain:
        key = (name, slice_index, source)
        chain = self._chains.get(key)
        if chain is None:
            chain = self._chains[key] = self._build_chain(name, slice_index, source)
        return chain

    def _build_chain(self, name: str, slice_index: int, source: int | None) -> Chain:
        spec = self._spec(name)
        levels = [self.parameters]
        sources = self.models or ()
        if self.slices is not None:
            levels.insert(0, self.slices[slice_index].parameters)
            sources = self.slices[slice_index].sources
        if spec.per_model and source is not None:
            levels.insert(0, sources[source].parameters)
        return Chain(name, *levels)

    def _owner(self, slice_index: int, source: int | None) -> str:
        sources = self.slices[slice_index].sources if self.slices is not None else self.models or ()
        return "the recipe" if source is None else str(sources[source].model)
