"""Options of `from_pretrained` of a saved model, and how transformers' own options are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict

from mol.core.host import set_options
from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from transformers import PreTrainedConfig


class LoadOptions(TypedDict, total=False):
    """Options of `from_pretrained` of a mixture; those of `MoLConfig` apply to the models that the save names.

    transformers' Auto classes add some of their own, which are dropped where they only restate a default.
    """

    config: PreTrainedConfig
    attn_implementation: str | None
    cache_dir: str | None
    device_map: Any  # its type has torch.device in it, and more of transformers'
    dtype: Any  # the same
    paths: Mapping[str, str]
    token: str | None
    trust_remote_code: bool
    allow_changed_models: bool
    local_files_only: bool
    revision: str


class FusionLoadOptions(LoadOptions, total=False):
    """Options of `from_pretrained` of a fused model."""

    max_expert_memory: int | str | None


OF_MODELS: Final = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "paths",
    "token",
    "trust_remote_code",
)
"""How the models that a save names are loaded: fields of `MoLConfig`."""
_MEANINGLESS: Final = frozenset({"adapter_kwargs", "_from_auto", "_commit_hash", "low_cpu_mem_usage"})
"""Options that the Auto classes add, and that transformers ignores too."""
_AS_IT_IS: Final = {
    "dtype": "auto", "torch_dtype": "auto", "revision": "main", "use_safetensors": True, "weights_only": True,
}  # fmt: skip
"""Values that only restate the default."""


def checked_options(
    called: str,
    takes: Collection[str],
    config: PreTrainedConfig | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options that `from_pretrained` was called with, without those that request nothing.

    Args:
        called: the function in messages.
        takes: names of the options that it takes.
        config: its config, where the Auto classes put `attn_implementation`; None if there is none.
        args: positional ones.
        kwargs: options by name.

    Raises:
        FusionError: it was called with another option.
    """
    given = {
        name: value
        for name, value in set_options(kwargs).items()
        if name not in _MEANINGLESS and _AS_IT_IS.get(name) != value and not _is_empty(value)
    }
    if "torch_dtype" in given:  # transformers' former name
        given.setdefault("dtype", given.pop("torch_dtype"))
    if config is not None and config._attn_implementation is not None:
        given.setdefault("attn_implementation", config._attn_implementation)
    others = sorted(given.keys() - set(takes))
    if args or others:
        raise FusionError(f"{called} does not take {', '.join(others) or args}; it takes {', '.join(sorted(takes))}")
    return given


def _is_empty(value: object) -> bool:
    return isinstance(value, str | dict | list | tuple) and not value


def check_offline(local_files_only: object, hub_models: Collection[str]) -> None:
    """Refuse to load models of the Hub with `local_files_only`.

    Raises:
        FusionError: there are such models.
    """
    if local_files_only and hub_models:
        raise FusionError(
            f"local_files_only is given, and {', '.join(sorted(hub_models))} may have to be fetched from the Hub: set "
            "HF_HUB_OFFLINE=1, which uses its cache, or leave it out"
        )
