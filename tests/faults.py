"""Runs a command whose system calls fail where a test says: the kernel asks us about each (seccomp user notification).

A preloaded library would not do: part of the engine calls the kernel without libc. The child's side of it is
`python -m tests.faults SOCKET CALL,... -- COMMAND`: it has the kernel ask, hands us the end at which to answer, and
becomes the command.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Their numbers on x86-64 and on arm64.
_NUMBERS = {
    "close": (3, 57), "fallocate": (285, 47), "fdatasync": (75, 83), "flock": (73, 32), "fstatfs": (138, 44),
    "fsync": (74, 82),
    "openat": (257, 56), "pread64": (17, 67), "pwrite64": (18, 68), "sync_file_range": (277, 84), "syncfs": (306, 267),
    "write": (1, 64),
}  # fmt: skip
_COLUMN = {"x86_64": 0, "aarch64": 1}.get(platform.machine())
_SECCOMP = (317, 277)
_ASK, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_NOTICE = struct.Struct("<QIIiIQ6Q")
_REPLY = struct.Struct("<QqiI")
_CONTINUE = 1
_FILE_SYSTEM = struct.Struct("<q112x")  # struct statfs; all but its type is zero


class Fault(NamedTuple):
    """What a system call answers.

    Attributes:
        call: its name.
        error: errno that it fails with; 0 lets it through.
        file: end of the path of the file that it is called on.
        after: calls on such files that go through before.
        times: calls that fail then.
        f_type: of the file system, for fstatfs, which then succeeds.
    """

    call: str
    error: int
    file: str = ""
    after: int = 0
    times: int = sys.maxsize
    f_type: int | None = None


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def _ask_about(calls: Sequence[str]) -> int:
    """Have the kernel ask about calls of this process, and return the descriptor at which it does."""
    assert _COLUMN is not None
    libc = ctypes.CDLL(None, use_errno=True)
    checks = [(0x15, len(calls) - i, 0, _NUMBERS[call][_COLUMN]) for i, call in enumerate(calls)]
    lines = [(0x20, 0, 0, 0), *checks, (0x06, 0, 0, _ALLOW), (0x06, 0, 0, _ASK)]
    program = _Program(len(lines), (_Instruction * len(lines))(*lines))
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, or the kernel requires us to be root
    asked: int = libc.syscall(_SECCOMP[_COLUMN], 1, 8, ctypes.byref(program))
    if asked < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return asked


class _Answers:
    """Sets the result of each system call in the kernel, until the process is gone."""

    def __init__(self, faults: Sequence[Fault], descriptor: int) -> None:
        self.faults, self.descriptor, self.over = faults, descriptor, threading.Event()
        self.seen = [0] * len(faults)

    def give(self) -> None:
        import fcntl

        names = {_NUMBERS[fault.call][_COLUMN or 0]: fault.call for fault in self.faults}
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        while not self.over.is_set():
            if not any(event & select.POLLIN for _, event in poll.poll(50)):
                continue
            notice = bytearray(_NOTICE.size)
            try:
                fcntl.ioctl(self.descriptor, _RECEIVE, notice)
                key, process, _, number, _, _, *arguments = _NOTICE.unpack(notice)
                fault = self.fault_of(names[number], process, arguments)
                answered = fault is not None and (fault.error or fault.f_type is not None)
                if fault is not None and fault.f_type is not None:
                    with Path(f"/proc/{process}/mem").open("r+b", buffering=0) as memory:
                        memory.seek(arguments[1])
                        memory.write(_FILE_SYSTEM.pack(fault.f_type))
                reply = _REPLY.pack(key, 0, -fault.error if fault else 0, 0 if answered else _CONTINUE)
                fcntl.ioctl(self.descriptor, _ANSWER, reply)
            except OSError as gone:
                if gone.errno != errno.ENOENT:  # it was killed meanwhile
                    raise

    def fault_of(self, call: str, process: int, arguments: Sequence[int]) -> Fault | None:
        try:
            if call == "openat":
                with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
                    memory.seek(arguments[1])
                    path = memory.read(4096).split(b"\0")[0].decode(errors="replace")
            else:
                path = str(Path(f"/proc/{process}/fd/{arguments[0] & 0xFFFFFFFF}").readlink())
        except OSError:
            return None
        for i, fault in enumerate(self.faults):
            if fault.call == call and path.endswith(fault.file):
                self.seen[i] += 1
                if fault.after < self.seen[i] <= fault.after + fault.times:
                    return fault
        return None


def run(
    command: Sequence[str], faults: Sequence[Fault], environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command with faults to its end; one of them must have come to pass, or the test shows nothing."""
    ours, theirs = socket.socketpair()
    calls = ",".join(sorted({fault.call for fault in faults}))
    start = [sys.executable, "-m", "tests.faults", str(theirs.fileno()), calls, "--", *command]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        start,
        cwd=root,
        env=environment,
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    theirs.close()
    with ours, process:
        _, (asked, *_), _, _ = socket.recv_fds(ours, 1, 1)
        answers = _Answers(faults, asked)
        thread = threading.Thread(target=answers.give)
        thread.start()
        try:
            output, errors = process.communicate(timeout=50)
        finally:
            process.kill()
            answers.over.set()
            thread.join()
            os.close(asked)
    met = any(seen > fault.after for fault, seen in zip(faults, answers.seen, strict=True))
    assert met, f"nothing called {faults}; {errors}"
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def why_not() -> str | None:
    """Why faults cannot be made here, if they cannot."""
    if _COLUMN is None or platform.system() != "Linux":
        return f"no seccomp filter for {platform.system()} on {platform.machine()}"
    probe = "import tests.faults as faults; faults._ask_about(['flock'])"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", probe], cwd=root, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def main() -> None:
    end, calls, _, *command = sys.argv[1:]
    with socket.socket(fileno=int(end)) as theirs:
        socket.send_fds(theirs, [b"."], [_ask_about(calls.split(","))])
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
