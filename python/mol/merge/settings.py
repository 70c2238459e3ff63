"""Compares the settings in config.json of the inputs other than sizes: heads, activation, positions, eps, windows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from mol.regex import regex
from mol.structure.layers import is_layer_count_key
from mol.structure.model_config import TEXT_SECTIONS, text_sections

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Model

# How rows and columns of equal shapes are cut: into heads and their parts, groups, states of a state space, and the
# order in which they stand.
_CUTS: Final = regex(
    r"heads?(?:_kv)?$|head_(?:dim|size|width)$|^d_kv$|(?:^|_)n?_?groups$|group_num$|state_size$|d_state$"
    r"|(?:dt|time_step)_rank$"
)
_ORDERS: Final = regex(r"^multi_query$|^new_decoder_architecture$|interleaved?$")
_SIZES: Final = ("hidden_size", "intermediate_size", "vocab_size", "d_model", "d_ff", "n_embd", "n_inner", "ffn_dim")
_ACTIVATION: Final = regex(r"(?:^|_)act(?:ivation)?(?:_fn|_func(?:tion)?)?$|^afn$|^feed_forward_proj$")
# What a forward pass does with numbers that are no weights.
_BEHAVIOUR: Final = regex(
    r"rope|rotary|theta$|(?:^|_)eps(?:ilon)?$|window|_multipliers?$|scalar$|softcap|scal(?:e|ing|ing_factor)s?$|^scale_"
    r"|layer_types$|attention_types$|alibi|parallel|qk_norm|norm_topk|experts_per|moe_\w*top_?k$|^topk_|^n_group$"
    r"|scoring_func$|position_embedding_type$|max_position_embeddings$|^n_positions$|^n_ctx$|seq_len(?:gth)?$|^clip_"
    r"|attention_chunk|local_attention|norm_before$|pre_?norm$|norm_first$|bidirectional|is_causal"
)
# What says nothing about the weights, or is compared elsewhere: names, training, generation, ids, vocabulary, ties.
_OTHER: Final = regex(
    r"^_|^architectures$|model_type$|version|dtype$|use_cache$|token_ids?$|token_index$|drop|initializer|^init_|attn_impl"
    r"|num_labels$|problem_type$|^output_|return_dict|torchscript|pretraining_tp|loss|checkpointing|^tie_|vocab"
    r"|tokenizer|_path$|^license|unsloth|flash|^tune_|^freeze_|_lr$|^is_(?:encoder_)?decoder$|^cross_attention|prun"
    r"|^finetuning_task$|^chunk_size_feed_forward$|^prefix$|^sep_token|^tf_|bfloat16$|^name"
)
_GENERATION: Final = frozenset({
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "num_return_sequences", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens", "exponential_decay_length_penalty", "remove_invalid_values",
})  # fmt: skip
# Sections that are no part of the network.
_OTHER_SECTIONS: Final = frozenset({
    "auto_map", "id2label", "label2id", "task_specific_params", "quantization_config", "transformers.js_config",
})  # fmt: skip

_ACTIVATIONS: Final = {
    "swish": "silu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
}  # fmt: skip
# Older and newer names of one setting of rotary positions.
_ROPE_NAMES: Final = {
    "rotary_emb_base": "rope_theta", "rotary_base": "rope_theta", "global_rope_theta": "rope_theta",
    "full_attention.rope_theta": "rope_theta", "sliding_attention.rope_theta": "rope_local_base_freq",
    "local_rope_theta": "rope_local_base_freq", "rotary_pct": "partial_rotary_factor",
}  # fmt: skip
_ROPE_SECTIONS: Final = ("rope_scaling", "rope_parameters")
_ROPE_TYPES: Final = {"su": "longrope", "mrope": "default"}
_USUAL_THETA: Final = 10000.0
_USUAL_WINDOW: Final = 4096
# Types whose classes have another base for rotary positions where config.json states none.
_OWN_THETA: Final = regex(
    r"apertus|beam|bitnet|blt|cohere|cosmos|csm|cwm|dots|emu|eomt|ernie|evolla|exaone|flex_olmo|fuyu|gemma|gpt_oss|gte"
    r"|helium|hy_v|jina|lfm|llama4|longcat|minimax|mixtral|mllama|modernbert|musicflamingo|neomme|muse"
)


def compare_settings(
    donor: Model,
    models: Sequence[Model],
    *,
    allow_crimes: bool,
    problems: Mismatches,
    notes: dict[str, None],
    warnings: dict[str, None],
) -> None:
    """Compare the config.json of the inputs with the one that the output gets.

    Settings that cut equal shapes otherwise are problems, since a head averaged with half of another is none.
    Settings that a forward pass uses are warned of, with the value that the output has. A setting that only one of
    two models states is left alone: the other may well have it by default.

    Args:
        donor: the model whose config.json the output gets.
        models: the inputs.
        allow_crimes: warn instead of refusing.
        problems: where problems go.
        notes: where notes go.
        warnings: where warnings go.
    """
    for problem in _misstated(donor, models):
        problems.add(problem)
    ours = _settings(donor.checkpoint.config)
    differing: dict[str, dict[str, object]] = {}
    for model in models:
        if model is not donor:
            for key, value in _differences(ours, _settings(model.checkpoint.config), donor.checkpoint.config).items():
                differing.setdefault(key, {})[model.label] = value
    others = []
    for key, values in differing.items():
        listed = ", ".join(f"{_shown(value)} in {label}" for label, value in values.items())
        mine = _shown(ours.get(key))
        if _cuts(key, values.values()):
            line = (
                f"config.json: `{key}` is {listed}, and {mine} in {donor.label}: equal shapes are cut into other parts"
            )
            if allow_crimes:
                warnings[f"{line}, as allowed"] = None
            elif not problems.call_for_fusion:  # else shapes differ too, and the sizes are listed with them
                problems.add(f"{line}; merge models that agree in it (`allow_crimes` merges them all the same)")
        elif _ACTIVATION.search(_last(key)) or _BEHAVIOUR.search(_last(key)) or "rope_scaling." in key:
            warnings[f"config.json: `{key}` is {listed}; the output has {mine}, as {donor.label}"] = None
        else:
            others.append(f"`{key}`")
    if others:
        listed = ", ".join(sorted(others))
        notes[f"config.json of the inputs differs in {listed} too; the output has what {donor.label} has"] = None


def _misstated(donor: Model, models: Sequence[Model]) -> Iterator[str]:
    """Yield sizes that the donor's config.json states, no tensor has, and another model states as they are."""
    sizes = {size for info in donor.checkpoint.tensors.values() for size in info.shape}
    sizes |= {size // 2 for size in sizes}  # gate and up in one
    for key in _SIZES:
        mine, *others = (
            [section[key] for section in text_sections(model.checkpoint.config) if type(section.get(key)) is int]
            for model in (donor, *models)
        )
        right = [(it, of.label) for found, of in zip(others, models, strict=True) for it in found if it in sizes]
        if mine and right and sizes.isdisjoint(mine):
            size, label = right[0]
            yield (
                f"config.json: `{key}` is {mine[0]} in {donor.label}, and no tensor has this size: the result, which "
                f"gets this config.json, would not load; correct it ({label} has {size})"
            )


def _cuts(key: str, values: Iterable[object]) -> bool:
    """Return whether a setting decides how equal shapes are cut, or the order of their rows."""
    numbers = all(type(value) is int or isinstance(value, list) for value in values)
    return (numbers and _CUTS.search(_last(key)) is not None) or _ORDERS.search(_last(key)) is not None


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, object]:
    """Return what the other model states otherwise than the donor, whose config.json is `config`."""
    found = {key: value for key, value in theirs.items() if key in ours and not _equal(key, ours[key], value)}
    for key in [key for key in found if _last(key) == "sliding_window"]:
        # One says that its window is not used; whether the other's is, its class decides.
        switch = key.removesuffix("sliding_window") + "use_sliding_window"
        if (switch in ours) != (switch in theirs) and False in (ours.get(switch), theirs.get(switch)):
            del found[key]
    # What all classes mean by no scaling, and nearly all by no base.
    usual: list[tuple[str, object]] = [("rope_type", "default")]
    if not _OWN_THETA.search(str(config.get("model_type"))):
        usual.append(("rope_theta", _USUAL_THETA))
    for key, value in usual:
        if (key in ours) != (key in theirs) and not _equal(key, ours.get(key, value), theirs.get(key, value)):
            found[key] = theirs.get(key)
    # Most classes have no window where config.json states none, and the others this one.
    for key in {key for key in (*ours, *theirs) if _last(key) == "sliding_window"}:
        stated = ours.get(key, theirs.get(key))
        if (key in ours) != (key in theirs) and type(stated) is int and stated != _USUAL_WINDOW:
            found[key] = theirs.get(key)
    return found


def _equal(key: str, ours: object, theirs: object) -> bool:
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) != len(theirs):
        return True  # one entry per layer, of models of unequal depth
    if isinstance(ours, str) and isinstance(theirs, str) and _ACTIVATION.search(_last(key)):
        ours, theirs = (_ACTIVATIONS.get(name, name) for name in (ours.lower(), theirs.lower()))
    return ours == theirs


def _shown(value: object) -> str:
    text = "unset" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Collect what config.json states, by one name for each setting; what the text model has stands at the top."""
    found: dict[str, Any] = {}
    sections: dict[str, Any] = {}
    for key, value in config.items():
        if key in _ROPE_SECTIONS or key in _OTHER_SECTIONS:
            continue
        if isinstance(value, dict):
            inner = prefix if key in TEXT_SECTIONS else f"{prefix}{key}."
            sections |= _settings(value, inner)
        elif not (_OTHER.search(key) or key in _GENERATION or is_layer_count_key(key)):
            found[f"{prefix}{key}"] = value
    _settle_rope(config, found, prefix)
    if "hidden_activation" in config or str(config.get("model_type")).startswith("gemma"):
        # Gemma's first configs name another one under `hidden_act`, which its class never uses.
        found.pop(f"{prefix}hidden_act", None)
        found[f"{prefix}hidden_activation"] = config.get("hidden_activation") or "gelu_pytorch_tanh"
    if config.get("use_sliding_window") is False:
        found[f"{prefix}sliding_window"] = None
        found.pop(f"{prefix}max_window_layers", None)
    _settle_heads(found, prefix)
    return found | sections


def _settle_rope(config: Mapping[str, Any], found: dict[str, Any], prefix: str) -> None:
    """Convert rotary positions to one form: transformers 4 has a base and a scaling, transformers 5 one map of both."""
    stated: dict[str, Any] = {}
    for section in map(config.get, _ROPE_SECTIONS):
        for key, value in section.items() if isinstance(section, dict) else ():
            stated |= {f"{key}.{inner}": it for inner, it in value.items()} if isinstance(value, dict) else {key: value}
    kinds = [stated[key] for key in ("rope_type", "full_attention.rope_type", "type") if stated.get(key)]
    if stated or any(key in config for key in ("rope_theta", *_ROPE_NAMES)):
        kind = str(kinds[0]) if kinds else "default"
        found[f"{prefix}rope_type"] = _ROPE_TYPES.get(kind, kind)
    for key, value in stated.items():
        if value is not None and not key.endswith("type"):
            name = _ROPE_NAMES.get(key, key)
            if name not in _ROPE_NAMES.values():
                name = f"rope_scaling.{key.removeprefix('full_attention.')}"
            found[f"{prefix}{name}"] = value
    for old, new in _ROPE_NAMES.items():
        if f"{prefix}{old}" in found:
            found[f"{prefix}{new}"] = found.pop(f"{prefix}{old}")
    original = found.pop(f"{prefix}original_max_position_embeddings", None)
    if original is not None:
        found.setdefault(f"{prefix}rope_scaling.original_max_position_embeddings", original)


def _settle_heads(found: dict[str, Any], prefix: str) -> None:
    """Replace null among the heads by what it means."""
    heads, width = found.get(f"{prefix}num_attention_heads"), found.get(f"{prefix}hidden_size")
    meant = {"num_key_value_heads": heads}
    if type(heads) is int and heads > 0 and type(width) is int:
        meant["head_dim"] = width // heads
    for key, value in meant.items():
        if found.get(f"{prefix}{key}", value) is None:
            found[f"{prefix}{key}"] = value
    for key in [key for key, value in found.items() if value is None and _CUTS.search(_last(key))]:
        del found[key]
