"""The worker's side: one measurement in a process of its own, timed, its memory watched, its answer kept.

Times leave out the imports, reading the arrays and what an adapter does before it returns its ``work``
(building the library's own objects), which is recorded apart as ``setup_seconds``. Memory is the peak
resident size of this process, imports and arrays included.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Work = Callable[[], Any]  # -> answer, or (answer, {"flops": ..., "iterations": ..., "done_of": [k, K], ...})
Adapter = Callable[["Problem"], Work]


class Unsupported(Exception):
    """The library has no way to do what the problem asks for; the message says what it lacks."""


class Problem:
    """A problem's folder and a measurement's settings, as an adapter sees them.

    X (n, d) or (n, 1, side, side), y (n,), theta (p,), test_X (k, ...), test_y (k,): torch tensors, floating
    ones in the measurement's dtype.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.folder = Path(spec["problem"])
        self.options: dict[str, Any] = spec["options"]
        self.facts: dict[str, Any] = json.loads((self.folder / "problem.json").read_text())
        self.dtype = getattr(torch, spec["dtype"])
        self.l2, self.damping = float(self.facts["l2"]), float(self.facts["damping"])
        points = slice(0, self.options.get("test_points", 1))
        self.X, self.y = self._array("X"), self._array("y")
        self.theta = self._array("theta")
        self.test_X, self.test_y = self._array("test_X")[points], self._array("test_y")[points]
        if "n" in self.options:
            self.X, self.y = self.X[: self.options["n"]], self.y[: self.options["n"]]

    def _array(self, name: str) -> Tensor:
        array = torch.from_numpy(np.load(self.folder / f"{name}.npy"))
        return array.to(self.dtype) if array.is_floating_point() else array

    @property
    def gauss_newton(self) -> bool:
        """Whether the curvature asked for is the Gauss-Newton matrix instead of the Hessian."""
        return bool(self.facts.get("curvature") == "gauss_newton")

    @property
    def n(self) -> int:
        """Training examples."""
        return len(self.X)

    @cached_property
    def model(self) -> nn.Module:
        """The fitted model as a torch module in the measurement's dtype."""
        if self.facts["network"] is None:
            c = int(self.facts["classes"])
            model: nn.Module = nn.Sequential(nn.Linear(len(self.theta) // c, c, bias=False, dtype=self.dtype))
        else:
            from experiments.models.middle import network, only_last_block

            generator = torch.Generator().manual_seed(0)
            side, classes = int(self.X.shape[-1]), int(self.facts["classes"])
            model = network(self.facts["network"], side, classes, generator).to(self.dtype)
        place = 0
        for parameter in model.parameters():
            parameter.data = self.theta[place : place + parameter.numel()].reshape(parameter.shape).clone()
            place += parameter.numel()
        if self.facts.get("trainable") == "last":
            model = only_last_block(model)
        return model.eval()


def status_mib(field: str) -> float:
    """A line of /proc/self/status in MiB: VmHWM (peak) or VmRSS; NaN if there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    found = [int(line.split()[1]) / 1024 for line in lines if line.startswith(field)]
    return found[0] if found else float("nan")


def reset_peak() -> None:
    """Lets VmHWM start again from the present resident size (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # the peak is then that of the whole process


def best(repeats: int, work: Callable[[], Any]) -> float:
    """Seconds of the fastest of ``repeats`` calls after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def machine_rates(size: int = 2048) -> dict[str, float]:
    """What this machine does now: matrix products in GFLOP/s in both precisions, copying in GB/s."""
    rates = {}
    for dtype in (torch.float32, torch.float64):
        a = torch.rand(size, size, dtype=dtype)
        rates[f"gflops_{str(dtype).removeprefix('torch.')}"] = (
            2 * size**3 / best(3, partial(torch.matmul, a, a)) / 1e9
        )
    source = torch.zeros(12 * size * size, dtype=torch.float32)
    target = torch.empty_like(source)
    rates["bandwidth_gbytes"] = 2 * source.numel() * 4 / best(3, lambda: target.copy_(source)) / 1e9
    return rates


def measure(spec: dict[str, Any], adapters: dict[str, Adapter], import_mib: float) -> dict[str, Any]:
    """Runs one measurement and writes ``answer.npy``; everything else it found is returned."""
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    problem = Problem(spec)
    loaded = status_mib("VmRSS")
    reset_peak()
    start = time.perf_counter()
    work = adapters[spec["method"]](problem)
    setup, setup_peak = time.perf_counter() - start, status_mib("VmHWM")
    reset_peak()
    seconds, processor, facts, answer = [], [], {}, None
    for _ in range(spec["repeats"]):
        answer = None  # the previous answer must not count in this one's peak
        start, used = time.perf_counter(), time.process_time()
        result = work()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
        answer, facts = result if isinstance(result, tuple) else (result, {})
    peak = status_mib("VmHWM")
    answer = answer.detach().numpy() if isinstance(answer, Tensor) else np.asarray(answer)
    np.save(Path(spec["answer"]), answer.astype(np.float64))
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "load_average": os.getloadavg()[0],
        "setup_seconds": setup,
        "import_mib": import_mib,
        "loaded_mib": loaded,
        "setup_peak_mib": setup_peak,
        "peak_mib": peak,
        "threads": torch.get_num_threads(),
        "facts": facts,
        "machine": machine_rates() if spec["rates"] else {},
    }


def serve(load: Callable[[], dict[str, Adapter]]) -> None:
    """Entry point of an adapter: reads the spec named on the command line, writes ``outcome`` as JSON.

    ``load`` imports the library and gives the adapter's methods by name.
    """
    spec = json.loads(Path(sys.argv[1]).read_text())
    try:
        adapters = load()
        outcome = {"status": "measured", **measure(spec, adapters, status_mib("VmRSS"))}
    except ModuleNotFoundError as error:
        outcome = {"status": "skipped", "reason": f"the package {error.name} is not installed"}
    except Unsupported as error:
        outcome = {"status": "skipped", "reason": str(error)}
    except Exception as error:  # another library's failure is a result of the benchmark
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        outcome = {"status": "failed", "reason": f"{type(error).__name__}: {lines[0][:200]}"}
    Path(spec["outcome"]).write_text(json.dumps(outcome))
