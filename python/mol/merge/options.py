"""What a caller may choose about a run that the recipe does not say."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from mol.config.document import shown
from mol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

Simd = Literal["auto", "off", "avx2", "avx512"]
Digest = Literal["blake3", "sha256"]
ExpertLayout = Literal["single", "fused"]


class OptionFields(TypedDict, total=False):
    """The fields of MergeOptions as keyword arguments; sizes also as texts, and three under mergekit's names too."""

    threads: int | None
    num_threads: int | None
    memory: int | str | None
    mmap: bool | None
    out_shard_size: int | str
    overwrite: bool
    overwrite_all: bool
    discard_partial: bool
    allow_nonfinite: bool
    strict_tensors: bool
    copy_tokenizer: bool
    write_model_card: bool
    trust_remote_code: bool
    allow_crimes: bool
    sync: bool
    digest: Digest | None
    seed: int
    random_seed: int
    tile: int | None
    simd: Simd
    cache_dir: Path | str | None
    transformers_cache: Path | str | None
    token: str | None
    dtype: str | None
    expert_layout: ExpertLayout | None
    check_load: bool


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """Everything about a run that the recipe does not say; none of it changes a value but `dtype` and `seed`.

    Attributes:
        threads: worker threads, all cores if None.
        memory: bytes that tensors being merged may hold together, a quarter of what is available if None; what each
            thread works in comes on top.
        mmap: map the inputs into memory, or read them; if None they are mapped but for those on network file systems
            and FUSE, where a failing server would end the process instead of raising OSError.
        out_shard_size: most bytes of tensors in one output file (a larger tensor gets a file of its own).
        overwrite: replace a model that is already at the output path, after the new one is complete; refused where
            other files than a model's are there.
        overwrite_all: the same, with everything that is there.
        discard_partial: throw away what an earlier, different merge left unfinished in the same directory.
        allow_nonfinite: let NaN and infinity through instead of stopping.
        strict_tensors: refuse where a tensor would be copied because not all models have it, or dropped.
        copy_tokenizer: write tokenizer files.
        write_model_card: write a README.md.
        trust_remote_code: also copy Python files and what points to them.
        allow_crimes: admit mixed architectures whose shapes are equal, heads that cut equal shapes otherwise, and ids
            that are other tokens in other models; each with a warning.
        sync: have everything on the disk before the output appears, and before an earlier one is removed.
        digest: a cryptographic digest of each tensor, in addition to its checksum.
        seed: key of the random methods.
        tile: elements a thread takes at a time, for tests and measurements.
        simd: the instruction set, for tests and measurements.
        cache_dir: the Hub cache, huggingface_hub's own if None.
        token: the Hub token, huggingface_hub's own if None.
        dtype: overrides the recipe's `dtype`, any spelling the recipe takes.
        expert_layout: how the output stores experts: a tensor for each ("single") or all in one ("fused"); None as the
            donor does.
        check_load: instantiate the result with transformers before it appears, and compare names and shapes.
    """

    threads: int | None = None
    memory: int | None = None
    mmap: bool | None = None
    out_shard_size: int = 5_000_000_000
    overwrite: bool = False
    overwrite_all: bool = False
    discard_partial: bool = False
    allow_nonfinite: bool = False
    strict_tensors: bool = False
    copy_tokenizer: bool = True
    write_model_card: bool = True
    trust_remote_code: bool = False
    allow_crimes: bool = False
    sync: bool = True
    digest: Digest | None = None
    seed: int = 0
    tile: int | None = None
    simd: Simd = "auto"
    cache_dir: Path | str | None = None
    token: str | None = field(default=None, repr=False)
    dtype: str | None = None
    expert_layout: ExpertLayout | None = None
    check_load: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all at once."""
        numbers = (
            ("out_shard_size", self.out_shard_size, 1, 2**63 - 1, "a shard holds at least one byte"),
            ("seed", self.seed, 0, 2**64 - 1, "a seed is a number from 0 to 2**64 - 1"),
            ("threads", self.threads, 1, None, "a run needs at least one thread"),
            ("memory", self.memory, 0, 2**63 - 1, "it is a number of bytes below 2**63"),
            ("tile", self.tile, 1, 1 << 30, "a tile has from 1 to 2**30 elements"),
        )
        texts = (
            ("digest", self.digest, (None, *get_args(Digest)), "it is blake3, sha256 or none"),
            ("expert_layout", self.expert_layout, (None, *get_args(ExpertLayout)), "it is single, fused or none"),
            ("simd", self.simd, get_args(Simd), f"it is one of {', '.join(get_args(Simd))}"),
        )
        flags = {item.name: getattr(self, item.name) for item in fields(self) if isinstance(item.default, bool)}
        if self.mmap is not None:
            flags["mmap"] = self.mmap
        problems = [
            f"{name} is {shown(value)}, but {wanted}"
            for name, value, low, high, wanted in numbers
            if not (value is None and name in ("threads", "memory", "tile")) and not _is_number(value, low, high)
        ] + [f"{name} is {shown(value)}, but {wanted}" for name, value, known, wanted in texts if value not in known]
        problems += [
            f"{name} is {shown(value)}, but it is True or False"
            for name, value in flags.items()
            if not isinstance(value, bool)
        ]
        if problems:
            raise ConfigError.listing("the options of this run do not hold", problems)

    @property
    def workers(self) -> int | None:
        """`threads`, but no more than this machine can use."""
        return None if self.threads is None else min(self.threads, most_threads())


def most_threads() -> int:
    """Return the most worker threads that are started: a few per core, some more on a small machine."""
    return max(16, 4 * (os.cpu_count() or 1))


def _is_number(value: object, low: int, high: int | None) -> bool:
    """Return whether a value is a whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return low <= value and (high is None or value <= high)
