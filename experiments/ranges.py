"""The range of every numeric setting, said once beside its schema, and checked before a run takes its folder.

    @register("experiment", "loo_linear")
    @ranged(removed=at_least(1), training_tolerance=TOLERANCE)
    @dataclass
    class LooLinear(Experiment): ...

A number that is not finite lies in no range. Null is never out of range: the schema says where it may stand.
A list is in range if each of its numbers is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; an open end does not belong to it."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    words: tuple[str, ...] = ()  # texts that may stand in place of a number

    def holds(self, value: float) -> bool:
        """Whether a finite ``value`` lies inside."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low = f"{'more than' if self.low_open else 'at least'} {self.low:g}"
        high = f"{'less than' if self.high_open else 'at most'} {self.high:g}"
        parts = [low] * math.isfinite(self.low) + [high] * math.isfinite(self.high)
        return ", or ".join([" and ".join(parts) or "a finite number", *self.words])


def at_least(low: float, high: float = math.inf) -> Range:
    """Numbers from ``low`` to ``high``, both included."""
    return Range(low, high)


def above(low: float, high: float = math.inf) -> Range:
    """Numbers larger than ``low``, up to ``high``."""
    return Range(low, high, low_open=True)


NOT_NEGATIVE_OR_AUTO = Range(0, words=("auto",))
COUNT, POSITION, POSITIVE, NOT_NEGATIVE = at_least(1), at_least(0), above(0), at_least(0)
TOLERANCE = Range(0, 1, low_open=True, high_open=True)  # a norm or a residual that ends something
SEED = at_least(0, 2**32 - 1)  # what numpy's legacy generator takes


def ranged(**ranges: Range) -> Callable[[type], type]:
    """Class decorator for a schema: the range of each of its numeric fields, beside those it inherits."""

    def wrap(cls: type) -> type:
        cls.RANGES = getattr(cls, "RANGES", {}) | ranges  # type: ignore[attr-defined]  # made here
        return cls

    return wrap


def ranges_of(cls: type) -> dict[str, Range]:
    """The ranges of a schema class."""
    return dict(vars(cls).get("RANGES") or getattr(cls, "RANGES", {}))


def numeric_fields(cls: type) -> list[str]:
    """The fields of a schema that hold an int, a float, or a list of them."""
    return [f.name for f in fields(cls) if any(kind in str(f.type) for kind in ("int", "float"))]


def check(cfg: Any) -> None:
    """Raises ConfigError for the first number of a composed config that lies outside its range."""
    for path, value, allowed in numbers(cfg):
        if not allowed.holds(value):
            raise ConfigError(f"{path}={value}: give {allowed}.")


def numbers(node: Any, path: str = "") -> Iterator[tuple[str, float, Range]]:
    """Every number of a composed config with its dotted path and its range (any finite one if unsaid).

    Raises:
        ConfigError: a text stands where only a number, or another text, may.
    """
    if isinstance(node, DictConfig):
        kind = OmegaConf.get_type(node)
        ranges = ranges_of(kind) if isinstance(kind, type) and kind is not dict else {}
        for key in node:
            if OmegaConf.is_missing(node, key):
                continue
            inside, value = f"{path}.{key!s}".lstrip("."), node[key]
            allowed = ranges.get(str(key), Range())
            several = isinstance(value, ListConfig) and str(key) in ranges and not allowed.words
            for item in list(value) if several else [value]:
                if isinstance(item, (int, float)) and not isinstance(item, bool):
                    yield inside, item, allowed
                elif allowed.words and item not in allowed.words:
                    raise ConfigError(f"{inside}={item}: give {allowed}.")
                else:
                    yield from numbers(item, inside)
    elif isinstance(node, ListConfig):
        for item in node:
            if isinstance(item, (int, float)) and not isinstance(item, bool):
                yield path, item, Range()
            else:
                yield from numbers(item, path)
