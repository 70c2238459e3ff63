"""What the name of a tensor says about it: before or after the layers, embedding or head, or a computed buffer."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Literal

from mol.regex import regex

Side = Literal["first", "last", "unknown"]

# The table of sides, first match wins. Weights before the layers take the first slice's sources and the start of a
# gradient, weights after them the last slice's and the end.
_WORDS: Final[tuple[tuple[str, Side], ...]] = (
    # The norm after the last layer of an LFM2, whatever it is called.
    (r"embedding_norm", "last"),
    (
        # Heads, before the embeddings, since `embed_out` is a head.
        r"lm_head\w*|embed_out|output_layer|output|output_projection|head|heads|\w+_head|generator\w*|cls|predictions"
        r"|\w+_predictions|score|classifier|pre_classifier|qa_outputs|pooler|vocab_\w+|final_logits_bias",
        "last",
    ),
    (
        r"\w*embeddings?|embed\w*|\w+_embed|wte|wpe|tok_\w+|word_emb\w*|pos_emb\w*|shared|cls_token"
        r"|embeddings?_\w+|\w+_embeddings?_\w+|ln_pre|pre_layrnorm|emb_norm|project_in|layernorm_embedding"
        r"|rotary_emb|relative_attention_bias|patch_\w+|position_ids|masked_spec_embed",
        "first",
    ),
    (
        r"norm|ln_f|norm_f|f_norm|final_\w*norm|\w*layer_?norm|ln_post|norm_out|project_out|last_\w+|out_norm",
        "last",
    ),
)
_SIDES: Final = tuple((regex(rf"(?:^|\.)(?:{words})(?:\.|$)"), side) for words, side in _WORDS)

HEAD: Final = regex(
    r"(?:^|\.)(?:(?:lm_|generator_lm_)?head\.decoder|(?:generator_)?lm_head(?:\.out_proj)?|embed_out|output_layer|output"
    r"|output_projection|proj_out|vocab_projector|predictions\.decoder|pred_layer\.proj|lm_loss|^decoder|^head)\.weight$"
)
"""The matrix that turns hidden states into scores of tokens."""

EMBEDDING: Final = regex(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings?|embed_in|tok_embeddings|shared|embeddings?|token_embedding|tokens_embed)\.weight$"
)
"""The matrix that turns tokens into hidden states."""

TOKENS_PER_LAYER: Final = regex(r"(?:^|\.)embed_tokens_per_layer\.weight$")
"""The table of a Gemma 3n or 4 that turns tokens into one vector for each layer, all of a token in one row."""

FOR_EACH_LAYER: Final = regex(
    r"(?:^|\.)(?:embed_tokens_per_layer|per_layer_model_projection|contact_head\.regression)\.weight$"
)
"""What is outside of the layers and has a part for each of them, so that its shape depends on their number."""

SHARED_BY_LAYERS: Final = regex(r"(?:^|\.)shared_transf(?:ormer)?\.")
"""What several layers of a Zamba use and only the first of them stores."""

HEAD_BIAS: Final = regex(
    r"(?:^|\.)(?:lm_head(?:\.decoder)?|generator_lm_head|embed_out|output_layer|output_projection|proj_out|vocab_projector"
    r"|predictions(?:\.decoder)?|pred_layer\.proj|lm_loss|^decoder|^output)\.bias$"
)
"""One number for each token, which is added to its score."""

LOGITS_BIAS: Final = regex(r"(?:^|\.)final_logits_bias$")
"""The same of a BART, Marian or Pegasus: one row of numbers."""

EXPERTS_OF_TOKENS: Final = regex(r"\.tid2eid$")
"""The table of a layer of a DeepSeek-V4 that has the experts of each token."""

_COUNTER: Final = regex(r"(?:^|\.)num_batches_tracked$")
_INTEGER: Final = regex(r"[0-9]{1,9}")  # longer ones are no counts, and int() refuses very long ones
_BUFFER: Final = regex(r"(?:^|\.)(?:rotary_emb\.(?:inv_freq|\w+_cached)|attn\.masked_bias|position_ids)$")
_MASK: Final = regex(r"(?:^|\.)attn(?:ention)?\.(?:bias|mask)$")


def side_of(name: str) -> Side:
    """Return the side of a weight outside the layers."""
    for pattern, side in _SIDES:
        if pattern.search(name):
            return side
    return "unknown"


def is_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is a table that the model's code computes itself: causal masks, rotary frequencies.

    Older versions of transformers saved them and newer ones do not, so siblings may differ in them.
    """
    return _BUFFER.search(name) is not None or (
        len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3] and _MASK.search(name) is not None
    )


def is_counter(name: str) -> bool:
    """Return whether a tensor counts training steps, as batch norms do: siblings differ in it, their outputs do not."""
    return _COUNTER.search(name) is not None


@lru_cache(maxsize=65536)
def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort names by their words and their numbers: 2 before 10."""
    return tuple((int(part), "") if _INTEGER.fullmatch(part) else (-1, part) for part in name.split("."))


def head_next_to(prefix: str) -> str:
    """Name the head of a model whose layers are at a path: `lm_head` is next to the outermost module `model`."""
    words = prefix.split(".")
    around = words[: words.index("model")] if "model" in words else []
    return ".".join((*around, "lm_head.weight"))
