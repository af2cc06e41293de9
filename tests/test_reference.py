"""The API reference: all that is public is described, and every link leads somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from html import unescape
from pathlib import Path

import pytest

import influence
from tests.helpers import ROOT

spec = importlib.util.spec_from_file_location("build_reference", ROOT / "docs" / "build_reference.py")
assert spec is not None
assert spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


def test_every_public_name_has_a_docstring() -> None:
    undocumented = [name for name in influence.__all__ if not inspect.getdoc(getattr(influence, name))]
    for name in reference.modules():
        module = importlib.import_module(name)
        undocumented += [
            where
            for where, thing in [(name, module), *reference.members(module)]
            if not inspect.getdoc(thing)
        ]
    assert not undocumented


def test_every_reference_in_a_docstring_leads_somewhere() -> None:
    assert not reference.broken(reference.modules())
    api = importlib.import_module("influence.api")
    assert reference.resolved("influence.Influence.check", api) == "influence.api.Influence.check"
    assert reference.resolved("check", api, "Influence") == "influence.api.Influence.check"
    assert reference.resolved("chekc", api, "Influence") is None
    assert reference.resolved("influence.ap1", api) is None


def test_the_pages_are_built_and_their_links_lead_to_each_other(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="pdoc builds the reference: pip install '.[dev]'")
    reference.build(tmp_path)
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    assert len(pages) >= len(reference.modules())
    front = pages[tmp_path / "influence" / "api.html"]
    for expected in ('id="Influence.check"', "Raises", "Arguments", "&gt;&gt;&gt;"):
        assert expected in front, expected
    assert not re.findall(r":(?:class|func|meth|mod):", front)  # written as links
    broken, count = [], 0
    for page, text in pages.items():
        for target in re.findall(r'href="([^"]+)"', text):
            path, _, mark = unescape(target).partition("#")
            if ":" in path or target == "#" or "$" in path:  # of the search box
                continue
            count += 1
            other = (page.parent / path).resolve() if path else page
            if other not in pages or (mark and f'id="{mark}"' not in pages[other]):
                broken.append(f"{page.relative_to(tmp_path)}: {target}")
    assert count > 100
    assert not broken
