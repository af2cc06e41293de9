"""What stands between the command line and a job: the schemas and the resolvers."""

from __future__ import annotations

import os
import secrets
import sys
import time

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiments import schema
from experiments.records.places import CONF
from experiments.suite import no_code

_STAMP = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def stamp() -> str:
    """The name of this process's output folders: UTC time to the second and four random letters."""
    return _STAMP


def in_a_sweep() -> bool:
    """Whether Hydra runs this job as one of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def prepare() -> None:
    """Registers schemas and resolvers; call once before Hydra composes."""
    if not CONF.is_dir():
        raise SystemExit(f"error: the folder {CONF} with the configs is missing: install the package again.")
    no_code.refuse_arguments(sys.argv[1:])
    no_code.install()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on to guarded() instead of printing them itself
    schema.register_all()
    OmegaConf.register_new_resolver(
        "sweep_folder", lambda output, name: output or f"outputs/{name}/sweep-{stamp()}", replace=True
    )
