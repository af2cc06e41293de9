"""What the README tells a reader to type works: its example runs, its commands compose, its files exist."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from omegaconf import OmegaConf

from experiments.label_errors.settings import settings as settings_of
from experiments.records.places import CONF
from experiments.suite.commands import COMMANDS, command
from experiments.verification.claims import Spec, load, measured
from experiments.verification.outcome import chosen
from tests.experiments.test_configs import composed
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PRINTED = "\n".join(page.read_text() for page in PAGES)
TYPED = sorted(set(re.findall(r"python -m (experiments[\w.]*) ([^`\n#]*)", PRINTED)))
IN_THE_TABLE = re.findall(r"\| `(experiment=[^`]*)` \|", README)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "helpful:" in said
    assert "largest predicted changes" in said


def test_every_figure_of_the_paper_has_its_command() -> None:
    assert {item.split()[0].removeprefix("experiment=") for item in IN_THE_TABLE} >= {
        "components", "loo_linear", "loo_cnn", "smooth_hinge", "rbf_vs_inception", "attack_group",
        "readmission", "spam",
    }  # fmt: skip


ROWS = re.findall(r"\| `(experiment=\S+ tier=paper[^`]*)` \|[^|]*\| ([^|]*) \| \[(\w+)\]", README)


def test_minutes_and_memory_of_each_figure_are_those_of_its_record() -> None:
    assert len(ROWS) == 9
    for _, said, name in ROWS:
        found = measured(Spec(name, f"experiment={name}", "paper"), ROOT / "results")
        assert said == f"{found.minutes:.1f}, {found.gib:.1f}", name


@pytest.mark.parametrize(("command", "name"), [(row[0], row[2]) for row in ROWS])
def test_each_figure_s_command_has_the_settings_of_its_record(command: str, name: str) -> None:
    typed = leaves(OmegaConf.to_container(composed(*command.split()), resolve=True))
    made = leaves(OmegaConf.to_container(OmegaConf.load(ROOT / "results" / name / "config.yaml")))
    beside = r"output|threads|tracking.*|optimise|.*mirror|.*data_dir"  # they decide no number
    both = [key for key in made if key in typed and not re.fullmatch(beside, key)]
    assert len(both) > 15
    assert {key: typed[key] for key in both} == {key: made[key] for key in both}


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """The values of a nested config by dotted path."""
    if not isinstance(node, dict):
        return {path: node}
    return {k: v for key, value in node.items() for k, v in leaves(value, f"{path}.{key}".strip(".")).items()}


def test_the_two_commands_are_in_the_makefile() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^ +make (\w+)", README, re.M)) == {"reproduce", "test"} <= set(targets)


TYPED += [("experiments", item) for item in IN_THE_TABLE if ("experiments", item) not in TYPED]


@pytest.mark.parametrize(("module", "arguments"), TYPED, ids=[" ".join(row) for row in TYPED])
def test_each_command_is_one(module: str, arguments: str) -> None:
    given = shlex.split(arguments)
    name = module.removeprefix("experiments.").removeprefix("suite.")
    if name in COMMANDS:
        found = command(name).parse(given)
    if module == "experiments.verify":
        assert chosen(load(), found["tier"], found["claims"])
        return
    if module == "experiments.sweep":
        assert (
            f"experiments.sweep {arguments}".strip()
            in (CONF / "sweep" / f"{found['sweep']}.yaml").read_text()
        )
        return
    if module == "experiments.label_errors":
        settings_of(
            **{key: text for key, text in found.values.items() if text is not None and key != "debug"}
        )
        return
    if module == "experiments.suite.workspace":
        return
    if module == "experiments.figures":
        assert [part.split("/")[0] for part in given] == ["results"]
        return
    assert module == "experiments"
    overrides = [item.split(",")[0] for item in given if not item.startswith("--")]
    if overrides:
        composed(*overrides)


def test_every_link_leads_to_a_file() -> None:
    for document in ("README.md", "results/README.md", "CONTRIBUTING.md"):  # docs/: tests/test_docs.py
        path = ROOT / document
        text = path.read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'src="([^"]+)"', text):
            assert (path.parent / target).exists(), (document, target)
        assert all('alt="' in image for image in re.findall(r"<img[^>]*>", text))
