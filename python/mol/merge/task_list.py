"""Collects tasks and the tensors that they make, spread over files, and keeps account of what is read and written."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mol.dtypes import BYTES
from mol.io.expressions import Leaf, leaves, renumbered
from mol.io.layout import shard_names
from mol.merge.plan import InputFile, MergePlan, OutputTensor, Task, sweeps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from mol.io.checkpoint import TensorInfo
    from mol.io.expressions import Expr
    from mol.merge.model import Model
    from mol.merge.plan import Method
    from mol.merge.stepwise import Origin, Stepwise


class TaskList:
    """Tasks in the order of the output: first those of a tensor, then the tensor.

    Attributes:
        methods: number of tensors by what is done to them.
        bytes_read: what the engine will count as read.
    """

    def __init__(self, *, dtype: str | None, shard_size: int, stepwise: Stepwise | None) -> None:
        """Start with none; see `TaskBuilder`."""
        self._dtype = dtype
        self._shard_size = shard_size
        self._stepwise = stepwise
        self._output = 0
        self._filled = 0
        self._tensors: list[OutputTensor] = []
        self._tasks: list[Task] = []
        self._read: set[int] = set()
        self._bytes_by_dtype: Counter[str] = Counter()
        self.methods: Counter[str] = Counter()
        self.bytes_read = 0

    def add_task(self, origin: Origin, method: Method, of: tuple[Expr, ...], row: int = 0) -> None:
        """Add a task of the tensor that is added next: a method, what it is done to, the first row that it makes."""
        if self._stepwise is not None:
            method, of = self._stepwise.made(origin, method, of)
        self._tasks.append(Task(len(self._tensors), method, of, row))
        for expr in of:
            self._read.update((expr.input,) if type(expr) is Leaf else [leaf.input for leaf in leaves(expr)])

    def add_alike(
        self, tensors: Iterable[tuple[str, TensorInfo, tuple[Expr, ...]]], method: Method, files: Iterable[int]
    ) -> None:
        """Add tensors that are made alike, each in one task of tensors of these files."""
        for name, info, of in tensors:
            self._tasks.append(Task(len(self._tensors), method, of))
            self.add_tensor(name, info)
        self._read.update(files)

    def add_tensor(self, name: str, info: TensorInfo) -> None:
        """Add a tensor after its tasks; it goes into the last file, or begins one."""
        dtype = info.dtype
        size = info.bytes
        wanted = self._dtype
        if wanted is not None and wanted != dtype and dtype in BYTES:
            size = size // BYTES[dtype] * BYTES[wanted]
            dtype = wanted
        if self._filled and self._filled + size > self._shard_size:
            self._output += 1
            self._filled = 0
        self._filled += size
        self._tensors.append(OutputTensor(name, dtype, info.shape, self._output))
        self._bytes_by_dtype[dtype] += size

    def count(self, method: Method, read: int, tensors: int) -> None:
        """Count tensors made by a method, of `read` bytes in one sweep."""
        for kind in method:
            self.bytes_read += read * sweeps(kind)
            self.methods[kind] += tensors

    def reads(self, model: Model) -> bool:
        """Return whether some task reads a file of a model."""
        first = model.first_file
        return not self._read.isdisjoint(range(first, first + len(model.checkpoint.files)))

    @property
    def bytes_written(self) -> int:
        """Bytes of all tensors of the output."""
        return sum(self._bytes_by_dtype.values())

    def main_dtype(self) -> str | None:
        """Return the float dtype that most bytes of the output have."""
        floats = [dtype for dtype in self._bytes_by_dtype if dtype in BYTES]
        return max(floats, key=lambda dtype: (self._bytes_by_dtype[dtype], dtype), default=None)

    def build(
        self, models: Sequence[Model], *, seed: int, allow_nonfinite: bool, tables: Mapping[str, Mapping[str, Any]]
    ) -> MergePlan:
        """Return the plan, with its row tables; files of which nothing is read are left out."""
        files = [
            InputFile(str(file.path), file.size, file.mtime_ns, file.header)
            for model in models
            for file in model.checkpoint.files
        ]
        # Models that share files, as one with an adapter and without it, read them as one input.
        first: dict[str, int] = {}
        same = [first.setdefault(file.path, number) for number, file in enumerate(files)]
        read = sorted({same[number] for number in self._read})
        tasks = self._tasks
        if len(read) < len(files):
            kept = {old: new for new, old in enumerate(read)}
            numbers = [kept.get(number, -1) for number in same]
            tasks = [
                task._replace(
                    of=tuple(
                        Leaf(numbers[expr.input], expr.tensor)
                        if isinstance(expr, Leaf)
                        else renumbered(expr, numbers.__getitem__)
                        for expr in task.of
                    )
                )
                for task in tasks
            ]
        return MergePlan(
            inputs=tuple(files[old] for old in read),
            outputs=shard_names(self._output + 1),
            tensors=tuple(self._tensors),
            tasks=tuple(tasks),
            tables=tables,
            seed=seed,
            allow_nonfinite=allow_nonfinite,
        )
