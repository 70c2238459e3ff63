"""Lists the modules of a fusion's models by name, so that tools that would change them are refused.

The models of a fusion are outside of its module tree: `state_dict`, optimizers and FSDP see only what is trained. Tools
that look for modules by name would silently miss theirs, as PEFT does with a list that names others too.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch
from torch import nn

from mol.errors import FusionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mol.core.blocks.source import Source

FROZEN: Final = "frozen"
"""The prefix of their names, in a runtime or a mixture."""


class FrozenError(FusionError, AttributeError):
    """A tool tried to change a module of a model of the fusion, or to add hooks to it.

    PEFT skips names without a module by AttributeError where it visits all of them, to merge its adapters say.
    """


class Frozen(nn.Module):
    """A placeholder for a module of a model of the fusion: without parameters, never called, not to be changed."""

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - any call
        """Refuse.

        Raises:
            FrozenError: always.
        """
        raise refused("this")

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - as nn.Module has it
        """Refuse a hook, which would never be called.

        Raises:
            FrozenError: always.
        """
        raise refused("this")

    register_forward_pre_hook = register_backward_hook = register_forward_hook
    register_full_backward_hook = register_full_backward_pre_hook = register_forward_hook


class NamesModels:
    """A base, before nn.Module, of modules that run models: their modules are listed by name right after itself."""

    @abstractmethod
    def frozen_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the names of the modules of the models, each with a `Frozen` placeholder."""

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules by name as any module does, with those of its models."""
        found = super().named_modules(memo, prefix, remove_duplicate)  # type: ignore[misc]
        for own in islice(found, 1):
            yield own
            yield from ((f"{prefix}{'.' if prefix else ''}{name}", module) for name, module in self.frozen_modules())
        yield from found

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module by name.

        Raises:
            FrozenError: it is one of the models'.
            AttributeError: there is none.
        """
        check_target(target)
        module: nn.Module = super().get_submodule(target)  # type: ignore[misc]
        return module

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:  # noqa: ANN401
        """Apply a function to what is trained, before its models are moved or cast.

        Raises:
            FusionError: it moves to the meta device; nothing was changed.
        """
        if fn(torch.zeros(1)).is_meta:
            raise FusionError(
                "on the meta device the models would have no weights, and they are loaded by name: leave "
                '.to("meta") out'
            )
        return super()._apply(fn, recurse)  # type: ignore[misc]


def check_target(target: str, within: str = "") -> None:
    """Refuse to look up a module by a name that only the models have.

    Args:
        target: the name.
        within: what names of the models' modules have in front.

    Raises:
        FrozenError: it is the name of one of the models' modules.
        FusionError: it is the one by which PEFT looks for embeddings to put vectors in front of.
    """
    if target.startswith(f"{within}{FROZEN}"):
        raise refused(target)
    if target == "embeddings.word_embeddings":
        raise FusionError(
            "PEFT's prompt tuning, p-tuning and prefix tuning put vectors into embeddings or the cache of one model, "
            r"and a fusion takes tokens alone: use LoRA with target_modules=r'runtime\.layers\..*projection', or train "
            "its adapters and routers, which are small"
        )


def names_in(source: Source) -> Iterator[str]:
    """Yield the names of the modules of a model that tools look for: its blocks, embeddings and head, and their parts.

    The heads of classifiers are left out: PEFT looks for those itself, by names that routers have too.
    """
    model = source.model
    wanted = [*source.blocks, model.get_output_embeddings()]
    with suppress(NotImplementedError):  # some of images and sounds
        wanted.append(model.get_input_embeddings())
    inner = {id(part) for module in wanted if module is not None for part in module.modules()}
    model_name = source.name.replace(".", "_")
    return (f"{FROZEN}.{model_name}.{name}" for name, module in model.named_modules() if id(module) in inner)


def refused(name: str) -> FrozenError:
    """Return the error for a module that cannot be changed, which says what can be instead."""
    return FrozenError(
        f"{name} is a module of a model of the fusion, which is frozen, outside of the module tree and not saved with "
        "it: nothing can be put into its blocks, embeddings or head, and hooks on them would not be called. Name "
        r"adapters and routers alone, as in PEFT's target_modules=r'runtime\.layers\..*projection'; to change a model "
        "itself, do so before, save it, and fuse that"
    )
