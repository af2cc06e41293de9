"""Where the time of one of our own measurements goes.

  python -m experiments.benchmark.profile FOLDER C exact_float32 [to=results/profile_c.txt]

FOLDER is the output of a run of ``experiment=benchmark``, with its problems. The measurement is done once
uncounted and then once under cProfile. The page of results/scaling.md names the file beside a missed aim.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from experiments.benchmark.adapters import ours
from experiments.benchmark.harness import Problem, machine_rates
from experiments.errors import UserError
from experiments.records import atomic
from experiments.records.provenance import ROOT

LEAST = 0.01  # share of the whole from which a function has a line of its own


def place(function: tuple[str, int, str]) -> str:
    """A profiled function as a reader finds it: file below the repository and name, or torch's own."""
    path, _, name = function
    if path == "~":
        quoted = name.split("'")  # {method 'addmm_' of 'torch._C.TensorBase' objects}
        return f"Tensor.{quoted[1]}" if "TensorBase" in name else name.strip("{}<>").split()[-1]
    inside = Path(path).is_relative_to(ROOT)
    return f"{Path(path).relative_to(ROOT) if inside else Path(path).name}: {name}"


def measured(folder: Path, task: str, method: str) -> str:
    """The profile as text.

    Raises:
        UserError: the folder holds no such run, or the measurement isn't one of ours.
    """
    config = folder / "config.yaml"
    if not config.is_file():
        raise UserError(f"{folder} holds no config.yaml: name the output of a run of experiment=benchmark.")
    tasks: Any = OmegaConf.to_container(OmegaConf.load(config).experiment.tasks)
    one = tasks.get(task, {}).get("measurements", {}).get(method)
    if one is None or one["by"] != "ours":
        raise UserError(f"task {task} has no measurement {method} of ours; see {config}.")
    problem = folder / "problems" / tasks[task]["problem"]
    work = ours.load()[one["method"]](
        Problem({"problem": str(problem), "dtype": one["dtype"], "options": one["options"]})
    )
    work()
    profiler, start = cProfile.Profile(), time.perf_counter()
    profiler.enable()
    _, facts = work()
    profiler.disable()
    seconds = time.perf_counter() - start
    rate = machine_rates()[f"gflops_{one['dtype']}"]
    lines = [
        f"Task {task} of the benchmark, {method}: {tasks[task]['title']}. Once under cProfile,",
        f"{torch.get_num_threads()} threads, {one['dtype']}: {seconds:.2f} s.",
    ]
    if "flops" in facts:
        did = facts["flops"] / 1e9
        lines += [
            f"Necessary work {did:,.1f} GFLOP, so {did / seconds:.0f} GFLOP/s; a square product of 2,048",
            f"afterwards {rate:.0f} GFLOP/s.",
        ]
    lines += ["", "  seconds  share   calls  in itself, without what it calls"]
    stats: Any = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # undocumented in its stub
    rest = seconds
    for function, (_, calls, own, _, _) in sorted(stats.items(), key=lambda item: -item[1][2]):
        if own < LEAST * seconds:
            break
        rest -= own
        lines.append(f"{own:9.2f}  {own / seconds:5.0%}  {calls:6,}  {place(function)}")
    lines.append(f"{rest:9.2f}  {rest / seconds:5.0%}          everything else")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Profiles what the command line names; prints it, or writes the file of ``to=``."""
    named = [argument for argument in sys.argv[1:] if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    if len(named) != 3 or set(options) - {"to", "debug"}:
        raise UserError("usage: python -m experiments.benchmark.profile FOLDER TASK METHOD [to=FILE].")
    text = measured(Path(named[0]), named[1], named[2])
    if "to" in options:
        atomic.write_text(Path(options["to"]), text)
    print(text, end="")


if __name__ == "__main__":
    from experiments.suite.cli import guarded

    guarded(main)
