"""The line search by halving that the fits share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def halved(accept: Callable[[float], T | None], shortest: float) -> tuple[float, T | None]:
    """The first length of 1, ½, ¼, … that ``accept`` takes, with what ``accept`` returned for it.

    Args:
        accept: returns None for a length that it does not take.
        shortest: no shorter length is tried.

    Returns:
        The length and the answer. If ``accept`` takes none, the first length that was too short, and None.

    >>> halved(lambda length: "short enough" if length < 0.3 else None, 0.01)
    (0.25, 'short enough')
    """
    length = 1.0
    while length >= shortest:
        found = accept(length)
        if found is not None:
            return length, found
        length *= 0.5
    return length, None
