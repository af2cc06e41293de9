"""Freely moved features, the principal subspace, kept pictures, and solves as they were and as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.attack_group import experiment as attack_group
from experiments.attacks import pictures, reach
from experiments.attacks.clean import Clean
from experiments.attacks.outcome import Stage
from experiments.attacks.shown import change_of, kept
from experiments.attacks.steps import SignSteps, Targets
from experiments.records.errors import ConfigError
from experiments.records.journal import Journal
from experiments.records.record import Record
from experiments.suite.context import Context
from experiments.suite.job import execute
from influence.curvature.operators import Hessian
from influence.errors import DataError
from influence.objectives.linear import LinearObjective
from influence.retraining.perturbed import Changed
from influence.training import fit
from tests.experiments.attacks.test_attacks import L2, SMALL, clean, moved, uncertain
from tests.experiments.test_configs import composed

__all__ = ["clean"]  # the fixture


def targets_of(clean: Clean, count: int) -> Targets:
    """One attack on the ``count`` least certain test images at once."""
    chosen = uncertain(clean, count)
    return Targets(clean.test_features[chosen][None], clean.test_y[chosen][None])


def loss_at(clean: Clean, row: int, features: torch.Tensor, targets: Targets) -> float:
    """The targets' mean loss after a fit from scratch with ``features`` in place of the row's own."""
    X = clean.objective.X.dense().clone()
    X[row] = features
    theta = fit(LinearObjective(X, clean.objective.targets, "logistic", L2), tolerance=1e-12).theta
    return float(torch.nn.functional.softplus(-(targets.features[0] @ theta) * targets.y[0]).mean())


def test_the_correction_inverts_the_hessian_with_the_rows_changed(clean: Clean) -> None:
    changed, _ = moved(clean, 2, 3)
    thetas = clean.refits.theta[:, None].repeat(1, 2)
    block = torch.randn(thetas.shape, generator=torch.Generator().manual_seed(2), dtype=thetas.dtype)
    found = clean.refits.correction(thetas, changed)(block)
    for j in range(2):
        X = clean.objective.X.dense().clone()
        X[changed.rows[j]] = changed.features[j]
        H = Hessian(LinearObjective(X, clean.objective.targets, "logistic", L2), clean.refits.theta).dense()
        torch.testing.assert_close(found[:, j], torch.linalg.solve(H, block[:, j]), rtol=1e-6, atol=1e-5)


def test_another_base_gives_the_same_solutions_in_fewer_products(clean: Clean) -> None:
    changed, _ = moved(clean, 1, 2)
    start = clean.refits.theta[:, None]
    first = clean.refits.fresh()
    thetas = first.refit(start, changed)
    base = clean.refits.fresh().rebased(thetas[:, 0], changed)
    again = base.refit(start, changed)
    torch.testing.assert_close(again, thetas, rtol=1e-8, atol=1e-8)
    g = torch.randn(thetas.shape, generator=torch.Generator().manual_seed(4), dtype=thetas.dtype)
    before, after = first.worst.products, base.worst.products
    wanted = first.s_tests(thetas, changed, g, torch.zeros_like(g))
    found = base.s_tests(thetas, changed, g, torch.zeros_like(g))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
    assert base.worst.products - after < first.worst.products - before
    with pytest.raises(DataError, match="rebase on one"):
        clean.refits.rebased(
            thetas[:, 0], Changed(changed.rows.repeat(2, 1), changed.features.repeat(2, 1, 1))
        )


def test_freely_moved_features_raise_the_loss_more_than_random_moves_as_long(clean: Clean) -> None:
    row, targets, radii = 5, targets_of(clean, 6), [0.02, 0.05]
    found = reach.moved_freely(clean.refits, row, targets, radii, steps=25)
    origin = clean.objective.X.dense()[row]
    before = loss_at(clean, row, origin, targets)
    small, large = (found[f"radius_{name}"] for name in ("0_02", "0_05"))
    assert before < small["loss"] < large["loss"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        direction = torch.randn(origin.shape, generator=generator, dtype=origin.dtype)
        move = 0.05 * direction / direction.norm()
        assert loss_at(clean, row, origin + move, targets) < large["loss"]


def test_features_are_drawn_back_into_the_ball() -> None:
    origin = torch.zeros(2, 1, 3, dtype=torch.float64)
    moved_to = torch.tensor([[[3.0, 4.0, 0.0]], [[0.1, 0.0, 0.0]]], dtype=torch.float64)
    found = reach.within(moved_to, origin, torch.tensor([1.0, 1.0], dtype=torch.float64)[:, None, None])
    torch.testing.assert_close(found[0, 0], torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found[1], moved_to[1])


def test_a_change_along_the_leading_component_is_inside_the_subspace(clean: Clean) -> None:
    X = clean.objective.X.dense().numpy()
    leading = np.linalg.svd(X - X.mean(0), full_matrices=False)[2]
    inside = reach.principal(clean, 3, torch.as_tensor(X[3] + 0.3 * leading[0]))
    assert inside["change_inside"] == pytest.approx(0.3)
    assert inside["change_outside"] == pytest.approx(0, abs=1e-6)
    outside = reach.principal(clean, 3, torch.as_tensor(X[3] + 0.3 * leading[-2]))
    assert outside["change_inside"] == pytest.approx(0, abs=1e-6)
    assert outside["variance_share"] >= 0.9
    whole = ((X - X.mean(0)) ** 2).sum(1).mean()
    assert outside["typical_inside"] ** 2 + outside["typical_outside"] ** 2 == pytest.approx(whole)


def test_pictures_keep_a_change_to_a_part_in_five_hundred() -> None:
    delta = np.random.RandomState(0).uniform(-0.5, 0.5, (4, 4, 3))
    assert kept(delta).dtype == np.int8
    np.testing.assert_allclose(change_of(kept(delta)), delta, atol=1 / 500)
    old = delta.astype(np.float16)
    np.testing.assert_array_equal(change_of(old), old.astype(np.float64))


def test_flips_are_shown_through_different_training_images(tmp_path: Path) -> None:
    journal, stage = Journal(tmp_path, "attempts", {}), Stage(1, 3)
    part = {name: np.zeros((3, 1)) for name in ("movement", "linf", "l2")}
    part |= {"flipped": np.array([True] * 3), "iterations": np.ones(3, dtype=int), "margin": np.zeros(3)}
    part |= {
        "loss": np.zeros(3),
        "delta": np.arange(3.0)[:, None, None, None, None] * np.ones((1, 1, 3, 2, 2)),
    }
    journal.put("a", part)
    stage.add("a", np.arange(3), part)
    found = pictures.examples(journal, {"candidate 1": stage}, {"candidate 1": np.array([[7], [7], [9]])}, 3)
    assert [(place, row) for place, row, _ in found] == [(0, 7), (2, 9)]
    assert [float(delta.max()) for *_, delta in found] == [0.0, 2.0]


@pytest.mark.usefixtures("undrawn")
def test_more_iterations_of_the_group_attack_go_on_from_those_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("experiment=attack_group", *SMALL, "experiment.checkpoint=4", "experiment.refactor=3")
    whole = execute(composed(*arguments, f"output={tmp_path / 'whole'}"))
    few = composed(*arguments, "experiment.iterations=6", f"output={tmp_path / 'grown'}")
    assert list(Record.load(execute(few)).metrics["at"]) == ["0", "6"]
    calls = {"done": 0}
    real = SignSteps.advance

    def counting(self: SignSteps, models: torch.Tensor) -> None:
        calls["done"] += 1
        real(self, models)

    monkeypatch.setattr(SignSteps, "advance", counting)
    grown = execute(composed(*arguments, f"output={tmp_path / 'grown'}"))
    assert calls["done"] == 12 - 4  # the first part was there; the second was one step short
    for file in ("record.json", "arrays.npz"):
        assert (grown / file).read_bytes() == (whole / file).read_bytes(), file
    beside = Record.load(whole).metrics["side_by_side"]
    assert beside["gradient_difference"] < 1e-5
    assert beside["products_before"] > 0 < beside["products_now"]


@pytest.mark.usefixtures("undrawn")
def test_a_group_attack_killed_after_its_last_step_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("experiment=attack_group", *SMALL, "experiment.checkpoint=4")
    whole = execute(composed(*arguments, f"output={tmp_path / 'whole'}"))
    killed = composed(*arguments, f"output={tmp_path / 'killed'}")

    def broken_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attack_group, "verified", broken_off)
        with pytest.raises(KeyboardInterrupt):
            execute(killed)
    folder = execute(killed)
    for file in ("record.json", "arrays.npz"):
        assert (folder / file).read_bytes() == (whole / file).read_bytes(), file


def test_the_image_attacked_is_the_one_that_is_asked_for(tmp_path: Path) -> None:
    base = ("experiment=attack_group", *SMALL, "experiment.iterations=1", "experiment.compared=0")
    least = execute(composed(*base, "experiment.attacked=least_certain", f"output={tmp_path / 'least'}"))
    record = Record.load(least)
    assert record.metrics["certainty"] == record.metrics["least_certain"]
    assert record.metrics["certainty_rank"] == 1
    assert record.metrics["side_by_side"] is None
    best = Record.load(execute(composed(*base, f"output={tmp_path / 'best'}")))
    assert best.metrics["row"] == best.metrics["best_ranked"][0]
    assert best.metrics["rank"] == 1
    cfg = composed(*base, "experiment.attacked=any")
    with pytest.raises(ConfigError, match="choose least_certain or best_ranked"):
        attack_group.run(cfg, Context(cfg, tmp_path, "x"))
