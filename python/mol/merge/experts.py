"""Brings the experts of all inputs into one layout: a tensor for each, or all in one; made while they are read."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mol.dtypes import BYTES
from mol.io.checkpoint import Made, TensorInfo
from mol.io.expressions import Leaf
from mol.structure.experts import NUMBERED, PROJ, Block, expert_rows, find_experts, is_router, matrix_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mol.config.model_reference import ModelReference
    from mol.io.checkpoint import Checkpoint
    from mol.io.expressions import Expr
    from mol.merge.options import ExpertLayout
    from mol.merge.plan import OutputTensor

# Types whose checkpoints name experts otherwise where each has its own tensors than where they are fused.
_MIXTRALS: Final = frozenset({"mixtral", "minimax", "phimoe"})
_OWN, _SHARED = "block_sparse_moe.", "mlp."
# Types whose fused experts have gate and up in turns, element by element.
_IN_TURNS: Final = frozenset({"gpt_oss"})


def in_one_layout(
    checkpoints: Mapping[ModelReference, Checkpoint], donor: ModelReference, layout: ExpertLayout | None
) -> dict[ModelReference, Checkpoint]:
    """Return models with their experts in the layout that the output gets, made from what is stored.

    Args:
        checkpoints: the models.
        donor: the one whose layout it is.
        layout: another layout for the donor.
    """
    first = checkpoints[donor] if layout is None else as_layout(checkpoints[donor], layout)
    if not any("experts." in name for name in first.tensors):
        return dict(checkpoints)
    return {name: first if name == donor else like(model, first) for name, model in checkpoints.items()}


def as_layout(checkpoint: Checkpoint, layout: ExpertLayout) -> Checkpoint:
    """Return a model with its experts in a layout, as its class stores them there.

    Args:
        checkpoint: the model; without experts, or with them in that layout, it is returned as it is.
        layout: a tensor for each ("single"), or all in one ("fused").
    """
    blocks = find_experts(checkpoint.tensors)
    kind = str(checkpoint.config.get("model_type"))
    wanted = {}
    for prefix, block in blocks.items():
        if (block.layout == "single") == (layout == "single"):
            continue
        beginning, words = prefix, PROJ
        if kind in _MIXTRALS:
            there, here = (_OWN, _SHARED) if layout == "single" else (_SHARED, _OWN)
            words = NUMBERED if layout == "single" else PROJ
            beginning = prefix.removesuffix(here) + there if prefix.endswith(here) else prefix
        wanted[prefix] = Block(beginning, layout, block.experts, words)
    return _converted(checkpoint, blocks, wanted)


def like(checkpoint: Checkpoint, donor: Checkpoint) -> Checkpoint:
    """Return a model with its experts named and laid out as the donor's are; as it is where that cannot be done."""
    if checkpoint.tensors is donor.tensors or checkpoint.tensors.keys() == donor.tensors.keys():
        return checkpoint
    ours, theirs = find_experts(donor.tensors), find_experts(checkpoint.tensors)
    example, other = next(iter(ours.values()), None), next(iter(theirs.values()), None)
    if example is None or other is None:
        return checkpoint
    own, new = (_module(block.prefix) for block in (other, example))
    wanted = {}
    for prefix, block in theirs.items():
        target = Block(prefix.removesuffix(own) + new, example.layout, block.experts, example.words)
        if target != block:
            wanted[prefix] = target
    return _converted(checkpoint, theirs, wanted)


def _module(prefix: str) -> str:
    """Return the word that the experts' module has in a layer, with its dot: "mlp."."""
    return prefix[prefix[:-1].rfind(".") + 1 :]


def _converted(checkpoint: Checkpoint, blocks: Mapping[str, Block], wanted: Mapping[str, Block]) -> Checkpoint:
    turning = str(checkpoint.config.get("model_type")) in _IN_TURNS
    if not wanted or (turning and any(wanted[prefix].layout != blocks[prefix].layout for prefix in wanted)):
        return checkpoint
    tensors, made = dict(checkpoint.tensors), dict(checkpoint.made)
    for prefix, target in wanted.items():
        _Conversion(checkpoint, blocks[prefix], target, tensors, made).run()
    ordered = {
        name: tensors[name] for name in (*(n for n in tensors if n not in made), *(n for n in tensors if n in made))
    }
    before, after = (next(iter(part.values())) for part in (blocks, wanted))
    example = after.single(0, 0) if after.layout == "single" else after.fused[0]
    note = f"the experts of {checkpoint.name} are stored {_words(before)}: they are read as `{example}`"
    return replace(checkpoint, tensors=ordered, made=made, notes=(*checkpoint.notes, note))


def _words(block: Block) -> str:
    return "in a tensor for each" if block.layout == "single" else f"all in one (`{block.fused[0]}`)"


class _Conversion:
    """The experts of one layer, brought into another layout."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        block: Block,
        target: Block,
        tensors: dict[str, TensorInfo],
        made: dict[str, Made],
    ) -> None:
        self._checkpoint = checkpoint
        self._block = block
        self._target = target
        self._tensors = tensors
        self._made = made
        stored = checkpoint.tensors
        if block.layout == "single":
            self._inner, self._width = stored[block.single(0, 0)].shape
        else:
            down = stored[block.fused[1]].shape
            self._inner, self._width = down[::-1][:2] if block.layout == "fused" else down[1:]

    def run(self) -> None:
        block, target = self._block, self._target
        self._rename()
        old = block.fused if block.layout != "single" else list(_singles(block))
        experts = range(block.experts)
        new: dict[str, tuple[Expr, str, tuple[int, ...], int]] = {}
        if target.layout == "single":
            for expert in experts:
                for part in range(3):
                    dtype, each, _ = self._read([(expert, part)])
                    new[target.single(expert, part)] = self._part(expert, part), dtype, self._shape(part), each
        else:
            flat = (2 * self._inner, self._width), (self._width, self._inner)
            for name, own, matrix in zip(target.fused, ([0, 1], [2]), flat, strict=True):
                dtype, each, mixed = self._read([(expert, part) for expert in experts for part in own])
                of = self._stack(own, experts, ("F64" if each == BYTES["F64"] else "F32") if mixed else None)
                turned = matrix[::-1] if target.layout == "transposed" else matrix
                new[name] = of, dtype, (block.experts, *turned), each
        for name in old:
            self._tensors.pop(name)
            self._made.pop(name, None)
        for name, (of, dtype, shape, each) in new.items():
            self._tensors[name] = TensorInfo(dtype, shape, math.prod(shape) * BYTES.get(dtype, each), 0)
            self._made[name] = Made((of,), math.prod(shape) * each)

    def _read(self, matrices: Sequence[tuple[int, int]]) -> tuple[str, int, bool]:
        """Return the dtype that holds some matrices, the bytes per element read, and whether their formats differ.

        What an adapter makes has a format of its own.
        """
        block, stored, made = self._block, self._checkpoint.tensors, self._checkpoint.made
        single = block.layout == "single"
        names = {block.single(*which) if single else block.fused[which[1] // 2] for which in matrices}
        dtypes = {stored[name].dtype for name in names}
        mixed = len({None if name in made else stored[name].dtype for name in names}) > 1
        each = max(
            (made[name].bytes if name in made else stored[name].bytes) // max(math.prod(stored[name].shape), 1)
            for name in names
        )
        each = max(each, BYTES["F32"]) if mixed else each
        return dtypes.pop() if len(dtypes) == 1 else "F64" if "F64" in dtypes else "F32", each, mixed

    def _rename(self) -> None:
        """Rename the rest of the experts' module, such as the router, as the target names it."""
        old, new = self._block.prefix, self._target.prefix
        if old == new:
            return
        for name, info in self._checkpoint.tensors.items():
            if name.startswith(old) and not name.startswith(f"{old}experts."):
                self._made[new + name[len(old) :]] = Made((self._current(name),), info.bytes)
                self._tensors[new + name[len(old) :]] = self._tensors.pop(name)
                self._made.pop(name, None)

    def _current(self, name: str) -> Expr:
        made = self._checkpoint.made.get(name)
        return Leaf(self._checkpoint.tensors[name].file, name) if made is None else made.of[0]

    def _shape(self, part: int) -> tuple[int, int]:
        return (self._width, self._inner) if part == 2 else (self._inner, self._width)

    def _part(self, expert: int, part: int) -> Expr:
        """Return gate, up or down of one expert, as a linear layer has it: [out, in]."""
        block = self._block
        if block.layout == "single":
            return self._current(block.single(expert, part))
        of = self._current(block.fused[part // 2])
        rows, columns = self._shape(part)
        if block.layout == "fused":
            first = (2 * expert + part) * rows if part < 2 else expert * rows
            return {"rows": {"of": of, "from": first, "to": first + rows}}
        of = {"rows": {"of": of, "from": expert * columns, "to": (expert + 1) * columns}}
        if part < 2:
            of = {"columns": {"of": of, "from": part * rows, "to": (part + 1) * rows}}
        return {"transpose": of}

    def _stack(self, parts: Sequence[int], experts: Sequence[int], cast: str | None) -> Expr:
        """Return parts of all experts, one below the other; `cast` where they are read in several formats."""

        def of(expert: int, part: int) -> Expr:
            found = self._part(expert, part)
            return found if cast is None else {"cast": {"of": found, "to": cast}}

        if self._target.layout == "transposed":
            matrices: list[Expr] = []
            for expert in experts:
                own = [of(expert, part) for part in parts]
                matrices.append({"transpose": own[0] if len(own) == 1 else {"stack": own}})
            return {"stack": matrices}
        return {"stack": [of(expert, part) for expert in experts for part in parts]}


def _singles(block: Block) -> Iterator[str]:
    for expert in range(block.experts):
        yield from (block.single(expert, part) for part in range(3))


def rows_of(expr: Expr, number: int, of: int, rows: int) -> Expr:
    """Return one of the matrices that a tensor of several divides into.

    Args:
        expr: the tensor.
        number: which matrix.
        of: how many there are.
        rows: rows of each.
    """
    if not isinstance(expr, Leaf) and len(expr.get("stack", ())) == of:
        return expr["stack"][number]  # type: ignore[no-any-return]
    return {"rows": {"of": expr, "from": number * rows, "to": (number + 1) * rows}}


def matrix_names(tensors: Iterable[OutputTensor]) -> Iterator[str]:
    """Yield the names that the matrices of fused experts would have as tensors of their own."""
    stored = {t.name: TensorInfo(t.dtype, t.shape, 0, 0) for t in tensors if "experts." in t.name}
    for name, info in stored.items():
        count = expert_rows(name, stored)
        if count > 1:
            yield from (matrix_name(name, number, count, info.shape[0]) for number in range(count))


def router_warning(merged: Iterable[str], donor: str) -> str | None:
    """Return what is to be said of routers that are merged, None where there are none.

    Args:
        merged: the tensors of the output that are not copied.
        donor: the model to copy them from instead.
    """
    routers = [name for name in dict.fromkeys(merged) if is_router(name)]
    if not routers:
        return None
    pattern = ".".join(routers[0].split(".")[-3:-1])
    return (
        f"routers are merged as weights ({len(routers)} tensors, e.g. `{routers[0]}`): each was trained for the "
        "experts of its own model, so a mixture may send tokens to experts that no input would choose; the rule "
        f"{{filter: {pattern}., copy: {donor}}} keeps one model's"
    )
