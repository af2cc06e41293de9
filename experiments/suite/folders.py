"""Whose is an output folder? Only an empty one, or one that carries our marker, is ever written to.

The marker of a run is ``run.json``, which holds the settings that decide its numbers. The marker of a sweep
is Hydra's ``multirun.yaml``. A run that was refused before it finished a unit of work gives its folder back.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.records import atomic
from experiments.records.errors import UserError

MARKER, SWEEP_MARKER = "run.json", "multirun.yaml"
FAILED = "failed.txt"  # beside a sweep's failed job: why, for experiments.sweep
OVERRIDES = "overrides.json"  # of a sweep's job, for experiments.sweep: a search draws them as it goes
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
    "optimise",
    "experiment.workers",  # processes or threads side by side
)
_OF_NO_MATTER = {".lock", FAILED, OVERRIDES, ".DS_Store", ".submitit"}


def require_own(folder: Path, markers: Sequence[str]) -> None:
    """Raises UserError unless ``folder`` is missing, empty, or holds one of ``markers``."""
    if not folder.is_dir() or any((folder / marker).exists() for marker in markers):
        return
    found = sorted({path.name for path in folder.iterdir()} - _OF_NO_MATTER)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"{folder} is not empty and was not made by this command (it holds {', '.join(found[:3])}"
            f"{more}): choose an empty folder or a new name."
        )


def require_run_folder(folder: Path) -> None:
    """Raises UserError unless a run may write to ``folder``; writes nothing."""
    if (folder / "record.json").is_file() and not (folder / MARKER).is_file():
        raise UserError(f"{folder} holds a published record, not a run: choose another output=.")
    require_own(folder, [MARKER])


def require_sweep_folder(folder: Path, overrides: Sequence[str]) -> None:
    """Raises UserError unless the sweep with these overrides may write to ``folder``; writes nothing."""
    if not (folder / SWEEP_MARKER).is_file():
        jobs = [path for path in folder.glob("*") if path.is_dir() and path.name.isdecimal()]
        for job in jobs:
            require_own(job, [MARKER])
        require_own(folder, [SWEEP_MARKER, *(job.name for job in jobs)])
        return
    before = _deciding(sweep_overrides(folder))
    if before != _deciding(overrides):
        raise UserError(
            f"{folder} belongs to another sweep ({' '.join(before)}): choose another output=, or remove that "
            "folder."
        )


def sweep_overrides(folder: Path) -> list[str]:
    """The overrides of the sweep in ``folder``; UserError if its marker is torn or foreign."""
    from omegaconf import OmegaConf
    from yaml import YAMLError

    path = folder / SWEEP_MARKER
    try:
        found = OmegaConf.select(OmegaConf.load(path), "hydra.overrides.task")
        if found is not None:
            return [str(override) for override in found]
    except (OSError, ValueError, YAMLError):
        pass
    raise UserError(
        f"{path} is not a sweep's marker: it is cut off or another program's. Choose another output=, or "
        "remove that folder."
    )


def _deciding(overrides: Sequence[str]) -> list[str]:
    """The overrides less those that touch no number."""
    return sorted(
        override
        for override in overrides
        if not any(re.match(rf"[+~]*{re.escape(free)}[=.]", override) for free in FREE if free != "sweep")
    )


def claim(folder: Path, settings: dict[str, Any], grows: str | None = None) -> tuple[str, bool]:
    """Marks ``folder`` as this config's: the hash of what decides a unit of its work, and whether it is new.

    ``grows`` is the path of a setting that says how many
    units a run does, each the same whatever their number: a folder that differs in it alone is taken over,
    and its record, which is that of the other number, goes; the units stay in the journal.

    Raises:
        UserError: the folder is that of another config.
    """
    require_run_folder(folder)
    marker = folder / MARKER
    settings = json.loads(json.dumps(atomic.jsonable(settings), sort_keys=True))
    new = not marker.is_file()
    if not new:
        differing = differences(settings_in(marker), settings)
        if differing == [grows]:
            (folder / "record.json").unlink(missing_ok=True)
            atomic.write_json(marker, {"settings": settings})
        elif differing:
            raise UserError(
                f"{folder} belongs to a run with other settings ({', '.join(differing)} differ): "
                "choose another output=, or remove that folder."
            )
    else:
        atomic.write_json(marker, {"settings": settings})
    return atomic.key_hash(without(settings, [grows] if grows else [])), new


def clear_unfinished(folder: Path) -> None:
    """Removes the temporary files that a killed run left in ``folder``, which this process has locked."""
    for pattern in (".*.tmp", "journal/*/.*.tmp"):
        for left in folder.glob(pattern):
            left.unlink(missing_ok=True)


def settings_in(marker: Path) -> dict[str, Any]:
    """The settings that a run's marker holds; UserError if it is torn or not ours."""
    try:
        settings = json.loads(marker.read_text())["settings"]
        if isinstance(settings, dict):
            return settings
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(
        f"{marker} is not a run's marker: it is cut off or another program's. Choose another output=, or "
        "remove that folder."
    )


def release(folder: Path) -> None:
    """Gives back a folder that a refused run has just claimed, unless a unit of work is finished in it."""
    journal = folder / "journal"
    if any(journal.glob("*/*.npz")) or (folder / "record.json").exists():
        return
    shutil.rmtree(journal, ignore_errors=True)
    (folder / MARKER).unlink(missing_ok=True)


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
