"""Beside other libraries: the same data, the same fitted parameters, one machine, one process each.

conf/experiment/benchmark.yaml describes the tasks, and conf/variant holds every method's settings. H is the
growth of A with n and p. Every answer is compared with a dense float64 solve. For the linear problems this
solve shares no code with ours. For a network of many parameters it is CG to 1e-6 or better
(``network_reference`` says which), and plain autograd confirms its residual. A measurement that is done is
never done again: it is found by its problem and its settings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from experiments.benchmark import middle, problems, runner, summary
from experiments.records import atomic
from experiments.records.errors import ConfigError, UserError
from experiments.records.journal import Journal
from experiments.records.machine import cores
from experiments.records.places import ROOT
from experiments.records.record import Record
from experiments.suite.context import Context

REFERENCES: dict[str, dict[str, Any]] = {
    "linear": {"by": "bare", "method": "dense"},
    "subset": {"by": "bare", "method": "dense", "options": {"self": True}},
    "components": {"by": "bare", "method": "dense"},
    "network": {"by": "ours", "method": "network_reference"},
    **{name: {"by": "ours", "method": "network_reference"} for name in middle.PROBLEMS},
}

REFERENCE_SECONDS = 3600.0  # at least so long a reference may take

# What some methods give is no score: of so many of their rows the dense reference computes the same.
OWN: dict[str, dict[str, Any]] = {"self_influence": {"self": 1000}, "corrected": {"corrected": 100}}


class Bench:
    """The run's problems, its journal, and what both need to measure."""

    def __init__(self, cfg: DictConfig, context: Context) -> None:
        settings: Any = OmegaConf.to_container(cfg.experiment, resolve=True)
        only = settings["only"]
        unknown = sorted({*only} - {*settings["tasks"], "H"})
        if unknown:
            known = ", ".join([*settings["tasks"], "H"])
            raise ConfigError(f"experiment.only names {', '.join(unknown)}: choose from {known}.")
        if only:
            settings["tasks"] = {name: task for name, task in settings["tasks"].items() if name in only}
        if only and "H" not in only:
            settings["growth_rows"], settings["growth_features"] = [], []
        self.settings, self.folder = settings, context.output / "problems"
        self.peers = Path(settings["peers"])
        self.peers = self.peers if self.peers.is_absolute() else ROOT / self.peers
        self.threads = cfg.threads or cores()
        arrays = context.data().manifest.get("arrays", {})
        self.journal = Journal(context.output / "journal", "measurements", {"data": arrays}, context.call)

    def key(self, problem: str, measurement: dict[str, Any]) -> str:
        """Names a measurement by everything that decides it."""
        parameters = atomic.sha256((self.folder / problem / "theta.npy").read_bytes())
        removed = self.folder / problem / "removed.npy"
        chosen = atomic.sha256(removed.read_bytes()) if "removed" in measurement.get("options", {}) else ""
        facts = json.loads((self.folder / problem / "problem.json").read_text())
        identity = [problem, facts, parameters, chosen, self.threads, measurement]
        return atomic.key_hash(identity)

    def reference(self, problem: str, method: str = "") -> np.ndarray:
        """The dense float64 answer, kept beside the problem; for a ``method`` of ``OWN`` its own."""
        path = self.folder / problem / (f"reference_{method}.npy" if method else "reference.npy")
        points = self.settings["test_points"] if problem == "linear" else 1
        measurement: dict[str, Any] = {"dtype": "float64", "repeats": 1, "options": {}, **REFERENCES[problem]}
        measurement["options"] = measurement["options"] | {"test_points": points} | OWN.get(method, {})
        if not path.is_file():
            outcome, answer = self.start(problem, measurement, timed=False)
            if answer is None:
                raise UserError(f"the dense reference of the problem {problem} failed: {outcome['reason']}.")
            np.save(path.with_suffix(".tmp.npy"), answer)
            path.with_suffix(".tmp.npy").replace(path)
            self.put(f"reference {problem} {method}".strip(), outcome)
        return np.load(path)

    def start(self, problem: str, measurement: dict[str, Any], timed: bool = True) -> tuple[Any, Any]:
        """Runs one measurement in a process of its own."""
        timeout = float(self.settings["timeout"])
        if not timed:  # a reference is no measurement, and nothing can be compared without it
            timeout = max(timeout, REFERENCE_SECONDS)
        return runner.run(
            self.folder / problem,
            measurement,
            peers=self.peers,
            threads=self.threads,
            timeout=timeout,
            timed=timed,
        )

    def get(self, key: str) -> dict[str, Any] | None:
        """A kept outcome."""
        kept = self.journal.get(key)
        return None if kept is None else json.loads(kept["outcome"].tobytes())

    def put(self, key: str, outcome: dict[str, Any]) -> None:
        """Keeps an outcome."""
        content = np.frombuffer(json.dumps(outcome).encode(), dtype=np.uint8)
        self.journal.put(key, {"outcome": content})

    def measured(self, problem: str, measurement: dict[str, Any], compare: bool) -> dict[str, Any]:
        """The outcome of a measurement, from the journal or newly made, with its errors."""
        key = self.key(problem, measurement)
        outcome = self.get(key)
        if outcome is None:
            if runner.spent():
                return {"status": "not run", "reason": "the time set for measuring was spent"}
            reference = self.truth(problem, measurement) if compare else None
            outcome, answer = self.start(problem, measurement)
            if answer is not None and reference is not None:
                outcome |= runner.compared(answer, reference)
            if outcome["status"] == "measured":  # what was skipped or failed is tried again next time
                if measurement["by"] == "peer_sklearn":
                    np.save(self.folder / problem / "refits.npy", answer)
                    outcome |= {"pearson": 1.0, "relative_error": 0.0}  # the truth of task G itself
                self.put(key, outcome)
        return outcome

    def truth(self, problem: str, measurement: dict[str, Any]) -> np.ndarray | None:
        """What an answer is compared with: the dense solve, or for retrainings scikit-learn's own refits."""
        if "removed" in measurement["options"]:
            path = self.folder / "linear" / "refits.npy"
            return np.load(path) if path.is_file() else None
        own = measurement["method"] if problem == "linear" and measurement["method"] in OWN else ""
        return self.reference(problem, own)


def run(cfg: DictConfig, context: Context) -> Record:
    """Problems, references, measurements, growth."""
    bench = Bench(cfg, context)
    settings, data = bench.settings, context.data()
    wanted = {task["problem"] for task in settings["tasks"].values() if task["measurements"]}
    if settings["growth_rows"] or settings["growth_features"]:
        wanted.add("linear")
    write_problems(bench, cfg, context, wanted)
    n_train, n_test, classes = len(data.train), len(data.test), len(data.classes)
    d = data.train.X.shape[1]
    del data

    count = sum(len(task["measurements"]) for task in settings["tasks"].values())
    count += len(settings["growth_rows"]) + len(settings["growth_features"])
    tasks: dict[str, Any] = {}
    with context.timer("measurements"), context.progress(count, "measurements") as advance:
        done = 0
        for name, task in settings["tasks"].items():
            outcomes = {}
            for method, measurement in task["measurements"].items():
                outcomes[method] = bench.measured(task["problem"], measurement, compare=True)
                done += 1
                advance(done)
            tasks[name] = summary.task(task, outcomes)
        growths = {}
        for over, sizes in (("n", settings["growth_rows"]), ("p", settings["growth_features"])):
            found = []
            for size in sizes:
                found.append(bench.measured("linear", growing(settings, over, size), compare=False))
                done += 1
                advance(done)
            axis = sizes if over == "n" else [classes * size for size in sizes]
            growths[over] = summary.growth(over, axis, found)
    note(context, tasks)
    machine = latest_machine(tasks)
    return Record(
        experiment="benchmark",
        metrics={
            "n_train": n_train,
            "n_test": n_test,
            "n_parameters": d * classes,
            "inputs": d,
            "classes": classes,
            "threads": bench.threads,
            "machine": machine,
            "tasks": tasks,
            "growth": growths,
            **summary.gains(tasks),
            "references": {
                name: (bench.get(f"reference {name}") or {}).get("facts", {}) for name in REFERENCES
            },
        },
        arrays={
            f"growth_{over}_{field}": np.array(found[field], dtype=float)
            for over, found in growths.items()
            for field in ("sizes", "seconds", "seconds_a_product", "peak_mib_beyond_imports")
        },
        captions={
            "benchmark": "Seconds (median) and peak memory of each method on each task; hatched: not correct "
            "to the task's bound; light: extrapolated from a part of the work. Right: growth of task A."
        },
    )


def write_problems(bench: Bench, cfg: DictConfig, context: Context, wanted: set[str]) -> None:
    """The problems that a task wants; for the linear ones their reference and the points of task G too."""
    data, linear = context.data(), wanted & {"linear", "subset", "components"}
    with context.timer("problems"):
        if linear:
            problems.linear(bench.folder, data, cfg.experiment, cfg.model.l2)
        if "network" in wanted:
            problems.network(bench.folder, data, cfg.experiment, cfg.seed)
        for name in sorted(wanted & {*middle.PROBLEMS}):
            middle.problem(name, bench.folder, data, cfg.experiment, cfg.seed)
    if linear:
        with context.timer("reference of the linear problem"):
            scores = bench.reference("linear")
        problems.choose_removed(bench.folder, scores, bench.settings["removed"])


def growing(settings: dict[str, Any], over: str, size: int) -> dict[str, Any]:
    """The measurement of task H at one size."""
    options: dict[str, Any] = {"tolerance": settings["growth_tolerance"]}
    options |= {"n": size} if over == "n" else {"n": settings["growth_features_rows"], "features": size}
    repeats = settings["growth_repeats"]
    return {"by": "ours", "method": "growth", "dtype": "float64", "repeats": repeats, "options": options}


def note(context: Context, tasks: dict[str, Any]) -> None:
    """What was not measured, or not in full, as sentences of the record."""
    for name, task in tasks.items():
        for method, line in task["methods"].items():
            if line["status"] != "measured":
                context.note(f"{name}, {method}: {line['status']}: {line['reason']}.")
            elif line["extrapolated"]:
                done, whole = line["done_of"]
                context.note(
                    f"{name}, {method}: {done:g} of {whole:g} units measured, scaled to all of them."
                )


def latest_machine(tasks: dict[str, Any]) -> dict[str, float]:
    """Medians of the rates that were measured after each measurement."""
    found: dict[str, list[float]] = {"gflops_float64": [], "gflops_float32": [], "bandwidth_gbytes": []}
    for task in tasks.values():
        for line in task["methods"].values():
            if line.get("gflops"):
                found[f"gflops_{line['dtype']}"].append(line["gflops"])
                found["bandwidth_gbytes"].append(line["bandwidth_gbytes"])
    return {name: float(np.median(values)) for name, values in found.items() if values}
