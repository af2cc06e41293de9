"""Where a record came from: code, versions, machine, data, and the times that a record itself never holds."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from experiments.records.atomic import sha256
from experiments.records.errors import UserError
from experiments.records.machine import cores
from experiments.records.places import IN_REPOSITORY, ROOT

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "hydra-core", "omegaconf", "wandb")


def read(folder: Path) -> dict[str, Any]:
    """The provenance beside the record in ``folder``; UserError if it is missing, torn or foreign."""
    path = folder / "provenance.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no finished run: run it to its end with output={folder} first.")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): run the same command again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a run's provenance: run the same command again.")
    return content


def git(*arguments: str) -> str | None:
    """git's answer in the repository; None if this is an installed package or git does not answer."""
    if not IN_REPOSITORY:  # git would answer for whatever repository the environment happens to be in
        return None
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def code() -> dict[str, Any]:
    """Commit, whether tracked files differ from it, and the sha256 of constraints.txt."""
    status = git("status", "--porcelain", "--untracked-files=no")
    constraints = ROOT / "constraints.txt"
    return {
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "git_describe": git("describe", "--always", "--tags"),
        "constraints_sha256": sha256(constraints.read_bytes()) if constraints.is_file() else None,
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that make the numbers."""
    return dict(_versions())


@functools.cache  # looking through all that is installed takes longer than a small job
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str) -> dict[str, Any]:
    """Processor, cores, BLAS libraries and threads."""
    import torch
    from threadpoolctl import threadpool_info

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": model,
        "cores": cores(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch_threads": torch.get_num_threads(),
        **({"omp_wait_policy": policy} if (policy := os.environ.get("OMP_WAIT_POLICY")) else {}),
        "blas": [
            {
                key: pool.get(key)
                for key in ("internal_api", "version", "num_threads", "architecture")
                if key in pool
            }
            for pool in threadpool_info()
        ],
    }


def matrix_rate(device: str = "cpu", dtype: str = "float64", size: int = 2048, repeats: int = 4) -> float:
    """Measured matrix-product rate of this machine in GFLOP/s, on torch's threads: the best of a few."""
    import torch

    a = torch.rand(size, size, dtype=getattr(torch, dtype), device=device)
    best = float("inf")
    for _ in range(repeats + 1):  # the first one also pays for threads and pages
        start = time.perf_counter()
        product = a @ a
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


class PeakMemory:
    """Peak resident memory of this process, also of a part of it (Linux; elsewhere only the whole run's)."""

    def __init__(self) -> None:
        self.whole = 0.0

    def read(self) -> float:
        """Peak MiB since the last reset."""
        status = Path("/proc/self/status")
        if status.is_file():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak = int(line.split()[1]) / 1024
                    self.whole = max(self.whole, peak)
                    return peak
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**20 if sys.platform == "darwin" else 1024
        )
        self.whole = max(self.whole, peak)
        return peak

    def reset(self) -> None:
        """Starts a new part."""
        self.read()
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return  # the part's figure is then the whole run's so far
