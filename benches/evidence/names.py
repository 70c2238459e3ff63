"""Names of the rows of the evidence, by kind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "family"))
from texts import EXPERTS

SINGLES: Final = ("base", *EXPERTS)
BLOCKS: Final = tuple(f"blocks_{name}" for name in EXPERTS)
RANDOM_MERGES: Final = ("dare_linear", "dare_ties", "della", "della_linear")
MERGES: Final = (
    "linear", "slerp", "multislerp", "karcher", "task_arithmetic", "ties", *RANDOM_MERGES, "breadcrumbs",
    "breadcrumbs_ties", "sce", "consensus_ta", "consensus_ties", "magmax", "localize_and_stitch", "pcb", "cabs",
    "model_stock", "ram", "ramplus_tl",
)  # fmt: skip
SOUPS: Final = ("constant_last", "constant_soup", "decayed_last", "decayed_soup")
MIXTURES: Final = ("mixture_uniform", "mixture_posterior")
UNTRAINED: Final = ("fused_identity_untrained", "fused_lstsq_untrained", "chain_untrained")
FUSED: Final = (
    "fused_identity", "fused_lstsq", "fused_token_router", "fused_prefix_top1", "fused_token_top2", "chain",
    "chain_no_domains", "chain_lstsq", "chain_prefix_top1",
)  # fmt: skip
