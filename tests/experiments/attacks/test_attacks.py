"""Attacks on training images: exact refits, gradients against real retraining, flips that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.attack_group import experiment as attack_group
from experiments.attack_single import experiment as attack_single
from experiments.attacks import attempt as attempts
from experiments.attacks import outcome, ranking
from experiments.attacks.attempt import Setting, attempt, verified
from experiments.attacks.clean import Clean
from experiments.attacks.pixels import stored
from experiments.attacks.steps import SignSteps, Targets
from experiments.data.embedded import load_digit_pairs
from experiments.models import backbones
from experiments.records.errors import ConfigError, UserError
from experiments.records.record import Record
from experiments.suite.context import Context
from experiments.suite.folders import claim
from experiments.suite.job import execute, settings_of
from influence.curvature.operators import Hessian
from influence.errors import ConvergenceError
from influence.objectives.linear import LinearObjective
from influence.retraining.perturbed import Changed, Refits
from influence.retraining.relabelled import LogisticRefits
from influence.scores import pert_loss
from influence.training import fit
from tests.experiments.test_configs import composed

N, L2 = 24, 1e-5
SMALL = (
    *("tracking=none", "experiment.iterations=12", "experiment.screened=12", "data.test_per_class=20"),
    *("data.brightness=8", "experiment.test_images=5"),
)


@pytest.fixture(scope="module")
def clean() -> Clean:
    """Dark digits, a random float64 network and its converged top layer."""
    data = load_digit_pairs(brightness=12, train_per_class=N // 2, test_per_class=20)
    backbone = backbones.load("random_conv", size=32, batch=5, dtype=torch.float64)
    X, X_test = (backbone(backbone.images(split.X)).detach() for split in (data.train, data.test))
    y, y_test = (torch.as_tensor(split.y * 2.0 - 1) for split in (data.train, data.test))
    objective = LinearObjective(X, y, "logistic", L2)
    fitted = fit(objective, tolerance=1e-13)
    refits = Refits(objective, fitted.theta, tolerance=1e-12, solve_tolerance=1e-11)
    margins = (y_test * (X_test @ fitted.theta)).numpy()
    return Clean(data, backbone, refits, fitted.certificate, X_test, y_test, margins, 1.0, 1.0, (1.0, 2.0))


@pytest.fixture(scope="module")
def setting(clean: Clean) -> Setting:
    return Setting(clean.backbone, clean.refits, alpha=0.02, iterations=40, tolerance=1e-11)


def uncertain(clean: Clean, count: int) -> np.ndarray:
    """The correctly classified test images of least margin."""
    order = np.argsort(np.where(clean.margins > 0, clean.margins, np.inf))
    return order[:count]


def moved(clean: Clean, k: int, m: int) -> tuple[Changed, list[LinearObjective]]:
    """k models with m changed rows each, and their objectives built in full."""
    generator = torch.Generator().manual_seed(k + m)
    rows = torch.stack([torch.randperm(N, generator=generator)[:m] for _ in range(k)])
    X = clean.objective.X.dense()
    noise = torch.randn(k, m, X.shape[1], generator=generator, dtype=X.dtype)
    changed = Changed(rows, X[rows] + 0.02 * noise)
    objectives = []
    for j in range(k):
        own = X.clone()
        own[rows[j]] = changed.features[j]
        objectives.append(LinearObjective(own, clean.objective.targets, "logistic", L2))
    return changed, objectives


@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 1), (2, 4)])
def test_refits_s_tests_and_cotangents_are_those_of_models_fitted_from_scratch(
    clean: Clean, k: int, m: int
) -> None:
    changed, objectives = moved(clean, k, m)
    thetas = clean.refits.refit(clean.refits.theta[:, None].repeat(1, k), changed)
    generator = torch.Generator().manual_seed(5)
    g = torch.randn(thetas.shape, generator=generator, dtype=thetas.dtype)
    s = clean.refits.s_tests(thetas, changed, g, torch.zeros_like(g))
    cotangents = clean.refits.cotangents(thetas, s, changed)
    for j, objective in enumerate(objectives):
        theta = fit(objective, tolerance=1e-13).theta
        torch.testing.assert_close(thetas[:, j], theta, rtol=1e-7, atol=1e-7)
        assert (theta - clean.refits.theta).norm() > 1e-3 * theta.norm()  # the rows did matter
        exact = torch.linalg.solve(Hessian(objective, theta).dense(), g[:, j])
        torch.testing.assert_close(s[:, j], exact, rtol=1e-6, atol=1e-6 * float(exact.abs().max()))
        wanted = pert_loss(objective, thetas[:, j], s[:, j], changed.rows[j])
        torch.testing.assert_close(cotangents[j], wanted, rtol=1e-10, atol=1e-12 * float(wanted.abs().max()))


def test_a_refit_that_cannot_converge_says_so(clean: Clean) -> None:
    changed, _ = moved(clean, 2, 1)
    with pytest.raises(ConvergenceError, match="loosen its tolerance"):
        clean.refits.refit(clean.refits.theta[:, None].repeat(1, 2), changed, max_steps=1)


def test_pixel_gradients_during_an_attack_predict_retraining(clean: Clean, setting: Setting) -> None:
    rows = np.array([[3, 11], [7, 20]])
    chosen = uncertain(clean, 2)
    targets = clean.targets(chosen)
    originals = setting.originals(clean.data.train.X[rows])
    steps = SignSteps(clean.backbone, clean.refits, originals, torch.as_tensor(rows), targets, 0.05)
    for _ in range(4):  # away from the clean images and the clean fit
        steps.look()
        steps.advance(torch.tensor([True, True]))
    steps.look()
    images = steps.images.clone()
    gradient = steps.influence(torch.tensor([True, True]))
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), dtype=gradient.dtype)
    direction = direction.sign() + gradient.sign()

    def loss(j: int, size: float) -> float:
        X = clean.objective.X.dense().clone()
        X[rows[j]] = clean.backbone(images[j] + size * direction[j])
        theta = fit(LinearObjective(X, clean.objective.targets, "logistic", L2), tolerance=1e-13).theta
        return float(steps.losses((targets.features[j] @ theta * targets.y[j])[None])[0])

    for j in range(2):
        h = 0.002
        change = (loss(j, h) - loss(j, -h)) / (2 * h)
        assert change == pytest.approx(float((gradient[j] * direction[j]).sum()) / N, rel=1e-3)


def test_attacks_side_by_side_are_the_attacks_alone(clean: Clean, setting: Setting) -> None:
    chosen = uncertain(clean, 4)
    rows = ranked(clean, chosen)[:, :2]
    pixels = clean.data.train.X[rows]
    over: list[int] = []
    together = attempt(setting, rows, pixels, clean.targets(chosen), count=over.append)
    assert sum(over) == 4
    assert together["flipped"].any()
    assert len(set(together["iterations"].tolist())) > 1  # they leave one after another
    for j in range(4):
        one = slice(j, j + 1)
        alone = attempt(setting, rows[one], pixels[one], clean.targets(chosen[one]))
        assert alone["flipped"][0] == together["flipped"][j]
        assert alone["iterations"][0] == together["iterations"][j]
        for name in ("margin", "movement", "l2"):
            np.testing.assert_allclose(alone[name][0], together[name][j], rtol=1e-6)


def ranked(clean: Clean, chosen: np.ndarray) -> np.ndarray:
    """The exact ranking of every test image."""
    s = ranking.s_tests(clean, chosen)
    work = ranking.Rankings(clean.backbone, clean.objective, clean.refits.theta, clean.data.train.X)
    return np.stack([work((0, s[:, j], None), lambda more: None)["order"] for j in range(len(chosen))])


def test_flips_stay_from_the_saved_images_which_round_to_the_originals(
    clean: Clean, setting: Setting
) -> None:
    chosen = uncertain(clean, 3)
    rows = ranked(clean, chosen)[:, :3]
    pixels = clean.data.train.X[rows]
    part = attempt(setting, rows, pixels, clean.targets(chosen))
    won = np.flatnonzero(part["flipped"])
    assert len(won)
    assert len(part["delta"]) == len(won)
    for place, delta in zip(won, part["delta"], strict=True):
        target = clean.targets(chosen[[place]])
        check = verified(setting, rows[place], pixels[place], delta, target)
        assert bool(check["identical"])
        assert check["margin"][0] == pytest.approx(part["margin"][place], rel=1e-5)
        assert check["margin"][0] < 0 < clean.margins[chosen[place]]
        images = setting.originals(pixels[place])
        np.testing.assert_array_equal(stored(images + torch.as_tensor(delta)), pixels[place])
        further = (torch.as_tensor(delta).sign() * 0.6).numpy()  # more than half a step
        check = verified(setting, rows[place], pixels[place], further, target)
        assert not bool(check["identical"])
    assert part["linf"].max() < 0.5
    full = attempt(setting, rows, pixels, clean.targets(chosen), stop=False)
    assert (full["iterations"] == setting.iterations).all()
    assert (full["movement"].mean(1)[won] > part["movement"].mean(1)[won]).all()


def test_screening_finds_all_from_as_many_images_as_it_says_and_not_from_fewer(
    clean: Clean, tmp_path: Path
) -> None:
    context = Context(composed("experiment=attack_single", "tracking=none"), tmp_path, "x")
    chosen = uncertain(clean, 3)
    all_of_them = ranking.recall(clean, context, chosen, None, 6, 1)
    assert all_of_them["found_6"] == all_of_them["found_1"] == 1.0
    needed = all_of_them["needed"]
    assert 6 <= needed < N
    assert ranking.recall(clean, context, chosen, needed, 6, 1)["found_6"] == 1.0
    assert ranking.recall(clean, context, chosen, needed - 1, 6, 1)["found_6"] < 1.0
    order = [part["order"][:6] for part in ranking.rankings(clean, context, chosen, needed, 1)]
    np.testing.assert_array_equal(order, ranked(clean, chosen)[:, :6])


def test_what_the_attempts_came_to() -> None:
    def part(flipped: list[bool], m: int, iterations: int) -> dict[str, np.ndarray]:
        k = len(flipped)
        sizes = {name: np.full((k, m), 0.25) for name in ("movement", "linf", "l2")}
        ends = {name: np.where(flipped, -1.0, 1.0) for name in ("margin", "loss")}
        return {"flipped": np.array(flipped), "iterations": np.full(k, iterations), **sizes, **ends}

    first, second, three = (outcome.Stage(m, 4) for m in (1, 1, 3))
    check = {"margin": np.array([-1.0]), "gradient_norm": np.array([1e-12]), "identical": np.array([True])}
    first.add("a", np.arange(4), part([True, False, False, False], 1, 7))
    second.add("b", np.array([1, 2, 3]), part([False, True, False], 1, 9))
    three.add("c", np.array([1, 3]), part([True, False], 3, 30))
    first.checks, second.checks, three.checks = [check], [check], [check | {"margin": np.array([0.1])}]
    stages = {"first": first, "second": second, "three": three}
    assert {name: found["count"] for name, found in outcome.cumulative(stages).items()} == {
        "by_1": 2,
        "by_3": 3,
    }
    each = outcome.per_test_image(list(stages.values()))
    assert each["images"].tolist() == [1, 3, 1, 0]
    assert each["attempts"].tolist() == [1, 3, 2, 3]
    assert each["iterations"].tolist() == [7, 30, 9, 30]
    assert outcome.sizes(stages, distance=0.5)["movement_over_class_distance"] == 0.5
    found = outcome.verification(stages)
    assert (found["flips"], found["confirmed"], found["byte_identical"]) == (3, 2, 3)


SINGLE = (
    *("experiment=attack_single", *SMALL, "experiment.exact_rankings=1", "experiment.together=[2]"),
    "experiment.side_by_side=2",
)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """An undisturbed run on three threads, and how many attempts it took."""
    calls = {"done": 0}
    real = attempts.attempt

    def counting(*given: Any, **named: Any) -> Any:
        calls["done"] += 1
        return real(*given, **named)

    folder = tmp_path_factory.mktemp("single") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "attempt", counting)
        execute(composed(*SINGLE, "experiment.workers=3", f"output={folder}"))
    return folder, calls["done"]


@pytest.mark.parametrize("name", ["attack_single", "attack_group"])
@pytest.mark.usefixtures("undrawn")
def test_a_run_that_breaks_off_goes_on_to_the_same_bytes(
    name: str, single: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = "attempt" if name == "attack_single" else "steps"
    if unit == "attempt":
        arguments, whole = SINGLE, single[0]
    else:
        arguments = ("experiment=attack_group", *SMALL, "experiment.checkpoint=5")
        whole = execute(composed(*arguments, f"output={tmp_path / 'whole'}"))
    calls = {"done": 0}
    if unit == "attempt":
        target, attribute, limit = attempts, "attempt", 3
    else:
        target, attribute, limit = SignSteps, "advance", 8
    real: Any = getattr(target, attribute)

    def breaking(*given: Any, **named: Any) -> Any:
        calls["done"] += 1
        if calls["done"] > limit:
            raise KeyboardInterrupt
        return real(*given, **named)

    broken = composed(*arguments, f"output={tmp_path / 'broken'}")
    with monkeypatch.context() as patch:
        patch.setattr(target, attribute, breaking)
        with pytest.raises(KeyboardInterrupt):
            execute(broken)
    assert not (tmp_path / "broken" / "record.json").exists()
    counted = {"done": 0}

    def counting(*given: Any, **named: Any) -> Any:
        counted["done"] += 1
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(target, attribute, counting)
        execute(broken)
    assert counted["done"] > 0
    if unit == "steps":
        assert counted["done"] == 12 - 5  # one checkpoint of five was kept
    for file in ("record.json", "arrays.npz"):
        assert (tmp_path / "broken" / file).read_bytes() == (whole / file).read_bytes(), file


def test_the_group_attack_raises_the_mean_loss_and_is_verified(tmp_path: Path) -> None:
    folder = execute(
        composed("experiment=attack_group", *SMALL, "experiment.iterations=60", f"output={tmp_path}")
    )
    record = Record.load(folder)
    losses = record.arrays["losses"]
    assert losses.shape == (61,)
    assert losses[-1] > losses[0]
    assert record.metrics["verified"]["byte_identical"] is True
    assert record.metrics["verified"]["flipped"] == record.metrics["flipped"]
    assert record.arrays["flipped"][0] == 0  # all were right before
    assert record.metrics["movement_over_class_distance"] > 0


def test_the_loss_without_an_image_is_that_of_a_fit_without_it(clean: Clean) -> None:
    chosen, row = uncertain(clean, 3), 7
    targets = Targets(clean.test_features[chosen][None], clean.test_y[chosen][None])
    others = [i for i in range(N) if i != row]
    X, y = clean.objective.X.dense()[others].numpy(), clean.objective.targets[others].numpy()
    solver = LogisticRefits(X, L2 * N / (N - 1))  # of the mean over N - 1, so that the sum counts 1/N
    theta = torch.as_tensor(solver.fit(y, tolerance=1e-12)[0])
    wanted = torch.log1p(torch.exp(-(targets.features[0] @ theta) * targets.y[0])).mean()
    found = clean.loss_without(row, targets)
    assert found == pytest.approx(float(wanted), rel=1e-7)
    assert found != pytest.approx(clean.loss_without(row + 1, targets), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "setting", "error", "words"),
    [
        ("attack_single", "experiment.screened=9", ConfigError, "give 10 or more"),
        ("attack_single", "experiment.together=[1]", ConfigError, "groups of 2 or more"),
        ("attack_single", "experiment.iterations=0", ConfigError, "give more than 0"),
        ("attack_single", "experiment.test_images=1000", UserError, "classified correctly"),
        ("attack_single", "model.loss=hinge", ConfigError, "use model=logistic"),
        ("attack_single", "experiment.workers=0", ConfigError, "give a number of threads"),
        ("attack_group", "experiment.row=240", UserError, "out of range"),
        ("attack_group", "experiment.test_images=1000", UserError, "classified correctly"),
        ("attack_group", "experiment.checkpoint=0", ConfigError, "give more than 0"),
    ],
)
def test_settings_that_make_no_attack_are_refused(
    name: str, setting: str, error: type[Exception], words: str, tmp_path: Path
) -> None:
    cfg = composed(f"experiment={name}", "tracking=none", setting)
    module = {"attack_single": attack_single, "attack_group": attack_group}[name]
    with pytest.raises(error, match=words):
        module.run(cfg, Context(cfg, tmp_path, "x"))


def test_only_flips_are_kept_as_images(clean: Clean, setting: Setting) -> None:
    chosen = np.argsort(-clean.margins)[:1]  # the most certain test image
    short = Setting(setting.backbone, setting.refits, 1e-6, 2, setting.tolerance)
    part = attempt(short, np.array([[0]]), clean.data.train.X[[[0]]], clean.targets(chosen))
    assert not part["flipped"].any()
    assert len(part["delta"]) == 0


@pytest.mark.usefixtures("undrawn")
def test_the_number_of_threads_changes_no_byte(single: tuple[Path, int], tmp_path: Path) -> None:
    alone = execute(composed(*SINGLE, "experiment.workers=1", f"output={tmp_path}"))
    for file in ("record.json", "arrays.npz"):
        assert (alone / file).read_bytes() == (single[0] / file).read_bytes(), file


@pytest.mark.usefixtures("undrawn")
def test_more_test_images_go_on_from_those_that_are_done(
    single: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, needed = single
    calls = {"done": 0}
    real = attempts.attempt

    def counting(*given: Any, **named: Any) -> Any:
        calls["done"] += 1
        return real(*given, **named)

    monkeypatch.setattr(attempts, "attempt", counting)
    few = composed(*SINGLE, "experiment.test_images=2", f"output={tmp_path / 'grown'}")
    assert Record.load(execute(few)).metrics["attacked"] == 2
    assert 0 < calls["done"] < needed
    calls["done"] = 0
    grown = execute(composed(*SINGLE, f"output={tmp_path / 'grown'}"))
    assert 0 < calls["done"] < needed  # two were there
    for file in ("record.json", "arrays.npz"):
        assert (grown / file).read_bytes() == (whole / file).read_bytes(), file
    with pytest.raises(UserError, match=r"experiment\.alpha differ"):
        claim(grown, settings_of(composed(*SINGLE, "experiment.alpha=0.1")), "experiment.test_images")
