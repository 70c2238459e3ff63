"""MergePlan: what the output files hold, and how each tensor of them is made; the twin of rust/src/plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any, Final, NamedTuple

from mol._rust import methods
from mol.io.expressions import Expr, Leaf

PLAN_VERSION: Final = 2

Method = Mapping[str, Mapping[str, Any]]
"""What is done to a tensor: one entry, name to numbers. Treated as immutable; tasks share the same object."""

COPY: Final[Method] = {"copy": {}}
_SWEEPS: Final = {name: sweeps for name, _, sweeps in methods()}


def sweeps(method: str) -> int:
    """Return how often a method reads its sources, extra sweeps of a search not counted, as the engine counts."""
    return _SWEEPS[method]


class InputFile(NamedTuple):
    """A file that is read: absolute path, bytes, nanoseconds, BLAKE3 of the header in hex."""

    path: str
    size: int
    mtime_ns: int
    header: str


class OutputTensor(NamedTuple):
    """A tensor of an output file.

    Attributes:
        name: its name.
        dtype: safetensors name.
        shape: sizes of the axes.
        output: index into `MergePlan.outputs`; never decreases from tensor to tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    output: int


class Result(NamedTuple):
    """A further result of a task.

    Attributes:
        tensor: index into `MergePlan.tensors`.
        by: the method.
        row: first row of the tensor that it writes.
        of: which of the task's sources it is made of, None for all.
    """

    tensor: int
    by: Method
    row: int = 0
    of: tuple[int, ...] | None = None


class Task(NamedTuple):
    """One task of the engine: rows of a tensor, from `row` to the first row of the next task.

    Attributes:
        tensor: index into `MergePlan.tensors`.
        by: the method.
        of: what it is done to, in the order the method takes them.
        row: first row of the tensor that it writes; a row is what lies along the last axis, of a vector one element.
        reads: what the method reads in addition to `of`.
        also: further results of the same reading, as of a sweep over recipes; their tensors may be in any output.
        own: which of `of` the first result is made of, None for all.
    """

    tensor: int
    by: Method
    of: tuple[Expr, ...]
    row: int = 0
    reads: tuple[Expr, ...] = ()
    also: tuple[Result, ...] = ()
    own: tuple[int, ...] | None = None


class MergePlan(NamedTuple):
    """All that a run does.

    Attributes:
        inputs: files read.
        outputs: names of the files written; `DIRECTORY/NAME` where there are several results.
        tensors: what they hold, in the order of the files.
        tasks: how it is made, in the order of the tensors and of their rows.
        tables: row gathers by name: `rows`, `runs` and `fills`.
        seed: key of random methods.
        allow_nonfinite: let NaN and infinity through.
    """

    inputs: tuple[InputFile, ...]
    outputs: tuple[str, ...]
    tensors: tuple[OutputTensor, ...]
    tasks: tuple[Task, ...]
    tables: Mapping[str, Mapping[str, Any]] = {}
    seed: int = 0
    allow_nonfinite: bool = False

    def to_json(self) -> str:
        """Return the plan as `mol._rust` takes it; floats cross exactly.

        Written one object at a time, which takes half the time of one `json.dumps`: plans have up to a million small
        objects and most of them repeat.
        """
        names = _Texts(encode_basestring_ascii)
        shapes = _Texts(json.dumps)
        names.update({tensor.name: encode_basestring_ascii(tensor.name) for tensor in self.tensors})
        texts: dict[int, str] = {}
        tensors = [
            f'{{"name": {names[name]}, "dtype": "{dtype}", "shape": {shapes[shape]}, "output": {output}}}'
            for name, dtype, shape, output in self.tensors
        ]
        tasks: list[str] = []

        def of_method(by: Method) -> str:
            text = texts.get(id(by))
            if text is None:
                text = texts[id(by)] = _json(by)
            return text

        last, method_of_last = COPY, of_method(COPY)
        for tensor, by, of, row, reads, also, own in self.tasks:
            if by is not last:
                last, method_of_last = by, of_method(by)
            to, method = _target(tensor, row, own), method_of_last
            if also:
                to = ", ".join([to, *(_target(result.tensor, result.row, result.of) for result in also)])
                method = f"[{', '.join([method, *(of_method(result.by) for result in also)])}]"
            parts = [f"[{expr.input}, {names[expr.tensor]}]" if isinstance(expr, Leaf) else _json(expr) for expr in of]
            more = f', "with": {_json(reads)}' if reads else ""
            tasks.append(f'{{"to": [{to}], "by": {method}, "of": [{", ".join(parts)}]{more}}}')
        head = {
            "plan": PLAN_VERSION,
            "seed": self.seed,
            "allow_nonfinite": self.allow_nonfinite,
            "inputs": [
                {"path": i.path, "size": i.size, "mtime_ns": i.mtime_ns, "header": i.header} for i in self.inputs
            ],
            "outputs": [{"name": name, "format": "safetensors"} for name in self.outputs],
            "tables": self.tables,
        }
        return f'{_json(head)[:-1]}, "tensors": [{", ".join(tensors)}], "tasks": [{", ".join(tasks)}]}}'


def _target(tensor: int, row: int, of: tuple[int, ...] | None) -> str:
    if of is None:
        return f'{{"tensor": {tensor}, "row": {row}}}'
    return f'{{"tensor": {tensor}, "row": {row}, "of": {list(of)}}}'


class _Texts(dict[Any, str]):
    """JSON of what repeats, made once."""

    def __init__(self, encode: Callable[[Any], str]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, value: object) -> str:
        text = self[value] = self._encode(value)
        return text


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False)
