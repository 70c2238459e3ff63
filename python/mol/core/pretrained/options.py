"""Options of `from_pretrained` of a saved model, and how transformers' own options are read."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

from mol.config.mol_config import check_attention
from mol.core.pretrained.described import DescribedConfig
from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from transformers import PreTrainedConfig

_C = TypeVar("_C", bound=DescribedConfig)


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
    subfolder: str


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
_MEANINGLESS: Final = frozenset({"adapter_kwargs", "_from_auto", "_commit_hash", "low_cpu_mem_usage", "weights_only"})
"""Options that the Auto classes add, and that transformers ignores too, or that are about pickles."""
_SWITCHES: Final = (
    "force_download", "ignore_mismatched_sizes", "offload_buffers", "output_loading_info", "trust_remote_code",
    "use_kernels",
)  # fmt: skip
_AS_IT_IS: Final = {
    "dtype": "auto", "torch_dtype": "auto", "revision": "main", "use_safetensors": True,
    **dict.fromkeys(_SWITCHES, False),
}  # fmt: skip
"""Values that only restate the default."""
_FREE: Final = frozenset({
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "id2label", "label2id", "mol_save",
    "pad_token_id", "transformers_version", "use_cache",
})  # fmt: skip
"""Attributes that a call may change in the config of any saved model: they are read, or do not matter."""


def checked_options(
    called: str,
    takes: Collection[str],
    config: PreTrainedConfig | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options that `from_pretrained` was called with, without those that only restate a default.

    Args:
        called: the function in messages.
        takes: names of the options that it takes.
        config: its config, where the Auto classes put `attn_implementation`; None if there is none.
        args: positional ones.
        kwargs: options by name.

    Raises:
        FusionError: it was called with another option, or the Auto classes found an adapter of PEFT.
    """
    adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
    if adapter is not None:  # without it another model would be loaded than the one that was named
        raise FusionError(
            f"{adapter} has an adapter of PEFT (adapter_config.json), which {called} does not apply: load the model "
            "without it, and then peft.PeftModel.from_pretrained(model, directory); or let PEFT load both, with "
            "AutoPeftModelForCausalLM"
        )
    given = {
        name: value
        for name, value in kwargs.items()
        if value is not None and name not in _MEANINGLESS and _AS_IT_IS.get(name) != value and not _is_empty(value)
    }
    if "torch_dtype" in given:  # transformers' former name
        given.setdefault("dtype", given.pop("torch_dtype"))
    if config is not None and config._attn_implementation is not None:
        given.setdefault("attn_implementation", config._attn_implementation)
    experts = getattr(config, "_experts_implementation", None)
    if experts not in (None, "eager"):  # "eager" is also what a config has after a model was made of it
        given["experts_implementation"] = experts  # which no function takes
    check_attention(given.get("attn_implementation"))
    others = sorted(given.keys() - set(takes))
    if args or others:
        raise FusionError(f"{called} does not take {', '.join(others) or args}; it takes {', '.join(sorted(takes))}")
    return given


def config_of_call(
    kind: type[_C],
    directory: Path,
    called: str,
    reads: Collection[str],
    kwargs: Any,  # noqa: ANN401 - a TypedDict of options
) -> _C:
    """Return the config of a call of `from_pretrained`: options that are attributes of it replace those saved.

    Args:
        kind: its class.
        directory: of the save.
        called: the function in messages.
        reads: attributes that the model reads, next to those that every saved model does.
        kwargs: options by name; `config` and attributes of it are taken out.

    Raises:
        FusionError: another attribute differs from the saved one.
    """
    saved: _C = kind.from_pretrained(directory)
    config: _C = kwargs.pop("config", None) or copy.deepcopy(saved)
    if config.dtype != saved.dtype and kwargs.get("dtype") in (None, "auto"):  # as transformers reads it
        kwargs["dtype"] = config.dtype
    for name in [name for name in kwargs if hasattr(saved, name) and not name.endswith("dtype")]:
        setattr(config, name, kwargs.pop(name))
    before, after = ({**each.to_dict(), "num_labels": each.num_labels} for each in (saved, config))
    wrong = [
        f"{name} is {after.get(name)!r}, and was saved as {value!r}"
        for name, value in before.items()
        if name not in _FREE and name not in reads and after.get(name) != value
    ]
    if wrong:
        raise FusionError.listing(
            f"{called} does not change what its models have in configs of their own; leave these attributes out", wrong
        )
    return config


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
