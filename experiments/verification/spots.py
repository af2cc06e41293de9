"""What a spot check of a record said: it passed, it failed, or why there was none."""

from __future__ import annotations

from dataclasses import dataclass

PASSED, FAILED, IMPOSSIBLE = "passed", "failed", "not possible"


@dataclass(frozen=True)
class Spot:
    """status: one of the three above. what: what was repeated, what differs, or why nothing could be."""

    status: str
    what: str

    def __str__(self) -> str:
        return f"spot check {self.status}: {self.what}"
