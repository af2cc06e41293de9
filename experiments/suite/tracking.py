"""Weights & Biases as a mirror of the finished record; it never decides whether an experiment succeeds.

The W&B run is made once the record is on disk, and its id is that of the output folder and its settings, so a
killed and resumed experiment leaves exactly one: what an attempt that was killed here left is removed, and an
online run is taken up again. It is offline unless WANDB_MODE says otherwise; ``wandb sync
FOLDER/wandb/offline-run-*`` uploads it later. All its files lie below the output folder.

One layout for every experiment: group = the experiment (in a sweep, with the sweep's folder), job type
"experiment" (or "sweep" for a job of a sweep), tags = tier, data, git describe, the claims of conf/claims
that this record bears on, and the user's own; tables ``points``, ``most_helpful`` and ``most_harmful``; the
figures; curves by iteration; the record as an artifact. A run that fails after it has finished some work is
marked failed. ``tracking=csv`` writes metrics.csv instead.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from experiments.records import atomic, provenance
from experiments.records.atomic import sha256
from experiments.records.csv import line as csv_line
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.suite.cli import in_a_sweep

RECORD_FILES = ("record.json", "config.yaml", "arrays.npz")
CSV = "metrics.csv"  # of tracking=csv
MAX_ROWS = 10_000  # of the per-point table
CURVES = {"attack_group": ("losses", "flipped", "movement")}  # by iteration
EXTREME = 10  # points in each of the tables of the most helpful and the most harmful
SCORES = ("predicted", "influence", "score")  # how the per-point table's column of scores begins
MAX_ARRAYS = 50 * 2**20  # bytes of arrays.npz that still go into the artifact


def flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested metrics as dotted names with numbers and texts."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float, str, bool)):
            yield f"{prefix}{name}", value


def claims_of(record: Record) -> list[str]:
    """The ids of the claims that are judged on a record of this experiment at this tier."""
    from experiments.verification import claims

    return [
        claim.id
        for claim in claims.load()
        if claim.run.recorded_as == record.experiment and claim.tier == record.tier
    ]


def extremes(record: Record) -> dict[str, list[Iterable[Any]]]:
    """Rows of the per-point table: the most helpful points (largest score) and the most harmful, if any."""
    score = next((name for name in record.table if name.startswith(SCORES)), None)
    if score is None or record.arrays[score].ndim != 1:
        return {}
    values = record.arrays[score]
    order = np.argsort(-values, kind="stable")
    chosen = {
        "most_helpful": [i for i in order if values[i] > 0][:EXTREME],
        "most_harmful": [i for i in order[::-1] if values[i] < 0][:EXTREME],
    }
    return {
        name: [[record.arrays[column][i].tolist() for column in record.table] for i in rows]
        for name, rows in chosen.items()
    }


def track(cfg: DictConfig, record: Record, folder: Path, details: Mapping[str, Any]) -> dict[str, Any]:
    """Mirrors ``record`` and its files in ``folder``; what happened, for the provenance.

    details: the provenance so far. A failing W&B is said and never raised.

    Raises:
        OSError: metrics.csv cannot be written (``tracking=csv``).
    """
    if cfg.tracking.name == "none":
        return {"name": "none"}
    if cfg.tracking.name == "csv":
        atomic.write_text(folder / CSV, csv_of(record, details))
        return {"name": "csv", "file": CSV}
    try:
        return {"name": "wandb", **_mirror(cfg, record, folder, details)}
    except Exception as error:  # a network, a login, a full disk: the record is safe already
        print(
            f"tracking: W&B failed ({type(error).__name__}: {error}); the record is complete.",
            file=sys.stderr,
        )
        return {"name": "wandb", "error": f"{type(error).__name__}: {error}"}


def patience() -> float:
    """Seconds that W&B may take to start: its own variable WANDB_INIT_TIMEOUT, else 60.

    Raises:
        ConfigError: the variable is no positive number.
    """
    text = os.environ.get("WANDB_INIT_TIMEOUT", "60")
    try:
        if (seconds := float(text)) > 0:
            return seconds
    except ValueError:
        pass
    raise ConfigError(f"WANDB_INIT_TIMEOUT={text}: give a positive number of seconds.")


def spent(details: Mapping[str, Any]) -> dict[str, Any]:
    """Time, memory and where the numbers come from, by dotted name."""
    kept = ("wall_seconds", "peak_mib", "started_utc", "code", "machine", "versions")
    return dict(flat({f"run.{name}": details[name] for name in kept if name in details}))


def csv_of(record: Record, details: Mapping[str, Any]) -> str:
    """``tracking=csv``: every metric, and what the run took, as rows of name and value."""
    rows = {**dict(flat(record.metrics)), **spent(details)}
    return csv_line(["name", "value"]) + "".join(csv_line(row) for row in rows.items())


def group_of(experiment: str, folder: Path) -> str:
    """The experiment; for a job of a sweep also the sweep's folder, so that two sweeps are not one group."""
    return f"{experiment} {folder.parent.name}"[:128] if in_a_sweep() else experiment


def failed(cfg: DictConfig, folder: Path, why: str) -> None:
    """Leaves a W&B run that is marked failed, with its reason, for a run that had finished units of work.

    A run that was refused before that gives its folder back and leaves nothing. The run that succeeds later
    in the same folder takes its place.
    """
    if cfg.tracking.name != "wandb" or not any(folder.glob("journal/*/*.npz")):
        return
    try:
        with opened(
            cfg, folder.resolve(), cfg.experiment.name, cfg.data.name, [cfg.tier.name, "failed"]
        ) as run:
            run.summary.update({"error": why})
            run.finish(exit_code=1)
    except Exception as error:  # the reason of the failure itself is what the user must see
        print(f"tracking: W&B failed ({type(error).__name__}: {error}).", file=sys.stderr)


def opened(cfg: DictConfig, folder: Path, experiment: str, data: str, tags: Iterable[str]) -> Any:
    """The W&B run of ``folder``, to be used in a with-statement."""
    own = folder / "wandb"
    own.mkdir(exist_ok=True)
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    for name, place in (("DIR", folder), ("DATA_DIR", own), ("CACHE_DIR", own), ("CONFIG_DIR", own)):
        os.environ[f"WANDB_{name}"] = str(place)
    import wandb

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    for left in own.glob("offline-run-*"):  # of an attempt that ended early: a finished one never comes here
        shutil.rmtree(left)
    return wandb.init(
        project=cfg.tracking.project,
        entity=cfg.tracking.entity,
        group=group_of(experiment, folder),
        job_type="sweep" if in_a_sweep() else "experiment",
        name=f"{experiment}-{data}-{folder.name}",
        id=sha256(str(folder).encode() + (folder / "run.json").read_bytes())[:16],
        resume="allow" if os.environ["WANDB_MODE"] == "online" else None,
        dir=str(folder),
        tags=[tag[:64] for tag in dict.fromkeys([*tags, *cfg.tracking.tags]) if tag],
        config=config,
        reinit="finish_previous",  # else the second job of a sweep gets the first one's id and config
        settings=wandb.Settings(init_timeout=patience(), console="off", disable_git=True),
    )


def curves_of(record: Record) -> dict[str, np.ndarray]:
    """What changed as the run went on: arrays of one length, an entry a step."""
    return {name: record.arrays[name] for name in CURVES.get(record.experiment, ()) if name in record.arrays}


def _mirror(cfg: DictConfig, record: Record, folder: Path, details: Mapping[str, Any]) -> dict[str, Any]:
    folder = folder.resolve()
    described = provenance.git("describe", "--always", "--tags")
    tags = [record.tier, record.data, described or "", *claims_of(record)]
    with opened(cfg, folder, record.experiment, record.data, tags) as run:
        import wandb

        curves = curves_of(record)
        for step in range(min(map(len, curves.values()), default=0)):
            run.log({f"curve/{name}": values[step].item() for name, values in curves.items()})
        run.summary.update({**dict(flat(record.metrics)), **spent(details)})
        if record.table:
            columns = [record.arrays[column][:MAX_ROWS].tolist() for column in record.table]
            rows: list[Iterable[Any]] = [list(row) for row in zip(*columns, strict=True)]
            run.log({"points": wandb.Table(columns=list(record.table), data=rows)})
            for table, chosen in extremes(record).items():
                run.log({table: wandb.Table(columns=list(record.table), data=chosen)})
        for figure in sorted(folder.glob("*.png")):
            caption = record.captions.get(figure.stem) or next(iter(record.captions.values()), "")
            run.log({f"figure/{figure.stem}": wandb.Image(str(figure), caption=caption)})
        artifact = wandb.Artifact(f"{record.experiment}-{record.data}-record", type="record")
        for file in RECORD_FILES:
            path = folder / file
            if path.is_file() and path.stat().st_size <= MAX_ARRAYS:
                artifact.add_file(str(path), policy="immutable")
        run.log_artifact(artifact)
        return {"mode": os.environ["WANDB_MODE"], "run_id": run.id, "project": cfg.tracking.project}
