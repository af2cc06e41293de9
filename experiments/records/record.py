"""Record: what an experiment found, apart from how long it took; figures and tables read nothing else."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records.atomic import (
    jsonable,
    key_hash,
    npz_bytes,
    read_npz,
    sha256,
    unjsonable,
    write_bytes,
    write_json,
)
from experiments.records.errors import UserError

TIMES = ("seconds", "wall_seconds")  # never in a record: the same config and seed must give the same bytes


@dataclass
class Record:
    """The result of one experiment.

    metrics: nested numbers and texts. arrays: what the figure needs, and the scores. captions: a sentence a
    figure or panel. deviations: each difference from the paper's protocol. certificates: one dict per fit
    (method, gradient norm, ...). table: names of arrays of one length that together are the per-point table.
    paper: the paper's values {name: {value, where, metric}}; None: those of the config.
    """

    experiment: str
    metrics: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    deviations: list[str] = field(default_factory=list)
    certificates: list[dict[str, Any]] = field(default_factory=list)
    table: list[str] = field(default_factory=list)
    paper: dict[str, Any] | None = None
    data: str = ""
    tier: str = ""

    def save(self, folder: Path) -> None:
        """arrays.npz, then record.json (with the arrays' sha256 and a seal of its content), atomically."""
        arrays = {name: np.asarray(value) for name, value in self.arrays.items()}
        lengths = {name: len(arrays[name]) for name in self.table}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the columns of the per-point table differ in length: {lengths}")
        content = npz_bytes(arrays)
        fields = {name: value for name, value in vars(self).items() if name != "arrays"}
        fields["paper"] = self.paper or {}
        fields["certificates"] = [without_times(item) for item in self.certificates]
        fields["arrays"] = {name: [str(value.dtype), *value.shape] for name, value in arrays.items()}
        fields["arrays_sha256"] = sha256(content)
        encoded = jsonable(fields)  # a value that can't be recorded fails before anything is written
        write_bytes(folder / "arrays.npz", content)
        write_json(folder / "record.json", encoded | {"seal": key_hash(encoded)})

    @classmethod
    def load(cls, folder: Path) -> Record:
        """The record in ``folder``; UserError if it is missing, torn, or its arrays are not its own."""
        path = folder / "record.json"
        if not path.is_file():
            raise UserError(f"{folder} holds no record.json: run an experiment with output={folder} first.")
        try:
            content = json.loads(path.read_text())
            seal = content.pop("seal", None)  # absent from records written before there were seals
            if seal is not None and seal != key_hash(content):
                raise UserError(f"{path} was altered after it was written: run the experiment again.")
            fields = unjsonable(content)
            digest, names = fields.pop("arrays_sha256"), fields.pop("arrays")
            record = cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} is not a record ({error}): remove it and run the experiment again."
            ) from error
        arrays = folder / "arrays.npz"
        if names and arrays.is_file():
            if sha256(arrays.read_bytes()) != digest:
                raise UserError(f"{arrays} is not the one {path} was written with: run the experiment again.")
            try:
                record.arrays = read_npz(arrays)
            except (ValueError, EOFError, zipfile.BadZipFile) as error:  # pickled objects are never loaded
                raise UserError(
                    f"{arrays} does not hold plain arrays ({error}): remove it and run the experiment again."
                ) from error
        return record

    def metric(self, path: str) -> Any:
        """The value at a dotted path of ``metrics``, or None."""
        value: Any = self.metrics
        for part in path.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value


def without_times(value: Any) -> Any:
    """``value`` less every entry named in TIMES."""
    if isinstance(value, Mapping):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value
