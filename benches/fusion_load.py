"""Open a fusion for the blocks that it uses, or get at their bytes alone, in a fresh process that says what that took.

The process imports all that any way needs, prints a line, waits for one, does its work, prints the seconds, and waits
again, for its end takes memory too. The one that started it watches its memory until then. A fusion maps its files, as
safetensors does, so one page after another is touched: a tensor that was never read has not been loaded. It is
compared with two ways to the same bytes: reading them into memory, which ends where a fusion ends, and passing all of
them through one small buffer, which ends with nothing in memory and is about the least that any reading can take.
"""

from __future__ import annotations

import argparse
import json
import math
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from measure import status_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import FileIO

    import torch

KEYS = ("RssAnon", "VmRSS")
PAGE = 4096
BUFFER = 1 << 20


class Loaded(NamedTuple):
    """What one process took: seconds, and the most bytes above those of its imports, anonymous ones and all."""

    seconds: float
    anonymous: int
    resident: int


def watch(way: str, host: str, donor: str, layers: Iterable[int], *, every: float) -> Loaded:
    """Start a process that opens or reads, and watch its memory.

    Args:
        way: one of `WAYS`.
        host: directory of the host.
        donor: directory of the model whose blocks replace some of the host's layers.
        layers: which; their number in the host and in the donor.
        every: seconds between two looks; if infinite there is one, at the end.
    """
    command = [sys.executable, __file__, way, host, donor, *map(str, layers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = peak = status_bytes(process.pid, KEYS)
        process.stdin.write("go\n")
        process.stdin.flush()
        done = False
        while not done:
            done = bool(select.select([process.stdout], [], [], None if every == math.inf else every)[0])
            now = status_bytes(process.pid, KEYS)
            peak = {key: max(peak[key], now.get(key, 0)) for key in KEYS}
        seconds = process.stdout.readline()
        process.stdin.close()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Loaded(float(seconds), *(peak[key] - before[key] for key in KEYS))


def touch(tensor: torch.Tensor) -> None:
    """Read one byte of each page of a tensor."""
    import torch

    tensor.detach().reshape(-1).view(torch.uint8)[::PAGE].sum()


def open_fusion(host: str, donor: str, layers: list[int]) -> object:
    """Return a fusion in which blocks of the donor replace some of the host's, with all blocks that it uses."""
    from mol.config.mol_config import MoLConfig
    from mol.core.mol_runtime import MoLRuntime

    runtime = MoLRuntime(MoLConfig([host, donor]))
    for layer in layers:
        runtime.add_layer([(donor, layer)], layer)
    runtime.host.require(set(range(len(runtime.host))) - set(layers))
    runtime.source(donor).require(layers)
    for name in (host, donor):
        weights = runtime.source(name).weights
        assert weights is not None
        for parameter in weights.loaded:
            touch(weights.model.get_parameter(parameter))
    return runtime


def used(host: str, donor: str, layers: list[int]) -> Iterator[tuple[Path, list[str]]]:
    """Return each file, and the names of its tensors that such a fusion uses."""
    from safetensors import safe_open

    for directory, wanted in ((host, False), (donor, True)):
        for file in sorted(Path(directory).glob("*.safetensors")):
            with safe_open(str(file), framework="pt") as tensors:
                names = tensors.keys()
            yield file, [name for name in names if any(f".layers.{layer}." in name for layer in layers) == wanted]


def spans(host: str, donor: str, layers: list[int]) -> Iterator[tuple[FileIO, int]]:
    """Return each tensor that such a fusion uses as a file that stands at its first byte, and their number."""
    for file, names in used(host, donor, layers):
        with file.open("rb", buffering=0) as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
            for start, end in (header[name]["data_offsets"] for name in names):
                raw.seek(8 + length + start)
                yield raw, end - start


def read_bytes(host: str, donor: str, layers: list[int]) -> object:
    """Read the bytes of these tensors, and return them."""
    return [raw.read(count) for raw, count in spans(host, donor, layers)]


def pass_bytes(host: str, donor: str, layers: list[int]) -> object:
    """Read the bytes of these tensors, all into the same buffer."""
    buffer = memoryview(bytearray(BUFFER))
    for raw, count in spans(host, donor, layers):
        for begin in range(0, count, BUFFER):
            raw.readinto(buffer[: min(BUFFER, count - begin)])
    return buffer


WAYS = {"open": open_fusion, "read": read_bytes, "pass": pass_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("host")
    parser.add_argument("donor")
    parser.add_argument("layers", type=int, nargs="+")
    arguments = parser.parse_args()

    import safetensors.torch  # noqa: F401 - with all that any way imports
    import torch
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama  # noqa: F401

    import mol.core.pretrained.causal_lm
    import mol.core.pretrained.task_models  # noqa: F401

    work = WAYS[arguments.way]
    touch(torch.zeros(1 << 20))  # torch's own code is read here, and not on the account of a way
    for dtype in (torch.float32, torch.bfloat16):
        states = torch.zeros(1, 1, 64, 64, dtype=dtype)
        torch.nn.functional.scaled_dot_product_attention(states @ states, states, states, is_causal=True)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    made = work(arguments.host, arguments.donor, arguments.layers)
    print(time.perf_counter() - started, flush=True)
    sys.stdin.readline()
    del made


if __name__ == "__main__":
    main()
