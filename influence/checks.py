"""Ranges of numeric settings: one sentence that names the setting, what came and what is allowed."""

from __future__ import annotations

import math
from typing import Any

from influence.errors import DataError


def checked_number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None,
    below: float | None = None, whole: bool = False,
) -> None:  # fmt: skip
    """Refuse a setting outside its range.

    Args:
        name: of the setting, for the message.
        value: what was given.
        above, least, below: the value must be > ``above``, ≥ ``least``, < ``below``.
        above: it must be larger.
        least: it must be at least so large.
        below: it must be smaller.
        whole: it must be an integer.

    Raises:
        DataError: not a number, NaN, infinite, not whole, or out of range.
    """
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", least), ("<", below))
        if bound is not None
    ]
    kind = "an integer" if whole else "a finite number"
    wanted = f"{name} must be {kind}{' ' if bounds else ''}{' and '.join(bounds)}, got {value!r}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(wanted) from None
    inside = (
        math.isfinite(number)
        and (above is None or number > above)
        and (least is None or number >= least)
        and (below is None or number < below)
        and (not whole or number == int(number))
    )
    if not inside or isinstance(value, bool):
        raise DataError(wanted)
