"""What the README tells a reader to type works: its example runs, its commands compose, its files exist."""

from __future__ import annotations

import re
import shlex

import pytest

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


def test_minutes_and_memory_of_each_figure_are_those_of_its_record() -> None:
    rows = re.findall(r"\| `experiment=\S+ tier=paper` \|[^|]*\| ([^|]*) \| \[(\w+)\]", README)
    assert len(rows) == 9
    for said, name in rows:
        found = measured(Spec(name, f"experiment={name}", "paper"), ROOT / "results")
        assert said == f"{found.minutes:.1f}, {found.gib:.1f}", name


def test_the_two_commands_are_in_the_makefile() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^ +make (\w+)", README, re.M)) == {"reproduce", "test"} <= set(targets)


TYPED += [("experiments", item) for item in IN_THE_TABLE if ("experiments", item) not in TYPED]


@pytest.mark.parametrize(("module", "arguments"), TYPED, ids=[" ".join(row) for row in TYPED])
def test_each_command_is_one(module: str, arguments: str) -> None:
    given = shlex.split(arguments)
    name = module.removeprefix("experiments.")
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
