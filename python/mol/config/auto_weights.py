"""`weight: {auto: ...}`: weights of whole models that are found from the norms of their differences from the base."""

from __future__ import annotations

from enum import Enum
from typing import Final

from mol.text import suggestion

FORMS: Final = {"norm": ("metagpt",), "inverse_norm": ("nan",)}
"""Ways to weigh, each with the other words for it."""


class Auto(Enum):
    """A weight that is found when the models are read.

    Attributes:
        NORM: the square of the model's norm over the sum of all squares, which minimises the mean loss of the tasks
            under the assumptions of MetaGPT (https://arxiv.org/abs/2406.11385).
        INVERSE_NORM: the inverse of the norm over the sum of all inverses (NAN, https://arxiv.org/abs/2505.16148).
    """

    NORM = "norm"
    INVERSE_NORM = "inverse_norm"

    def to_plain(self) -> dict[str, str]:
        """Return the value as YAML holds it."""
        return {"auto": self.value}


def read_auto(word: object) -> Auto | str:
    """Return the value of a word under `auto`, or what is wrong with it."""
    for form, others in FORMS.items():
        if word == form or word in others:
            return Auto(form)
    hint = suggestion(word, FORMS) if isinstance(word, str) else ""
    return f"`auto` is {' or '.join(f'`{form}`' for form in FORMS)}, not {str(word)[:80]!r}{hint}"
