"""The W&B workspace: the committed layout is the one written here, and W&B's library reads it back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.suite import workspace
from experiments.suite.figures import draw
from experiments.suite.tracking import curves_of, flat
from tests.helpers import ROOT

spaces = pytest.importorskip("wandb_workspaces.workspaces.internal")
COMMITTED = ROOT / "docs" / "wandb-workspace.json"


def panels(spec: dict[str, Any]) -> dict[str, list[Any]]:
    return {each["name"]: each["panels"] for each in spec["section"]["panelBankConfig"]["sections"]}


def test_the_committed_layout_is_written_again_and_read_back(tmp_path: Path) -> None:
    workspace.main(workspace.COMMAND.parse([f"to={tmp_path / 'w.json'}"]))
    assert (tmp_path / "w.json").read_bytes() == COMMITTED.read_bytes()
    spec = json.loads(COMMITTED.read_text())["spec"]
    read = spaces.WorkspaceViewspec.model_validate(spec)
    assert json.loads(read.model_dump_json(by_alias=True, exclude_none=True)) == spec
    ids = [panel["__id__"] for each in panels(spec).values() for panel in each]
    assert len(set(ids)) == len(ids) > 10


def test_each_panel_shows_what_runs_hold(embedded: Callable[[str], Path], tmp_path: Path) -> None:
    found = panels(json.loads(COMMITTED.read_text())["spec"])
    text = json.dumps(found)
    loo, attack = (Record.load(embedded(name)) for name in ("loo_linear", "attack_group"))
    metrics = dict(flat(loo.metrics))
    for name in workspace.AGREEMENT:
        assert name in metrics
        assert name in text
    assert {f"curve/{name}" for name in curves_of(attack)} == {
        name for panel in found["By iteration"] for name in panel["config"]["metrics"]
    }
    keys = found["Figures"][0]["config"]["mediaKeys"]
    for name in ("loo_linear", "attack_group"):
        drawn = draw(Record.load(embedded(name)), tmp_path)
        assert {f"figure/{path.stem}" for path in drawn} <= set(keys)


def test_what_cannot_be_put_up_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [f"to={tmp_path / 'w.json'}", "upload=true"]
    with pytest.raises(ConfigError, match="entity=NAME"):
        workspace.main(workspace.COMMAND.parse(given))
    made = workspace.workspace("me", "p")

    def refused(*_: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(type(made), "save", refused)
    with pytest.raises(UserError, match=r"did not take the workspace \(no network\); .*w\.json has it"):
        workspace.main(workspace.COMMAND.parse([*given, "entity=me"]))
    assert (tmp_path / "w.json").is_file()
