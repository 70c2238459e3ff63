"""The exceptions that mol raises on purpose.

    MolError
    ├── ConfigError        a recipe or an argument that cannot be carried out (also a ValueError)
    ├── ArchitectureError  a model whose structure is not understood (also a ValueError)
    ├── CheckpointError    a model directory or weight file that is damaged, incomplete or of an unsupported format
    ├── MergeError         inputs that do not fit together, or a run that failed
    │   └── MergeCancelled the caller stopped the run; the work done so far can be resumed
    ├── FusionError        models, blocks or inputs that a fusion cannot run (also a ValueError)
    └── InternalError      a bug of mol, never a mistake of its user

Files that are missing or forbidden raise the builtin OSError family.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self


class MolError(Exception):
    """Base of every exception that mol raises on purpose.

    Attributes:
        problems: what is wrong, one line each; empty where the message itself is the one problem.
    """

    problems: tuple[str, ...] = ()

    @classmethod
    def listing(cls, header: str, problems: Sequence[str]) -> Self:
        """Build an error that lists everything that is wrong at once, one bullet line per problem.

        Args:
            header: what was refused, without a final colon.
            problems: one line each, in the order in which to read them.
        """
        # A problem may be a list itself, such as all that is wrong with one of several models: it stays below its own.
        lines = (problem.replace("\n", "\n    ") for problem in problems)
        error = cls("\n".join([f"{header}:", *(f"  - {line}" for line in lines)]))
        error.problems = tuple(problems)
        return error


class ConfigError(MolError, ValueError):
    """A recipe, or an argument, says something that cannot be carried out."""


class ArchitectureError(MolError, ValueError):
    """The structure of a model is not understood."""


class CheckpointError(MolError):
    """A model directory or one of its files is damaged, incomplete or of an unsupported format."""


class MergeError(MolError):
    """The inputs do not fit together, or the run failed; no output directory appears."""


class MergeCancelled(MergeError):
    """The run stopped because the caller cancelled it; running it again resumes."""


class FusionError(MolError, ValueError):
    """Models, blocks or inputs that do not fit together in a fusion or a mixture, or that it does not support."""


class InternalError(MolError):
    """A bug of mol: a state that no recipe, input or call should lead to. Please report it."""


def reason_of(error: MolError | OSError) -> str:
    """Return an error as one text: without Python's number and quotes where the system refused."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if isinstance(error, FileNotFoundError) and names and (link := Path(names[0])).is_symlink():
        return f"{link}: is a link to {link.readlink()}, which is not there"
    return ": ".join([*names, error.strerror])
