"""Old module names import, warn, and give the very same objects."""

from __future__ import annotations

import importlib
import sys

import pytest

import influence
from influence._moved import MOVED


@pytest.mark.parametrize("name", MOVED)
def test_an_old_name_gives_what_stands_in_the_new_places(name: str) -> None:
    sys.modules.pop(name, None)
    with pytest.warns(DeprecationWarning, match="has moved to"):
        old = vars(importlib.import_module(name))
    for place in MOVED[name]:
        for key, value in vars(importlib.import_module(place)).items():
            if not key.startswith("_") and getattr(value, "__module__", None) == place:
                assert old[key] is value


def test_packages_export_what_their_modules_did() -> None:
    from influence.curvature import Damped, Hessian
    from influence.retraining import leave_one_out

    assert Damped is influence.Damped
    assert Hessian is influence.Hessian
    assert leave_one_out is influence.leave_one_out
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("influence.never_was")
