"""ModelWeights: a model that was built without its weights, and reads those of the parameters that are requested."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from mol.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

    from mol.io.checkpoint import Checkpoint

_building: Final = threading.Lock()  # accelerate patches torch while it builds a model
_reading: Final = threading.RLock()  # transformers' progress bar and a model's state_dict hooks are shared


_kept: Final = torch.inference_mode(mode=False)
"""Load outside inference mode, so weights read under `torch.inference_mode()` can still be trained with."""


class LazyTensor:
    """A tensor of a file, read when it is indexed, which transformers' loader accepts as a tensor."""

    def __init__(self, weights: ModelWeights, file: int, name: str) -> None:
        """Store its location."""
        self._weights = weights
        self._file = file
        self._name = name

    def __getitem__(self, index: object) -> torch.Tensor:
        """Read it, or a part of it."""
        self._weights._read.add(self._name)
        tensor: torch.Tensor = self._weights.open(self._file).get_slice(self._name)[index]
        return tensor


class ModelWeights:
    """The parameters of a model built by `build_hollow`, of which some are loaded.

    A parameter that is not loaded has its shape, dtype and device and takes no memory: all of its rows are the same
    memory (stride 0). That row is NaN, so that a leak is seen, except during a trace, see `fill`. transformers' own
    loader reads and converts, so tensors that are renamed or fused come out as `from_pretrained` makes them.

    Attributes:
        model: the model.
        loaded: names of the parameters that are loaded, and of the buffers that were read.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        """Start with nothing loaded.

        Args:
            model: from `build_hollow`.
            checkpoint: its files.
        """
        self.model = model
        self.loaded: set[str] = set()
        # Held while weights are read, dropped or filled: other threads wait until the model is consistent.
        self._changing = threading.RLock()
        self._visits: Counter[str] = Counter()
        self._passing: set[str] = set()
        self._read: set[str] = set()
        self._checkpoint = checkpoint
        self._open: dict[int, Any] = {}
        self._opening = threading.Lock()
        self._mapping = get_model_conversion_mapping(model)
        self._tensors = {name: LazyTensor(self, info.file, name) for name, info in checkpoint.tensors.items()}
        self._sources: dict[frozenset[str], set[str]] = {}
        self._under: dict[tuple[str, ...], frozenset[str]] = {}
        self._names = frozenset(model.state_dict())
        self.fill(None)

    @property
    def name(self) -> str:
        """The model's name in messages."""
        return self._checkpoint.name

    @property
    def staying(self) -> set[str]:
        """Names of what is loaded to stay, and not for visits only."""
        return self.loaded - self._passing

    def open(self, file: int) -> Any:  # noqa: ANN401 - safetensors' handle has no type
        """Return a file's handle."""
        with self._opening:  # not `_reading`: transformers reads in threads of its own while that is held
            if file not in self._open:
                self._open[file] = safe_open(str(self._checkpoint.files[file].path), framework="pt", device="cpu")
            return self._open[file]

    def under(self, *paths: str) -> frozenset[str]:
        """Return the names of parameters and buffers of these modules."""
        if paths not in self._under:
            prefixes = tuple(f"{path}." for path in paths)
            self._under[paths] = frozenset(name for name in self._names if name.startswith(prefixes))
        return self._under[paths]

    def outside(self, *paths: str) -> frozenset[str]:
        """Return the names of parameters and buffers outside of these modules."""
        return self._names - self.under(*paths)

    def bytes_of(self, names: Collection[str]) -> int:
        """Return the size of parameters and buffers once they are loaded."""
        tensors = {**dict(self._parameters()), **dict(self.model.named_buffers())}
        return sum(tensors[name].nbytes for name in names)

    @_kept
    def load(self, names: Collection[str], device: torch.device | None = None, *, skip_missing: bool = False) -> None:
        """Load parameters that are not loaded yet, and those that they are tied to.

        Args:
            names: of parameters and buffers, as the model calls them.
            device: where to; where the model is if None.
            skip_missing: leave parameters that the files lack as they are.

        Raises:
            CheckpointError: the files lack a parameter, or one has another shape.
        """
        with self._changing:
            self._passing.difference_update(names)
            self._load(names, device, skip_missing=skip_missing)

    def _load(self, names: Collection[str], device: torch.device | None = None, *, skip_missing: bool = False) -> None:
        if self.loaded.issuperset(names):
            return
        tied = self.model.all_tied_weights_keys
        pairs = [pair for target, source in tied.items() for pair in ((target, source), (source, target))]
        wanted = frozenset(names) - self.loaded
        wanted |= {other for one, other in pairs if one in wanted} - self.loaded
        with _reading:
            self._read.clear()
            known = self._sources.get(wanted)
            tensors = self._tensors if known is None else {name: self._tensors[name] for name in known}
            info = self._convert(wanted, tensors, device or self.model.device)
            self._sources[wanted] = set(self._read)
        missing = set(info.missing_keys) & wanted
        for target, source in pairs * 2:  # twice, for three that are tied
            if target in missing and source in wanted | self.loaded and source not in missing:
                self._set(target, self.model.get_parameter(source))
                missing.discard(target)
        buffers = dict(self.model.named_buffers())
        missing -= buffers.keys()
        if skip_missing:
            wanted, missing = wanted - missing, set()
        problems = [f"`{name}` is not in the files" for name in sorted(missing)]
        problems += [
            f"`{name}` is {list(found)} in the files, {list(expected)} by the config"
            for name, found, expected in sorted(info.mismatched_keys)
        ]
        problems += [f"`{name}`: {error}" for name, error in sorted(info.conversion_errors.items())]
        if problems:
            raise CheckpointError.listing(
                f"{self.name}: its files do not hold the {type(self.model).__name__} that its config describes; a host "
                "is loaded with its head, so it must have been saved with one",
                problems,
            )
        self.loaded |= wanted
        for name in wanted - buffers.keys():
            self.model.get_parameter(name).requires_grad_(requires_grad=False)

    @_kept
    def drop(self, names: Collection[str]) -> None:
        """Drop parameters, those that are visited after the last visit; buffers stay."""
        with self._changing:
            self._passing.update(name for name in names if self._visits[name])
            for name, parameter in self._parameters():
                if name in self.loaded and name in names and name not in self._passing:
                    self._set(name, _hollow(parameter, None))
                    self.loaded.discard(name)

    @contextmanager
    def visited(self, path: str) -> Iterator[None]:
        """Keep a module loaded while the context is open, and no longer unless it is loaded for another reason."""
        names = self.under(path)
        with self._changing:
            self._passing.update(names - self.loaded)
            _kept(self._load)(names)
            self._visits.update(names)
        try:
            yield
        finally:
            with self._changing:
                self._visits.subtract(names)
                left = {name for name in names & self._passing if not self._visits[name]}
                self._passing -= left
                self.drop(left)

    @contextmanager
    def noise(self) -> Iterator[None]:
        """Fill parameters that are not loaded with small noise while the context is open, to trace a forward."""
        with self._changing:
            # Grouped kernels for mixtures of experts refuse a weight with stride 0.
            chosen = self.model.get_experts_implementation()
            self.model.set_experts_implementation("eager")
            self.fill(torch.Generator().manual_seed(0))
            try:
                with _OneRow():
                    yield
            finally:
                self.fill(None)
                self.model.set_experts_implementation(chosen)

    @_kept
    def fill(self, noise: torch.Generator | None) -> None:
        """Fill parameters that are not loaded with a row of small noise, for a trace, or with NaN."""
        for name, parameter in self._parameters():
            if name not in self.loaded:
                self._set(name, _hollow(parameter, noise))

    @_kept
    def apply(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Move or cast everything, as `nn.Module.to` does, without memory for parameters that are not loaded."""
        moved: set[int] = set()
        for name, parameter in self._parameters():
            if name not in self.loaded:
                like = fn(torch.zeros(1, dtype=parameter.dtype, device=parameter.device))
                self._set(name, _hollow(like.expand(parameter.shape), None))
            elif id(parameter) not in moved:
                moved.add(id(parameter))
                parameter.data = fn(parameter.data)
        for module in self.model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = fn(buffer)

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.model.named_parameters(remove_duplicate=False))

    def _set(self, name: str, parameter: nn.Parameter) -> None:
        path, _, key = name.rpartition(".")
        setattr(self.model.get_submodule(path), key, parameter)

    def _convert(self, wanted: frozenset[str], tensors: dict[str, LazyTensor], device: torch.device) -> Any:  # noqa: ANN401
        """Run transformers' loader as if the wanted parameters were the whole model."""

        def keep(_module: nn.Module, state: dict[str, Any], _prefix: str, _metadata: object) -> None:
            for name in [name for name in state if name not in wanted]:
                del state[name]

        dtype = self.model.dtype
        settings = LoadStateDictConfig(
            device_map={"": device},
            dtype=dtype,
            dtype_plan=self.model._get_dtype_plan(dtype),
            weight_mapping=self._mapping,
        )
        hook = self.model.register_state_dict_post_hook(keep)
        try:
            with _no_progress_bar():
                return convert_and_load_state_dict_in_model(self.model, tensors, settings)[0]
        finally:
            hook.remove()


class _OneRow(TorchFunctionMode):
    """Computes `x @ W.T` from a single row when all rows of W are the same (stride 0)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the function returns
        if func is functional.linear and not kwargs and args[1].dim() == 2 and args[1].stride(0) == 0:
            x, weight, bias = (*args, None)[:3]
            one = functional.linear(x, weight[:1]).expand(*x.shape[:-1], len(weight))
            return one.clone() if bias is None else one + bias
        return func(*args, **(kwargs or {}))


class _NoDraws(TorchFunctionMode):
    """Skips random initialisation of tensors without storage, which takes torch half a millisecond each."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what the function returns
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _DRAWS:  # of torch.Tensor, torch.nn.init or transformers' version of that
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


_DRAWS: Final = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"})


@_kept
def build_hollow(
    auto_class: Any,  # noqa: ANN401 - one of the Auto classes
    config: PreTrainedConfig,
    **options: Any,  # noqa: ANN401 - options of `from_config`
) -> PreTrainedModel:
    """Build a model of this config without storage for parameters; buffers are as its constructor makes them."""
    with _building, init_empty_weights(include_buffers=False), _NoDraws():
        model: PreTrainedModel = auto_class.from_config(copy.deepcopy(config), **options)
    model.train(mode=False)
    return model


def _hollow(like: torch.Tensor, noise: torch.Generator | None) -> nn.Parameter:
    shape = like.shape[-1:]
    if not like.is_floating_point():
        row = torch.zeros(shape)
    elif noise is None:
        row = torch.full(shape, torch.nan)
    else:
        row = 0.02 * torch.randn(shape, generator=noise)
    device = "cpu" if like.is_meta else like.device
    return nn.Parameter(row.to(device, like.dtype).expand(like.shape), requires_grad=False)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
