"""A bridge can be imported without its library, and says what is missing when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("library", "use"),
    [
        ("quanda", lambda module: module.InfluenceExplainer(None, None)),
        ("dattri", lambda module: module.InfluenceAttributor(None, "cross_entropy")),
    ],
)
def test_what_is_missing_is_said(library: str, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"influence.bridges.{library}"
    for loaded in [key for key in sys.modules if key == name or key.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    module = importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name)  # the next test imports it anew
    with pytest.raises(ImportError, match=f"{library} cannot be imported .*pip install {library}"):
        use(module)
