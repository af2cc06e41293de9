"""Every numeric setting has a range; what lies outside, NaN and infinity too, is one sentence."""

from __future__ import annotations

import math

import pytest

from experiments import schema
from experiments.records.errors import ConfigError
from tests.experiments.test_configs import composed


def schemas() -> list[type]:
    schema.register_all()
    return [schema.Config, *(cls for group in schema.REGISTRY.values() for cls in group.values())]


def test_every_numeric_field_of_every_schema_has_a_range() -> None:
    found = [(cls.__name__, name) for cls in schemas() for name in schema.numeric_fields(cls)]
    assert len(found) > 90
    missing = [(cls, name) for cls, name in found if name not in schema.ranges_of(by_name()[cls])]
    assert missing == []


def by_name() -> dict[str, type]:
    return {cls.__name__: cls for cls in schemas()}


def test_every_range_names_a_field() -> None:
    for cls in schemas():
        assert set(schema.ranges_of(cls)) <= set(cls.__dataclass_fields__), cls


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("experiment.training_tolerance=0", "more than 0 and less than 1"),
        ("experiment.training_tolerance=nan", "training_tolerance=nan"),
        ("experiment.retraining_tolerance=inf", "retraining_tolerance=inf"),
        ("experiment.retraining_tolerance=nan", "more than 0"),
        ("experiment.block=0", "block=0: give at least 1"),
        ("experiment.block=-1", "block=-1"),
        ("experiment.self_influence=-1", "at least 0"),
        ("solver.tolerance=-1e-5", "solver.tolerance=-1e-05"),
        ("solver.damping=nan", "damping=nan"),
        ("solver.damping=inf", "damping=inf"),
        ("solver.max_iterations=0", "max_iterations=0"),
        ("model.l2=nan", "l2=nan"),
        ("model.l2=0", "more than 0"),
        ("seed=-1", "seed=-1"),
        ("seed=4294967296", "at most 4.29497e+09"),
        ("threads=0", "threads=0"),
        ("data.classes=[1,11]", "data.classes=11"),
        ("experiment.compare.exact.damping=-1", "experiment.compare.exact.damping=-1"),
    ],
)
def test_a_number_out_of_range_is_one_sentence(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        schema.check(composed("experiment=loo_linear", override))
    assert words in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("name", ["spam", "attack_single", "loo_cnn", "readmission", "smooth_hinge"])
def test_each_number_of_an_experiment_is_held_to_its_range(name: str) -> None:
    """Just outside is refused, the end itself is not; NaN never passes."""
    cfg = composed(f"experiment={name}")
    kind = by_name()[type(schema.REGISTRY["experiment"][name]()).__name__]
    for field, allowed in schema.ranges_of(kind).items():
        for bad in (math.nan, math.inf, allowed.low - 1):
            assert not allowed.holds(bad), (field, bad)
        assert f"{allowed}" != ""
    schema.check(cfg)
