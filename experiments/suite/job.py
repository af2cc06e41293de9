"""One job from composed config to record: folder, lock, resume, run, record, figure, tracking, table."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.errors import UserError
from experiments.records import atomic
from experiments.records.record import FAILED, Record
from experiments.records.table import paper_and_ours
from experiments.suite.cli import stamp
from experiments.suite.context import Run
from experiments.suite.guard import JobFailed, sentence
from experiments.suite.parallel import ranks

# What may differ between two runs of one folder: none of it touches a number.
FREE = (
    "output",
    "debug",
    "tracking",
    "data.mirror",
    "data.data_dir",
    "backbone.mirror",
    "sweep",
    "tier.profile",
    "experiment.workers",  # processes or threads side by side
)


def folder_of(cfg: DictConfig) -> Path:
    """The job's own folder: in a sweep below the sweep's, else output=, else a new one under outputs/."""
    if in_a_sweep():
        sweep = HydraConfig.get().sweep
        return Path(sweep.dir) / str(sweep.subdir)
    return Path(cfg.output) if cfg.output else Path("outputs") / cfg.experiment.name / stamp()


def in_a_sweep() -> bool:
    """Whether Hydra runs this job as one of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved settings that decide the numbers."""
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)
    return without(settings, FREE)


def without(settings: dict[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """A copy of nested ``settings`` that lacks the dotted ``paths``."""
    settings = copy.deepcopy(settings)
    for path in paths:
        *above, last = path.split(".")
        node: Any = settings
        for key in above:
            node = (node or {}).get(key)
        if node:
            node.pop(last, None)
    return settings


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted paths at which two nested dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [
            found
            for key in keys
            for found in differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if old == new else [path]


def claim(folder: Path, settings: dict[str, Any], grows: str | None = None) -> str:
    """Marks ``folder`` as this config's and returns the hash of what decides a unit of its work.

    Refuses a folder of another config. ``grows`` is the path of a setting that says how many units a run
    does, each the same whatever their number: a folder that differs in it alone is taken over, and its
    record, which is that of the other number, goes; the units stay in the journal.
    """
    marker = folder / "run.json"
    settings = json.loads(json.dumps(atomic.jsonable(settings), sort_keys=True))
    if marker.is_file():
        differing = differences(json.loads(marker.read_text())["settings"], settings)
        if differing == [grows]:
            (folder / "record.json").unlink(missing_ok=True)
            atomic.write_json(marker, {"settings": settings})
        elif differing:
            raise UserError(
                f"{folder} belongs to a run with other settings ({', '.join(differing)} differ): "
                "choose another output=, or remove that folder."
            )
    elif (folder / "record.json").is_file():
        raise UserError(f"{folder} holds a published record, not a run: choose another output=.")
    else:
        atomic.write_json(marker, {"settings": settings})
    return atomic.key_hash(without(settings, [grows] if grows else []))


def execute(cfg: DictConfig) -> Path:
    """Runs one job and returns its folder; raises JobFailed once the reason has been printed."""
    folder = folder_of(cfg)
    try:
        with ranks.joined(cfg.device, folder) as mine, atomic.locked(mine):
            (mine / FAILED).unlink(missing_ok=True)
            experiment = importlib.import_module(f"experiments.{cfg.experiment.name}.experiment")
            identity = claim(mine, settings_of(cfg), getattr(experiment, "GROWS", None))
            if ranks.from_first((mine / "record.json").is_file() and (mine / "provenance.json").is_file()):
                print(f"{folder} already holds the record of this run; nothing to do.")
            else:
                compute(experiment, cfg, mine, identity)
            if ranks.follower():
                return folder
            record = Record.load(folder)
            if record.paper:
                print(paper_and_ours(record))
            print(f"record: {folder / 'record.json'}")
            for table in sorted(folder.glob("*.csv")):
                print(f"table: {table}")
            for figure in sorted(folder.glob("*.png")):
                print(f"figure: {figure}")
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
        ranks.report(known[0], error)
        raise JobFailed(known[1]) from None
    return folder


def compute(experiment: Any, cfg: DictConfig, folder: Path, identity: str) -> None:
    """Runs the module ``experiment``, then writes its record, figures and W&B run."""
    run = Run(cfg, folder, identity)
    record: Record = experiment.run(cfg, run)
    if ranks.follower():
        return
    record.deviations = [*record.deviations, *(note for note in run.notes if note not in record.deviations)]
    if record.paper is None:
        record.paper = OmegaConf.to_container(cfg.experiment.paper, resolve=True)
    record.data, record.tier = record.data or cfg.data.name, cfg.tier.name
    (folder / "record.json").unlink(missing_ok=True)
    from experiments.suite.figures import draw

    record.save(folder)  # first: a full disk then leaves nothing that looks like a result
    atomic.write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    draw(record, folder)
    details = run.provenance() | {"config_sha256": atomic.key_hash(settings_of(cfg))}
    details["command"] = ["python", "-m", "experiments", *sys.argv[1:]]
    from experiments.suite.tracking import track

    details["tracking"] = track(cfg, record, folder)
    atomic.write_json(folder / "provenance.json", details)
