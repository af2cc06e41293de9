"""Record, figure and page of the evidence, from the tables measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write(found: list[dict[str, Any]], folder: Path) -> None:
    """Placeholder until the page is written."""
    print(f"{len(found)} tables measured in {folder}")
