"""HostEmbeddings: the embeddings of a fused model are its host's and cannot be changed."""

from __future__ import annotations

from typing import Any

import torch  # noqa: TC002 - at run time, like the other two: transformers reads the annotations of its subclasses

from mol.core.frozen import FrozenError
from mol.core.host import OutputEmbeddings, set_options
from mol.core.runtime import Runtime  # noqa: TC001
from mol.errors import FusionError


class HostEmbeddings:
    """The methods of a transformers model about embeddings, for one whose embeddings are its host's.

    Attributes:
        runtime: the fusion.
        output_embeddings: of the host.
    """

    runtime: Runtime
    output_embeddings: OutputEmbeddings

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any attribute
        """Return a parameter, buffer or module of the model, as nn.Module does.

        Raises:
            FrozenError: it is `lm_head`, which TRL's `cast_lm_head_to_fp32` would cast and replace.
            AttributeError: there is none.
        """
        try:
            return super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            if name != "lm_head":
                raise
        host = self.runtime.host_name
        raise FrozenError(
            f"a fused model has no lm_head of its own: get_output_embeddings() returns that of the host, {host}, which "
            "is frozen and not cast or replaced; in TRL leave cast_lm_head_to_fp32 out, and load the host in float32, "
            f"dtype={{{host!r}: 'float32'}}, if its logits are to be"
        ) from None

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the host's."""
        embeddings: torch.nn.Module = self.runtime.host.model.get_input_embeddings()
        return embeddings

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        """Refuse others than the host's, which are not saved with the fusion.

        Raises:
            FusionError: always.
        """
        raise self._not_ours()

    def get_output_embeddings(self) -> torch.nn.Module | None:
        """Return the host's, None if it has none."""
        return None if self.runtime.host.model.get_output_embeddings() is None else self.output_embeddings

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        """Refuse others than the host's, which are not saved with the fusion.

        Raises:
            FusionError: always.
        """
        raise self._not_ours()

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        *args: Any,  # noqa: ANN401 - as in transformers
        **kwargs: Any,  # noqa: ANN401
    ) -> torch.nn.Module:
        """Return the host's embeddings if they have this size.

        Raises:
            FusionError: they have another, and nothing is changed.
        """
        embeddings: Any = self.get_input_embeddings()
        if (new_num_tokens or len(embeddings.weight)) != len(embeddings.weight) or args or set_options(kwargs):
            raise self._not_ours()
        return self.get_input_embeddings()

    def _not_ours(self) -> FusionError:
        return FusionError(
            f"the embeddings are those of the host, {self.runtime.host_name}, and not saved with the fusion: change "
            "and save that model, and fuse it then"
        )
