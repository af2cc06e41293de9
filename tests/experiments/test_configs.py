"""Every committed experiment composes at each of its tiers; each embedded one is run by test_verify.py."""

from __future__ import annotations

import copy
import functools

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from experiments.suite import cli
from experiments.verification.claims import load

EXPERIMENTS = sorted(path.stem for path in (cli.CONF / "experiment").glob("*.yaml"))
VARIANTS = sorted((path.parent.name, path.stem) for path in (cli.CONF / "variant").glob("*/*.yaml"))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    cli.prepare()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def composed(*overrides: str) -> DictConfig:
    """The config of these overrides, a copy for each caller: Hydra composes it once in a process.

    ``output=FOLDER`` differs in every test and nothing is read from it, so it is set afterwards.
    """
    folders = [item.partition("=")[2] for item in overrides if item.startswith("output=")]
    cfg = copy.deepcopy(_composed(tuple(item for item in overrides if not item.startswith("output="))))
    if folders:
        cfg.output = folders[-1]
    return cfg


@pytest.mark.parametrize(("tier", "name"), VARIANTS)
def test_every_variant_composes_and_belongs_to_an_experiment(tier: str, name: str) -> None:
    assert name in EXPERIMENTS
    cfg = composed(f"experiment={name}", f"tier={tier}")
    assert cfg.tier.name == tier
    assert cfg.experiment.name
    for entry in cfg.experiment.paper.values():
        assert "value" in entry
        assert entry.where


@pytest.mark.parametrize(("tier", "name"), VARIANTS)
def test_what_a_variant_sets_beside_its_groups_holds(tier: str, name: str) -> None:
    """The primary config comes last and would take it back: the embedded benchmark lost its threads so."""
    given = OmegaConf.load(cli.CONF / "variant" / tier / f"{name}.yaml")
    cfg = composed(f"experiment={name}", f"tier={tier}")
    for key in ("seed", "threads", "device", "debug"):
        if key in given:
            assert cfg[key] == given[key], key


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_yaml_opens_with_its_command(name: str) -> None:
    head = (cli.CONF / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    assert f"python -m experiments experiment={name}" in head
    assert ("smoke", name) in VARIANTS, f"{name} has no embedded variant"


def test_every_embedded_variant_has_a_claim() -> None:
    """So that test_verify.py, which runs all of them, leaves none out."""
    assert {claim.run.name for claim in load() if claim.tier == "smoke"} == {
        f"smoke/{name}" for name in EXPERIMENTS
    }


@pytest.mark.parametrize("group", ["data", "model", "solver", "backbone", "tracking"])
def test_every_choice_of_every_group_composes(group: str) -> None:
    for path in sorted((cli.CONF / group).glob("*.yaml")):
        override = f"+{group}={path.stem}" if group == "backbone" else f"{group}={path.stem}"
        assert composed("experiment=loo_linear", override)[group].name
