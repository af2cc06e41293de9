"""``python -m experiments workspace``: one layout of panels for the W&B project, as a file or put up there.

W&B keeps a workspace as JSON, its *spec*. This command writes the spec for the runs that the experiments
mirror (:mod:`experiments.suite.tracking`): what was found, curves, figures, points, and what it cost. The
committed copy is docs/wandb-workspace.json. It needs ``wandb-workspaces``, which
``pip install -e '.[workspace]'`` installs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.records import atomic
from experiments.records.errors import ConfigError, UserError
from experiments.records.places import CONF
from experiments.suite.commands import Command, Given, Option, flag
from experiments.suite.tracking import CURVES

TITLE = "Influence functions, checked against retraining"
AGREEMENT = ("pearson", "spearman", "slope")
COST = {"run.wall_seconds": "Wall time, seconds", "run.peak_mib": "Peak memory, MiB"}
TABLES = ("most_helpful", "most_harmful", "points")
MORE_FIGURES = ("attack_single_images",)  # beside one for each experiment
COMMAND = Command(
    "suite.workspace",
    "Writes the layout of a W&B workspace for the runs of this project as JSON, or makes it in your project.",
    options=(
        Option("entity", None, "W&B user or team of the project; needed for upload=true", shown="NAME"),
        Option("project", "influence-replication", "W&B project, as in tracking.project", shown="NAME"),
        Option("to", "outputs/wandb-workspace.json", "file that receives the JSON", kind=Path, shown="FILE"),
        Option("upload", "false", "true: also make the workspace in W&B, which needs its network", kind=flag),
    ),
    examples=(
        ("", "writes outputs/wandb-workspace.json"),
        ("entity=ME upload=true", "makes the workspace in your project and prints its address"),
    ),
)


def workspace(entity: str, project: str) -> Any:
    """The workspace, of the library's own type.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as parts
        import wandb_workspaces.workspaces as spaces
    except ImportError as error:
        raise UserError(
            f"wandb-workspaces is missing ({error}): install it by pip install -e '.[workspace]'."
        ) from error
    names = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
    figures = [f"figure/{name}" for name in (*names, *MORE_FIGURES)]
    curves = sorted({name for names in CURVES.values() for name in names})
    content: dict[str, list[Any]] = {
        "Predicted against actual changes": [
            parts.BarPlot(title=name.capitalize(), metrics=[parts.SummaryMetric(name)]) for name in AGREEMENT
        ],
        "By iteration": [
            parts.LinePlot(title=name.capitalize(), x="Step", y=[f"curve/{name}"]) for name in curves
        ],
        "Figures": [parts.MediaBrowser(title="Figures of the records", media_keys=figures, num_columns=2)],
        "Points": [parts.WeavePanelSummaryTable(table_name=name) for name in TABLES],
        "What it cost": [
            parts.BarPlot(title=title, metrics=[parts.SummaryMetric(name)]) for name, title in COST.items()
        ],
        "Settings that differ": [parts.RunComparer(diff_only=True)],
    }
    return spaces.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=[spaces.Section(name=name, panels=panels, is_open=True) for name, panels in content.items()],
    )


def spec(made: Any) -> dict[str, Any]:
    """What W&B stores of a workspace: the same for the same layout."""
    found = json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))  # noqa: SLF001
    for section in found["section"]["panelBankConfig"]["sections"]:
        for place, panel in enumerate(section["panels"]):
            name = f"{section['name']} {place}"
            panel["__id__"] = atomic.sha256(name.encode())[:11]  # the library draws one by chance
    return dict(found)


def main(given: Given) -> None:
    """Writes the layout; puts it up where that is asked for.

    Raises:
        ConfigError: upload without an entity.
        UserError: W&B did not take it.
    """
    if given["upload"] and not given["entity"]:
        raise ConfigError("upload=true needs entity=NAME, the W&B user or team that the project belongs to.")
    made = workspace(given["entity"] or "", given["project"])
    atomic.write_json(given["to"], {"project": given["project"], "name": TITLE, "spec": spec(made)})
    print(given["to"])
    if given["upload"]:
        try:
            made.save()
        except Exception as error:  # a login, a network, a project that is not there
            raise UserError(f"W&B did not take the workspace ({error}); {given['to']} has it.") from error
        print(made.url)


if __name__ == "__main__":
    COMMAND.run(main)
