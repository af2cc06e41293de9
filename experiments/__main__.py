"""``python -m experiments experiment=NAME``: composes the config, runs the experiment, writes its record.

``python -m experiments verify ...`` starts the command ``experiments.verify``; ``--help`` names them all.
"""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from experiments.records.places import CONF
from experiments.suite.cli import prepare
from experiments.suite.console import main
from experiments.suite.ending import guarded


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def job(cfg: DictConfig) -> str:
    """One job: the folder that holds its record."""
    from experiments.suite.job import execute  # torch and the rest load only when something is to be run

    return str(execute(cfg))


def run() -> None:
    """Hands the command line to Hydra; errors end in one sentence and an exit code."""
    guarded(job)


prepare()  # also in the workers of a launcher, which import this module
if __name__ == "__main__":
    main(run=run)
