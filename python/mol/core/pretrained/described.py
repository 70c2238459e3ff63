"""Reads the description of a fusion in config.json, which may be of a later version, damaged or malicious.

Only settings of the fusion itself are taken from a file. Those of a machine or a person (devices, cache, token, trust
in code, a kernel from the Hub) must be passed by whoever loads it.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from mol import _rust
from mol.config.mol_config import PERSONAL, MoLConfig, check_attention
from mol.core.cache import CACHE_NAME
from mol.errors import ConfigError, MolError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

TORCH_ATTENTION: Final = frozenset({None, "eager", "sdpa"})
"""Attention implementations that need neither another package nor code from the Hub."""
_IMPLEMENTATIONS: Final = frozenset({"attn_implementation", "experts_implementation"})
_REMOTE_CODE: Final = (
    "models of this fusion bring code of their own, which is run only if whoever loads it allows it: read it, and call "
    "from_pretrained(..., trust_remote_code=True)"
)


class Description(NamedTuple):
    """A fusion as config.json describes it.

    Attributes:
        settings: fields of `MoLConfig`.
        host: name of the host.
        layers: of each its position and its experts, (model, blocks).
    """

    settings: dict[str, Any]
    host: str | None
    layers: list[tuple[int, list[tuple[str, list[int]]]]]


class DescribedConfig(PreTrainedConfig):
    """A config.json that describes what mol makes of other models."""

    auto_map: ClassVar[dict[str, str]] = {}  # TRL reads the Auto class of unknown classes here
    keys_to_ignore_at_inference: ClassVar = [CACHE_NAME]

    def __init__(self, **others: Any) -> None:  # noqa: ANN401 - the fields of PreTrainedConfig
        """Store the fields; transformers keeps `use_cache` only where a class has it."""
        self.use_cache: bool = others.pop("use_cache", True)
        super().__init__(**others)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:  # noqa: ANN401 - as transformers has it
        """Make a config from the contents of config.json.

        Raises:
            ConfigError: no config can have them.
        """
        check_attention(kwargs.get("attn_implementation"))
        mine = {name: value for name, value in config_dict.items() if name.removeprefix("_") not in _IMPLEMENTATIONS}
        try:
            return super().from_dict(mine, **kwargs)
        except MolError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError, StrictDataclassError) as error:
            raise ConfigError(f"config.json holds what no config can: {type(error).__name__}: {error}") from error


def read_description(
    fusion: object,
    host: object,
    layers: object,
    *,
    given: Collection[str] = (),
    written_by: str | None = None,
    where: str = "config.json",
) -> Description:
    """Check the three parts of a description.

    Args:
        fusion: from `MoLConfig.to_dict`.
        host: name of the host.
        layers: `fused_layers` of `MoLModelConfig`.
        given: names of settings that are passed in this call and replace those in the file.
        written_by: the version of mol that wrote it.
        where: the file that holds it, as messages have it.

    Raises:
        ConfigError: lists everything that is wrong.
    """
    if not isinstance(fusion, dict) or not isinstance(layers, list):
        raise ConfigError(f"{where} describes no fusion; make one with MoLRuntime")
    if fusion.get("trust_remote_code") and "trust_remote_code" not in given:
        raise ConfigError(_REMOTE_CODE)
    settings = {name: value for name, value in fusion.items() if name not in PERSONAL}
    problems = [
        f"`{name}` belongs to whoever loads the fusion: remove it, and pass it to from_pretrained"
        for name in sorted(PERSONAL & fusion.keys() - {"trust_remote_code"})
        if fusion[name]
    ]
    problems += _wrong_settings(settings, given, written_by)
    models = settings.get("models")
    named = models if isinstance(models, list) else []
    if host is not None and host not in named:
        problems.append(f"`host` is {host!r}, which is not one of `models`")
    found = [_layer(layer, number, named, problems) for number, layer in enumerate(layers)]
    if problems:
        raise ConfigError.listing(f"{where} describes a fusion that cannot be built", problems)
    return Description(settings, host if isinstance(host, str) else None, found)


def _wrong_settings(settings: Mapping[str, Any], given: Collection[str], written_by: str | None) -> list[str]:
    hints = _hints()
    of = f" (it was written by mol {written_by}, and this is {_rust.__version__})" if written_by else ""
    problems = [
        f"`{name}` is no setting of this version of mol{of}: upgrade mol-merge, or remove it"
        for name in sorted(settings.keys() - hints.keys())
    ]
    problems += [
        f"`{name}` is {value!r}, which is not a value of its type"
        for name, value in settings.items()
        if name in hints and not _fits(value, hints[name])
    ]
    if "models" not in settings:
        problems.append("`models` is missing")
    attention = settings.get("attn_implementation")
    if isinstance(attention, str) and attention not in TORCH_ATTENTION and "attn_implementation" not in given:
        problems.append(
            f"`attn_implementation` is {attention!r}, and may be fetched and run as code: remove it, and pass it to "
            "from_pretrained if you trust it"
        )
    return problems


def _layer(layer: object, number: int, models: Collection[str], problems: list[str]) -> Any:  # noqa: ANN401 - a layer
    """Return (position, experts) of a layer, or None after its problems were added."""
    position = layer.get("position") if isinstance(layer, dict) else None
    experts = layer.get("experts") if isinstance(layer, dict) else None
    if type(position) is not int or position < 0 or not isinstance(experts, list) or not experts:
        problems.append(f"`fused_layers[{number}]` is not a `position` with a list of `experts`")
        return None
    specs = []
    for expert in experts:
        model = expert.get("model") if isinstance(expert, dict) else None
        blocks = expert.get("blocks") if isinstance(expert, dict) else None
        if model not in models or not blocks or not _fits(blocks, list[int]):
            problems.append(f"`fused_layers[{number}]` has an expert that is not one of `models` with a list of blocks")
            return None
        specs.append((model, blocks))
    return position, specs


@cache
def _hints() -> dict[str, Any]:
    hints = get_type_hints(MoLConfig)
    # JSON has no values of their types.
    hints |= {"dtype": str | dict[str, str] | None, "quantization_config": None}
    return {item.name: hints[item.name] for item in fields(MoLConfig) if item.name not in PERSONAL}


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - any type hint
    """Return whether a value from JSON is of a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str)  # `MoLConfig` checks which one
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if hint is None or hint is NoneType:
        return value is None
    if hint is float:
        return type(value) in (int, float)
    return hint is Any or type(value) is hint
