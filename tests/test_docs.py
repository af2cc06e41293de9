"""Every Python block of the documentation runs, in order, page by page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_there_are_pages_with_code() -> None:
    assert NOTEBOOKS
    assert sum(bool(BLOCK.search(page.read_text())) for page in PAGES) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # whatever an example writes
    blocks = BLOCK.findall(page.read_text())
    source = "\n".join(blocks)
    exec(compile(source, str(page), "exec"), {"__name__": "__docs__"})


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_a_notebook_runs_and_is_committed_without_outputs(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cell by cell in one namespace, as a kernel does; the cells are plain Python, so that none is needed."""
    monkeypatch.chdir(tmp_path)
    content = json.loads(notebook.read_text())
    assert content["nbformat"] == 4
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 4
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        assert not cell["outputs"]
        assert cell["execution_count"] is None
        exec(compile("".join(cell["source"]), f"{notebook.name}, code cell {number}", "exec"), namespace)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
