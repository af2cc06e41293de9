"""A YAML file holds settings, never code: what Hydra or logging would call is refused, and nothing ran."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments.records.errors import ConfigError
from experiments.suite import no_code
from tests.experiments.test_configs import composed
from tests.helpers import cli, one_sentence

HANDLER = "version: 1\nhandlers:\n  x:\n    (): posix.mkdir\n    path: {ran}\nroot: {{handlers: [x]}}\n"


def indented(text: str, spaces: int) -> str:
    return "".join(" " * spaces + line + "\n" for line in text.splitlines())


FILES = {  # file below --config-dir, its text, the override that brings it
    "job_logging in a data file": (
        "data/evil.yaml",
        "# @package _global_\nhydra:\n  job_logging:\n" + indented(HANDLER, 4),
        ["data=evil"],
    ),
    "hydra_logging in a data file": (
        "data/evil.yaml",
        "# @package _global_\nhydra:\n  hydra_logging:\n" + indented(HANDLER, 4),
        ["data=evil"],
    ),
    "an argument of the launcher": (
        "data/evil.yaml",
        "# @package _global_\nhydra:\n  launcher:\n    extra: {{_target_: posix.mkdir, path: {ran}}}\n",
        ["data=evil"],
    ),
    "a launcher": (
        "hydra/launcher/evil.yaml",
        "_target_: posix.mkdir\npath: {ran}\n",
        ["hydra/launcher=evil"],
    ),
    "a job of a sweep": (
        "data/evil.yaml",
        "# @package _global_\nhydra:\n  job_logging:\n" + indented(HANDLER, 4),
        ["data=digits,evil"],
    ),
    "a job of a sweep in processes": (
        "data/evil.yaml",
        "# @package _global_\nhydra:\n  job_logging:\n" + indented(HANDLER, 4),
        ["data=digits,evil", "hydra/launcher=joblib"],
    ),
    "the environment of a job": (
        "data/evil.yaml",
        "# @package _global_\nhydra:\n  job:\n    env_set: {{LD_PRELOAD: /x.so}}\n",
        ["data=evil"],
    ),
    "another environment's python": (
        "data/evil.yaml",
        "# @package _global_\nexperiment:\n  peers: {ran}\nname: digits\n",
        ["experiment=benchmark", "data=evil"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_would_run_code_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    place, text, overrides = FILES[case]
    ran, file = tmp_path / "ran", tmp_path / "conf" / place
    file.parent.mkdir(parents=True)
    file.write_text(text.format(ran=ran))
    sweep = ["--multirun"] if any("," in override for override in overrides) else []
    own = [] if overrides[0].startswith("experiment") else ["experiment=loo_linear"]
    done = cli(
        *sweep, "--config-dir", str(tmp_path / "conf"), *own, "experiment.removed=2", *overrides,
        "tracking=none", f"output={tmp_path / 'o'}", cwd=tmp_path,
    ) if case != "another environment's python" else cli(
        "--config-dir", str(tmp_path / "conf"), *overrides, "tracking=none", f"output={tmp_path / 'o'}",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    one_sentence(done)
    assert not ran.exists()


def test_a_primary_config_of_ones_own_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    (tmp_path / "mine.yaml").write_text("defaults: [config]\nhydra: {searchpath: ['pkg://planted']}\n")
    done = cli("--config-dir", str(tmp_path), "--config-name", "mine", "experiment=loo_linear", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "searchpath" in one_sentence(done)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "override",
    [
        "hydra.searchpath=[pkg://antigravity]",
        "hydra/job_logging=stdout",
        "hydra.job.env_set.LD_PRELOAD=/x.so",
        "hydra.output_subdir=.",
    ],
)
def test_the_same_on_the_command_line_is_refused(override: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        no_code.refuse_arguments([override])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    "logging",
    [
        {"formatters": {"f": {"class": "antigravity.Formatter"}}},
        {"filters": {"f": {"()": "posix.mkdir"}}},
        {"handlers": {"h": {"class": "logging.StreamHandler", "stream": "ext://antigravity.x"}}},
        {"handlers": {"h": {"class": "logging.FileHandler", "filename": "conf/config.yaml"}}},
        {"handlers": {"h": {"class": "logging.StreamHandler", "stream": "${word}"}}},
    ],
)
def test_everything_that_logging_would_call_or_import_is_refused(logging: dict) -> None:
    config = OmegaConf.create({"word": "ext://antigravity.x", "hydra": {"job_logging": logging}})
    with pytest.raises(ConfigError, match="must not name code"):
        no_code.check(config)


def test_plain_logging_and_the_launchers_of_hydra_are_accepted() -> None:
    plain = {
        "version": 1,
        "handlers": {"h": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
    }
    launcher = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}
    no_code.check(OmegaConf.create({"hydra": {"job_logging": plain, "launcher": launcher}}))
    assert composed("experiment=loo_linear").seed == 0


def test_a_launchers_commands_may_be_typed_but_not_read_from_a_file() -> None:
    config = OmegaConf.create({"hydra": {"launcher": {"setup": ["module load x"]}}})
    no_code.check(config, ["hydra.launcher.setup=[module load x]"])
    with pytest.raises(ConfigError, match="command line"):
        no_code.check(config)
