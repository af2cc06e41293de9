"""A job of a schedule that ends at once; it is given its folder and its settings."""

from __future__ import annotations

import sys
import time
from pathlib import Path

if __name__ == "__main__":
    folder, settings = Path(sys.argv[1]), sys.argv[2:]
    if "seed=no" in settings:
        print("error: seed=no is no number.")
        sys.exit(2)
    time.sleep(1.0)  # long enough to be seen beside another
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{}")
