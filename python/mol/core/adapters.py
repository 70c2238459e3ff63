"""Adapters between two hidden widths: each starts as the identity, padded or cut, and stays near it after a step.

What an adapter learns is a branch, y = skip(x) + s branch(x), with s a power of two below 8 / width. Adam moves every
weight by the learning rate at once, so that without s one step would move a wide output by lr * width of its size: 77%
at width 768 and lr 1e-3. With s it is 0.8% at most, whatever the width, which is the rule of Yang et al. (2022, "Tensor
Programs V") that learning rates under Adam fall with the fan-in. A power of two, because scaling by it rounds nothing:
a map W that is kept as W / s comes out as W, bit for bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, TypedDict

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init

from mol.core.linear import TrainedLinear, check_norm, check_wrapper, dtype_of, is_plain
from mol.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Unpack

_STEP: Final = 8.0
"""How far an Adam step moves an output at most, in units of the learning rate times the size of the input."""
_EPS: Final = 1e-8
"""Of the norms: small, for the branch is to scale with its input, and what an up adapter sees can be tiny."""
_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class BaseAdapter(nn.Module, ABC):
    """A map from hidden states (..., input_dim) to (..., output_dim), in the dtype of its input.

    Attributes:
        input_dim: width that goes in.
        output_dim: width that comes out.
    """

    def __init__(self, input_dim: int, output_dim: int) -> None:
        """Store the widths.

        Raises:
            ConfigError: a width is below 1.
        """
        super().__init__()
        if min(input_dim, output_dim) < 1:
            raise ConfigError(
                f"{type(self).__name__}: input_dim {input_dim} and output_dim {output_dim} must be 1 or more"
            )
        self.input_dim = input_dim
        self.output_dim = output_dim

    @property
    def is_exact_identity(self) -> bool:
        """Whether it returns its input and always will, so that a caller may skip it."""
        return False

    @abstractmethod
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., input_dim) to (..., output_dim)."""

    def extra_repr(self) -> str:
        """Show the widths."""
        return f"{self.input_dim}, {self.output_dim}"

    def _check(self, x: torch.Tensor) -> None:
        if x.shape[-1] != self.input_dim:
            raise ConfigError(
                f"hidden states are {x.shape[-1]} wide, this {type(self).__name__} takes {self.input_dim}"
            )


class IdentityAdapter(BaseAdapter):
    """Returns its input; has no parameters."""

    def __init__(self, dim: int) -> None:
        """Make an adapter between equal widths.

        Raises:
            ConfigError: the width is below 1.
        """
        super().__init__(dim, dim)

    @property
    def is_exact_identity(self) -> bool:
        """True."""
        return True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x itself."""
        self._check(x)
        return x


class LinearAdapter(BaseAdapter):
    """One linear map, by default added to the input.

    What it computes, by two of its options::

        use_residual  use_layer_norm  y                                    starts, with init_identity, as
        True          True            skip(x) + s rms(x) (P norm(x) + b)   skip(x)
        True          False           skip(x) + s (P x + b)                skip(x)
        False         False           s (P x + b)                          skip(x), held by P = eye / s
        False         True            s rms(x) (P norm(x) + b)             (refused)

    skip(x) is x cut or padded with zeros to the output's width, the map `eye(output_dim, input_dim)`, and costs no
    product. rms(x) is the root mean square of a token. The norm stands before P: after it, it would blow an
    infinitesimal P up to full size. Its result is scaled back by rms(x), so y(c x) = c y(x) for c > 0: a branch of
    fixed size would drown streams as small as embeddings, and a difference of 0 would not stay 0. Without a norm only
    b has a fixed size, and moves by s lr a step. Without init_identity, P is drawn at random such that s P x is about
    as large as x; skip(x) remains where use_residual says so.

    A map that was fitted beforehand is held exactly by the third form only: see `from_map`.

    Attributes:
        projection: P and b, over s.
        layer_norm: the norm, or None.
        scale: s.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        use_layer_norm: bool = True,
        use_residual: bool = True,
        init_identity: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        """Make an adapter.

        Args:
            input_dim: width that goes in.
            output_dim: width that comes out.
            use_layer_norm: normalise what P sees, and scale its result back.
            use_residual: add the input, cut or padded.
            init_identity: start as the identity, cut or padded; otherwise P starts at random.
            bias: whether there is a b. An adapter of differences, as the way up in h + U(E(Ah) - Ah), does without:
                of equal states it must make nothing.

        Raises:
            ConfigError: a width is below 1, or the identity is requested of a form that cannot be it.
        """
        super().__init__(input_dim, output_dim)
        if init_identity and use_layer_norm and not use_residual:
            raise ConfigError(
                "LinearAdapter(use_residual=False, use_layer_norm=True) sees normalised states only and cannot start "
                "as the identity: pass use_layer_norm=False, or init_identity=False"
            )
        self.use_residual = use_residual
        self.layer_norm = nn.LayerNorm(input_dim, eps=_EPS) if use_layer_norm else None
        self.projection: nn.Linear = skip_init(TrainedLinear, input_dim, output_dim, bias=bias)  # type: ignore[no-untyped-call]
        self.scale = _branch_scale(input_dim, input_dim, output_dim)
        with torch.no_grad():
            if self.projection.bias is not None:
                self.projection.bias.zero_()
            if not init_identity:
                nn.init.normal_(self.projection.weight, std=1 / (self.scale * math.sqrt(input_dim)))
            elif use_residual:
                self.projection.weight.zero_()
            else:
                nn.init.eye_(self.projection.weight).div_(self.scale)

    @classmethod
    def from_map(cls, weight: torch.Tensor, bias: torch.Tensor | None = None) -> LinearAdapter:
        """Make an adapter that starts as W x + b; see `mol.core.fitting.maps`.

        Args:
            weight: W (output_dim, input_dim).
            bias: b (output_dim); without it the adapter has none.

        Raises:
            ConfigError: the shapes do not fit, or a value is not finite.
        """
        if weight.dim() != 2:
            raise ConfigError(f"a map's weight is {tuple(weight.shape)}, wanted (output_dim, input_dim)")
        output_dim, input_dim = weight.shape
        adapter = cls(input_dim, output_dim, use_layer_norm=False, use_residual=False, bias=bias is not None)
        adapter.set_map_(weight, bias)
        return adapter

    @torch.no_grad()
    def set_map_(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Set the map to W x + b, exact except for the rounding of W and b to the dtype of the parameters.

        Args:
            weight: W (output_dim, input_dim).
            bias: b (output_dim); zero if None.

        Raises:
            ConfigError: the adapter is of another form, the shapes do not fit, or a value is not finite.
        """
        if self.use_residual or self.layer_norm is not None or (bias is not None and self.projection.bias is None):
            raise ConfigError(
                f"LinearAdapter({self.extra_repr()}) cannot hold a given map: make one by LinearAdapter.from_map, "
                "or with use_residual=False, use_layer_norm=False and, for a bias, bias=True"
            )
        _check_map(weight, bias, self.output_dim, self.input_dim)
        # Divided before it is rounded or after, a power of two gives the same: only the exponent changes.
        self.projection.weight.copy_(weight / self.scale)
        if bias is not None:
            self.projection.bias.copy_(bias / self.scale)
        elif self.projection.bias is not None:
            self.projection.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., input_dim) to (..., output_dim).

        Raises:
            ConfigError: x is of another width.
            FusionError: PEFT wraps a weight in a way that cannot work, see `mol.core.linear`.
        """
        self._check(x)
        check_wrapper(self.projection)
        # Weights may be kept in float32 for a stream in bfloat16.
        inner = x.to(dtype_of(self.projection, x.dtype))
        branch: torch.Tensor
        if self.layer_norm is not None:
            check_norm(self.layer_norm, self.projection)
            branch = self.projection(self.layer_norm(inner))
            branch = branch * (token_size(x) * self.scale).to(branch.dtype)
        elif is_plain(self.projection):
            branch = self._scaled_projection(inner)
        else:
            branch = self.projection(inner) * self.scale
        return _add(fit_width(x, self.output_dim), branch) if self.use_residual else branch.to(x.dtype)

    def _scaled_projection(self, x: torch.Tensor) -> torch.Tensor:
        """Return s (P x + b), scaled within the product, which saves a pass and an overflow of P x in float16."""
        bias = self.projection.bias
        start, kept = (x.new_empty(()), 0) if bias is None else (bias * self.scale, 1)
        flat = torch.addmm(start, x.flatten(0, -2), self.projection.weight.t(), beta=kept, alpha=self.scale)
        return flat.view(*x.shape[:-1], self.output_dim)

    def extra_repr(self) -> str:
        """Show the widths and the form."""
        return f"{super().extra_repr()}, residual={self.use_residual}, scale={self.scale:g}"


class BottleneckAdapter(BaseAdapter):
    """The input, plus a narrow two-layer map of it whose second layer starts at zero (Houlsby et al., 2019).

    y = skip(x) + s rms(x) (B act(C norm(x) + c) + b): the terms are those of `LinearAdapter`. The norm keeps the
    activation in the range where it bends, whatever the size of the stream. Without init_identity B is drawn at random
    such that the branch is about as large as x.

    Attributes:
        bottleneck_dim: the width between.
        layer_norm: the norm.
        inner: C and c.
        outer: B and b, over s.
        scale: s.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        bottleneck_dim: int | None = None,
        activation: str = "gelu",
        init_identity: bool = True,
        dropout_rate: float = 0.1,
    ) -> None:
        """Make an adapter.

        Args:
            input_dim: width that goes in.
            output_dim: width that comes out.
            bottleneck_dim: width between; an eighth of the larger one, and at least 64, if None.
            activation: "gelu", "relu" or "silu".
            init_identity: start as the identity, cut or padded; otherwise B starts at random.
            dropout_rate: share of what B sees that is dropped in training.

        Raises:
            ConfigError: a width is below 1, the activation is unknown or the rate is not in [0, 1).
        """
        super().__init__(input_dim, output_dim)
        if activation not in _ACTIVATIONS:
            raise ConfigError(f"activation {activation!r} is not one of {', '.join(_ACTIVATIONS)}")
        if bottleneck_dim is not None and bottleneck_dim < 1:
            raise ConfigError(f"bottleneck_dim {bottleneck_dim} must be 1 or more")
        if not 0.0 <= dropout_rate < 1.0:
            raise ConfigError(f"dropout_rate {dropout_rate} is not in [0, 1)")
        self.bottleneck_dim = max(64, max(input_dim, output_dim) // 8) if bottleneck_dim is None else bottleneck_dim
        self.layer_norm = nn.LayerNorm(input_dim, eps=_EPS)
        self.inner = TrainedLinear(input_dim, self.bottleneck_dim)
        self.activation = _ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout_rate)
        self.outer = TrainedLinear(self.bottleneck_dim, output_dim)
        self.scale = _branch_scale(self.bottleneck_dim, input_dim, output_dim)
        nn.init.normal_(self.inner.weight, std=1 / math.sqrt(input_dim))
        nn.init.zeros_(self.inner.bias)
        nn.init.zeros_(self.outer.bias)
        if init_identity:
            nn.init.zeros_(self.outer.weight)
        else:
            nn.init.normal_(self.outer.weight, std=1 / (self.scale * math.sqrt(self.bottleneck_dim)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., input_dim) to (..., output_dim).

        Raises:
            ConfigError: x is of another width.
            FusionError: PEFT wraps a weight in a way that cannot work, see `mol.core.linear`.
        """
        self._check(x)
        check_wrapper(self.outer)
        check_norm(self.layer_norm, self.outer)
        narrow = self.activation(self.inner(self.layer_norm(x.to(dtype_of(self.inner, x.dtype)))))
        branch: torch.Tensor = self.outer(self.dropout(narrow))
        return _add(fit_width(x, self.output_dim), branch * (token_size(x) * self.scale).to(branch.dtype))

    def extra_repr(self) -> str:
        """Show the widths and the scale."""
        return f"{super().extra_repr()}, scale={self.scale:g}"


_KINDS: Final[dict[str, type[BaseAdapter]]] = {"linear": LinearAdapter, "bottleneck": BottleneckAdapter}


class AdapterOptions(TypedDict, total=False):
    """Options of `create_adapter`; see `LinearAdapter` and `BottleneckAdapter` for those of each kind."""

    init_identity: bool
    use_layer_norm: bool
    use_residual: bool
    bias: bool
    bottleneck_dim: int | None
    activation: str
    dropout_rate: float


def create_adapter(
    adapter_type: str, input_dim: int, output_dim: int, **options: Unpack[AdapterOptions]
) -> BaseAdapter:
    """Make an adapter by the name of its kind, "linear" or "bottleneck", with that kind's options.

    Raises:
        ConfigError: there is no such kind, or it refuses an option's value.
        TypeError: the kind has no such option.
    """
    if adapter_type not in _KINDS:
        raise ConfigError(f"adapter_type {adapter_type!r} is not one of {', '.join(_KINDS)}")
    given: dict[str, Any] = dict(options)
    return _KINDS[adapter_type](input_dim, output_dim, **given)


def fit_width(x: torch.Tensor, width: int) -> torch.Tensor:
    """Return x with its last axis cut to a width, or padded with zeros."""
    if x.shape[-1] == width:
        return x
    return x[..., :width] if x.shape[-1] > width else functional.pad(x, (0, width - x.shape[-1]))


def token_size(x: torch.Tensor) -> torch.Tensor:
    """Return the root mean square over the last axis, (..., 1), in float32 at least; its gradient at 0 is 0."""
    precise = torch.promote_types(x.dtype, torch.float32)
    norm: torch.Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
    return norm / math.sqrt(x.shape[-1])


def _add(skip: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    return skip + branch.to(skip.dtype)


def _branch_scale(fan_in: int, input_dim: int, output_dim: int) -> float:
    """Return s, a power of two.

    An Adam step moves an output by lr s sum|inputs| <= lr s fan_in |inputs|, and a wider output has more of these in
    the same norm: sqrt(output_dim / input_dim) times.
    """
    bound = _STEP / (fan_in * math.sqrt(max(1.0, output_dim / input_dim)))
    return float(2.0 ** math.floor(math.log2(bound)))


def _check_map(weight: torch.Tensor, bias: torch.Tensor | None, output_dim: int, input_dim: int) -> None:
    if weight.shape != (output_dim, input_dim) or (bias is not None and bias.shape != (output_dim,)):
        found = f"{tuple(weight.shape)}" + ("" if bias is None else f" and {tuple(bias.shape)}")
        raise ConfigError(
            f"a map's weight and bias are {found}, wanted ({output_dim}, {input_dim}) and ({output_dim},)"
        )
    if not weight.isfinite().all() or (bias is not None and not bias.isfinite().all()):
        raise ConfigError("a map has values that are not finite: fit it again, on finite states or with a larger ridge")
