"""The flat form (models as a list of names, `weights`, `self_attn` and the like), rewritten as mergekit's grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mol.config.document import Items, Location, Problems, Table
from mol.config.model_reference import ModelReference
from mol.errors import ConfigError
from mol.text import suggestion

if TYPE_CHECKING:
    from mol.config.method_spec import MethodSpec

_PARTS = ("self_attn", "mlp", "embed_tokens", "lm_head")


def is_flat(table: Table) -> bool:
    """Return whether a recipe uses a key or a shape that only the flat form has.

    A key that mergekit has elsewhere (`weight` next to `model`) is a mistake in its grammar, not another form.
    """
    if any(table.get(key) is not None for key in ("weights", "layer_range")):
        return True
    parameters = table.get("parameters")
    if isinstance(parameters, Table) and any(key in parameters for key in ("weights", "layer_params", *_PARTS)):
        return True
    entries = [*_entries(table, "models"), *_entries(table, "slices")]
    models = _entries(table, "models")
    return (
        any(isinstance(entry, str) for entry in entries)
        or any(isinstance(entry, Table) and "name" in entry and "model" not in entry for entry in models)
        or any(isinstance(entry, Table) and "model" in entry for entry in _entries(table, "slices"))
    )


def to_mergekit_form(table: Table, spec: MethodSpec | None, problems: Problems, notes: list[str]) -> Table:
    """Rewrite a flat recipe; what is already in mergekit's grammar stays as it is.

    Args:
        table: the whole recipe.
        spec: its method, None where that is unknown.
        problems: collects what cannot be rewritten.
        notes: collects what was filled in.
    """
    recipe = table.without("weights", "layer_range")
    for key in ("models", "slices"):
        if isinstance(table.get(key), Items):
            recipe.put(key, _rewrite_entries(table[key]), table.at(key))
    _default_base(recipe, spec, notes)
    _rewrite_parameters(recipe, table, spec, problems)
    _apply_layer_range(recipe, table, spec, problems)
    _group_slices(recipe, spec, notes)
    return recipe


def _entries(table: Table, key: str) -> list[Any]:
    value = table.get(key)
    return value if isinstance(value, Items) else []


def _rewrite_entries(entries: Items) -> Items:
    """Make maps with `model` and `parameters` of names and of maps with `name` or `weight`."""
    rewritten = Items(entries.location)
    for entry, location in zip(entries, entries.locations, strict=True):
        if isinstance(entry, Table):
            new = entry.without("weight", "name")
            if "name" in entry and "model" not in entry:
                new.put("model", entry["name"], entry.at("name"))
            elif "name" in entry:
                new.put("name", entry["name"], entry.at("name"))  # both: `read_fields` refuses it
            if "weight" in entry:
                _give_parameter(new, "weight", entry["weight"], entry.at("weight"))
        elif entry is None or isinstance(entry, (Items, bool)):
            rewritten.put(entry, location)
            continue
        else:
            new = Table(location)
            new.put("model", entry, location)
        rewritten.put(new, location)
    return rewritten


def _give_parameter(entry: Table, name: str, value: object, location: Location) -> None:
    """Set a parameter of an entry; one that the entry's own `parameters` gives stays."""
    old = entry.get("parameters")
    new = old.without() if isinstance(old, Table) else Table(location)
    if name not in new:
        new.put(name, value, location)
    if old is None or isinstance(old, Table):
        entry.put("parameters", new, entry.at("parameters") if old is not None else location)


def _rewrite_parameters(recipe: Table, table: Table, spec: MethodSpec | None, problems: Problems) -> None:
    given = table.get("parameters")
    parameters = given if isinstance(given, Table) else Table(table.at("parameters"))
    holders = [holder for holder in (table, parameters) if holder.get("weights") is not None]
    if len(holders) == 2:
        problems.add(parameters.at("weights"), "`weights` is given twice, in `parameters` and next to it")
    elif holders:
        spread_weights(recipe, holders[0]["weights"], holders[0].at("weights"), problems)
    if not isinstance(given, Table):
        return
    rest = given.without("weights", "layer_params", *_PARTS)
    filtered: dict[str, Items] = {}
    for part, value, location in _parts(given, problems):
        for name, inner in _part_parameters(part, value, location, spec, problems):
            rule = Table(location)
            rule.put("filter", part, location)
            rule.put("value", inner, location)
            filtered.setdefault(name, Items(location)).put(rule, location)
    for name, rules in filtered.items():
        if name in rest:
            _extend_rules(rules, rest[name], rest.at(name))
        rest.put(name, rules, rules.location)
    recipe.put("parameters", rest, table.at("parameters"))


def _parts(parameters: Table, problems: Problems) -> list[tuple[str, object, Location]]:
    """List every `part: value` of the parameters, those of `layer_params` first as they are more particular."""
    found: list[tuple[str, object, Location]] = []
    layers = parameters.get("layer_params")
    if isinstance(layers, Table):
        found += [(part, value, layers.at(part)) for part, value in layers.items()]
    elif layers is not None:
        problems.add(parameters.at("layer_params"), "`layer_params` is a map from a part of a tensor's name to values")
    found += [(part, parameters[part], parameters.at(part)) for part in parameters if part in _PARTS]
    return found


def _part_parameters(
    part: str, value: object, location: Location, spec: MethodSpec | None, problems: Problems
) -> list[tuple[str, object]]:
    if isinstance(value, Table):
        return list(value.items())
    if spec is None:
        return []
    names = [*spec.parameters]
    if len(names) == 1 and not spec.parameters[names[0]].per_model:
        return [(names[0], value)]
    if not names:
        problems.add(location, f"`{part}`: {spec.name} has no parameters")
        return []
    example = next((name for name, parameter in spec.parameters.items() if parameter.kind == "float"), names[0])
    problems.add(location, f"`{part}` must say which parameter of {spec.name} it sets: `{part}: {{{example}: ...}}`")
    return []


def _extend_rules(rules: Items, value: object, location: Location) -> None:
    if isinstance(value, Items) and any(isinstance(item, Table) for item in value):
        for item, where in zip(value, value.locations, strict=True):
            rules.put(item, where)
    elif isinstance(value, Table):
        rules.put(value, location)
    else:
        always = Table(location)
        always.put("value", value, location)
        rules.put(always, location)


def spread_weights(recipe: Table, weights: object, location: Location, problems: Problems) -> None:
    """Set each model's entry of `weights`, a list in the order of the models or a map by model."""
    key = "models" if isinstance(recipe.get("models"), Items) else "slices"
    entries = [entry for entry in _entries(recipe, key) if isinstance(entry, Table) and "sources" not in entry]
    if isinstance(weights, Items):
        if len(weights) != len(entries):
            problems.add(location, f"`weights` has {len(weights)} entries for {len(entries)} models")
            return
        for entry, weight, where in zip(entries, weights, weights.locations, strict=True):
            _give_parameter(entry, "weight", weight, where)
        return
    if not isinstance(weights, Table):
        problems.add(location, "`weights` is a list, one for each model, or a map from model to weight")
        return
    models = [_identity(entry.get("model")) for entry in entries]
    base = _identity(recipe.get("base_model"))
    words: dict[object, str] = {}
    for word in weights:
        model = _identity(word)
        if model not in models and model != base:
            names = [_label(entry.get("model")) for entry in entries]
            problems.add(weights.at(word), f"`weights` names `{word}`, which is no model here{suggestion(word, names)}")
        elif words.setdefault(model, word) != word:
            problems.add(weights.at(word), f"`weights` names one model twice, as `{words[model]}` and as `{word}`")
    for entry, model in zip(entries, models, strict=True):
        if model in words:
            _give_parameter(entry, "weight", weights[words[model]], weights.at(words[model]))
        elif model and model != base:
            problems.add(location, f"`weights` has no weight for `{_label(entry.get('model'))}`")


def _identity(model: object) -> object:
    try:
        return ModelReference.parse(model).identity()
    except ConfigError:
        return None  # reported where the model itself is read


def _label(model: object) -> str:
    try:
        return str(ModelReference.parse(model))
    except ConfigError:
        return ""  # reported where the model itself is read


def _default_base(recipe: Table, spec: MethodSpec | None, notes: list[str]) -> None:
    if spec is None or spec.base != "required" or recipe.get("base_model") is not None:
        return
    for entry in [*_entries(recipe, "models"), *_entries(recipe, "slices")]:
        if not isinstance(entry, Table):
            return
        if entry.get("base_model") is not None:
            return  # each slice names its own
        sources = entry.get("sources")
        first = sources[0] if isinstance(sources, Items) and sources else entry
        if isinstance(first, Table) and first.get("model") is not None:
            recipe.put("base_model", first["model"], first.at("model"))
            notes.append(f"no `base_model` is given: the first model, {_label(first['model'])}, is the base")
        return


def _apply_layer_range(recipe: Table, table: Table, spec: MethodSpec | None, problems: Problems) -> None:
    """Turn models with a range of layers into one slice."""
    entries = recipe.get("models")
    chosen, location = table.get("layer_range"), table.at("layer_range")
    if not isinstance(entries, Items):
        if chosen is not None:
            problems.add(location, "`layer_range` together with `slices`: each source of a slice has its own")
        return
    tables = [entry for entry in entries if isinstance(entry, Table)]
    ranged = [entry for entry in tables if entry.get("layer_range") is not None]
    if chosen is None and not ranged:
        return
    if chosen is None:
        chosen, location = ranged[0]["layer_range"], ranged[0].at("layer_range")
    for entry in tables:
        if entry.get("layer_range") is None and table.get("layer_range") is not None:
            entry.put("layer_range", chosen, location)
    base = recipe.get("base_model")
    if (
        spec is not None
        and spec.starts_from(base)
        and _identity(base) not in {_identity(e.get("model")) for e in tables}
    ):
        source = Table(recipe.at("base_model"))
        source.put("model", base, recipe.at("base_model"))
        source.put("layer_range", chosen, location)
        entries.put(source, source.location)
    slice_table = Table(recipe.at("models"))
    slice_table.put("sources", entries, recipe.at("models"))
    slices = Items(recipe.at("models"))
    slices.put(slice_table, recipe.at("models"))
    if recipe.get("slices") is None:
        recipe.put("slices", slices, recipe.at("models"))
        del recipe["models"]


def _group_slices(recipe: Table, spec: MethodSpec | None, notes: list[str]) -> None:
    """Make slices of entries that name a model directly: stacked if the method takes one, else sources of one slice."""
    entries = recipe.get("slices")
    if not isinstance(entries, Items) or not entries:
        return
    if not all(isinstance(entry, Table) and "model" in entry and "sources" not in entry for entry in entries):
        return
    slices = Items(entries.location)
    groups = [[index] for index in range(len(entries))]
    if spec is None or spec.max_models != 1:
        groups = [list(range(len(entries)))]
        notes.append("`slices` without `sources` are the inputs of one slice; to stack slices, give each its `sources`")
    for group in groups:
        location = entries.locations[group[0]]
        sources = Items(location)
        for index in group:
            sources.put(entries[index], entries.locations[index])
        slice_table = Table(location)
        slice_table.put("sources", sources, location)
        slices.put(slice_table, location)
    recipe.put("slices", slices, recipe.at("slices"))
