"""What can be known of the image without an engine: what goes in is enough, and nothing else does.

It is built and run for real by hand; results/docker.txt keeps that run's table.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.helpers import ROOT, cli

DOCKERFILE = (ROOT / "Dockerfile").read_text()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
LETS_IN = [line.removeprefix("!") for line in IGNORED if line.startswith("!")]


def instructions(name: str) -> list[str]:
    """The arguments of every such instruction, continuation lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", joined, re.M)


def test_only_what_is_named_goes_in() -> None:
    assert IGNORED[0] == "*"
    assert all((ROOT / name).exists() for name in LETS_IN)
    assert {"**/wandb", "**/.*", "**/__pycache__"} <= set(IGNORED)  # runs, secrets and history stay out
    assert not {".git", "tests", "outputs", "data"} & set(LETS_IN)
    for copied in instructions("COPY"):
        source = copied.split()[0]
        assert source == "." or source in LETS_IN


def test_the_order_of_layers_the_user_and_the_command() -> None:
    lines = [line.split()[0] for line in DOCKERFILE.splitlines() if re.match(r"[A-Z]+ ", line)]
    copies = instructions("COPY")
    assert copies[-1] == ". ./"  # the code changes most often
    assert lines.index("USER") > len(lines) - 1 - lines[::-1].index("COPY")
    assert instructions("USER") == ["influence"]
    assert instructions("ENTRYPOINT") == ['["python", "-m", "experiments.verify"]']
    assert instructions("CMD") == ['["tier=smoke"]']
    assert "WANDB_MODE=offline" in DOCKERFILE
    assert not re.search(r"(?i)(api_key|token|password|secret)", DOCKERFILE)


def test_the_image_lists_its_packages_after_the_last_one_is_installed() -> None:
    runs = instructions("RUN")
    (listed,) = [place for place, run in enumerate(runs) if "pip inspect > /packages.json" in run]
    assert listed > max(place for place, run in enumerate(runs) if "pip install" in run)


def test_every_package_is_pinned_by_hash_and_to_the_version_of_the_constraints() -> None:
    assert any("--require-hashes --requirement requirements.lock" in run for run in instructions("RUN"))
    lock = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    pinned = dict(re.findall(r"^([a-z0-9_.-]+)==(\S+) +--hash=sha256:[0-9a-f]{64}", lock, re.M))
    assert len(pinned) == len(re.findall(r"^[a-z0-9]", lock, re.M)) > 50
    constraints = (ROOT / "constraints.txt").read_text()
    known = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", constraints, re.M))
    known = {normal(name): version for name, version in known.items()}
    assert pinned == {name: known[name] for name in pinned}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["experiments"]]
    assert {normal(re.split(r"[^A-Za-z0-9_.-]", name)[0]) for name in wanted} <= set(pinned)


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_labels_name_the_commit_and_the_version() -> None:
    (labels,) = instructions("LABEL")
    found = dict(item.split("=") for item in labels.split())
    for name, argument in (("revision", "COMMIT"), ("version", "VERSION")):
        assert found[f"org.opencontainers.image.{name}"] == f"${argument}"
        assert f"{argument}=unknown" in instructions("ARG")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build context as .dockerignore leaves it."""
    folder = tmp_path_factory.mktemp("context")
    hidden = shutil.ignore_patterns("__pycache__", "*.pyc", "wandb", ".*")
    for name in LETS_IN:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=hidden)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_what_goes_in_runs_and_verifies_by_itself(context: Path, tmp_path: Path) -> None:
    def inside(*arguments: str, module: str) -> subprocess.CompletedProcess[str]:
        return cli(*arguments, module=module, cwd=context, PYTHONPATH=str(context), HOME=str(tmp_path))

    read = inside(
        "tier=paper", "claims=fig2-left-pearson", f"output={tmp_path / 'o'}", module="experiments.verify"
    )
    assert read.returncode == 0, read.stdout + read.stderr
    run = inside("claims=smoke-components-full", f"output={tmp_path / 'p'}", module="experiments.verify")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 claims: 1 holds" in run.stdout
