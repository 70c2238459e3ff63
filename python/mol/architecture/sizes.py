"""Reads the sizes of a model from its config, whatever its type calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedConfig

# Keys that hold the config of a tower that reads text, most telling first.
_TEXT_TOWERS: Final = (
    "text_config",
    "thinker_config",
    "vlm_config",
    "language_config",
    "encoder",
    "text_encoder",
    "decoder",
)
# Names of a size, the usual first; transformers maps a type's own name to the usual one in most types, not in all.
_WIDTH: Final = ("hidden_size", "d_model", "embed_dim", "hidden_sizes", "embed_dims", "encoder_hidden_dim")
_LAYERS: Final = ("num_hidden_layers", "encoder_layers", "num_layers", "depth", "depths")
_HEADS: Final = ("num_attention_heads", "encoder_attention_heads", "num_heads")
_POSITIONS: Final = ("max_position_embeddings", "max_seq_len", "max_source_positions", "context_length")
_EPSILON: Final = ("layer_norm_eps", "rms_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_INNER: Final = (
    "encoder_ffn_dim",
    "intermediate_size",
    "ffn_dim",
    "d_ff",
    "ffn_hidden_size",
    "n_inner",
    "d_inner",
    "dff",
    "dim_ff",
    "mlp_dim",
    "feed_forward_size",
    "speech_encoder_intermediate_size",
    "decoder_ffn_dim",
    "moe_intermediate_size",
)
_INNER_FACTORS: Final = ("mlp_ratio", "mlp_ratios", "expansion_ratio", "intermediate_multiple_size", "feedforward_mult")
_INNER_DEFAULT: Final = 4
# Types whose config has no key for it, as their classes always multiply by four.
_FOUR_TIMES: Final = frozenset({"bloom", "flaubert", "openai-gpt", "xlm"})


# What the oldest types call theirs.
_FIRST_NAMES: Final = frozenset({"n_embd", "n_layer", "n_head", "n_positions", "vocab_size"})


class Sizes(NamedTuple):
    """The sizes of a tower; None where its config does not say."""

    hidden_dim: int | None
    num_layers: int | None
    num_attention_heads: int | None
    intermediate_size: int | None
    vocab_size: int | None
    max_position_embeddings: int | None
    layer_norm_eps: float | None


def read_sizes(config: PreTrainedConfig, tower: PreTrainedConfig | None = None) -> Sizes:
    """Read the sizes of a tower.

    Args:
        config: the model's config.
        tower: the part of it that describes the tower; if None, the one that reads text, else the first with a width.
    """
    holders = list(_holders(config))
    if tower is None:
        tower = next((holder for holder in holders if _whole(holder, _WIDTH) is not None), config)
    width = _whole(tower, _WIDTH)
    vocabularies = (_whole(holder, ("vocab_size",)) for holder in (tower, *holders))
    return Sizes(
        hidden_dim=width,
        num_layers=_whole(tower, _LAYERS),
        num_attention_heads=_whole(tower, _HEADS),
        intermediate_size=_inner(tower, width),
        vocab_size=next((size for size in vocabularies if size is not None), None),
        max_position_embeddings=_whole(tower, _POSITIONS),
        layer_norm_eps=next((value for value in _values(tower, _EPSILON) if isinstance(value, float)), None),
    )


def most_layers(config: PreTrainedConfig) -> int:
    """Return the number of layers of the deepest tower, 0 where none says."""
    return max(_whole(holder, _LAYERS) or 0 for holder in _holders(config))


def read_rope(config: PreTrainedConfig, tower: PreTrainedConfig | None = None) -> dict[str, Any] | None:
    """Return the rotary positions of the same tower as transformers normalises them, None where it has none."""
    holders = _holders(config) if tower is None else (tower,)
    return next((dict(found) for holder in holders if (found := getattr(holder, "rope_parameters", None))), None)


def stated_sizes(document: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes that a config.json itself states, as it calls them; those of a part after the part's name."""
    known = _FIRST_NAMES.union(_WIDTH, _LAYERS, _HEADS, _POSITIONS, _INNER)
    found: dict[str, int] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": size for inner, size in stated_sizes(value).items()}
        elif key in known and type(value) is int:
            found[key] = value
    return found


def _holders(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield the configs in which to look: of towers of text, the whole, of all other parts."""
    from transformers import PreTrainedConfig

    nested = {key: value for key, value in vars(config).items() if isinstance(value, PreTrainedConfig)}
    for key in _TEXT_TOWERS:
        if key in nested:
            yield from _holders(nested.pop(key))
    yield config
    for value in nested.values():
        yield from _holders(value)


def _values(config: PreTrainedConfig, keys: tuple[str, ...]) -> Iterator[Any]:
    # By getattr, which goes through the type's attribute_map (`hidden_size` is GPT-2's `n_embd`).
    for key in keys:
        try:
            value = getattr(config, key, None)
        except RuntimeError:  # how transformers says that the layers differ in it: no one number is true
            continue
        if value is not None:
            yield value[-1] if isinstance(value, (list, tuple)) and value else value  # stages: the last


def _whole(config: PreTrainedConfig, keys: tuple[str, ...]) -> int | None:
    return next((value for value in _values(config, keys) if type(value) is int and value > 0), None)


def _inner(config: PreTrainedConfig, width: int | None) -> int | None:
    """Return the inner width of a block's feed-forward part."""
    found = _whole(config, _INNER)
    if found is not None or width is None:
        return found
    if config.attribute_map.get("hidden_size") == "dim":  # DistilBERT's `dim` is its width, `hidden_dim` the inner one
        return _whole(config, ("hidden_dim",))
    inside = getattr(config, "ffn_config", None)
    if inside is not None:
        return _whole(inside, _INNER)
    factor = next((value for value in _values(config, _INNER_FACTORS) if isinstance(value, (int, float))), None)
    if factor is not None:
        return int(width * factor)
    left_open = any(key in vars(config) for key in _INNER)  # null in the config: the class multiplies
    return _INNER_DEFAULT * width if left_open or config.model_type in _FOUR_TIMES else None
