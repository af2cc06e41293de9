"""The house stays simple: no circle between rooms, and few pairs of rooms that know each other.

``make lint`` checks the layers themselves (pyproject.toml, import-linter); here the pairs are counted.
"""

from __future__ import annotations

from collections import defaultdict
from graphlib import TopologicalSorter

import grimp
import pytest

PAIRS = 120  # 212 before the suite had rooms


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("experiments", "influence")


def room(module: str) -> str:
    """A folder or file in the root of the suite; the whole library is one room."""
    package, *inside = module.split(".")
    return package if package == "influence" or not inside else inside[0]


def pairs(graph: grimp.ImportGraph) -> set[tuple[str, str]]:
    """Rooms of which the first imports the second."""
    found = {
        (room(module), room(other))
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
    }
    return {(one, other) for one, other in found if one != other}


def test_few_rooms_know_each_other(graph: grimp.ImportGraph) -> None:
    found = pairs(graph)
    assert len(found) <= PAIRS, sorted(found)
    assert ("verify", "verification") in found  # the count sees what there is


def test_no_files_and_no_rooms_import_in_a_circle(graph: grimp.ImportGraph) -> None:
    below: dict[str, set[str]] = defaultdict(set)
    for one, other in pairs(graph):
        below[one].add(other)
    files = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    for arrows in (below, files):
        TopologicalSorter(arrows).prepare()  # raises CycleError, which names the circle
