"""Windows of a long document: each of its tokens is predicted once, with at least so many tokens before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class Window(NamedTuple):
    """A run of a model over a part of a document.

    Attributes:
        domain: of the document.
        document: its number in the domain, from 0.
        ids: the tokens that the model reads, at most `max_length`.
        targets: the tokens that are scored; the last of them follows `ids`, and so each is predicted by the one before.
    """

    domain: str
    document: int
    ids: Sequence[int]
    targets: Sequence[int]


def windows_of(domain: str, document: int, tokens: Sequence[int], max_length: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a document.

    The first scores all of its tokens, each later one the next `stride` tokens, with as much before them as fits.

    Args:
        domain: of the document.
        document: its number.
        tokens: T tokens behind one that only begins the text and is not scored: T + 1 in all.
        max_length: the most tokens that the model reads at once.
        stride: how many tokens a later window scores, at most `max_length`.
    """
    done, last = 0, len(tokens) - 1
    while done < last:
        end = min(done + (stride if done else max_length), last)
        begin = max(end - max_length, 0)
        yield Window(domain, document, tokens[begin:end], tokens[done + 1 : end + 1])
        done = end
