"""What transformers knows of a model type: the heads that its auto classes have for it, and the classes themselves."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType
    from typing import TypeGuard

    from transformers import PreTrainedConfig, PreTrainedModel

# Heads by the auto class that `auto_map` of a model with its own code names.
_AUTO_CLASSES: Final = {
    "AutoModel": "MODEL",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForImageTextToText": "IMAGE_TEXT_TO_TEXT",
    "AutoModelForMaskedLM": "MASKED_LM",
    "AutoModelForSeq2SeqLM": "SEQ_TO_SEQ_CAUSAL_LM",
    "AutoModelForSpeechSeq2Seq": "SPEECH_SEQ_2_SEQ",
}
# Heads that towers have as well, and that say nothing of what the tower is for.
_BARE: Final = frozenset({"MODEL", "BACKBONE", "TEXT_ENCODING", "IMAGE", "PRETRAINING"})


class Kind(NamedTuple):
    """What transformers knows of a model type.

    Attributes:
        classes: name of the class by head, e.g. `CAUSAL_LM` as in `MODEL_FOR_CAUSAL_LM_MAPPING_NAMES`.
        model_class: a class of the type; for a part without a class of its own, one of the model that it is part of.
            None where none can be imported.
    """

    classes: dict[str, str]
    model_class: type[PreTrainedModel] | None

    @property
    def heads(self) -> frozenset[str]:
        """The heads that there are classes for."""
        return frozenset(self.classes)

    @property
    def is_part(self) -> bool:
        """Whether no auto class does anything with the type alone: it is a tower of other models."""
        return self.heads <= _BARE


def find_kind(config: PreTrainedConfig) -> Kind:
    """Find the type of a config in transformers' tables."""
    from transformers.models.auto import modeling_auto

    classes: dict[str, str] = {}
    for variable, mapping in vars(modeling_auto).items():
        if variable.startswith("MODEL_") and variable.endswith("MAPPING_NAMES"):
            found = mapping.get(config.model_type)
            if found is not None:
                head = variable.removesuffix("_MAPPING_NAMES").removeprefix("MODEL_FOR_")
                classes[head] = found if isinstance(found, str) else found[0]
    names = sorted(classes, key=lambda head: head != "MODEL")
    registered = (find_class(config, classes[head]) for head in names)
    return Kind(classes, next((c for c in registered if c is not None), None) or _unregistered(config))


def find_remote_kind(model_class: type[PreTrainedModel] | None, auto_map: Mapping[str, Any]) -> Kind:
    """Read from `auto_map` which heads a model with its own code has."""
    known = {_AUTO_CLASSES[auto]: str(written) for auto, written in auto_map.items() if auto in _AUTO_CLASSES}
    return Kind({head: written.rpartition(".")[2] for head, written in known.items()}, model_class)


def find_class(config: PreTrainedConfig, name: str) -> type[PreTrainedModel] | None:
    """Return the model class of this name, None where there is none or what it is written with is not installed.

    It is looked for next to the class of the config, then in what transformers exports; nothing else is imported.
    """
    import transformers

    modeling = _modeling(config)
    found = None if modeling is None else vars(modeling).get(name)
    if found is None:
        found = getattr(transformers, name, None)
    return found if _is_model(found) else None


def _unregistered(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return a class that no auto class knows: of the type itself, else of what it is a part of."""
    modeling = _modeling(config)
    if modeling is None:
        return None
    found = [c for c in vars(modeling).values() if _is_model(c) and not c.__name__.endswith("PreTrainedModel")]
    own = (c for c in found if c.config_class is type(config))
    whole = (c for c in found if c.config_class is not None and type(config) in c.config_class.sub_configs.values())
    return next(own, None) or next(whole, None)


def _is_model(value: object) -> TypeGuard[type[PreTrainedModel]]:
    from transformers import PreTrainedModel

    # A class that needs a package that is not installed is a placeholder of another type.
    return inspect.isclass(value) and issubclass(value, PreTrainedModel)


def _modeling(config: PreTrainedConfig) -> ModuleType | None:
    module = type(config).__module__
    if not module.startswith("transformers.models."):
        return None
    try:
        return importlib.import_module(module.replace(".configuration_", ".modeling_"))
    except ImportError:  # the type has its classes elsewhere, or they need a package that is not installed
        return None
