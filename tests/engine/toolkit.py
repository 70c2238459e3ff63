"""What the engine's tests are written with: tensors as bits, SafeTensors files and plans made by hand."""

from __future__ import annotations

import inspect
import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mol import _rust
from mol.config.methods import METHODS
from tests import reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Bits: TypeAlias = NDArray[Any]
Method: TypeAlias = dict[str, dict[str, Any]]
Plan: TypeAlias = dict[str, Any]

STORAGE = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?", "F8_E4M3": "u1", "F8_E5M2": "u1",
}  # fmt: skip
SIGNIFICAND_BITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}
SMALLEST = {"F64": 2.0**-1074, "F32": 2.0**-149, "F16": 2.0**-24, "BF16": 2.0**-133}


COPY: Method = {"copy": {}}


class Stored(NamedTuple):
    """A tensor as a file holds it. BF16 is kept as its bits in uint16, which numpy has no type for."""

    dtype: str
    data: Bits


def encode(values: Any, dtype: str) -> Stored:  # noqa: ANN401 - whatever numpy takes for an array
    """Round float64 values to `dtype`, once, to nearest even; what is too large becomes infinite."""
    exact = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        if dtype != "BF16":
            return Stored(dtype, exact.astype(STORAGE[dtype]))
        near = exact.astype(np.float32)
    # To f32 by rounding to odd, so that the step from there to BF16 is the only one that rounds.
    bits = near.view(np.uint32)
    bits = np.where(near == exact, bits, (bits - (np.abs(near) > np.abs(exact))) | 1).astype(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return Stored(dtype, np.where(np.isnan(exact), 0x7FC0, rounded).astype(np.uint16))


def decode(tensor: Stored) -> reference.Tensor:
    """The tensor's values as a flat float64 array."""
    flat = tensor.data.ravel()
    if tensor.dtype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return flat.astype(np.float64)


def write_shard(path: Path, tensors: Mapping[str, Stored], *, metadata: Mapping[str, str] | None = None) -> Path:
    """A SafeTensors file that holds the tensors in the order given."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (dtype, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(data.shape), "data_offsets": [end, end + data.nbytes]}
        end += data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data.tobytes() for _, data in tensors.values()))
    return path


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The parsed header of a SafeTensors file, and where its data begins."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length


def read_shard(path: Path) -> dict[str, Stored]:
    """Every tensor of a SafeTensors file, in file order; the data must lie end to end and fill the file."""
    header, start = read_header(path)
    content = path.read_bytes()[start:]
    tensors = {}
    position = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        assert begin == position, f"{name} begins at {begin}, not where the tensor before it ends, {position}"
        data = np.frombuffer(content[begin:end], dtype=STORAGE[entry["dtype"]])
        tensors[name] = Stored(entry["dtype"], data.reshape(entry["shape"]))
        position = end
    assert position == len(content)
    return tensors


def linear(*weights: float, normalize: bool = True) -> Method:
    return {"linear": {"weights": list(weights), "normalize": normalize}}


def slerp(t: float) -> Method:
    return {"slerp": {"t": t}}


def task_arithmetic(*weights: float, normalize: bool = False, lambda_: float = 1.0) -> Method:
    return {"task_arithmetic": {"weights": list(weights), "normalize": normalize, "lambda": lambda_}}


def ties(
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
    vote: str = "total",
) -> Method:
    numbers = {"weights": list(weights), "densities": list(densities), "lambda": lambda_}
    return {"ties": {**numbers, "normalize": normalize, "rescale": rescale, "majority_sign_method": vote}}


def thin(
    name: str,
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
    **more: Any,  # noqa: ANN401
) -> Method:
    """A method of this family; one that draws has the models numbered from 0 unless `models` says others."""
    numbers = {"weights": [*weights], "densities": [*densities], "lambda": lambda_, **more}
    if name.startswith(("dare", "della")):
        numbers.setdefault("models", list(range(len(weights))))
    return {name: {**numbers, "normalize": normalize, "rescale": rescale}}


def multislerp(*weights: float, normalize: bool = True, eps: float = 1e-8) -> Method:
    return {"multislerp": {"weights": [*weights], "normalize": normalize, "eps": eps}}


def karcher(max_iter: int = 10, tol: float = 1e-5) -> Method:
    return {"karcher": {"max_iter": max_iter, "tol": tol}}


def ramplus(epsilon: float, r: float, alpha: float) -> Method:
    return {"ramplus_tl": {"epsilon": epsilon, "r": r, "alpha": alpha}}


def consensus(name: str, weights: list[float], *, k: int = 1, **more: Any) -> Method:  # noqa: ANN401
    count = len(weights)
    trimming = {"densities": [1.0] * count, "rescale": False} if name == "consensus_ties" else {}
    numbers = {"lambdas": [1.0] * count, "normalize": False, **trimming}
    return {name: {"weights": weights, "k": k, **numbers, **more}}


def cabs(*weights: float, n: int, m: int, lambda_: float = 1.0) -> Method:
    return {"cabs": {"weights": list(weights), "n": n, "m": m, "lambda": lambda_}}


def of_rows(most: int = 4) -> dict[str, tuple[int, Method]]:
    """Each method of the table with some numbers: how many sources it takes, and the method as a plan has it.

    A method that takes any number of models gets `most` sources.

    Where the base is optional, once without and once with it.
    """
    found = {}
    for spec in METHODS.values():
        models = spec.max_models or max(most, spec.min_models)
        models -= spec.base == "required" or (spec.base == "optional" and spec.max_models is None)
        numbers: dict[str, Any] = {}
        for name, parameter in spec.parameters.items():
            value = [0.7, -0.3, 0.6, 0.9] if parameter.low < 0 else [0.7, 0.3, 0.6, 0.9]
            value = [number / 10 for number in value] if name == "epsilon" else value  # lies about the density
            single = min(value[0], parameter.high) if parameter.kind == "float" else parameter.example
            several = parameter.per_model and spec.max_models != 1
            numbers[parameter.plan or name] = value[:models] if several else single
        if spec.draws:
            numbers["models"] = [4, 0, 7, 1][:models]
        method = {spec.in_plan: numbers}
        found[f"{spec.name} of the table"] = (models + (spec.base == "required"), method)
        if spec.base == "optional":
            found[f"{spec.name} of the table, with a base"] = (models + 1, method)
    return found


@dataclass(frozen=True)
class Case:
    """One output tensor: what is done, to what, and the dtype it is stored in."""

    method: Method
    sources: tuple[Stored, ...]
    dtype: str


def input_entry(path: Path) -> dict[str, Any]:
    """A plan's entry for an input file."""
    size, mtime_ns, header, _ = _rust.read_header(str(path))
    return {"path": str(path), "size": size, "mtime_ns": mtime_ns, "header": header}


def plan_of(directory: Path, cases: Mapping[str, Case], *, shards: int = 1, **changes: Any) -> Plan:  # noqa: ANN401
    """Write the cases' sources, source i of each into file i, and plan to merge them into `shards` outputs.

    An array that several cases share as source i is written once.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Stored]] = [{} for _ in range(max(len(case.sources) for case in cases.values()))]
    named: dict[tuple[int, int], list[Any]] = {}
    for name, case in cases.items():
        for i, source in enumerate(case.sources):
            if (id(source.data), i) not in named:
                files[i][name] = source
                named[id(source.data), i] = [i, name]
    inputs = [write_shard(directory / f"model-{i}.safetensors", tensors) for i, tensors in enumerate(files)]
    tensors = [
        {
            "name": name,
            "dtype": case.dtype,
            "shape": list(case.sources[0].data.shape),
            "output": index * shards // len(cases),
        }
        for index, (name, case) in enumerate(cases.items())
    ]
    tasks = [
        {
            "to": [{"tensor": index, "row": 0}],
            "by": case.method,
            "of": [named[id(source.data), i] for i, source in enumerate(case.sources)],
        }
        for index, case in enumerate(cases.values())
    ]
    names = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    )
    return {
        "plan": 2,
        "seed": 0,
        "allow_nonfinite": False,
        "inputs": [input_entry(path) for path in inputs],
        "outputs": outputs(*names),
        "tensors": tensors,
        "tasks": tasks,
        **changes,
    }


def plan_of_tasks(
    directory: Path,
    stored: Mapping[str, Stored],
    *tasks: tuple[Any, ...],
    shape: tuple[int, ...],
    out: str = "F32",
    by: Method = COPY,
    **changes: Any,  # noqa: ANN401
) -> Plan:
    """A plan of one tensor `t` from a file of those given; a task is its first row and the expressions it reads."""
    directory.mkdir(parents=True, exist_ok=True)
    return {
        "plan": 2,
        "seed": 0,
        "allow_nonfinite": False,
        "inputs": [input_entry(write_shard(directory / "in.safetensors", stored))],
        "outputs": outputs("model.safetensors"),
        "tensors": [{"name": "t", "dtype": out, "shape": list(shape), "output": 0}],
        "tasks": [{"to": [{"tensor": 0, "row": row}], "by": by, "of": list(of)} for row, *of in tasks],
        **changes,
    }


def made_by(plan: Plan, directory: Path) -> Stored:
    """The tensor `t` of a plan, which is the same from mapped inputs and from those that are read."""
    execute(plan, directory / "out.partial", mmap=True)
    execute(plan, directory / "read.partial", mmap=False)
    assert shard_bytes(directory / "read.partial") == shard_bytes(directory / "out.partial")
    return read_shard(directory / "out.partial" / "model.safetensors")["t"]


def outputs(*names: str) -> list[dict[str, str]]:
    """A plan's entries for output files."""
    return [{"name": name, "format": "safetensors"} for name in names]


def preflight(plan: Plan, partial: Path, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    found: dict[str, Any] = json.loads(_rust.preflight(json.dumps(plan), str(partial), **options))
    return found


def execute(plan: Plan, partial: Path, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    report: dict[str, Any] = json.loads(_rust.execute(json.dumps(plan), str(partial), **options))
    return report


def merge(directory: Path, cases: Mapping[str, Case], **options: Any) -> dict[str, Stored]:  # noqa: ANN401
    """Plan, run and read back."""
    execute(plan_of(directory, cases), directory / "out.partial", **options)
    return read_shard(directory / "out.partial" / "model.safetensors")


def merge_one(directory: Path, method: Method, *sources: Stored, dtype: str | None = None) -> Stored:
    """One tensor merged; it comes in the first source's dtype unless `dtype` says another."""
    return merge(directory, {"w": Case(method, sources, dtype or sources[0].dtype)})["w"]


def shard_bytes(partial: Path) -> dict[str, bytes]:
    """What a run left behind that becomes part of the model: shards and index."""
    files = (path for path in sorted(partial.iterdir()) if not path.name.endswith(("journal", ".scratch")))
    return {path.name: path.read_bytes() for path in files}


def precision(case: Case) -> type[np.floating]:
    """The engine computes in f64 when any source or the output is F64, and for an F32 output of most methods.

    Not of those that rank values as f32 whatever the output is, as TIES does: their references ask for the precision.
    """
    wide = "F64" in {case.dtype, *(source.dtype for source in case.sources)}
    return np.float64 if wide or (case.dtype == "F32" and not takes(case.method, "precision")) else np.float32


def takes(method: Method, word: str) -> bool:
    """Return whether the reference of a method has a parameter."""
    (name,) = method
    return word in inspect.signature(getattr(reference, name)).parameters


def expected(case: Case, name: str = "w", *, seed: int = 0) -> reference.Tensor:
    """The case by tests/reference, for a tensor of a name in a plan with a seed."""
    ((kind, numbers),) = case.method.items()
    known = {"precision": precision(case), "name": name, "seed": seed, "shape": case.sources[0].data.shape}
    named = {"lambda_" if word == "lambda" else word: value for word, value in numbers.items()}
    named |= {word: value for word, value in known.items() if takes(case.method, word)}
    result: reference.Tensor = getattr(reference, kind)([decode(source) for source in case.sources], **named)
    return result


def assert_agrees(case: Case, result: Stored, label: str) -> None:
    """The result is the reference, rounded once to its dtype, but for the noise of the working precision.

    So it is off by half an ulp at most where that precision is f64, for F32 outputs of most methods too. `label` is
    the tensor's name, if its method draws at random.
    """
    assert result.dtype == case.dtype, label
    assert result.data.shape == case.sources[0].data.shape, label
    wanted, got = expected(case, label), decode(result)
    largest = np.max([np.abs(wanted), *(np.abs(decode(source)) for source in case.sources)], axis=0)
    # In f64 the reference has noise of its own, most in the angle of slerp.
    noise = largest * 2.0 ** -(46 if precision(case) is np.float64 else 20)
    rounding = np.abs(wanted) * 2.0 ** -SIGNIFICAND_BITS[case.dtype] + SMALLEST[case.dtype] / 2
    off = np.flatnonzero(~(np.abs(got - wanted) <= noise + rounding))
    assert off.size == 0, (
        f"{label}: {off.size} of {got.size} elements are off, first at {off[0]}: {got[off[0]]} for {wanted[off[0]]}"
    )


def assert_exact(case: Case, result: Stored, label: str) -> None:
    """The result is the reference bit for bit, where every step of the arithmetic is exact."""
    assert result.dtype == case.dtype, label
    wanted = encode(expected(case), case.dtype).data
    off = np.flatnonzero(wanted != result.data.ravel())
    assert off.size == 0, f"{label}: {off.size} of {wanted.size} elements differ, first at {off[0]}"
