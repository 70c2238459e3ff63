"""MoLModelConfig: config.json of a fused model, and how a runtime is described in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from transformers import AutoConfig

from mol.config.mol_config import PERSONAL
from mol.core.host import most_positions, set_options
from mol.core.pretrained.described import TORCH_ATTENTION, DescribedConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mol.core.runtime import Runtime

_HEAD_SETTINGS: Final = (
    "final_logit_softcapping", "lm_head_multiplier", "logit_scale", "logits_scaling", "output_multiplier",
)  # fmt: skip
"""What a host's head does next to multiplying, which trainers that apply it themselves read in the config."""


ATTRIBUTES: Final = frozenset({"fused_layers", "fusion", "host", "output_hidden_states"})
"""What a call of `from_pretrained` may change: the description, which weights must fit, and what a forward returns."""


class MoLModelConfig(DescribedConfig):
    """config.json of a fused model.

    Attributes:
        fusion: the fields of MoLConfig.
        host: name of the host.
        fused_layers: for each layer its `position` and its `experts`, each with `model` and `blocks`.
    """

    model_type = "mol"

    def __init__(
        self,
        fusion: Mapping[str, Any] | None = None,
        host: str | None = None,
        fused_layers: list[dict[str, Any]] | None = None,
        **others: Any,  # noqa: ANN401 - the fields of PreTrainedConfig
    ) -> None:
        """Store the fields; all are None in the default config that transformers makes to compare with."""
        self.fusion = dict(fusion) if isinstance(fusion, dict) else fusion
        self.host = host
        self.fused_layers = fused_layers
        super().__init__(**others)


def config_of(runtime: Runtime) -> MoLModelConfig:
    """Return the config of a fused model, with what transformers and trainers read of the host's."""
    host = runtime.open_host().model.config
    text = host.get_text_config()
    heads = {name: getattr(text, name) for name in _HEAD_SETTINGS if getattr(text, name, None) is not None}
    if text.model_type == "hyperclovax":  # it multiplies where all others divide
        heads["logit_scale"] = heads.pop("logits_scaling", None)
    # Layers and heads are the host's: as many hidden states are returned, of its width, and what tools compute from the
    # two (the width of a head, say) is right for the host's blocks; the least of all models would be right for none. No
    # cache is sized by them: only a `FusedCache` is accepted, which uses each model's own config.
    return MoLModelConfig(
        **described(runtime),
        num_hidden_layers=len(runtime.host),
        hidden_size=runtime.host.width,
        **heads,
        **set_options({"max_position_embeddings": most_positions(runtime.fusion().sources)}),
        **set_options({"num_attention_heads": getattr(text, "num_attention_heads", None)}),
        id2label=host.id2label,
        label2id=host.label2id,
        **{key: getattr(text, key, None) for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")},
    )


def described(runtime: Runtime) -> dict[str, Any]:
    """Return the fields of `MoLModelConfig`, with the commit of each model and its dtype now."""
    fusion, settings = runtime.fusion(), runtime.config
    dtypes = {name: settings.dtype_of(name) for name in settings.models}
    dtypes |= {name: str(source.dtype).removeprefix("torch.") for name, source in fusion.sources.items()}
    commits = {name: source.revision for name, source in fusion.sources.items() if source.revision}
    attention = settings.attn_implementation if settings.attn_implementation in TORCH_ATTENTION else None
    now = {
        "dtype": {name: dtype for name, dtype in dtypes.items() if dtype},
        "revisions": {**settings.revisions, **commits},
    }
    return {
        "fusion": {**settings.to_dict(), **now, "attn_implementation": attention},
        "host": runtime.host_name,
        "fused_layers": [
            {"position": position, "experts": [{"model": s.model, "blocks": list(s.blocks)} for s in layer.specs]}
            for position, layer in fusion.layers.items()
        ],
    }


def description_in(content: Mapping[str, Any]) -> Any:  # noqa: ANN401 - as JSON holds it
    """Return what describes the fusion in config.json."""
    fusion = content.get("fusion")
    if isinstance(fusion, dict):
        fusion = {name: value for name, value in fusion.items() if name not in PERSONAL}
    return [fusion, content.get("host"), content.get("fused_layers")]


AutoConfig.register(MoLModelConfig.model_type, MoLModelConfig)
