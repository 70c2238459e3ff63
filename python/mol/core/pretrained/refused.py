"""Methods of transformers' models that would do nothing, or harm, to the models of a fusion or a mixture."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import torch  # noqa: TC002 - at run time: transformers reads the annotations of its subclasses
from transformers import PreTrainedModel

from mol.errors import FusionError

NO_PUSH: Final = (
    "push_to_hub would upload a part: model.runtime.push_to_hf(...) uploads a fusion, and `mol-merge push DIR REPO` "
    "what save_pretrained wrote"
)

_EMBEDDINGS: Final = "embeddings are those of the models, which are not saved with a mixture: change and save those"


class OutsideModels(PreTrainedModel):
    """A model that runs others, which are not among its modules."""

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - as in transformers
        """Refuse: it would change the config and no model.

        Raises:
            FusionError: always.
        """
        raise FusionError(
            "the attention of the models is chosen before they are loaded: give attn_implementation to "
            "from_pretrained or MoLConfig"
        )

    def set_experts_implementation(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - as in transformers
        """Refuse: it would change the config and no model.

        Raises:
            FusionError: always.
        """
        raise FusionError(
            "each model has an experts_implementation of its own: leave it out, or set it in the models, as in "
            "model.runtime.source(name).model.set_experts_implementation(...)"
        )

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Refuse before anything changes: embeddings are those of the models.

        Raises:
            FusionError: always.
        """
        raise FusionError(_EMBEDDINGS)

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        """Refuse before anything changes: embeddings are those of the models.

        Raises:
            FusionError: always.
        """
        raise FusionError(_EMBEDDINGS)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        *args: Any,  # noqa: ANN401 - as in transformers
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.nn.Module:
        """Return the embeddings if they have this size.

        Raises:
            FusionError: they have another, and nothing is changed.
        """
        embeddings: Any = self.get_input_embeddings()
        if new_num_tokens not in (None, len(embeddings.weight)):
            raise FusionError(_EMBEDDINGS)
        found: torch.nn.Module = embeddings
        return found

    def set_decoder(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - as in transformers
        """Refuse: nothing would be set.

        Raises:
            FusionError: always.
        """
        raise FusionError("the models are outside of the module tree and cannot be replaced: make another fusion")

    def push_to_hub(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - as in transformers
        """Refuse before a repository is created: the models are not among its weights.

        Raises:
            FusionError: always.
        """
        raise FusionError(NO_PUSH)
