"""Decides how each tensor of the output is made, and keeps account of every input tensor."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from mol.dtypes import BYTES, EXACT_DTYPES
from mol.io.expressions import Leaf
from mol.merge.combine import Combination, task_vector
from mol.merge.experts import rows_of
from mol.merge.model import OutputSpec
from mol.merge.plan import COPY, Method, sweeps
from mol.merge.stages import computed, made_in_f64
from mol.merge.stepwise import Origin
from mol.merge.task_list import TaskList
from mol.structure.experts import expert_rows, matrix_name
from mol.structure.names import is_buffer, is_counter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mol.io.checkpoint import TensorInfo
    from mol.io.expressions import Expr
    from mol.merge.combine import Combine
    from mol.merge.gathers import Gathered
    from mol.merge.mismatch import Mismatches
    from mol.merge.model import Model, ModelLayer
    from mol.merge.stepwise import Stepwise
    from mol.structure.layers import Stack

_WAY_OUT: Final = "all must have it, or leave one model out"


class TaskBuilder:
    """Makes the tensors of the output in their order.

    Attributes:
        tasks: how they are made, so far.
        copied: "name: reason" of each tensor that is copied although the method would merge it.
        ruled: which of the recipe's rules made a tensor, by its name.
    """

    def __init__(
        self,
        problems: Mismatches,
        *,
        dtype: str | None,
        strict: bool,
        shard_size: int,
        fused_experts: bool = False,
        stepwise: Stepwise | None = None,
    ) -> None:
        """Start with none.

        Args:
            problems: where everything that does not fit goes.
            dtype: the output's, None to keep each tensor's.
            strict: refuse to copy tensors that some input lacks.
            shard_size: most bytes of tensors in one output file; a larger tensor gets a file of its own.
            fused_experts: tensors may hold several experts, each of which is merged by itself.
            stepwise: how `precision: mergekit` makes a tensor; None for `exact`.
        """
        self._exact = stepwise is None
        # mergekit merges all experts of such a tensor as one.
        self._fused_experts = fused_experts and self._exact
        self._problems = problems
        self._dtype = dtype
        self._strict = strict
        self.tasks = TaskList(dtype=dtype, shard_size=shard_size, stepwise=stepwise)
        self.copied: list[str] = []
        self.ruled: dict[str, int] = {}
        self._mixed = False  # some input has a tensor in another dtype than the output gets

    def add_layer(
        self,
        out_start: str,
        lead: ModelLayer,
        inputs: Sequence[ModelLayer],
        combine: Combine,
        position: float,
        out_layer: int,
        donor_dtypes: dict[str, str] | None = None,
    ) -> None:
        """Make one layer of the output.

        Args:
            out_start: what the names of its tensors start with.
            lead: the layer that says which tensors there are, their shapes and dtypes.
            inputs: the layer of each input.
            combine: decides how each tensor is made.
            position: from 0 (first layer) to 1 (last layer).
            out_layer: its number in the output.
            donor_dtypes: dtypes by ending, where the lead is not the donor.
        """
        suffixes = lead.stack.layers[lead.layer]
        tensors = lead.model.checkpoint.tensors
        lead_start = lead.stack.start(lead.layer)
        starts = [given.stack.start(given.layer) for given in inputs]
        models = [given.model for given in inputs]
        pattern_start = lead.stack.prefix + ".*." if lead.stack.prefix else "*."
        # One list for layers of one name, so that its texts are made and hashed once.
        named = {
            start: [start + suffix if suffix else start[:-1] for suffix in suffixes]
            for start in {out_start, lead_start, *starts}
        }
        alike = True
        for given, start in zip(inputs, starts, strict=True):
            theirs = given.stack.layers[given.layer]
            if theirs == suffixes:
                given.model.used.update(named[start])
            else:
                alike = False
                self._compare(given, lead, out_layer, pattern_start)
        fixed = combine.fixed
        plain = fixed is not None and not isinstance(fixed, str) and not (fixed.scaled or self._divides(fixed.method))
        if alike and donor_dtypes is None and plain and self._exact:
            assert isinstance(fixed, Combination)
            infos = [tensors[name] for name in named[lead_start]]
            read = [(models[index], named[starts[index]]) for index in fixed.inputs]
            if self._add_alike(named[out_start], infos, read, fixed.method):
                return
        for suffix in suffixes:
            names = [start + suffix if suffix else start[:-1] for start in starts]
            source = lead_start + suffix if suffix else lead_start[:-1]
            info = tensors[source]
            if donor_dtypes is not None:
                info = info._replace(dtype=donor_dtypes.get(suffix, info.dtype))
            name = out_start + suffix if suffix else out_start[:-1]
            spec = OutputSpec(name, info, lead.model, source, position, pattern_start + suffix, out_layer)
            self.add(spec, models, names, combine)

    def _add_alike(
        self,
        names: Sequence[str],
        infos: Sequence[TensorInfo],
        inputs: Sequence[tuple[Model, Sequence[str]]],
        method: Method,
    ) -> bool:
        """Make a layer at once if each input stores all its tensors, in these shapes and in float dtypes.

        Most layers are like that, and `add` would take three times as long for each of their tensors.

        Returns:
            Whether they are like that; else nothing is made.
        """
        shapes = [info.shape for info in infos]
        dtypes = {info.dtype for info in infos}
        layers = []
        for model, own in inputs:
            tensors = model.checkpoint.tensors
            found = [tensors[name] for name in own]
            dtypes.update([info.dtype for info in found])
            if model.checkpoint.made or [info.shape for info in found] != shapes:
                return False
            layers.append((model.first_file, own, found))
        if not dtypes.isdisjoint(EXACT_DTYPES):
            return False
        if len(dtypes) > 1:
            own_dtypes = [info.dtype for info in infos]
            self._mixed |= any([info.dtype for info in found] != own_dtypes for _, _, found in layers)
        sources = []
        files: set[int] = set()
        size = 0
        for first, own, found in layers:
            sources.append([Leaf(first + info.file, name) for name, info in zip(own, found, strict=True)])
            files.update([first + info.file for info in found])
            size += sum([info.bytes for info in found])
        self.tasks.add_alike(zip(names, infos, zip(*sources, strict=True), strict=True), method, files)
        self.tasks.count(method, size, len(names))
        return True

    def add_copies(self, stack: Stack, owner: Model, first: int) -> int:
        """Copy all layers of a stack of one model, numbered from `first` on; return the number of tensors."""
        moved = replace(stack, first=first)
        count = 0
        for layer in range(len(stack)):
            for name, source in zip(moved.names(layer), stack.names(layer), strict=True):
                info = owner.checkpoint.tensors[source]
                owner.used.add(source)
                self._append_copy(name, info, *owner.read(source))
                count += 1
        return count

    def _compare(self, given: ModelLayer, lead: ModelLayer, out_layer: int, pattern_start: str) -> None:
        """Report tensors of a layer that the leading model's layer lacks."""
        wanted = frozenset(lead.stack.layers[lead.layer])
        for suffix, name in zip(given.stack.layers[given.layer], given.stack.names(given.layer), strict=True):
            if suffix in wanted:
                given.model.used.add(name)
            elif not is_buffer(name, given.model.checkpoint.tensors[name].shape):
                given.model.used.add(name)
                self._problems.add_tensor(
                    pattern_start + suffix,
                    out_layer,
                    f"is in {given.model.label}, and {lead.model.label} lacks it; {_WAY_OUT}",
                )

    def add(
        self,
        spec: OutputSpec,
        models: Sequence[Model],
        names: Sequence[str | None],
        combine: Combine,
        decide_as: str | None = None,
        gather: Callable[[Model], Gathered] | None = None,
    ) -> None:
        """Make one tensor of the output.

        Args:
            spec: the tensor.
            models: the models of the inputs.
            names: its name in each, None where the input has no such tensor.
            combine: decides how it is made.
            decide_as: the name by which parameters are found, if not its own.
            gather: what is read of an input, where its rows are not those of the output.
        """
        output = spec.name if decide_as is None else decide_as
        combination = combine.fixed
        if combination is None:
            if self._add_apart(spec, models, names, combine):
                return
            combination = combine(names, output, spec.position)
            if isinstance(combination, str):
                self._problems.add_tensor(spec.pattern, spec.layer, f"cannot be made: {combination}")
        if isinstance(combination, str):
            return
        reads, lacking = self._sources(spec, models, names, _inputs([combination]), gather)
        if lacking:
            self._copy(spec, lacking, gather)
            return
        if combination.rule is not None:
            self.ruled[spec.name] = combination.rule
        if spec.info.dtype in EXACT_DTYPES and combination.method is not COPY:
            self.copied.append(f"{spec.name}: {spec.info.dtype}, copied as it is and not merged")
            if is_counter(spec.source):
                self._append_copy(spec.name, spec.info, *spec.owner.read(spec.source))
                return
            combination = combination._replace(method=COPY, inputs=tuple(reads.of), scaled=None)
        divides = self._divides(combination.method)
        matrices = expert_rows(spec.source, spec.owner.checkpoint.tensors) if divides else 1
        self._append_made(spec, [combination] * matrices, reads)

    def _sources(
        self,
        spec: OutputSpec,
        models: Sequence[Model],
        names: Sequence[str | None],
        inputs: Iterable[int],
        gather: Callable[[Model], Gathered] | None,
    ) -> tuple[_Reads, list[str]]:
        """Return what is read of each input, and the inputs that lack the tensor."""
        info, shape = spec.info, spec.info.shape
        exact = info.dtype in EXACT_DTYPES
        reads = _Reads({}, {}, set())
        lacking = []
        for index in inputs:
            model, name = models[index], names[index]
            found = None if name is None else model.checkpoint.tensors.get(name)
            if name is None or found is None:
                lacking.append(model.label)
                continue
            if found.shape != shape and (gather is None or found.shape[1:] != shape[1:]):
                wanted = shape if gather is None else (*found.shape[:1], *shape[1:])
                self._problems.add_shape(spec.owner, model, spec.pattern, spec.layer, found.shape, wanted)
            if found.dtype != info.dtype and (exact or found.dtype in EXACT_DTYPES):
                self._problems.add_tensor(
                    spec.pattern,
                    spec.layer,
                    f"is {found.dtype} in {model.label} and {info.dtype} in {spec.owner.label}; integer and bool "
                    "tensors are copied when they are equal, never cast",
                )
            reads.of[index], reads.sizes[index] = model.read(name) if gather is None else gather(model)
            reads.dtypes.add(found.dtype)
            self._mixed |= found.dtype != info.dtype
        return reads, lacking

    def notes(self, donor: str) -> Iterator[str]:
        """Yield what is to be said of all tensors; `donor` is the model whose dtypes the output has by default."""
        if self._mixed and self._dtype is None:
            yield (
                f"inputs differ in dtype and the recipe has no `dtype`: the output has the dtypes of {donor}, where "
                "mergekit writes those that hold both"
            )

    def _add_apart(
        self, spec: OutputSpec, models: Sequence[Model], names: Sequence[str | None], combine: Combine
    ) -> bool:
        """Make a tensor of all experts matrix by matrix where the recipe makes some otherwise than others.

        Returns:
            Whether it does; else nothing is made.
        """
        tensors = spec.owner.checkpoint.tensors
        count = expert_rows(spec.source, tensors) if self._fused_experts else 1
        if count == 1:
            return False
        experts = spec.info.shape[0]
        found: list[Combination] = []
        for number in range(count):
            own = [None if name is None else matrix_name(name, number, count, experts) for name in names]
            output = matrix_name(spec.name, number, count, experts)
            combination = combine(own, output, spec.position)
            if isinstance(combination, str):
                return False  # reported of the tensor
            found.append(combination)
        if all(one == found[0] for one in found):
            return False
        reads, lacking = self._sources(spec, models, names, _inputs(found), None)
        if lacking:
            self._copy(spec, lacking, None)
            return True
        for number, one in enumerate(found):
            if one.rule is not None:
                self.ruled.setdefault(spec.name, one.rule)
                self.ruled[matrix_name(spec.name, number, count, experts)] = one.rule
        self._append_made(spec, found, reads)
        return True

    def _append_made(self, spec: OutputSpec, made: Sequence[Combination], reads: _Reads) -> None:
        """Add the tasks of a tensor: one, or one for each of the matrices that it divides into."""
        info, count = spec.info, len(made)
        dtype = info.dtype if self._dtype is None else self._dtype
        rows = math.prod(info.shape[:-1]) // count
        leading = rows if count > 1 else info.shape[0] if info.shape else 1
        origin = Origin(spec.pattern, spec.layer, info.dtype, reads.dtypes, leading)
        for number, one in enumerate(made):
            of = reads.of
            if count > 1:
                of = {i: tuple(rows_of(expr, number, count, rows) for expr in exprs) for i, exprs in of.items()}
            method, exprs = one.method, tuple(expr for index in one.inputs for expr in of[index])
            share = 1 if number == 0 else 0  # a tensor counts once
            if one.scaled is None:
                self.tasks.count(method, sum(reads.sizes[index] for index in one.inputs) // count, share)
            else:
                scale, base = one.scaled
                result = computed(method, exprs, dtype)
                # What the engine counts as read: the base, and the method's result in the format in which it is made.
                elements = math.prod(info.shape)
                wide = any(reads.sizes[index] >= BYTES["F64"] * elements for index in one.inputs)
                each = BYTES["F64" if wide or made_in_f64(method, dtype) else "F32"]
                self.tasks.bytes_read += (reads.sizes[base] + elements * each) // count
                self.tasks.count(method, 0, share)
                method, exprs = task_vector(scale), (*of[base], result)
            self.tasks.add_task(origin, method, exprs, number * rows)
        self.tasks.add_tensor(spec.name, info)

    def _divides(self, method: Method) -> bool:
        """Return whether each expert of a tensor has to be merged by itself: the method looks at tensors as a whole."""
        return self._fused_experts and any(sweeps(kind) > 1 for kind in method)

    def _copy(self, spec: OutputSpec, lacking: Sequence[str], gather: Callable[[Model], Gathered] | None) -> None:
        """Copy a tensor that some inputs lack, or refuse where that would mix up a layer."""
        who = ", ".join(dict.fromkeys(lacking))
        problem = f"is lacking in {who}, and {spec.owner.label} has it"
        if spec.layer is not None and not is_buffer(spec.source, spec.info.shape):
            self._problems.add_tensor(spec.pattern, spec.layer, f"{problem}; {_WAY_OUT}")
            return
        if self._strict:
            self._problems.add_tensor(spec.pattern, spec.layer, f"{problem} (--strict-tensors)")
            return
        spec.owner.used.add(spec.source)
        self.copied.append(f"{spec.name}: copied from {spec.owner.label}, lacking in {who}")
        read = spec.owner.read(spec.source) if gather is None else gather(spec.owner)
        self._append_copy(spec.name, spec.info, *read)

    def _append_copy(self, name: str, info: TensorInfo, of: tuple[Expr, ...], read: int) -> None:
        self.tasks.add_task(Origin(name, None, info.dtype, {info.dtype}, 1), COPY, of)
        self.tasks.add_tensor(name, info)
        self.tasks.count(COPY, read, 1)


class _Reads(NamedTuple):
    """What is read for a tensor: of each input the expressions and the bytes of a sweep; the dtypes of all."""

    of: dict[int, tuple[Expr, ...]]
    sizes: dict[int, int]
    dtypes: set[str]


def _inputs(combinations: Iterable[Combination]) -> list[int]:
    """Return the inputs that are read, each once; of a scaled result the base comes first."""
    found: dict[int, None] = {}
    for one in combinations:
        found.update(dict.fromkeys((() if one.scaled is None else (one.scaled[1],)) + one.inputs))
    return list(found)
