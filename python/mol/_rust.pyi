"""The merge engine: runs plans made in Python, in bounded memory, with the GIL released.

Every function raises the classes of `mol.errors`; errors of the operating system raise the built-in subclass of
`OSError`, and a panic of the engine raises `InternalError`. Calls that take `on_progress` run it on the calling thread
about every 100 ms; an exception from it, or a signal, stops the work within a tile and is raised once it has stopped.
"""

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from os import PathLike
from typing import Final, final, overload

__all__ = [
    "PartialLock",
    "__version__",
    "checksum",
    "checksum_tensors",
    "commit",
    "compare",
    "execute",
    "extend_vocabulary",
    "methods",
    "plan_cost",
    "plan_digest",
    "preflight",
    "read_header",
    "read_vocabulary",
]

__version__: Final[str]

@overload
def read_header(
    path: str | PathLike[str], known: None = None
) -> tuple[int, int, str, list[tuple[str, str, tuple[int, ...], int]]]: ...
@overload
def read_header(
    path: str | PathLike[str], known: AbstractSet[tuple[str, int]]
) -> tuple[int, int, str, list[tuple[str, str, tuple[int, ...], int]] | None]:
    """Read and check the header of a SafeTensors file.

    Args:
        path: The file.
        known: Digests and sizes of files whose tensors need not be returned again.

    Returns:
        Its size in bytes, its modification time in nanoseconds since 1970, the BLAKE3 digest of its header in
        hexadecimal, and its tensors in file order as (name, dtype, shape, bytes), or None if its digest and size are
        known; dtypes are SafeTensors names.

    Raises:
        CheckpointError: The header is truncated, or its tensors overlap, leave holes, overflow or have duplicate names.
        OSError: The file cannot be read.
    """

def read_vocabulary(data: bytes) -> tuple[dict[str, int], list[float] | None, str] | None:
    """Read the bytes of a `tokenizer.json`.

    Args:
        data: The file.

    Returns:
        The id of each token of its model, the scores of a Unigram model by id, and all else but the merges as JSON;
        None if it is no such file.
    """

def extend_vocabulary(data: bytes, entries: str, added: str) -> str | None:
    """Add to the bytes of a `tokenizer.json`.

    Args:
        data: The file.
        entries: What comes behind the entries of the vocabulary of its model: JSON, without brackets.
        added: The same, of its added tokens.

    Returns:
        The file, in which all else is as it was; None if it is no such file.
    """

def methods() -> list[tuple[str, list[str], int]]:
    """List the methods of the engine.

    Returns:
        For each method its name in a plan, the names of its parameters, and how often it reads its sources, not
        counting extra sweeps of a threshold search.
    """

def plan_digest(plan: str) -> str:
    """Compute the digest of a plan: BLAKE3 of its canonical form, which contains no path and no time.

    A file counts by its size and the digest of its header: fine-tunes of one model that change roles give the same.

    Raises:
        MergeError: The plan is not valid for this version of the engine.
    """

def plan_cost(
    plan: str, *, threads: int | None = None, tile: int | None = None, memory: int | None = None
) -> tuple[int, int, int]:
    """Compute the disk space and memory that running a plan takes.

    Args:
        plan: The plan as JSON.
        threads: Number of worker threads; all cores by default.
        tile: Elements per tile.
        memory: Bytes that tensors being merged may hold together, as `execute` takes it.

    Returns:
        Bytes of the weight files with their headers, the maximum bytes that stages take on the disk while tensors are
        computed from them, and the maximum heap of `execute` in bytes.

    Raises:
        MergeError: The plan is not valid for this version of the engine, or an expression does not fit.
        CheckpointError: An input that an expression reads is damaged or has changed.
        OSError: An input cannot be read.
    """

@final
class PartialLock:
    """The output of a merge, reserved for this process from the first check until it is closed.

    A lock on the journal of the partial directory, which stays with it through the rename. Nothing is created if the
    directory does not exist: `execute` creates it. A commit that was interrupted after its rename is completed.
    """

    def __new__(cls, partial: str | PathLike[str], out: str | PathLike[str]) -> PartialLock:
        """Check and lock a partial directory.

        Args:
            partial: The directory that `execute` will fill.
            out: Path of the checkpoint.

        Raises:
            MergeError: Another process is working there, or no rename can put a directory there.
            OSError: The operating system reported an error.
        """

    @property
    def warning(self) -> str | None:
        """A warning if processes of other machines are not kept out; None if they are."""

    def close(self) -> None:
        """Release the lock; an unfinished merge stays there for a resume."""

def preflight(
    plan: str,
    partial: str | PathLike[str],
    *,
    discard_partial: bool = False,
    threads: int | None = None,
    mmap: bool | None = None,
    lock: PartialLock | None = None,
) -> str:
    """Check everything that can be checked before the first byte is written.

    Inputs are unchanged since the plan was made, every task fits them, integer and bool tensors that must be equal are
    equal, the disk has room, and `partial` is free or contains unfinished work of the same plan.

    Args:
        plan: The plan as JSON.
        partial: The directory that `execute` will fill.
        discard_partial: Remove other work found there instead of refusing it.
        threads: Number of worker threads; all cores by default.
        mmap: Whether to map the inputs; the default is that of `execute`.
        lock: The lock on `partial`; by default it is locked during the call.

    Returns:
        JSON: `bytes_needed`, `bytes_free`, and `resumable`, the number of tensors that an earlier run has finished.

    Raises:
        CheckpointError: An input is damaged, has changed, or does not fit.
        MergeError: The plan is invalid, `partial` contains other work, or the disk is too small.
        OSError: Reading failed.
    """

def execute(
    plan: str,
    partial: str | PathLike[str],
    *,
    outputs: Sequence[int] | None = None,
    threads: int | None = None,
    memory: int | None = None,
    mmap: bool | None = None,
    tile: int | None = None,
    simd: str = "auto",
    digest: str | None = None,
    sync: bool = True,
    on_progress: Callable[[int, int, int, int], object] | None = None,
    on_output: Callable[[str], object] | None = None,
    lock: PartialLock | None = None,
) -> str:
    """Run a plan: write its shards, index and journals into `partial`, or finish what an earlier run left there.

    Tensors start in output order. After a failure no later tensor starts, so the error raised is always that of the
    first one that fails. Finished work stays in `partial`, whatever happens.

    Processes that are each given `outputs` of their own, and no `lock`, work in `partial` at the same time, on one
    machine or on several that share the file system; then `commit` follows. Where the file system has no locks (flock)
    only processes of this machine notice each other, and only if one had started when the next did; the report says so.

    Args:
        plan: The plan as JSON.
        partial: The directory to fill.
        outputs: Indices of the output files to write, each of which keeps a file open; all by default, which requires
            that no other process is working in `partial`.
        threads: Number of worker threads; all cores by default. They have exited when this returns.
        memory: Bytes that tensors being merged may hold together, in addition to the strips of each thread; by default
            a quarter of the available memory. A tensor that needs more runs alone.
        mmap: Map the inputs into memory instead of reading them; by default all are mapped except those on network file
            systems and FUSE, where a failing server would kill the process.
        tile: Elements per tile, a multiple of 65,536; the bytes written do not depend on it.
        simd: "auto", "off", "avx2" or "avx512"; the bytes written do not depend on it.
        digest: Add a cryptographic digest of each tensor: "blake3" or "sha256"; the finished files are read back.
        sync: Start writing finished tiles to disk while the rest is computed, and sync each output file when it is
            complete. On network file systems files are always synced.
        on_progress: Called with bytes read, bytes to read, bytes written, bytes to write.
        on_output: Called with the name of each output file that is complete and closed.
        lock: The lock on `partial`; by default it is locked during the call.

    Returns:
        JSON: `plan_digest`, `files` and `tensors` of the outputs with their CRC-64/NVME, `bytes_read`, `bytes_written`,
        `resumed`, the number of tensors that an earlier run had finished, and `warning` if locks are not supported.

    Raises:
        MergeError: The data contain NaN, infinity or overflow, `partial` contains other work, another process is
            writing it or one of these outputs, or the plan is invalid.
        CheckpointError: An input is damaged, does not fit, or has changed since planning or during the run.
        OSError: Reading or writing failed; `partial` stays, and the same call resumes.
    """

def commit(
    partial: str | PathLike[str],
    out: str | PathLike[str],
    *,
    overwrite: bool = False,
    sync: bool = True,
    lock: PartialLock | None = None,
) -> str | None:
    """Rename a finished partial directory to `out`.

    Args:
        partial: The directory, with every output file complete; the journals are removed.
        out: Path of the checkpoint; an empty directory there is replaced.
        overwrite: Replace a directory that is not empty; the old one is removed after the rename.
        sync: Sync everything before the rename, and the rename before anything is removed.
        lock: The lock on `partial`; by default it is locked during the call.

    Returns:
        Why the old `out` could not be removed, and where it is now; None if nothing is left of it.

    Raises:
        MergeError: `out` is not empty and `overwrite` was not given, an output is incomplete, or another process is
            working there.
        OSError: The operating system reported an error.
    """

def checksum(
    path: str | PathLike[str],
    *,
    digest: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> str:
    """Read a SafeTensors file and compute its checksums.

    Args:
        path: The file.
        digest: Add a cryptographic digest of each tensor: "blake3" or "sha256".
        threads: Number of worker threads; all cores by default.
        on_progress: Called with bytes read and bytes to read.

    Returns:
        JSON: `size`, `crc64nvme` of the file, and `tensors` with `name`, `crc64nvme` and the requested digest.

    Raises:
        CheckpointError: The header is damaged.
        OSError: The file cannot be read.
    """

def checksum_tensors(path: str | PathLike[str], tensors: Sequence[str], *, threads: int | None = None) -> list[str]:
    """Compute the checksums of some tensors of a SafeTensors file, without reading the others.

    Args:
        path: The file.
        tensors: Their names.
        threads: Number of worker threads; all cores by default.

    Returns:
        CRC-64/NVME of each, in hexadecimal, in the order of the names.

    Raises:
        CheckpointError: The header is damaged, or there is no such tensor.
        OSError: The file cannot be read.
    """

def compare(
    pairs: Sequence[tuple[str | PathLike[str], str, str | PathLike[str], str]],
    *,
    threads: int | None = None,
    mmap: bool | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> list[tuple[float, float, float, float, float, int]]:
    """Compute the distances between pairs of tensors, streamed.

    Args:
        pairs: (file a, tensor a, file b, tensor b), of float dtypes and equal shapes.
        threads: Number of worker threads; all cores by default.
        mmap: Whether to map the files; the default is that of `execute`.
        on_progress: Called with bytes read and bytes to read.

    Returns:
        For each pair the norm of a, the norm of b, the norm of b - a, the cosine (0 where a norm is), the largest
        |b - a|, and the first element where it is reached; sums are in f64.

    Raises:
        CheckpointError: A tensor is missing, is not of a float dtype, or the shapes differ.
        OSError: A file cannot be read.
    """
