"""Names of inputs that say nothing about this machine, for the files that travel with a merge."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mol.config.model_reference import expanded
from mol.io.hub_cache import hub_origin
from mol.regex import regex

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mol.io.checkpoint import Part

# A path of this machine that is no input, e.g. in a comment of the recipe; its last part is the group.
_PATH: Final = regex(r"(?<![^\s'\"`(\[{,;=:])~?/(?:[\w.+@%-]+/)+([\w.+@%-]+)/?(?![^\s'\"`)\]},;:])")


class Labels:
    """Short names of inputs.

    The id of a Hub repository; a relative `org/name` as it stands in the recipe; else as few last parts of the path as
    distinguish the inputs.
    """

    def __init__(
        self, parts: Iterable[Part], paths: Iterable[str] = (), *, cache_dir: Path | str | None = None
    ) -> None:
        """Name the inputs.

        Args:
            parts: the inputs' directories.
            paths: further paths that texts may mention, e.g. the output path in the recipe.
            cache_dir: the Hub cache in use, huggingface_hub's own if None.
        """
        directories = {part.directory: part.name for part in parts}
        origins = {directory: hub_origin(directory, cache_dir) for directory in directories}
        local = [directory.resolve() for directory in dict.fromkeys(directories) if origins[directory] is None]
        short = _shortest(list(dict.fromkeys(local)))
        self._labels = {
            directory: origin[0] if (origin := origins[directory]) else _as_typed(name) or short[directory.resolve()]
            for directory, name in directories.items()
        }
        replaced = {path: Path(path).name for path in paths}
        for directory, name in directories.items():
            replaced |= dict.fromkeys((name, str(directory), str(directory.resolve())), self._labels[directory])
        # As YAML spells a path with an apostrophe inside quotes.
        replaced |= {path.replace("'", "''"): label for path, label in replaced.items()}
        # Longest first, since one path may begin another.
        self._replaced = sorted(
            ((path, label) for path, label in replaced.items() if expanded(path).is_absolute()),
            key=lambda pair: (-len(pair[0]), pair[0]),
        )

    def of(self, part: Part) -> str:
        """Return the short name of an input."""
        return self._labels[part.directory]

    def clean(self, text: str) -> str:
        """Replace the absolute paths of inputs in a text by their short names, and other ones by their last part."""
        for path, label in self._replaced:
            text = text.replace(path, label)
        return _PATH.sub(r"\1", text)


def _as_typed(name: str) -> str | None:
    """Return a relative name of the form `org/name`, as a model keeps that of its publisher."""
    parts = Path(name).parts
    return "/".join(parts) if len(parts) == 2 and not {"..", "~", "/"} & set(parts) else None


def _shortest(directories: list[Path]) -> dict[Path, str]:
    """Label each directory by as many of its last parts as make it unique."""
    labels = {}
    for directory in directories:
        # The last part of a snapshot alone is a commit hash, which names nothing.
        least = 3 if directory.parent.name == "snapshots" else 1
        for length in range(least, len(directory.parts) + 1):
            label = "/".join(directory.parts[-length:])
            if Counter("/".join(other.parts[-length:]) for other in directories)[label] == 1:
                break
        labels[directory] = label
    return labels
