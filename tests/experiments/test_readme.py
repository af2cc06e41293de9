"""What the README tells a reader to type works: its example runs, its commands compose, its files exist."""

from __future__ import annotations

import re
import shlex

import pytest
from hydra import compose, initialize_config_dir

from experiments.label_errors.settings import settings as settings_of
from experiments.records.places import CONF
from experiments.suite import cli
from experiments.suite.commands import COMMANDS, command
from experiments.verification.claims import load
from experiments.verification.outcome import chosen
from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()
TYPED = sorted(set(re.findall(r"python -m (experiments\S*) ([^`\n#]*)", README)))


def test_the_example_on_a_module_of_ones_own_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(compile(code, "README.md", "exec"), {})
    assert "most helpful" in capsys.readouterr().out


def test_the_two_commands_are_in_the_makefile() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^ +make (\w+)", README, re.M)) == {"reproduce", "test"} <= set(targets)


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
        cli.prepare()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose("config", overrides=overrides)


def test_every_link_leads_to_a_file() -> None:
    for document in ("README.md", "results/README.md", "CONTRIBUTING.md"):
        path = ROOT / document
        text = path.read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r'src="([^"]+)"', text):
            assert (path.parent / target).exists(), (document, target)
        assert all('alt="' in image for image in re.findall(r"<img[^>]*>", text))
