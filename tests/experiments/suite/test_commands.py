"""The parser of all commands: what it takes, what it refuses, and that each command's help teaches and is
light.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.records.errors import ConfigError
from experiments.suite.commands import COMMANDS, Command, Option, Words, command, flag, names
from experiments.suite.completion import candidates
from experiments.suite.teaching import comments, composed, of_experiment, options, overview, setting_rows
from tests.helpers import ROOT, cli, environment, one_sentence

SMALL = Command(
    "small",
    "Does little.",
    words=Words("FOLDER", most=None, help="folders"),
    options=(
        Option("to", None, "a file", kind=Path, shown="FILE"),
        Option("count", "3", "how many", kind=int),
        Option("tier", "a", "which", kind=names, choices=("a", "b")),
        Option("draw", "true", "a figure too", kind=flag),
    ),
    rest="COMMAND",
)
HEAVY = {"torch", "torchvision", "wandb", "sklearn", "tensorflow_datasets", "pandas", "matplotlib"}


def test_words_settings_and_what_follows_the_dashes() -> None:
    given = SMALL.parse(["one", "./a=b", "to=x=y", "tier=a,b", "draw=false", "--", "k=v", "--flag"])
    assert given.words == ["one", "./a=b"]
    assert given["to"] == Path("x=y")
    assert (given["count"], given["tier"], given["draw"], given["debug"]) == (3, ["a", "b"], False, False)
    assert given.rest == ["k=v", "--flag"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["one", "cuont=3", "--", "x"], "did you mean count"),
        (["one", "count=three", "--", "x"], "a whole number"),
        (["one", "tier=c", "--", "x"], "choose from a, b"),
        (["one", "draw=yes", "--", "x"], "true or false"),
        (["one", "--count", "3"], "--count is no setting"),
        (["--", "x"], "FOLDER is missing"),
        (["one"], "-- COMMAND is missing"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        SMALL.parse(arguments)


def test_one_word_too_many_is_named() -> None:
    with pytest.raises(ConfigError, match="'two' is one word too many"):
        Command("x", "X.", words=Words("FOLDER")).parse(["one", "two"])


def test_every_file_in_the_root_is_a_command_or_the_ground() -> None:
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert files - {"__init__", "__main__", "schema"} == set(COMMANDS) & files
    assert {f"experiments.{name}" for name in files} >= {m for m in COMMANDS.values() if m.count(".") == 1}


# Each command as ``python -m`` starts it, one after the other in one new interpreter, and what it had loaded.
EACH = """
import contextlib, io, json, runpy, sys
said = {}
for name, module in json.loads(sys.argv[1]).items():
    sys.argv, out, code = [module, "--help"], io.StringIO(), 0
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code
    said[name] = (code, out.getvalue(), sorted({module.split(".")[0] for module in sys.modules}))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helped() -> dict[str, tuple[int | None, str, list[str]]]:
    """Exit code, help and loaded packages of each command; what an earlier one loaded stays loaded."""
    found = subprocess.run(
        [sys.executable, "-c", EACH, json.dumps(COMMANDS)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(found.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_answers_help_without_torch(name: str, helped: dict) -> None:
    code, said, loaded = helped[name]
    assert not code
    assert said.strip() == command(name).help().strip()
    assert "usage: python -m experiments." in said
    assert all(f"  {option.name}=" in said for option in command(name).options)
    assert "experiments" in loaded
    assert not set(loaded) & HEAVY
    assert max(map(len, said.splitlines())) <= 120


def test_the_overview_names_every_experiment_and_command() -> None:
    text = overview()
    assert all(f"\n  {name} " in text for name in [*options("experiment"), *COMMANDS])


@functools.cache
def help_on(name: str) -> str:
    """The help of an experiment, composed once for the tests that read it."""
    return of_experiment(name, [f"experiment={name}"])


@pytest.mark.parametrize("name", options("experiment"))
def test_help_on_an_experiment_says_what_it_shows_its_settings_and_its_cost(name: str) -> None:
    text = help_on(name)
    assert f"python -m experiments experiment={name} tier=paper" in text
    assert " min, " in text
    assert "  experiment." in text
    assert "  data.mirror=null" in text
    assert "seed=0" in text


def test_help_shows_the_values_of_the_tier_asked_for() -> None:
    assert "experiment.removed=500" in of_experiment("loo_linear", ["experiment=loo_linear", "tier=paper"])
    small = cli("experiment=loo_linear", "experiment.removed=7", "--help")
    assert small.returncode == 0
    assert "experiment.removed=7 " in small.stdout
    wrong = cli("experiment=loo_linaer", "--help")
    assert wrong.returncode == 2
    assert "loo_linear" in one_sentence(wrong)


def test_the_comments_of_a_schema_are_its_help() -> None:
    from experiments.models.schema import CGSolver

    assert comments(CGSolver)["tolerance"] == "relative residual of each right-hand side"
    assert "damping" in comments(CGSolver)


def test_a_command_runs_by_its_name_alone() -> None:
    by_name, by_module = cli("table"), cli(module="experiments.table")
    assert by_name.returncode == 0
    assert by_name.stdout == by_module.stdout != ""


def test_the_tab_key_offers_what_fits() -> None:
    assert candidates("ver", []) == ["verify"]
    assert candidates("experiment=loo", []) == [
        "experiment=loo_cnn",
        "experiment=loo_cnn_stationary",
        "experiment=loo_cnn_truths",
        "experiment=loo_linear",
    ]
    assert candidates("tier=p", ["verify"]) == ["tier=paper"]
    assert candidates("from=", ["verify"]) == ["from=results", "from=run"]
    assert "experiment.removed=" in candidates("experiment.r", ["experiment=loo_linear"])
    assert candidates("solver.tol", ["experiment=loo_linear"]) == ["solver.tolerance="]
    assert "complete -o default" in cli("completion", "bash").stdout
    assert "name a shell" in one_sentence(cli("completion", "tcsh"))


BASH = """
influence-experiments() {{ "{python}" -m experiments "$@"; }}
eval "$(influence-experiments completion bash)"
compopt() {{ :; }}
for COMP_LINE in "influence-experiments ver" "influence-experiments experiment=loo_linear solver=c"; do
  COMP_POINT=${{#COMP_LINE}}
  _influence_experiments
  echo "${{COMPREPLY[@]}}"
done
"""


def test_bash_completes_the_last_piece_of_a_word() -> None:
    """As readline calls it: bash splits words at ``=``, so only what follows the last one is given back."""
    done = subprocess.run(
        ["bash", "-c", BASH.format(python=sys.executable)],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stdout.split("\n") == ["verify", "cg cg_network", ""], done.stderr


@pytest.mark.parametrize("name", options("experiment"))
def test_every_setting_of_an_experiment_has_a_meaning(name: str) -> None:
    rows = dict(setting_rows(composed([f"experiment={name}"])))
    unexplained = sorted(setting for setting, meaning in rows.items() if not meaning)
    assert not unexplained, f"{name}: a comment beside the field of its schema is missing: {unexplained}"


def test_help_fits_a_terminal_and_breaks_no_command() -> None:
    texts = {name: command(name).help() for name in COMMANDS}
    texts |= {name: help_on(name) for name in options("experiment")}
    texts["all"] = overview()
    assert [
        (name, line)
        for name, text in texts.items()
        for line in text.splitlines()
        if len(line) > 80 and not line.strip().startswith("python -m ")
    ] == []
    assert "\n  python -m experiments experiment=loo_linear\n" in texts["all"]
