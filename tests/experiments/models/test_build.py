"""From config to numerics: damping as a number or left to the spectrum, solvers, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.models import build
from experiments.records.errors import ConfigError
from experiments.records.record import Record
from experiments.schema import check
from experiments.suite.job import execute
from influence import Dense, auto_damping
from tests.experiments.test_configs import composed

INDEFINITE = torch.diag(torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64))


def test_damping_left_to_the_spectrum_makes_the_operator_positive_definite_and_is_named() -> None:
    hessian = Dense(INDEFINITE)
    operator = build.damped(hessian, "auto")
    assert float(torch.linalg.eigvalsh(operator.dense())[0]) > 0
    assert build.chosen_damping("auto", operator) == {"damping": auto_damping(hessian)}
    assert build.chosen_damping(0.1, build.damped(hessian, 0.1)) == {}
    definite = Dense(INDEFINITE + 2 * torch.eye(3, dtype=torch.float64))
    assert build.damped(definite, "auto") is definite
    assert build.chosen_damping("auto", definite) == {"damping": 0.0}
    with pytest.raises(ConfigError, match="negative"):
        build.damped(hessian, -1.0)


@pytest.mark.parametrize("wrong", ["automatic", "[1]", "true", "-1", "null", ".nan"])
def test_any_other_damping_is_refused_before_anything_is_computed(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"solver\.damping=.*auto"):
        check(composed("experiment=loo_linear", f"solver.damping={wrong}"))


@pytest.mark.parametrize("given", ["auto", "0.0", "1", "1e-8"])
def test_numbers_and_auto_are_taken(given: str) -> None:
    check(composed("experiment=loo_linear", f"solver.damping={given}"))


def test_a_record_names_the_damping_that_was_chosen(tmp_path: Path) -> None:
    """A convex model needs none: the scores are those of damping 0, and the record says 0."""
    small = ["experiment=loo_linear", "tracking=none", "threads=1", "experiment.removed=2"]
    for name in ("auto", "0.0"):
        execute(composed(*small, f"solver.damping={name}", f"output={tmp_path / name}"))
    auto, none = Record.load(tmp_path / "auto"), Record.load(tmp_path / "0.0")
    assert auto.metrics["solvers"]["cg"]["damping"] == 0.0
    assert "damping" not in none.metrics["solvers"]["cg"]
    assert (auto.arrays["scores_cg"] == none.arrays["scores_cg"]).all()
