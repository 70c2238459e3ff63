"""Options of mergekit and of the seed that are accepted and change nothing, each with the reason; loads nothing."""

from __future__ import annotations

from typing import Final

ON_THE_CPU: Final = "merges run on the CPU, at the speed of the disk"
_SMALL: Final = "memory stays small whatever the models' sizes"
_ADAPTERS: Final = "adapters are applied tile by tile, without a merged copy"
WITHOUT_EFFECT: Final[dict[str, str]] = {
    "lazy_unpickle": "SafeTensors are mapped, never unpickled",
    "low_cpu_memory": _SMALL,
    "low_cpu_mem_usage": _SMALL,
    "cuda": ON_THE_CPU,
    "read_to_gpu": ON_THE_CPU,
    "multi_gpu": ON_THE_CPU,
    "gpu_rich": ON_THE_CPU,
    "async_write": "writing always overlaps with reading and computing",
    "write_threads": "the same threads read, compute and write; --threads sets their number",
    "clone_tensors": "each tensor of the output is written on its own",
    "cleanup": "a merge leaves nothing behind but its output",
    "unsafe_truncate_embeddings": "rows of vocabularies that differ are paired by token, never cut",
    "lora_merge_cache": _ADAPTERS,
    "lora_merge_dtype": _ADAPTERS,
}
"""Options that are accepted, each with why it changes nothing."""
