"""A record comes back as it was, the same bytes for the same content, and refuses what is not its own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.publish import LIMIT, publish
from experiments.records import crate
from experiments.records.atomic import sha256
from experiments.records.errors import UserError
from experiments.records.record import Record
from experiments.records.table import markdown, paper_and_ours, records_in, shown
from tests.helpers import ROOT


def example(**changes: Any) -> Record:
    fields: dict[str, Any] = {
        "experiment": "loo_linear",
        "metrics": {"pearson": 0.5, "nested": {"slope": float("nan"), "count": 3}},
        "arrays": {"x": np.arange(4.0), "y": np.arange(4)},
        "certificates": [{"gradient_norm": 1e-11, "seconds": 2.5}],
        "table": ["x", "y"],
        "paper": {
            "pearson": {"value": 0.9983, "where": "Fig. 2"},
            "slope": {"value": 1, "metric": "nested.slope"},
        },
        "data": "digits",
        "tier": "smoke",
    }
    return Record(**fields | changes)


def test_round_trip(tmp_path: Path) -> None:
    example().save(tmp_path)
    again = Record.load(tmp_path)
    assert again.metrics["pearson"] == 0.5
    assert math.isnan(again.metric("nested.slope"))
    assert again.metric("nested.missing") is None
    assert np.array_equal(again.arrays["x"], np.arange(4.0))


def test_same_content_same_bytes_and_no_times(tmp_path: Path) -> None:
    example().save(tmp_path / "a")
    example(certificates=[{"gradient_norm": 1e-11, "seconds": 9.0}]).save(tmp_path / "b")
    for name in ("record.json", "arrays.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert "seconds" not in (tmp_path / "a" / "record.json").read_text()


@pytest.mark.parametrize(
    "bad", [{"metrics": {"a": object()}}, {"table": ["x", "z"]}, {"table": ["x", "long"]}]
)
def test_nothing_is_written_where_a_part_cannot_be(tmp_path: Path, bad: dict[str, object]) -> None:
    arrays = {"x": np.arange(4.0), "y": np.arange(4), "long": np.arange(9)}
    with pytest.raises((TypeError, KeyError, ValueError)):
        example(arrays=arrays, **bad).save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "word"),
    [("no record", "no record.json"), ("torn", "is not a record"), ("other arrays", "not the one")],
)
def test_a_damaged_record_says_so(tmp_path: Path, damage: str, word: str) -> None:
    example().save(tmp_path)
    record = tmp_path / "record.json"
    if damage == "no record":
        record.unlink()
    elif damage == "torn":
        record.write_text(record.read_text()[:-20])
    else:
        example(arrays={"x": np.zeros(4), "y": np.arange(4)}).save(tmp_path / "other")
        (tmp_path / "arrays.npz").write_bytes((tmp_path / "other" / "arrays.npz").read_bytes())
    with pytest.raises(UserError, match=word):
        Record.load(tmp_path)


def test_publishing_drops_the_largest_arrays_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    example(arrays={"x": np.arange(4.0), "y": np.arange(4), "all": np.zeros(LIMIT // 8)}).save(run)
    with pytest.raises(UserError, match="no finished run"):
        publish(run, tmp_path / "results" / "loo_linear")
    (run / "provenance.json").write_text(f'{{"command": ["python", "seed=1/2", "output={run}"]}}')
    (run / "config.yaml").write_text(f"a: 1\nmirror: ../shared/data\noutput: {run}\n")
    assert publish(run, tmp_path / "results" / "loo_linear") == ["all"]
    folder = tmp_path / "results" / "loo_linear"
    assert (folder / "config.yaml").read_text() == "a: 1\nmirror: ../shared/data\noutput: FOLDER\n"
    command = json.loads((folder / "provenance.json").read_text())["command"]
    assert command == ["python", "seed=1/2", "output=FOLDER"]  # this machine's places stay here
    described = json.loads((folder / crate.NAME).read_text())
    assert described == crate.of(folder)
    published = Record.load(tmp_path / "results" / "loo_linear")
    assert set(published.arrays) == {"x", "y"}
    assert [record.experiment for record in records_in(tmp_path / "results")] == ["loo_linear"]


@pytest.mark.parametrize("folder", [path.parent for path in sorted((ROOT / "results").glob("*/record.json"))])
def test_the_crate_of_a_committed_record_names_its_files_and_their_sha256(folder: Path) -> None:
    entities = json.loads((folder / crate.NAME).read_text())["@graph"]
    by_id = {each["@id"]: each for each in entities}
    assert len(by_id) == len(entities)
    files = {path.name for path in folder.iterdir()} - {crate.NAME}
    assert {part["@id"] for part in by_id["./"]["hasPart"]} == files
    for name in files:
        content = (folder / name).read_bytes()
        assert (by_id[name]["sha256"], by_id[name]["contentSize"]) == (sha256(content), str(len(content)))
    named = [value for each in entities for value in references(each)]
    assert {name for name in named if not name.startswith("https://w3id.org")} <= set(by_id)
    assert by_id["#run"]["startTime"] <= by_id["#run"]["endTime"]
    assert len(by_id["#code"]["version"]) == 40


def references(entity: dict[str, Any]) -> list[str]:
    """The ids that an entity names."""
    values = [each for value in entity.values() for each in (value if isinstance(value, list) else [value])]
    return [each["@id"] for each in values if isinstance(each, dict)]


def test_tables_show_what_is_missing_and_what_is_not_finite() -> None:
    text = paper_and_ours(example(tier="paper"))
    assert "0.9983" in text
    assert "nan" in text
    long = {"other": {"value": [0.123456] * 12, "where": "Fig. 6, read off the plot " * 4}}
    assert max(map(len, paper_and_ours(example(tier="paper", paper=long)).splitlines())) <= 80
    assert "missing" in paper_and_ours(example(tier="paper", paper={"other": {"value": 1}}))
    assert "0.9983" not in paper_and_ours(example())  # embedded data are not set beside the paper
    assert (
        markdown([example()]).splitlines()[2].startswith("| loo_linear (digits) | pearson | 0.9983 | 0.5 |")
    )
    assert shown(0.999991) == "0.999991"
    assert shown([0.12345, 7]) == "[0.1235, 7]"
    assert shown(True) == "True"
