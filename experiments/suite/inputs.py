"""What a run read beside its settings, by sha256: it decides whether a record is current.

The settings name files; their contents may change under the same name. A record keeps the sha256 of all that
was read in ``provenance.json`` under ``inputs``. The same command run again compares them, and computes again
where one differs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.records.errors import UserError

_FILES = {  # setting that names a file, or a folder and the file in it that is read
    "backbone.weights": "",
    "experiment.retrained": "record.json",
    "data.path": "",
}


def of_files(cfg: DictConfig) -> dict[str, str]:
    """sha256 of each file that the settings name; missing files are left to their reader."""
    found = {}
    for setting, inside in _FILES.items():
        named = OmegaConf.select(cfg, setting)
        if named:
            path = Path(named).expanduser() / inside
            if path.is_file():
                found[setting] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def of_data(manifest: dict[str, Any]) -> dict[str, str]:
    """sha256 of each array of a data set.

    The archives of public data are left out: their wrappers differ between publishers, their content does
    not.
    """
    return {f"data/{name}": digest for name, digest in manifest.get("arrays", {}).items()}


def changed(cfg: DictConfig, provenance: dict[str, Any]) -> list[str]:
    """What of a finished run's inputs is different now, by name.

    Raises:
        UserError: the data cannot be read any more.
    """
    from experiments.data import load

    settings: Any = OmegaConf.to_container(cfg.data, resolve=True)
    now = of_data(load(settings.pop("name"), **settings).manifest) | of_files(cfg)
    before = provenance.get("inputs")
    if before is None:  # a record from before there were inputs
        before = of_data(provenance.get("data") or {})
        now = {name: digest for name, digest in now.items() if name.startswith("data/")}
        if not before:
            return []
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def stale(cfg: DictConfig, provenance: dict[str, Any]) -> list[str]:
    """``changed``, and a note where the data cannot be read to compare."""
    try:
        return changed(cfg, provenance)
    except UserError as error:
        print(f"note: the data could not be compared with the record's ({error})")
        return []
