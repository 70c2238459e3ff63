"""A recipe's map to the fields of MergeConfig: every key is read, noted as without effect, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from mol.config.average import is_average, write_out
from mol.config.chat_templates import CHAT_TEMPLATES
from mol.config.document import Items, Location, Problems, Table, shown
from mol.config.flat import is_flat, to_mergekit_form
from mol.config.input_checks import add_base, check_inputs, problem_of_auto
from mol.config.inputs import Inputs, read_inputs
from mol.config.method_spec import MethodSpec, Required
from mol.config.methods import METHODS, method_named
from mol.config.model_reference import is_local
from mol.config.modules import read_modules
from mol.config.parameters import ParameterMap, Rule
from mol.config.precision import WIDENED_AS_MERGEKIT, problems_as_mergekit, read_precision
from mol.config.rules_reader import Part, read_rules
from mol.config.tokenizer_reader import read_tokenizer
from mol.config.values import ValueReader
from mol.dtypes import DTYPE_WORDS, DTYPES
from mol.errors import ConfigError
from mol.text import closest, suggestion

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from mol.config.model_reference import ModelReference
    from mol.config.modules import ModuleConfig
    from mol.config.rules import RuleConfig
    from mol.config.sources import SliceConfig
    from mol.config.tokenizer import TokenizerSection

_NO_EFFECT = {
    "device": "a merge runs on the CPU",
    "lazy_unpickle": "weights are always read in small parts",
    "low_cpu_mem_usage": "a merge always runs in constant memory",
    "memory_efficient": "a merge always runs in constant memory",
    "use_safetensors": "weights are always written as safetensors",
}
_OF_OTHER_COMMANDS = {
    "experts": "mergekit-moe, which makes a mixture of experts with a new router; `mol.MoLRuntime` makes one of the "
    "blocks of the same models and trains its router (docs/fusion.md)",
    "genome": "mergekit-evolve, which searches for one; write it with one `merge_method`, and `sweep` tries values of "
    "its parameters",
}
_LATER = {
    "gate_mode": "it belongs to a recipe of mergekit-moe, with `experts`",
    "push_to_hub": "upload the finished directory instead",
    "repo_id": "upload the finished directory instead",
    "target_hidden_dim": "this belongs to fusion, not to a merge",
}


class RecipeKeys(TypedDict, total=False):
    """The keys of a recipe other than `models` and `parameters`, with what they hold in Python."""

    merge_method: str
    slices: Sequence[Mapping[str, Any] | SliceConfig] | None
    base_model: str | Path | ModelReference | Mapping[str, Any] | None
    dtype: object
    out_dtype: object
    tokenizer_source: str | ModelReference | Mapping[str, Any] | None
    tokenizer: Mapping[str, Any] | TokenizerSection | None
    chat_template: str | None
    layer_alignment: Literal["auto", "strict"] | None
    precision: Literal["exact", "mergekit"] | None
    output_path: str | Path | None
    trust_remote_code: bool
    allow_crimes: bool
    weights: Sequence[float] | Mapping[str, float]
    layer_range: Sequence[int]
    name: str
    modules: Mapping[str, Mapping[str, Any]] | tuple[ModuleConfig, ...] | None
    rules: Sequence[Mapping[str, Any] | RuleConfig] | None
    stages: Mapping[str, object]  # recipes in any form, by name
    sweep: Mapping[str, Sequence[object]] | None  # lists of values, by parameter
    checkpoints: str | Path | Sequence[str | Path] | None  # of an average, as is `last`
    last: int | None


_OF_FORMS = ("stages", "sweep", "checkpoints", "last")
"""Keys that are written out before the others are read."""

_KEYS = ("models", "parameters", *(key for key in RecipeKeys.__annotations__ if key not in _OF_FORMS))


def read_fields(
    table: Table,
    header: str,
    *,
    flat: bool | None = None,
    defaults: bool = True,
    resolved: bool = False,
    stages: Container[str] = (),
) -> dict[str, Any]:
    """Read and check a recipe; return the fields of MergeConfig.

    Args:
        table: the recipe.
        header: first line of the error, such as "invalid recipe config.yml".
        flat: whether it is in the Python or flat form; None looks at the recipe.
        defaults: whether the defaults of those forms are filled in.
        resolved: whether each model has one name only, as after the commits of its revisions are known.
        stages: what the other documents of the recipe call their results.

    Raises:
        ConfigError: lists everything that is wrong.
    """
    reader = ValueReader(None, Problems(), [], stages)
    recipe = _without_holders(table, reader)
    _refuse_of_other_commands(recipe, header)
    if is_average(recipe):
        recipe = write_out(recipe, reader.problems, reader.notes)
        reader.problems.raise_any(header)
        flat = False
    recipe = _take_method(recipe, reader)
    reader.recipe = recipe
    if flat is None:
        flat = is_flat(recipe)
    if flat:
        recipe = to_mergekit_form(recipe, reader.spec, reader.problems, reader.notes)
    reader.lenient = not flat and reader.spec is not None
    plain = _read_plain_keys(recipe, reader, flat=flat)
    before = len(reader.problems)
    parameters = reader.parameters(recipe.get("parameters"), recipe.at("parameters"), of_model=False)
    parameters_sound = len(reader.problems) == before
    reader.shared = parameters
    divided = recipe.get("modules") is not None
    inputs = Inputs() if divided else read_inputs(recipe, reader)
    inputs.parameters_sound &= parameters_sound
    base_model = None
    if recipe.get("base_model") is not None:
        base_model = reader.model(recipe["base_model"], recipe.at("base_model"))
        inputs.sound &= base_model is not None
    weighs_base = "weight" in parameters
    if flat and inputs.sound:
        _note_gradient_for_weights(parameters, inputs, reader)
    if flat and defaults and reader.spec:
        parameters = _with_flat_defaults(recipe, parameters, base_model, inputs, reader.spec, reader)
    problem = problem_of_auto(reader.spec, base_model, inputs, parameters) if reader.spec and inputs.sound else None
    if problem is not None:
        reader.problems.add(recipe.at("parameters"), f"`weight: {{auto: ...}}`: {problem}")
    modules = read_modules(recipe, base_model, parameters, reader, resolved=resolved)
    if divided:
        for word in ("models", "slices"):
            if recipe.get(word) is not None:
                reader.problems.add(recipe.at(word), f"`{word}` next to `modules`: write it into each of the modules")
        inputs.slices = [part for _, found, _ in modules for part in found.slices]
    elif add_base(inputs, base_model, reader, weighs_base=weighs_base, resolved=resolved):
        check_inputs(inputs, base_model, parameters, reader, resolved=resolved)
    parts = [
        Part(
            found, spec, module.base_model, module.over(parameters, str(reader.spec and reader.spec.name)), alone=False
        )
        for module, found, spec in modules
    ]
    parts = parts or [Part(inputs, reader.spec, base_model, parameters, alone=True)]
    rules = read_rules(recipe, parts, base_model, reader, resolved=resolved)
    if not stages:
        _note_name(recipe, inputs, reader)
    tokenizer = read_tokenizer(recipe, base_model, inputs, reader)
    if plain["precision"] == "mergekit" and reader.spec and inputs.sound:
        _check_as_mergekit(recipe, plain, parameters, inputs, reader.spec.name, reader)
    reader.problems.raise_any(header)
    return {
        "method": reader.spec.name if reader.spec else "",
        "models": inputs.slices[0].sources if inputs.whole else None,
        "slices": None if inputs.whole or divided else tuple(inputs.slices),
        "modules": tuple(module for module, _, _ in modules),
        "base_model": base_model,
        "parameters": parameters,
        "rules": rules,
        **plain,
        "tokenizer_source": None if tokenizer is None else tokenizer.source,
        "tokenizer": tokenizer if tokenizer and (tokenizer.tokens or tokenizer.pad_to_multiple_of) else None,
        "notes": tuple(dict.fromkeys(reader.notes)),
        "warnings": tuple(dict.fromkeys(reader.warnings)),
        "locations": reader.locations,
    }


def _check_as_mergekit(
    recipe: Table,
    plain: dict[str, Any],
    parameters: ParameterMap,
    inputs: Inputs,
    method: str,
    reader: ValueReader,
) -> None:
    """Check what `precision: mergekit` can do, and set the dtype that mergekit writes where the recipe has none."""
    given = [parameters, *(part.parameters for part in inputs.slices)]
    given += [source.parameters for part in inputs.slices for source in part.sources]
    keys = [key for key, value in recipe.items() if value is not None]
    for problem in problems_as_mergekit(method, keys, (plain["dtype"], plain["out_dtype"]), inputs.models(), given):
        reader.problems.add(recipe.at("precision"), f"`precision: mergekit`: {problem}")
    if method in WIDENED_AS_MERGEKIT and plain["out_dtype"] is None:
        plain["out_dtype"] = "F32"
        reader.notes.append(
            f"`precision: mergekit`: {method} writes float32 as mergekit does; `out_dtype` changes that"
        )


def _without_holders(table: Table, reader: ValueReader) -> Table:
    """Take out the keys of the author's own that only hold YAML anchors, and refuse what is given twice."""
    known = (*_KEYS, *_NO_EFFECT, *_LATER, "method")
    holders = []
    for word in table:
        if word in known or word not in table.anchored:
            continue
        near = closest(word.lower().replace("-", "_"), known, cutoff=0.85)
        if near is None or word.replace("-", "_").startswith((f"{near}_", f"{near}.")):
            holders.append(word)
            reader.notes.append(f"`{word}` holds YAML anchors for other keys and has no effect of its own")
    recipe = table.without(*holders)
    _refuse_repeated(recipe, reader)
    return recipe


def _refuse_of_other_commands(recipe: Table, header: str) -> None:
    """Refuse the recipe of another command for that reason alone: the rest of it is right there."""
    for word, whose in _OF_OTHER_COMMANDS.items():
        if recipe.get(word) is not None:
            problems = Problems()
            problems.add(recipe.at(word), f"`{word}`: this is a recipe of {whose}")
            problems.raise_any(header)


def _refuse_repeated(value: object, reader: ValueReader) -> None:
    if isinstance(value, Table):
        for word, location in value.repeated.items():
            reader.problems.add(location, f"key `{word}` is given twice")
        for inner in value.values():
            _refuse_repeated(inner, reader)
    elif isinstance(value, Items):
        for inner in value:
            _refuse_repeated(inner, reader)


def _note_name(recipe: Table, inputs: Inputs, reader: ValueReader) -> None:
    """Note the `name` of a recipe of one document, or refuse it where a model is called so."""
    name = recipe.get("name")
    if name is None:
        return
    if isinstance(name, str) and any(model.name == name and not is_local(name) for model in inputs.models()):
        reader.problems.add(
            recipe.at("name"), f"a model is called `{name}`, as this recipe is; it cannot be made of itself"
        )
    else:
        reader.notes.append(f"`name: {shown(name)}` has no effect: it only distinguishes stages of a recipe")


def _take_method(table: Table, reader: ValueReader) -> Table:
    """Find the method under either of its two keys, and return the recipe with `merge_method` alone."""
    recipe = table.without("method")
    if table.get("method") is not None:
        if table.get("merge_method") not in (None, table["method"]):
            reader.problems.add(table.at("method"), "`method` and `merge_method` differ; give one of them")
        if table.get("merge_method") is None:
            recipe.put("merge_method", table["method"], table.at("method"))
    word, location = recipe.get("merge_method"), recipe.at("merge_method")
    known = ", ".join(f"`{name}`" for name in METHODS)
    if word is None:
        reader.problems.add(location, f"`merge_method` is missing; it is one of {known}")
    elif not isinstance(word, str):
        reader.problems.add(location, f"`merge_method` is the name of a method, not {shown(word)}")
    else:
        try:
            reader.spec = method_named(word)
        except ConfigError as error:
            reader.problems.add(location, str(error))
    return recipe


def _read_plain_keys(recipe: Table, reader: ValueReader, *, flat: bool) -> dict[str, Any]:
    """Read the keys that say nothing about models or the method."""
    reader.keys(recipe, (*_KEYS, *_NO_EFFECT), "a recipe", later=_LATER)
    for word, why in _NO_EFFECT.items():
        if recipe.get(word) is None:
            continue
        if word == "use_safetensors" and recipe[word] is not True:
            reader.problems.add(recipe.at(word), "`use_safetensors: false`: weights are never written as pickles")
        else:
            reader.notes.append(f"`{word}` has no effect: {why}")
    for word, why in _LATER.items():
        if recipe.get(word) is not None:
            reader.problems.add(recipe.at(word), f"`{word}`: {why}")
    return {
        "dtype": _read_dtype(recipe, "dtype", reader),
        "out_dtype": _read_dtype(recipe, "out_dtype", reader),
        "chat_template": _read_chat_template(recipe.get("chat_template"), recipe.at("chat_template"), reader),
        "layer_alignment": _read_alignment(recipe, reader) or ("auto" if flat else "strict"),
        "precision": read_precision(recipe.get("precision"), recipe.at("precision"), reader),
        "output_path": _read_output_path(recipe, reader),
        **{
            key: recipe.get(key) is not None and reader.boolean(recipe[key], recipe.at(key), key)
            for key in ("trust_remote_code", "allow_crimes")
        },
    }


def _read_alignment(recipe: Table, reader: ValueReader) -> str | None:
    alignment: Any = recipe.get("layer_alignment")
    if alignment in (None, "auto", "strict"):
        return alignment  # type: ignore[no-any-return]
    location = recipe.at("layer_alignment")
    reader.problems.add(location, f"`layer_alignment` is `auto` or `strict`, not {shown(alignment)}")
    return None


def _read_output_path(recipe: Table, reader: ValueReader) -> str | None:
    path = recipe.get("output_path")
    if isinstance(path, Path) or (isinstance(path, str) and path and "\0" not in path):
        return str(path)
    if path is not None:
        reader.problems.add(recipe.at("output_path"), f"`output_path` is a path, not {shown(path)}")
    return None


def _read_dtype(recipe: Table, key: str, reader: ValueReader) -> str | None:
    value = recipe.get(key)
    if value is None:
        return None
    word = str(value)[:80].removeprefix("torch.")  # a torch.dtype is written as `torch.float16`
    if word in DTYPE_WORDS:
        return DTYPE_WORDS[word]
    known = ", ".join(DTYPES)
    hint = suggestion(word, DTYPES)
    if word.startswith(("int", "uint", "bool")):
        hint = ": weights would be cut to whole numbers"
    elif "8" in word or "4" in word:
        hint = ": quantized output comes later"
    reader.problems.add(recipe.at(key), f"`{key}` {word} is not one of {known}{hint}")
    return None


def _read_chat_template(value: object, location: Location, reader: ValueReader) -> str | None:
    if value is None or value == "auto":
        return value
    if isinstance(value, str) and (value in CHAT_TEMPLATES or ("{" in value and len(value) >= 20)):
        return value
    hint = suggestion(value, ("auto", *CHAT_TEMPLATES)) if isinstance(value, str) else ""
    words = ", ".join(f"`{word}`" for word in ("auto", *CHAT_TEMPLATES))
    reader.problems.add(location, f"`chat_template` is {words} or Jinja text, not {shown(value)}{hint}")
    return None


def _note_gradient_for_weights(parameters: ParameterMap, inputs: Inputs, reader: ValueReader) -> None:
    """Note what a list under `weight` means, where it looks like one weight per model."""
    for rule in parameters.get("weight", ()):
        if isinstance(rule.value, tuple) and len(rule.value) == len(inputs.slices[0].sources):
            reader.notes.append(
                f"`weight: {list(rule.value)}` is a gradient over the layers; one weight per model is written `weights`"
            )


def _with_flat_defaults(
    recipe: Table,
    parameters: ParameterMap,
    base_model: ModelReference | None,
    inputs: Inputs,
    spec: MethodSpec,
    reader: ValueReader,
) -> ParameterMap:
    """Write the defaults of the Python and flat forms into the recipe, where filters leave tensors without a value."""
    rules = dict(parameters)
    filled = []
    for name, parameter in spec.parameters.items():
        given = rules.get(name, ())
        if parameter.flat_default is None or any(rule.filter is None for rule in given):
            continue
        rules[name] = (*given, Rule(parameter.flat_default))
        levels = [part.parameters for part in inputs.slices]
        if parameter.per_model:
            levels = [
                source.parameters
                for part in inputs.slices
                for source in part.sources
                if source.model != (part.base_model or base_model)
            ]
        if all(any(rule.filter is None for rule in level.get(name, ())) for level in levels):
            continue  # every model or slice has its own
        other = "needs one" if isinstance(parameter.default, Required) else f"has {parameter.default:g}"
        filled.append(f"`{name}` {parameter.flat_default:g} (mergekit's form {other})")
    if recipe.get("layer_alignment") is None:
        filled.append("`layer_alignment` auto (mergekit's form has strict)")
    if filled:
        reader.notes.append(f"filled in, since the recipe is in the short form: {', '.join(filled)}")
    return ParameterMap(rules)
