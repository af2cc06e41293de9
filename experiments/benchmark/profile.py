"""Where the time of one of our own measurements goes; a page of results/scaling.md names the file it
writes.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from pathlib import Path
from typing import Any

from experiments.records import atomic
from experiments.records.errors import UserError
from experiments.records.places import ROOT
from experiments.suite.commands import Command, Given, Option, Words

COMMAND = Command(
    "benchmark.profile",
    "Profiles one of our own measurements of the benchmark. It runs twice, the second time under cProfile.",
    words=Words(
        "FOLDER TASK METHOD",
        3,
        3,
        "output folder of a run of experiment=benchmark, a task's letter, a measurement",
    ),
    options=(Option("to", None, "file to write as well", kind=Path, shown="FILE"),),
    examples=(("OUT C exact_float32 to=results/profile_c.txt", "the file that results/scaling.md names"),),
)
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
    import torch
    from omegaconf import OmegaConf

    from experiments.benchmark.adapters import ours
    from experiments.benchmark.harness import Problem, machine_rates

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


def main(given: Given) -> None:
    """Profiles the measurement named; prints the profile and writes the file of ``to=``."""
    folder, task, method = given.words
    text = measured(Path(folder), task, method)
    if given["to"] is not None:
        atomic.write_text(given["to"], text)
    print(text, end="")


if __name__ == "__main__":
    COMMAND.run(main)
