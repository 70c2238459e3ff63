"""MergePlan: everything a merge will do, one task an output tensor; the twin of rust/src/plan.rs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, Final, NamedTuple

from mol._rust import methods

PLAN_VERSION: Final = 1

Method = Mapping[str, Mapping[str, Any]]
"""What is done to a tensor: one entry, name to numbers. Treated as immutable; tasks share the same object."""

COPY: Final[Method] = {"copy": {}}
_SWEEPS: Final = {name: sweeps for name, _, sweeps in methods()}


def sweeps(method: str) -> int:
    """Return how often a method reads its sources, extra sweeps of a search not counted, as the engine counts."""
    return _SWEEPS[method]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that is read: absolute path, bytes, nanoseconds, BLAKE3 of the header in hex."""

    path: str
    size: int
    mtime_ns: int
    header: str


class Source(NamedTuple):
    """A tensor in an input file.

    Attributes:
        input: index into `MergePlan.inputs`.
        tensor: its name there.
    """

    input: int
    tensor: str


class TensorTask(NamedTuple):
    """One output tensor.

    Attributes:
        name: its name.
        dtype: safetensors name.
        shape: sizes of the axes; all sources have the same.
        output: index into `MergePlan.outputs`; never decreases from task to task.
        method: what is done.
        sources: what it is done to, in the order the method wants.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    output: int
    method: Method
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """All that a run does.

    Attributes:
        inputs: files read.
        outputs: names of the files written.
        tasks: one an output tensor, in the order of the output files.
        seed: key of random methods.
        allow_nonfinite: let NaN and infinity through.
    """

    inputs: tuple[InputFile, ...]
    outputs: tuple[str, ...]
    tasks: tuple[TensorTask, ...]
    seed: int = 0
    allow_nonfinite: bool = False

    def to_json(self) -> str:
        """Return the plan as `mol._rust` takes it; floats cross exactly.

        Written piece by piece, since plans have up to a million small objects and most of them repeat.
        """
        names: dict[str, str] = {}
        texts: dict[int, str] = {}
        shapes: dict[tuple[int, ...], str] = {}
        tasks: list[str] = []
        for name, dtype, shape, output, method, sources in self.tasks:
            shape_text = shapes.get(shape)
            if shape_text is None:
                shape_text = shapes[shape] = json.dumps(shape)
            method_text = texts.get(id(method))
            if method_text is None:
                method_text = texts[id(method)] = json.dumps(method, allow_nan=False)
            parts = []
            for file, tensor in sources:
                tensor_text = names.get(tensor)
                if tensor_text is None:
                    tensor_text = names[tensor] = encode_basestring_ascii(tensor)
                parts.append(f'{{"input": {file}, "tensor": {tensor_text}}}')
            name_text = names.get(name) or encode_basestring_ascii(name)
            tasks.append(
                f'{{"name": {name_text}, "dtype": "{dtype}", "shape": {shape_text}, "output": {output}, '
                f'"method": {method_text}, "sources": [{", ".join(parts)}]}}'
            )
        inputs = [{"path": i.path, "size": i.size, "mtime_ns": i.mtime_ns, "header": i.header} for i in self.inputs]
        return (
            f'{{"plan": {PLAN_VERSION}, "inputs": {json.dumps(inputs)}, "outputs": {json.dumps(list(self.outputs))}, '
            f'"tasks": [{", ".join(tasks)}], "seed": {self.seed}, '
            f'"allow_nonfinite": {json.dumps(self.allow_nonfinite)}}}'
        )


def shard_names(count: int) -> tuple[str, ...]:
    """Name the output files as transformers expects them."""
    if count == 1:
        return ("model.safetensors",)
    return tuple(f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1))
