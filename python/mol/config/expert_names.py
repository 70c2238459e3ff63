"""The other names of an expert's tensor, so that a filter fits it whichever way a checkpoint stores experts."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from mol.regex import regex

_WORDS: Final = (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
_BLOCKS: Final = ("mlp.", "block_sparse_moe.")
_SINGLE: Final = regex(r"(?P<start>(?:.*\.)?)experts\.(?P<expert>[0-9]{1,6})\.(?P<word>\w+)(?P<end>\.\w+)")
_FUSED: Final = regex(r"(?P<start>(?:.*\.)?)experts\.(?P<word>gate_up_proj|down_proj)")
_ABOUT_EXPERTS: Final = regex(r"experts|(?<![a-z0-9])w[123](?![a-z0-9])|(?:gate|up|down)_proj")


def is_about_experts(text: str) -> bool:
    """Return whether a filter has a word for the experts or for the tensors of one; others fit names as they are."""
    return _ABOUT_EXPERTS.search(text) is not None


@lru_cache(maxsize=65536)
def other_names(name: str) -> tuple[str, ...]:
    """Return what else a tensor of experts is called, where each has its own tensors and where they are fused."""
    match = _SINGLE.fullmatch(name)
    if match is not None:
        words = next((words for words in _WORDS if match["word"] in words), (match["word"],))
        fused = "down_proj" if "down_proj" in words else "gate_up_proj"
        ends = [f"experts.{match['expert']}.{word}{match['end']}" for word in words]
        ends += [f"experts.{fused}"] if len(words) > 1 else []
    else:
        match = _FUSED.fullmatch(name)
        if match is None:
            return ()
        ends = [f"experts.{match['word']}", *(["experts.w2"] if match["word"] == "down_proj" else [])]
    start = match["start"]
    here = next((block for block in _BLOCKS if start.endswith(block)), None)
    starts = [start] if here is None else [start.removesuffix(here) + block for block in _BLOCKS]
    return tuple(other for beginning in starts for end in ends if (other := beginning + end) != name)
