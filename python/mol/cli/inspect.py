"""mol-merge inspect: what a checkpoint holds and is, from its headers and its config.json."""

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
    help="List the tensors, sizes and architecture of CHECKPOINT, a directory or a model in the Hugging Face cache. "
    "Reads headers and config.json only. What the architecture is takes the extra mol-merge[fusion]; a first look "
    "loads it, a second finds the answer on disk.",
)
@click.argument("checkpoint")
@option("--transformers-cache", "--cache-dir", "cache_dir", type=click.Path(path_type=Path), metavar="DIR",
        help="The Hugging Face cache to look in.")  # fmt: skip
@option("--trust-remote-code", is_flag=True,
        help="Run Python files of the model if transformers does not know its type.")  # fmt: skip
@speaking
def command(console: Console, checkpoint: str, cache_dir: Path | None, trust_remote_code: bool) -> None:
    """Show one checkpoint."""
    from mol.cli.architecture import architecture_document, architecture_entries, find_architecture
    from mol.cli.local import open_named

    opened = open_named(checkpoint, cache_dir)
    for line in opened.warnings:
        console.warning(line)
    architecture = find_architecture(opened, trust_remote_code=trust_remote_code)
    if console.json:
        console.document(_document(opened) | architecture_document(architecture))
        return
    rows = [
        [name, tensor.dtype, "x".join(map(str, tensor.shape)) or "scalar", units.size(tensor.bytes)]
        for name, tensor in opened.tensors.items()
    ]
    # As one text: a line at a time would take longer than all the rest where there are 100,000.
    console.result("\n".join(table(("tensor", "dtype", "shape", "size"), rows, right=frozenset({3}))))
    console.result()
    for label, text in (*_summary(opened), *architecture_entries(architecture, opened)):
        console.result(field(label, text))


def layers_of(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the towers of layers in a checkpoint, the main one last: `{"model.layers": 22}`."""
    from mol.structure.layers import find_structure

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
