"""mol-merge inspect: what a checkpoint holds, told from its headers."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mol.cli import units
from mol.cli.console import Console, field
from mol.cli.group import Verb
from mol.cli.options import option, speaking
from mol.cli.tables import table

if TYPE_CHECKING:
    from mol.io.checkpoint import Checkpoint


@click.command(
    "inspect",
    cls=Verb,
    short_help="List a checkpoint's tensors, layers and sizes.",
    help="List the tensors, layers and sizes of CHECKPOINT, a directory or a model in the Hugging Face cache. "
    "Reads headers only.",
)
@click.argument("checkpoint")
@option("--transformers-cache", "--cache-dir", "cache_dir", type=click.Path(path_type=Path), metavar="DIR",
        help="The Hugging Face cache to look in.")  # fmt: skip
@speaking
def command(console: Console, checkpoint: str, cache_dir: Path | None) -> None:
    """Show one checkpoint."""
    from mol.cli.local import open_named

    opened = open_named(checkpoint, cache_dir)
    if console.json:
        console.document(_document(opened))
        return
    rows = [
        [name, tensor.dtype, "x".join(map(str, tensor.shape)) or "scalar", units.size(tensor.bytes)]
        for name, tensor in opened.tensors.items()
    ]
    for line in table(("tensor", "dtype", "shape", "size"), rows, right=frozenset({3})):
        console.result(line)
    console.result()
    for label, text in _summary(opened):
        console.result(field(label, text))


def layers_of(checkpoint: Checkpoint) -> dict[str, int]:
    """The towers of layers in a checkpoint, the main one last: `{"model.layers": 22}`."""
    from mol.merge.layers import find_structure

    return {stack.prefix: len(stack) for stack in find_structure(checkpoint.tensors, checkpoint.config).stacks}


def _summary(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    tensors = checkpoint.tensors.values()
    dtypes = Counter(tensor.dtype for tensor in tensors)
    model = " ".join(map(str, checkpoint.config.get("architectures") or [])) or "no architecture named"
    if checkpoint.config.get("model_type"):
        model += f", model_type {checkpoint.config['model_type']}"
    entries = [("model", f"{checkpoint.name}: {model}")]
    if checkpoint.revision:
        entries.append(("commit", checkpoint.revision))
    layers = ", ".join(
        f"{count} x {prefix or 'numbered at the root'}" for prefix, count in layers_of(checkpoint).items()
    )
    entries += [
        ("layers", layers or "none found in the tensors' names"),
        ("dtypes", ", ".join(f"{count:,} {dtype}" for dtype, count in dtypes.most_common())),
        (
            "total",
            f"{units.amount(len(tensors), 'tensor')}, {units.parameters(_parameters(checkpoint))} parameters, "
            f"{units.size(sum(t.bytes for t in tensors))} in {units.amount(len(checkpoint.files), 'file')}",
        ),
    ]
    return entries


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())


def _document(checkpoint: Checkpoint) -> dict[str, object]:
    files = [file.path.name for file in checkpoint.files]
    return {
        "checkpoint": checkpoint.name,
        "directory": str(checkpoint.directory),
        "revision": checkpoint.revision,
        "architectures": checkpoint.config.get("architectures"),
        "model_type": checkpoint.config.get("model_type"),
        "parameters": _parameters(checkpoint),
        "bytes": sum(tensor.bytes for tensor in checkpoint.tensors.values()),
        "dtypes": dict(Counter(tensor.dtype for tensor in checkpoint.tensors.values())),
        "layers": layers_of(checkpoint),
        "files": [{"name": file.path.name, "size": file.size} for file in checkpoint.files],
        "tensors": [
            {"name": name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.bytes, "file": files[t.file]}
            for name, t in checkpoint.tensors.items()
        ],
    }
