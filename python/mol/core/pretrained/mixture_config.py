"""MoLMixtureConfig: config.json of a mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from transformers import AutoConfig

from mol.core.pretrained.described import DescribedConfig
from mol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MixtureWeights = Literal["uniform", "posterior", "router"]
WEIGHTS: Final[tuple[str, ...]] = get_args(MixtureWeights)


class MoLMixtureConfig(DescribedConfig):
    """config.json of a mixture.

    Attributes:
        models: their names.
        mixture_weights: "uniform", "posterior" or "router".
    """

    model_type = "mol_mixture"

    def __init__(
        self,
        models: Sequence[str] = (),
        mixture_weights: str = "uniform",
        **others: Any,  # noqa: ANN401 - the fields of PreTrainedConfig
    ) -> None:
        """Store the fields."""
        self.models = models if isinstance(models, str) else list(models)
        self.mixture_weights = mixture_weights
        self.max_position_embeddings: int | None = others.pop("max_position_embeddings", None)
        super().__init__(**others)


def check_mixture_config(config: MoLMixtureConfig) -> None:
    """Check the description of a mixture in config.json, which may be of a later version, damaged or malicious.

    Raises:
        ConfigError: it is not valid.
    """
    models, weights = config.models, config.mixture_weights
    if not isinstance(models, list) or not models or not all(isinstance(name, str) for name in models):
        raise ConfigError(f"`models` of a mixture's config.json is {models!r}, wanted a list of names")
    if not all(models):
        raise ConfigError(f"not all models of the mixture have names: {models}")
    if weights not in WEIGHTS:
        raise ConfigError(f"`mixture_weights` of config.json is {weights!r}, wanted one of {', '.join(WEIGHTS)}")


def mixture_described_in(content: Mapping[str, Any]) -> list[Any]:
    """Return what describes a mixture in config.json."""
    return [content.get("models"), content.get("mixture_weights")]


AutoConfig.register(MoLMixtureConfig.model_type, MoLMixtureConfig)
