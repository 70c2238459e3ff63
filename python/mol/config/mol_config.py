"""MoLConfig: the settings of a fused model: its models, how its layers choose, where its blocks are."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from mol.errors import ConfigError
from mol.text import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

AdapterType = Literal["linear", "bottleneck"]
RouterType = Literal["simple", "token", "token_level"]
AdapterInit = Literal["identity", "orthogonal", "lstsq"]
Dispatch = Literal["dense", "sequence", "token"]
Balance = Literal["loss", "bias"]

REMOTE_CODE_WARNING: Final = (
    "trust_remote_code: Python code that comes with a model will be run if transformers does not know the model's "
    "type; trust the authors of such models, or read their code first"
)
BIAS_UPDATE_RATE: Final = 1e-3
"""That of Wang et al. (2024, arXiv 2408.15664) and of DeepSeek-V3."""
PERSONAL: Final = frozenset({"cache_dir", "device_map", "paths", "token", "trust_remote_code"})
"""Settings of one machine or one person, which are never saved and never taken from a file."""
_log = logging.getLogger("mol")


@dataclass(frozen=True)
class MoLConfig:
    """The settings of a fusion, checked; `dataclasses.replace` makes a changed copy.

    Attributes:
        models: names of models (Hub ids or directories); the first is the host unless `setup_embeddings` names another.
        adapter_type: between another model's width and the host's: "linear" or "bottleneck".
        adapter_init: how adapters start: "identity" (padded or cut), or fitted on calibration text: "orthogonal" (equal
            widths only) or "lstsq".
        router_type: "simple" weighs experts by the mean of the tokens so far, "token" or "token_level" by each token.
        max_layers: the most fused layers that `add_layer` accepts.
        target_hidden_dim: width of the fused stream; it is the host's, so any other is refused.
        temperature: of the routers' softmax.
        top_k_experts: number of experts with a weight for a token, the others have none; all if None. How much work
            that saves depends on `dispatch`. The weights of several sum to 1; a single one is its probability, which
            routers learn by, and about 1 / E before they are trained: that is the share of its change that is added.
        dispatch: what an expert sees: "dense" all tokens, also those that did not choose it, so that only an expert
            that no token of the batch chose is left out, and with a cache none is; "sequence" the rows that chose it;
            "token" the tokens that did. The last two do `top_k_experts` of E experts' work per token.
        router_prefix: with "sequence" dispatch, the number of first tokens of a row by which it chooses; `generate`
            uses the whole prompt.
        balance: what keeps experts in use in training: "loss" adds the load balancing loss to the loss; "bias" adds
            none, and moves a bias per expert of each router, which counts where `top_k_experts` are chosen and not in
            their weights. `MoLTrainer` moves it after each optimiser step, other trainers call
            `MoLRuntime.update_expert_biases`.
        load_balancing_coeff: of the load balancing loss, with `balance` "loss".
        entropy_penalty_coeff: of the mean token entropy of the routers, added to the loss in training. It makes
            choices sharp, and above about half of the other one expert ends up with all tokens, whatever it is worth.
        trust_remote_code: run code that comes with a model; a warning says so.
        allow_bidirectional: admit blocks that attend to later tokens into a causal model, as they are. Without it their
            masks are replaced by causal ones, and those that attend to later tokens even then are refused.
        keep_host_layers: run the host's layers that no `add_layer` names; without it only added layers run.
        dtype: of all models, e.g. "bfloat16" or torch.bfloat16, or by model name; each checkpoint's own if None.
        memory_efficient: load only the blocks used; without it models are loaded whole.
        device_map: one device for all models, or device by model name, or by block as in "gpt2[3]": "cpu", "cuda:0", 0
            and so on; "disk" reads a block each time it runs.
        max_expert_memory: the most bytes of expert blocks in memory, e.g. "2GB"; least recently used blocks are evicted
            first. During training autograd keeps blocks alive until backward ends.
        attn_implementation: of all models, e.g. "eager"; transformers' choice if None.
        revisions: commit, branch or tag by model name.
        stacks: which list of blocks to use by model name, where a model has several: a part of its path.
        cache_dir: the Hub cache.
        token: the Hub token.
        quantization_config: refused if it is given.
        use_gradient_checkpointing: in training, run layers again in the backward pass instead of keeping what they
            computed: less memory, the same gradients, a third more time.
        paths: directory by model name, of models that are elsewhere than their names say.
    """

    models: list[str]
    adapter_type: AdapterType = "linear"
    adapter_init: AdapterInit = "identity"
    router_type: RouterType = "simple"
    max_layers: int = 32
    target_hidden_dim: int | None = None
    temperature: float = 1.0
    top_k_experts: int | None = None
    dispatch: Dispatch = "dense"
    router_prefix: int = 16
    balance: Balance = "loss"
    load_balancing_coeff: float = 0.02
    entropy_penalty_coeff: float = 0.001
    trust_remote_code: bool = False
    allow_bidirectional: bool = False
    keep_host_layers: bool = True
    dtype: Any = None  # its type has torch in it, which nothing here imports
    memory_efficient: bool = True
    device_map: Any = None  # the same
    max_expert_memory: int | str | None = None
    attn_implementation: str | None = None
    revisions: dict[str, str] = field(default_factory=dict)
    stacks: dict[str, str] = field(default_factory=dict)
    cache_dir: str | None = None
    token: str | None = field(default=None, repr=False)
    quantization_config: Any = field(default=None, repr=False)
    use_gradient_checkpointing: bool = False
    paths: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            ConfigError: lists everything that is wrong.
        """
        given = self.dtype
        # By name, as JSON holds them.
        named = {m: _name(d) for m, d in given.items()} if isinstance(given, dict) else given and _name(given)
        object.__setattr__(self, "dtype", named)
        object.__setattr__(self, "device_map", _devices(self.device_map))
        problems = [*self._wrong_values(), *self._not_supported(), *self._wrong_names()]
        if problems:
            raise ConfigError.listing("this fusion cannot be configured", problems)
        if self.trust_remote_code:
            _log.warning(REMOTE_CODE_WARNING)

    def _wrong_values(self) -> Iterator[str]:
        """Yield the settings whose values are of another type or out of range."""
        named = self.models and not isinstance(self.models, str)
        if not named or not all(isinstance(name, str) and name for name in self.models):
            yield f"models is {self.models!r}, wanted a list of model names"
        choices = (
            ("adapter_type", AdapterType),
            ("adapter_init", AdapterInit),
            ("router_type", RouterType),
            ("dispatch", Dispatch),
            ("balance", Balance),
        )
        for name, allowed in choices:
            if getattr(self, name) not in get_args(allowed):
                yield f"{name} is {getattr(self, name)!r}, wanted one of {', '.join(get_args(allowed))}"
        for name, least in (("max_layers", 1), ("top_k_experts", 1), ("router_prefix", 1)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                yield f"{name} is {value!r}, wanted a whole number of at least {least}"
        if not _is_number(self.temperature) or self.temperature <= 0.0:
            yield f"temperature is {self.temperature!r}, wanted a finite number above 0"
        for name in ("load_balancing_coeff", "entropy_penalty_coeff"):
            if not _is_number(getattr(self, name)):
                yield f"{name} is {getattr(self, name)!r}, wanted a finite number"
        try:
            _ = self.expert_bytes
        except ConfigError as error:
            yield f"max_expert_memory: {error}"
        try:
            check_attention(self.attn_implementation)
        except ConfigError as error:
            yield str(error)
        for name in ("paths", "revisions", "stacks"):
            if not isinstance(getattr(self, name), dict):
                yield f"{name} is {getattr(self, name)!r}, wanted a dictionary by model name"

    def _not_supported(self) -> Iterator[str]:
        """Yield the settings that mean something to transformers and nothing here."""
        if isinstance(self.device_map, str) and self.device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
            yield (
                f'device_map is {self.device_map!r}, and mol chooses no devices by itself: give one device, "cpu" say, '
                "or devices by model or block"
            )
        if self.balance == "bias" and self.top_k_experts is None:
            yield (
                'balance is "bias", which counts where experts are chosen, and without top_k_experts every token is '
                "given to all of them: set top_k_experts, or leave out balance, for the loss"
            )
        if self.quantization_config is not None:
            yield (
                'quantization_config is given, and mol does not run quantized blocks: leave it out; dtype="bfloat16", '
                "max_expert_memory or device_map save memory"
            )

    def _wrong_names(self) -> Iterator[str]:
        """Yield the settings by model that name none of the models."""
        models = self.models or ()
        for setting in ("paths", "revisions", "stacks", "device_map", "dtype"):
            given = getattr(self, setting)
            for model in given if isinstance(given, dict) else ():
                block_of = re.sub(r"\[\d+\]$", "", model) if setting == "device_map" else model
                if model not in models and block_of not in models:
                    yield f"{setting} names {model!r}, which is not one of models"

    @property
    def balance_loss_coeff(self) -> float:
        """The coefficient of the load balancing loss; 0 if a bias does its work."""
        return self.load_balancing_coeff if self.balance == "loss" else 0.0

    @property
    def expert_bytes(self) -> int | None:
        """The most bytes of expert blocks in memory; None for no limit."""
        return None if self.max_expert_memory is None else parse_size(str(self.max_expert_memory))

    @property
    def devices(self) -> dict[str, str]:
        """Devices by model or block, in whichever form `device_map` has them."""
        given: str | dict[str, str] = self.device_map or {}
        return dict.fromkeys(self.models, given) if isinstance(given, str) else given

    def dtype_of(self, model: str) -> str | None:
        """Return the dtype for a model; None for its checkpoint's own."""
        wanted = self.dtype.get(model) if isinstance(self.dtype, dict) else self.dtype
        return None if wanted is None else str(wanted)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON holds them, without those of one machine or one person."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in PERSONAL}


def _name(dtype: object) -> str:
    """Return the name of a dtype without importing torch."""
    return str(dtype).removeprefix("torch.")


def _devices(given: object) -> str | dict[str, str] | None:
    """Return the names of devices, or a dictionary of them, as JSON holds them: a number is a GPU, "" is all models."""
    if isinstance(given, dict):
        return _devices(given[""]) if set(given) == {""} else {key: str(_devices(one)) for key, one in given.items()}
    if given is None:
        return None
    return f"cuda:{given}" if type(given) is int else str(given)


def check_attention(chosen: object) -> None:
    """Refuse another `attn_implementation` than one name: transformers drops those of parts that a config lacks.

    Raises:
        ConfigError: it is something else.
    """
    if chosen is not None and not isinstance(chosen, str):
        raise ConfigError(f'attn_implementation is {chosen!r}, wanted one name for all models, "eager" say')


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
