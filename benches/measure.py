"""Run a command and say what it took in time and memory, with warm or cold files, in a memory cgroup or not."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
CGROUPS = Path("/sys/fs/cgroup")
POPULATED = 6 << 30


@dataclass(frozen=True)
class Taken:
    """One run: seconds of wall clock and of CPU, peak bytes of RssAnon and page tables (sampled) and of RSS (VmHWM)."""

    wall: float
    cpu: float
    anonymous: int
    tables: int
    resident: int


def populate() -> None:
    """Touch the free memory that a run will take, and free it again.

    A virtual machine that reports free pages to its host gets them back on first touch, at several times the cost of
    a copy, and which run pays for that is chance. Pages in use as page cache are left alone.
    """
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemFree:"))
    size = min(POPULATED, int(free.split()[1]) * 1024 * 9 // 10)
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def status_bytes(pid: int, keys: Sequence[str]) -> dict[str, int]:
    """The named kB lines of /proc/PID/status, in bytes; none where there is no such file."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key: int(found[key].split()[0]) * 1024 for key in keys if key in found}


def run(command: Sequence[str], *, log: Path, prefix: Sequence[str] = (), every: float = 0.005) -> Taken:
    """Run a command to its end, sampling its memory every few ms.

    Args:
        command: what to run.
        log: gets its output.
        prefix: put before the command, see `memory_limit`.
        every: seconds between two samples.

    Raises:
        RuntimeError: it failed; the message holds the end of its output.
    """
    peaks = {"RssAnon": 0, "VmPTE": 0, "VmHWM": 0}
    ended = threading.Event()

    def sample(pid: int) -> None:
        while not ended.wait(every):
            for key, value in status_bytes(pid, tuple(peaks)).items():
                peaks[key] = max(peaks[key], value)

    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # An ordinary Python keeps its compiled modules, which the first, uncounted run then writes.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with log.open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [*prefix, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        sampler = threading.Thread(target=sample, args=(process.pid,))
        sampler.start()
        _, wait_status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        ended.set()
        sampler.join()
    process.returncode = os.waitstatus_to_exitcode(wait_status)
    if process.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"{' '.join([*prefix, *command])} ended with {process.returncode}:\n{end}")
    return Taken(wall, usage.ru_utime + usage.ru_stime, *peaks.values())


def warm(files: Iterable[Path]) -> None:
    """Read files so that they are in the page cache."""
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def cool(files: Iterable[Path]) -> str:
    """Drop files from the page cache, and return by which means."""
    os.sync()  # only clean pages can go
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        DROP_CACHES.write_text("3\n")
    except (FileNotFoundError, PermissionError):
        return "posix_fadvise"
    return "drop_caches"


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[list[str]]:
    """A memory cgroup of `limit` bytes (v1, or v2 by hand or by systemd-run), as a prefix for commands to run in it.

    Raises:
        PermissionError: none can be made here; the message says what was found.
    """
    if (CGROUPS / "memory" / "memory.limit_in_bytes").exists():
        parent, setting = CGROUPS / "memory", "memory.limit_in_bytes"
    elif "memory" in read_words(CGROUPS / "cgroup.subtree_control"):
        parent, setting = CGROUPS, "memory.max"
    elif shutil.which("systemd-run") and Path("/run/systemd/system").exists():
        scope = [] if os.geteuid() == 0 else ["--user"]
        yield ["systemd-run", *scope, "--scope", "--quiet", "-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0"]
        return
    else:
        raise PermissionError("no memory cgroup here: neither v1, nor v2 with the controller `memory`, nor systemd-run")
    group = parent / f"mol-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / setting).write_text(f"{limit}\n")
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()


def read_words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
