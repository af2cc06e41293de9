"""Memory that an attack keeps while it works goes back to the system between its units."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers import ROOT, environment

PROGRAM = """
from pathlib import Path
import numpy as np
from experiments.suite.parallel.memory import give_back, keep_freed

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 // 2**20

assert keep_freed()
before = resident()
blocks = [np.ones(2**18) for _ in range(200)]  # 2 MiB each
kept = blocks[1::2]  # what stays alive between them leaves holes
del blocks
full = resident()
give_back()
print(before, full, resident(), sum(block[0] for block in kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_holes_between_living_blocks_are_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    before, full, after, alive = (float(word) for word in done.stdout.split())
    assert alive == 100
    assert full - before > 350  # freed, and kept
    assert after - before < 280  # the 200 MiB that live, and little more
