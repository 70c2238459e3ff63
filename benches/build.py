"""Build the wheel from nothing, and print its size, its extension's, and what the build took.

`python benches/build.py CHECKOUT` builds another checkout, for a comparison of two commits.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path


def text_bytes(library: Path) -> str:
    """The bytes of machine code, where `size` (binutils) is installed."""
    try:
        done = subprocess.run(["size", "--format=sysv", str(library)], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        return "not known: no `size` here"
    found = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith(".text"))
    return f"{int(found) / 1e6:.2f} MB"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parents[1])
    checkout = parser.parse_args().checkout.resolve()
    describe = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    # The profile that ships, whatever the shell asks of trial builds.
    trial = ("CARGO_PROFILE_", "CARGO_INCREMENTAL", "RUSTFLAGS")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(trial)}
    with tempfile.TemporaryDirectory() as scratch:
        environment["CARGO_TARGET_DIR"] = f"{scratch}/target"
        maturin = [str(Path(sys.executable).with_name("maturin")), "build", "--release", "--locked", "--out", scratch]
        started = time.monotonic()
        process = subprocess.Popen(maturin, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            return process.returncode
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (extension,) = [
                name for name in archive.namelist() if name.startswith("mol/_rust.") and name.endswith(".so")
            ]
            library = Path(archive.extract(extension, scratch))
        print("| commit | wheel | extension | machine code | build, wall | build, CPU |\n|---|---|---|---|---|---|")
        print(
            f"| {commit} | {wheel.stat().st_size / 1e6:.2f} MB | {library.stat().st_size / 1e6:.2f} MB "
            f"| {text_bytes(library)} | {wall:.0f} s | {usage.ru_utime + usage.ru_stime:.0f} s |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
