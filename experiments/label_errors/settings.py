"""The settings of ``python -m experiments.label_errors``: defaults, help, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from experiments.data.tables.options import Options, checked, option
from experiments.records.errors import ConfigError

RANKS = ("held_loss", "held_margin", "loss", "self_influence")


@dataclass(frozen=True)
class Settings(Options):
    """Every field changes the result, and is refused where it cannot."""

    model: str = option(
        "auto",
        "linear: features as they are; curved: curved ones too; auto: what predicts better",
        "auto",
        "linear",
        "curved",
    )
    l2: float | None = option(None, "regularisation; by default chosen by the leave-one-out loss")
    rank: str = option("held_loss", "what the list is sorted by", *RANKS)
    rows: int = option(10_000, "suspects on the page; suspects.csv has every row")
    seed: int = option(0, "draws the rows that λ is chosen on, and the curved features")
    output: str | None = option(None, "folder of the results; by default the name of FILE and -label-errors")


def settings(**given: Any) -> Settings:
    """Settings from texts or values; ConfigError names the key, its value and what it can be."""
    known = {item.name: item for item in fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"there is no setting {key!r}: {hint}there are {', '.join(known)}.")
        values[key] = checked(known[key], value)
    found = Settings(**values)
    if found.levels < 1 or found.words < 1 or found.rows < 1:
        raise ConfigError("levels=, words= and rows= must be 1 or more.")
    if found.l2 is not None and not 0 < found.l2 < float("inf"):
        raise ConfigError(f"l2={found.l2}: it must be above 0 and finite.")
    return found
