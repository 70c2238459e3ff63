"""Names of the rows of the evidence, by kind, and of their files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "family"))
from texts import EXPERTS  # noqa: E402

RESULTS: Final = ROOT / "benches" / "evidence" / "results"

SINGLES: Final = ("base", *EXPERTS)
BLOCKS: Final = tuple(f"blocks_{name}" for name in EXPERTS)
RANDOM_MERGES: Final = ("dare_linear", "dare_ties", "della", "della_linear")
MERGES: Final = (
    "linear", "slerp", "multislerp", "karcher", "task_arithmetic", "ties", *RANDOM_MERGES, "breadcrumbs",
    "breadcrumbs_ties", "sce", "consensus_ta", "consensus_ties", "magmax", "localize_and_stitch", "pcb", "cabs",
    "model_stock", "ram", "ramplus_tl",
)  # fmt: skip
SOUPS: Final = ("constant_last", "constant_soup", "decayed_last", "decayed_soup")
MIXTURES: Final = ("mixture_uniform", "mixture_posterior", "mixture_router")
UNTRAINED: Final = ("fused_identity_untrained", "fused_lstsq_untrained", "chain_untrained", "merged_chain_untrained")
FUSED: Final = (
    "fused_identity", "fused_lstsq", "fused_prefix_top1", "fused_token_top2", "chain", "chain_no_domains",
    "chain_prefix_top1", "merged_chain", "merged_chain_top1", "bar",
)  # fmt: skip
# By control: the fusions that it is the control of.
CONTROLS: Final = {
    "control": ("fused_identity",),
    "chain_control": ("chain",),
    "merged_chain_top1_control": ("merged_chain_top1",),
}
LORA: Final = ("lora_base", "lora_merge")
ROWS: Final = (*SINGLES, *BLOCKS, *MERGES, *SOUPS, *MIXTURES, *UNTRAINED, *FUSED, *CONTROLS, *LORA)
# Measured with one seed; the others with three: that of the experts, of random merges and of what is trained on them.
ONCE: Final = (
    "base", *BLOCKS, *UNTRAINED, "control", "fused_identity", "fused_lstsq",
    "fused_prefix_top1", "fused_token_top2", "chain_no_domains", "chain_prefix_top1", "merged_chain",
)  # fmt: skip
# Names on the page, where others.
SHOWN: Final = {
    "blocks_python": "the base with the blocks of python",
    "blocks_kjv": "the base with the blocks of kjv",
    "blocks_wordnet": "the base with the blocks of wordnet",
    "oracle": "oracle: the best of base and experts per document",
    "fused_identity_untrained": "by layer: dense, untrained",
    "fused_lstsq_untrained": "by layer: dense, fitted adapters, untrained",
    "fused_identity": "by layer: dense",
    "fused_lstsq": "by layer: dense, fitted adapters",
    "control": "control of by layer, dense: the base's blocks for the experts'",
    "fused_prefix_top1": "by layer: top-1",
    "fused_token_top2": "by layer: top-2, a router per token",
    "chain_untrained": "chain, dense, untrained",
    "chain": "chain, dense",
    "chain_no_domains": "chain, dense, no domains",
    "chain_prefix_top1": "chain, top-1",
    "chain_control": "control of the chain, dense: the base's blocks",
    "merged_chain_untrained": "merge as host: chain, dense, untrained",
    "merged_chain": "merge as host: chain, dense, 80 steps",
    "merged_chain_top1": "merge as host: chain, top-1",
    "merged_chain_top1_control": "control of the top-1 chain in the merge",
    "bar": "merge as host: MLPs of the experts (BAR), dense",
    "lora_base": "LoRA in the base, as many parameters",
    "lora_merge": "LoRA in the merge by task arithmetic, as many parameters",
    "mixture_uniform": "uniform mixture",
    "mixture_posterior": "posterior mixture",
    "mixture_router": "mixture by a trained router",
    "constant_last": "constant rate: last checkpoint",
    "constant_soup": "constant rate: mean of the last",
    "decayed_last": "falling rate: last checkpoint",
    "decayed_soup": "falling rate: mean of the last",
}


def file_of(row: str, seed: int, results: Path = RESULTS) -> Path:
    """Return the file of a row's result."""
    return results / f"{row}.{seed}.json"
