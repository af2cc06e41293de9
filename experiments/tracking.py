"""Weights & Biases as a mirror of the finished record; it never decides whether an experiment succeeds.

The W&B run is made once the record is on disk, so a killed and resumed experiment leaves exactly one. It is
offline unless WANDB_MODE says otherwise; ``wandb sync FOLDER/wandb/offline-run-*`` uploads it later. All its
files lie below the output folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments import provenance
from experiments.record import Record

RECORD_FILES = ("record.json", "config.yaml", "arrays.npz")
MAX_ROWS = 10_000  # of the per-point table
MAX_ARRAYS = 50 * 2**20  # bytes of arrays.npz that still go into the artifact


def flat(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested metrics as dotted names with numbers and texts."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float, str, bool)):
            yield f"{prefix}{name}", value


def track(cfg: DictConfig, record: Record, folder: Path) -> dict[str, Any]:
    """Mirrors ``record`` and its files in ``folder``; what happened, for the provenance. Never raises."""
    if cfg.tracking.name == "none":
        return {"name": "none"}
    try:
        return {"name": "wandb", **_mirror(cfg, record, folder)}
    except Exception as error:  # a network, a login, a full disk: the record is safe already
        print(
            f"tracking: W&B failed ({type(error).__name__}: {error}); the record is complete.",
            file=sys.stderr,
        )
        return {"name": "wandb", "error": f"{type(error).__name__}: {error}"}


def _mirror(cfg: DictConfig, record: Record, folder: Path) -> dict[str, Any]:
    folder = folder.resolve()
    own = folder / "wandb"
    own.mkdir(exist_ok=True)
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    for name, place in (("DIR", folder), ("DATA_DIR", own), ("CACHE_DIR", own), ("CONFIG_DIR", own)):
        os.environ[f"WANDB_{name}"] = str(place)
    import wandb

    name = f"{record.experiment}-{record.data}-{folder.name}"
    described = provenance.git("describe", "--always", "--tags")
    tags = [record.tier, record.data, *cfg.tracking.tags, *([described] if described else [])]
    with wandb.init(
        project=cfg.tracking.project,
        entity=cfg.tracking.entity,
        group=record.experiment,
        job_type="experiment",
        name=name,
        dir=str(folder),
        tags=[tag[:64] for tag in tags if tag],
        config=OmegaConf.to_container(cfg, resolve=True),
        reinit="finish_previous",  # else the second job of a sweep gets the first one's id and config
        settings=wandb.Settings(init_timeout=60, console="off", disable_git=True),
    ) as run:
        run.summary.update(dict(flat(record.metrics)))
        if record.table:
            columns = [record.arrays[column][:MAX_ROWS].tolist() for column in record.table]
            rows = [list(row) for row in zip(*columns, strict=True)]
            run.log({"points": wandb.Table(columns=list(record.table), data=rows)})
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
