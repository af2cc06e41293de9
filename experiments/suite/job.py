"""One job from composed config to record: folder, lock, resume, run, record, figure, tracking, table."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from experiments import schema
from experiments.records import atomic
from experiments.records.errors import UserError
from experiments.records.record import Record
from experiments.records.table import paper_and_ours
from experiments.suite import folders, inputs, used
from experiments.suite.cli import in_a_sweep, stamp
from experiments.suite.context import Context
from experiments.suite.ending import JobFailed, sentence
from experiments.suite.folders import FAILED, FREE, OVERRIDES, without
from experiments.suite.parallel import ranks


def folder_of(cfg: DictConfig) -> Path:
    """The job's own folder: in a sweep below the sweep's, else output=, else a new one under outputs/."""
    if in_a_sweep():
        sweep = HydraConfig.get().sweep
        return Path(sweep.dir) / str(sweep.subdir)
    return Path(cfg.output) if cfg.output else Path("outputs") / cfg.experiment.name / stamp()


def label() -> str:
    """Number and overrides of this job of a sweep: jobs that run side by side print side by side."""
    return f"{HydraConfig.get().job.num} ({' '.join(overrides())})"


def overrides() -> list[str]:
    """The overrides of this job of a sweep that decide its numbers."""
    return [o for o in HydraConfig.get().overrides.task if o.split("=")[0].lstrip("+") not in FREE]


def answer(cfg: DictConfig, folder: Path) -> str | float:
    """What Hydra's sweeper is told of a job: the metric named by ``optimise``, else the folder."""
    if cfg.optimise is None:
        return str(folder)
    from experiments.suite.sweeps import value_at

    try:
        return value_at(Record.load(folder), cfg.optimise)
    except UserError as error:
        ranks.report(f"optimise={cfg.optimise}: {error}", error)
        raise JobFailed(2) from None


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved settings that decide the numbers."""
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return without(settings, FREE)


def execute(cfg: DictConfig) -> Path:
    """Runs one job and returns its folder; raises JobFailed once the reason has been printed."""
    folder = folder_of(cfg)
    try:
        with ranks.joined(cfg.device, folder) as mine:
            schema.check(cfg)
            used.check(cfg)
            folders.require_run_folder(mine)  # before the lock: nothing of ours goes into a foreign folder
            with atomic.locked(mine):
                (mine / FAILED).unlink(missing_ok=True)
                if in_a_sweep() and not ranks.follower():
                    atomic.write_json(mine / OVERRIDES, overrides())
                made_or_found(cfg, folder, mine)
            if ranks.follower():
                return folder
            say(folder)
    except Exception as error:
        if cfg.debug:
            traceback.print_exc()
        known = sentence(error)
        if in_a_sweep() and not ranks.follower():
            with contextlib.suppress(OSError):  # a full disk has its own sentence already
                why = known[0] if known else f"{type(error).__name__}: {error}"
                atomic.write_text(folder / FAILED, f"{why}\n")
        if known is None:
            raise
        ranks.report(f"job {label()}: {known[0]}" if in_a_sweep() else known[0], error)
        raise JobFailed(known[1]) from None
    return folder


def made_or_found(cfg: DictConfig, folder: Path, mine: Path) -> None:
    """Leaves this job's record in ``mine``: the one that is there, if it is current, else a new one."""
    experiment = importlib.import_module(f"experiments.{cfg.experiment.name}.experiment")
    identity, new = folders.claim(mine, settings_of(cfg), getattr(experiment, "GROWS", None))
    folders.clear_unfinished(mine)
    try:
        provenance = {} if ranks.follower() else finished(mine)
        differing = inputs.stale(cfg, provenance) if provenance else []
        if ranks.from_first(bool(provenance) and not differing):
            if not ranks.follower():
                print(f"{folder} already holds the record of this run; nothing to do.")
            return
        if differing:
            print(f"{', '.join(differing)} changed since the record in {folder} was made: it is made again.")
            (mine / "record.json").unlink()  # an old list must not pass for the new one if this run fails
        compute(experiment, cfg, mine, identity)
    except Exception:
        if new:
            folders.release(mine)
        raise


def finished(folder: Path) -> dict[str, Any]:
    """The provenance of a whole record in ``folder``; empty if there is none, or if a file is torn."""
    if not (folder / "record.json").is_file():
        return {}
    try:
        content = json.loads((folder / "provenance.json").read_text())
        config = OmegaConf.create((folder / "config.yaml").read_text())
    except (OSError, ValueError, YAMLError):
        return {}
    whole = isinstance(content, dict) and OmegaConf.select(config, "experiment.name") is not None
    return content if whole else {}


def say(folder: Path) -> None:
    """Prints the table and the files of the record in ``folder``; it is on disk already."""
    record = Record.load(folder)
    lines = [f"job {label()}"] if in_a_sweep() else []
    lines += [paper_and_ours(record)] if record.paper else []
    lines += [f"record: {folder / 'record.json'}"]
    lines += [f"table: {path}" for path in sorted(folder.glob("*.csv"))]
    lines += [f"figure: {path}" for path in sorted(folder.glob("*.png"))]
    try:
        print("\n".join(lines), flush=True)
    except OSError as error:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush at the exit
        told = f"the record is whole in {folder}, but standard output could not take its table"
        if isinstance(error, BrokenPipeError):  # its reader has left: no fault of this run
            print(f"note: {told}.", file=sys.stderr)
            return
        raise UserError(
            f"{told} ({error.strerror}): read it with python -m experiments.figures {folder}."
        ) from error


def compute(experiment: Any, cfg: DictConfig, folder: Path, identity: str) -> None:
    """Runs the module ``experiment``, then writes its record, figures and W&B run."""
    context = Context(cfg, folder, identity)
    try:
        record: Record = experiment.run(cfg, context)
    except Exception as error:
        if not ranks.follower():
            from experiments.suite import tracking

            known = sentence(error)
            tracking.failed(cfg, folder, known[0] if known else f"{type(error).__name__}: {error}")
        raise
    if ranks.follower():
        return
    record.deviations = [
        *record.deviations,
        *(note for note in context.notes if note not in record.deviations),
    ]
    if record.paper is None:
        paper: Any = OmegaConf.to_container(cfg.experiment.paper, resolve=True)
        record.paper = paper
    record.data, record.tier = record.data or cfg.data.name, cfg.tier.name
    (folder / "record.json").unlink(missing_ok=True)
    from experiments.suite.figures import redraw

    record.save(folder)  # first: a full disk then leaves nothing that looks like a result
    atomic.write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    redraw(folder)  # as any later redrawing sees it
    details = context.provenance() | {"config_sha256": atomic.key_hash(settings_of(cfg))}
    details["command"] = ["python", "-m", "experiments", *sys.argv[1:]]
    details["inputs"] = inputs.of_data(details["data"]) | inputs.of_files(cfg)
    from experiments.suite.tracking import track

    details["tracking"] = track(cfg, record, folder, details)
    atomic.write_json(folder / "provenance.json", details)
