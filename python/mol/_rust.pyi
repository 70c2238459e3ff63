"""The merge engine: runs plans made in Python, in bounded memory, with the GIL released.

Every function raises the classes of `mol.errors`; what the operating system refuses raises the built-in subclass of
`OSError`. Calls that take `on_progress` run it on the calling thread about every 100 ms; an exception from it, or a
signal, stops the work within a tile and is raised once it has stopped.
"""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Final, final

__all__ = [
    "PartialLock",
    "__version__",
    "checksum",
    "checksum_tensors",
    "commit",
    "compare",
    "execute",
    "methods",
    "plan_cost",
    "plan_digest",
    "preflight",
    "read_header",
]

__version__: Final[str]

def read_header(path: str | PathLike[str]) -> tuple[int, int, str, list[tuple[str, str, tuple[int, ...], int]]]:
    """Read and check the header of a SafeTensors file.

    Args:
        path: The file.

    Returns:
        Its size in bytes, its time of last change in nanoseconds since 1970, the BLAKE3 digest of its header in
        hexadecimal, and its tensors in file order as (name, dtype, shape, bytes); dtypes are SafeTensors names.

    Raises:
        CheckpointError: The header is cut, overlaps, leaves holes, overflows, or names a tensor twice.
        OSError: The file cannot be read.
    """

def methods() -> list[tuple[str, list[str], int]]:
    """List the methods of the engine.

    Returns:
        Of each its name in a plan, the names of its numbers, and how often it reads its sources, extra sweeps of a
        search for a threshold not counted.
    """

def plan_digest(plan: str) -> str:
    """Name the work of a plan: BLAKE3 of its canonical form, which holds no path and no time.

    Raises:
        MergeError: The plan is not a plan of this engine's version.
    """

def plan_cost(
    plan: str, *, threads: int | None = None, tile: int | None = None, memory: int | None = None
) -> tuple[int, int]:
    """Tell what running a plan takes.

    Args:
        plan: The plan as JSON.
        threads: Size of the pool; all cores by default.
        tile: Elements of a tile.
        memory: Bytes that tensors being merged may hold together, as `execute` takes it.

    Returns:
        Bytes of the weight files with their headers, and bytes of heap that `execute` takes at most.

    Raises:
        MergeError: The plan is not a plan of this engine's version, or a source made of others does not fit.
        CheckpointError: An input that such a source is made of is damaged or has changed.
        OSError: It cannot be read.
    """

@final
class PartialLock:
    """The place of a merge, kept for this process from the first look at it until it is closed.

    A lock on the journal of the partial directory, which goes with it through the rename. Where nothing is there yet,
    nothing is made: `execute` makes it. What a commit left that was cut short after its rename is cleaned up.
    """

    def __new__(cls, partial: str | PathLike[str], out: str | PathLike[str]) -> PartialLock:
        """Look at a place.

        Args:
            partial: The directory that `execute` will fill.
            out: Where the checkpoint goes.

        Raises:
            MergeError: Another process is at work there, or no rename can put a directory there.
            OSError: The system refused.
        """

    @property
    def warning(self) -> str | None:
        """Why processes of other machines are not kept out; None where they are."""

    def close(self) -> None:
        """Give the place up; an unfinished merge stays there for a resume."""

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

    Inputs are what the plan was made from, every task fits them, integer and bool tensors that must be equal are, the
    disk has room, and `partial` is free or holds unfinished work of the same plan.

    Args:
        plan: The plan as JSON.
        partial: The directory that `execute` will fill.
        discard_partial: Remove other work found there instead of refusing it.
        threads: Number of worker threads; all cores by default.
        mmap: Map the inputs, or do not; by default as `execute` takes it.
        lock: What holds the place; by default it is held during the call.

    Returns:
        JSON: `bytes_needed`, `bytes_free`, and `resumable`, the number of tensors that an earlier run has finished.

    Raises:
        CheckpointError: An input is damaged, has changed, or does not fit.
        MergeError: The plan is unsound, other work is in the way, or the disk is too small.
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

    Tensors start in the order of the output. After a failure none starts that comes after the one that failed, so the
    error raised is always that of the first. What is finished stays in `partial`, whatever happens.

    Processes that are each given `outputs` of their own, and no `lock`, work in `partial` at the same time, on one
    machine or on several that share the file system; then `commit` follows. Where the file system has no locks (flock)
    only those of this machine know of each other, and only if one had begun when the next did; the report says so.

    Args:
        plan: The plan as JSON.
        partial: The directory to fill.
        outputs: Indices of the output files to write, each of which keeps a file open; all by default, which takes that
            no other process is at work in `partial`.
        threads: Number of worker threads; all cores by default. They have ended when this returns.
        memory: Bytes that tensors being merged may hold together, beside the strips of each thread; a quarter of what
            is available by default. A tensor that needs more runs alone.
        mmap: Map the inputs into memory, or read them; by default they are mapped but for those on network file systems
            and FUSE, where a server that fails would end the process.
        tile: Elements of a tile, a multiple of 65,536; the bytes written do not depend on it.
        simd: "auto", "off", "avx2" or "avx512"; the bytes written do not depend on it.
        digest: Add a cryptographic digest of each tensor: "blake3" or "sha256"; the finished files are read again.
        sync: Let the system write to the disk what is finished while the rest is computed, and wait at the end of each
            output file until all of it is there. On network file systems that is always waited for.
        on_progress: Called with bytes read, bytes to read, bytes written, bytes to write.
        on_output: Called with the name of each output file that is complete and closed.
        lock: What holds the place; by default it is held during the call.

    Returns:
        JSON: `plan_digest`, `files` and `tensors` of the outputs with their CRC-64/NVME, `bytes_read`, `bytes_written`,
        `resumed`, the number of tensors that an earlier run had finished, and `warning` where nothing can be locked.

    Raises:
        MergeError: NaN, infinity or overflow was met, other work is in the way, another process is at work on all of
            `partial` or on one of these outputs, or the plan is unsound.
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
    """Turn a finished partial directory into `out` by one rename.

    Args:
        partial: The directory, with every output file complete; the journals are removed.
        out: Where the checkpoint goes; an empty directory there is replaced.
        overwrite: Replace a directory that is not empty, which is removed once the new one is in its place.
        sync: Wait until everything is on the disk before the rename, and the rename before anything is removed.
        lock: What holds the place; by default it is held during the call.

    Returns:
        Why what was at `out` could not be removed, and where it is now; None where nothing is left of it.

    Raises:
        MergeError: `out` is not empty, and `overwrite` was not given; an output is not complete; a process is at work.
        OSError: The system refused.
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
        threads: Size of the pool; all cores by default.
        on_progress: Called with bytes read and bytes to read.

    Returns:
        JSON: `size`, `crc64nvme` of the file, and `tensors` with `name`, `crc64nvme` and the digest asked for.

    Raises:
        CheckpointError: The header is damaged.
        OSError: The file cannot be read.
    """

def checksum_tensors(path: str | PathLike[str], tensors: Sequence[str], *, threads: int | None = None) -> list[str]:
    """Compute the checksums of some tensors of a SafeTensors file; of the others no byte is read.

    Args:
        path: The file.
        tensors: Their names.
        threads: Size of the pool; all cores by default.

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
    """Measure how far tensors are apart, streamed.

    Args:
        pairs: (file a, tensor a, file b, tensor b), of float dtypes and equal shapes.
        threads: Size of the pool; all cores by default.
        mmap: Map the files, or do not; by default as `execute` takes it.
        on_progress: Called with bytes read and bytes to read.

    Returns:
        For each pair the norm of a, the norm of b, the norm of b - a, the dot product, the largest |b - a|, and the
        first element where it is reached; sums are in f64.

    Raises:
        CheckpointError: A tensor is missing, is not of a float dtype, or the shapes differ.
        OSError: A file cannot be read.
    """
