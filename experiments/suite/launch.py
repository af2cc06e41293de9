"""Hands a command line to Hydra, which composes the config and runs one job or a sweep of them."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from experiments.records.places import CONF
from experiments.suite.cli import prepare
from experiments.suite.ending import guarded


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> str:
    """One job: the folder that holds its record."""
    from experiments.suite.job import execute  # torch and the rest load only when something is to be run

    return str(execute(cfg))


def run() -> None:
    """Runs what ``sys.argv`` asks for; errors end in one sentence and an exit code."""
    prepare()
    guarded(job)
