"""Where the configs are, and where results and outputs go: in the repository, or installed from a wheel."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IN_REPOSITORY = (ROOT / "conf" / "config.yaml").is_file()
CONF = (
    ROOT / "conf" if IN_REPOSITORY else ROOT / "experiments" / "conf"
)  # a wheel holds conf/ inside the package
WORK = ROOT if IN_REPOSITORY else Path.cwd()  # an installed package is no place to write into
