"""``python -m experiments experiment=NAME``: composes the config, runs the experiment, writes its record."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from experiments.suite.cli import CONF, guarded, prepare

prepare()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: DictConfig) -> str:
    """One job: the folder that holds its record."""
    from experiments.suite.job import execute  # torch and the rest load only when something is to be run

    return str(execute(cfg))


if __name__ == "__main__":
    guarded(main)
