"""mol-merge diff: how far two checkpoints are apart, tensor by tensor and layer by layer, streamed by the engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from mol.cli import units
from mol.cli.console import Console, field, listing
from mol.cli.group import Verb
from mol.cli.options import ThreadCount, option, speaking
from mol.cli.progress import Progress
from mol.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mol.io.checkpoint import Checkpoint

OUTSIDE = "outside the layers"
_HEADS = ("change", "cosine", "max |b-a|")
_NUMBERS = frozenset({1, 2, 3})


class Distance(NamedTuple):
    """How far B's elements are from A's.

    Attributes:
        name: The tensor in A, or the layer.
        change: |B - A| / |A|; infinite where only A is all zeros.
        cosine: Of the angle between A and B; NaN where one is all zeros.
        largest: The greatest |b - a| of an element.
        at: Its flat index in the tensor; None for a layer.
    """

    name: str
    change: float
    cosine: float
    largest: float
    at: int | None


class Sums(NamedTuple):
    """What the engine measured of one pair of tensors; the norms are Euclidean."""

    norm_a: float
    norm_b: float
    norm_difference: float
    cosine: float
    largest: float
    at: int


@click.command(
    "diff",
    cls=Verb,
    help="Compare the checkpoints A and B, tensor by tensor and layer by layer: relative change |B-A|/|A|, cosine, "
    "greatest change of an element. Both are read once, in constant memory.",
)
@click.argument("a")
@click.argument("b")
@option("-j", "--threads", "--num-threads", "threads", type=ThreadCount(), metavar="N", default=None,
        help="Number of worker threads.  [default: all cores]")  # fmt: skip
@option("--transformers-cache", "--cache-dir", "cache_dir", type=click.Path(path_type=Path), metavar="DIR",
        help="The Hugging Face cache to look in.")  # fmt: skip
@speaking
def command(console: Console, a: str, b: str, threads: int | None, cache_dir: Path | None) -> None:
    """Show the distance of two checkpoints."""
    from mol import _rust
    from mol.cli.local import open_named

    first, second = open_named(a, cache_dir), open_named(b, cache_dir)
    shared = match(first, second)
    pairs, skipped = _comparable(first, second, shared)
    only_a = [name for name in first.tensors if name not in shared]
    matched = set(shared.values())
    only_b = [name for name in second.tensors if name not in matched]
    with Progress(console, "comparing") as progress:
        found = _rust.compare(
            [(_path(first, name), name, _path(second, shared[name]), shared[name]) for name in pairs],
            threads=threads,
            on_progress=progress,
        )
    sums = {name: Sums(*numbers) for name, numbers in zip(pairs, found, strict=True)}
    tensors = [distance(name, [one], at=one.at) for name, one in sums.items()]
    layers = [distance(layer, [sums[name] for name in names]) for layer, names in by_layer(first, pairs).items()]
    whole = distance("all compared", list(sums.values()))
    console.document({
        "a": first.name, "b": second.name, "all": _plain(whole),
        "layers": [_plain(layer) for layer in layers], "tensors": [_plain(tensor) for tensor in tensors],
        "not_compared": skipped, "only_in_a": only_a, "only_in_b": only_b,
    })  # fmt: skip
    for line in table(("tensor", *_HEADS), [_cells(tensor) for tensor in tensors], right=_NUMBERS):
        console.result(line)
    console.result()
    for line in table(("layer", *_HEADS), [_cells(layer) for layer in [*layers, whole]], right=_NUMBERS):
        console.result(line)
    console.result()
    limit = None if console.verbose else 10
    rest = (("only in A", only_a), ("only in B", only_b), ("skipped", [f"{n}: {why}" for n, why in skipped.items()]))
    for label, lines in rest:
        for line in listing(label, lines, limit=limit):
            console.result(line)
    equal = sum(one.largest == 0 for one in sums.values())
    console.result(field("compared", f"{units.amount(len(pairs), 'tensor')}; {equal:,} of them equal"))


def distance(name: str, parts: Sequence[Sums], *, at: int | None = None) -> Distance:
    """Measure A's distance to B over all tensors, as one long vector.

    Args:
        name: What the parts make up.
        parts: One or more tensors' sums.
        at: Index of the largest change, where there is one tensor.
    """
    norm_a, norm_b, change = (math.hypot(*(part[i] for part in parts)) for i in range(3))
    relative = change / norm_a if norm_a else math.inf if change else 0.0
    dots = (part.cosine * (part.norm_a / norm_a) * (part.norm_b / norm_b) for part in parts if norm_a and norm_b)
    cosine = math.fsum(dots) if norm_a and norm_b else math.nan
    return Distance(name, relative, cosine, max((part.largest for part in parts), default=0.0), at)


def match(a: Checkpoint, b: Checkpoint) -> dict[str, str]:
    """Return the tensors that both have, A's name to B's, in A's order; prefixes such as `model.` may differ."""
    from mol.structure.alignment import align
    from mol.structure.layers import find_structure

    alignment = align(find_structure(a.tensors, a.config), find_structure(b.tensors, b.config))
    found = ((name, alignment.find(name, b.tensors)) for name in a.tensors)
    return {name: other for name, other in found if other is not None}


def _comparable(a: Checkpoint, b: Checkpoint, shared: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the shared tensors that can be compared, and why each of the rest cannot."""
    from mol.dtypes import FLOAT_DTYPES

    pairs, skipped = [], {}
    for name, other in shared.items():
        left, right = a.tensors[name], b.tensors[other]
        if left.shape != right.shape:
            skipped[name] = f"shape {list(left.shape)} in A, {list(right.shape)} in B"
        elif not {left.dtype, right.dtype} <= FLOAT_DTYPES:
            skipped[name] = f"dtype {left.dtype} in A, {right.dtype} in B; only floating point is compared"
        else:
            pairs.append(name)
    return pairs, skipped


def by_layer(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, list[str]]:
    """Group tensors by layer, layers in order and what is outside them first."""
    from mol.structure.layers import find_structure

    layers = {
        name: stack.start(number)[:-1]
        for stack in find_structure(checkpoint.tensors, checkpoint.config).stacks
        for number in range(len(stack))
        for name in stack.names(number)
    }
    wanted = set(names)
    loose = wanted - layers.keys()
    groups: dict[str, list[str]] = {OUTSIDE: [name for name in checkpoint.tensors if name in loose]}
    for name, layer in layers.items():
        if name in wanted:
            groups.setdefault(layer, []).append(name)
    return {layer: members for layer, members in groups.items() if members}


def _path(checkpoint: Checkpoint, name: str) -> str:
    return str(checkpoint.files[checkpoint.tensors[name].file].path)


def _cells(one: Distance) -> list[str]:
    cosine = "-" if math.isnan(one.cosine) else f"{one.cosine:.6f}"
    return [one.name, f"{one.change:.3g}", cosine, f"{one.largest:.3g}"]


def _plain(one: Distance) -> dict[str, object]:
    plain = {"name": one.name, "change": one.change, "cosine": one.cosine, "max": one.largest, "index": one.at}
    return plain if one.at is not None else {key: plain[key] for key in ("name", "change", "cosine", "max")}
