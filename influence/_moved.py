"""Modules under their old names: they still import, with a DeprecationWarning that says where they are."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "influence.objective": ["influence.objectives.module"],
    "influence.linear": ["influence.objectives.linear"],
    "influence.linear_curvature": ["influence.objectives.structure"],
    "influence.matrices": ["influence.objectives.data_matrix"],
    "influence.networks": [
        "influence.objectives.sequential",
        "influence.curvature.networks",
        "influence.retraining.networks",
    ],
    "influence.partitioned": ["influence.objectives.partitioned"],
    "influence.distributed": ["influence.objectives.distributed"],
    "influence.streaming": ["influence.objectives.streaming", "influence.score_files"],
    "influence.spectrum": ["influence.curvature.spectrum"],
    "influence.perturbed": ["influence.retraining.perturbed"],
    "influence.relabel": ["influence.retraining.relabelled"],
}


class OldNames(MetaPathFinder, Loader):
    """Finds a module of ``MOVED`` and fills it with what stands in its new places."""

    def find_spec(  # the arguments are the import system's
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """A spec for an old name, None for every other one."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills the module and warns."""
        places = MOVED[module.__name__]
        warnings.warn(
            f"{module.__name__} has moved to {', '.join(places)}; import from there",
            DeprecationWarning,
            stacklevel=2,
        )
        for place in places:
            found = vars(importlib.import_module(place))
            vars(module).update({name: value for name, value in found.items() if not name.startswith("__")})


def install() -> None:
    """Lets old names be found, after everything else."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.append(OldNames())
