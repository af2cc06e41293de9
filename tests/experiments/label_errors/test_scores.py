"""The mixture of opinions, the nearest rows, the expected number, numbers as labels, the reasons."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from experiments.data.tables.features import Features
from experiments.data.tables.kinds import Column
from experiments.label_errors import neighbours, regression, why
from experiments.label_errors.assess import Opinion, assess, expected_errors, mixed
from experiments.label_errors.choose import GRID, Model, chosen_l2, curved, models
from experiments.label_errors.held_out import classifier, probabilities
from experiments.label_errors.logistic import Design
from experiments.label_errors.ranking import order_of
from experiments.label_errors.settings import settings


def quiet(text: str) -> None:
    """A step that nobody hears of."""


def blobs(
    n: int = 300, classes: int = 3, flips: int = 30, seed: int = 0
) -> tuple[Features, np.ndarray, np.ndarray]:
    """Points around a centre for each class, ``flips`` labels replaced: features, labels, which are wrong."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, classes, n)
    centres = generator.normal(size=(classes, 4)) * 2.5
    X = np.c_[centres[true] + generator.normal(size=(n, 4)), np.full(n, 10.0)]
    wrong = np.zeros(n, dtype=bool)
    wrong[generator.choice(n, flips, replace=False)] = True
    y = np.where(wrong, (true + generator.integers(1, classes, n)) % classes, true)
    names = [f"x{i}" for i in range(4)]
    columns = [Column(name, "number", 0, X[:, i]) for i, name in enumerate(names)]
    return Features(X, [*names, "intercept"], np.array([0, 1, 2, 3, -1]), columns), y, wrong


@pytest.mark.parametrize("classes", [2, 3])
def test_flipped_labels_come_first(classes: int) -> None:
    found, y, wrong = blobs(classes=classes)
    result = assess(found, y, classes, None, None, settings(), quiet)
    assert wrong[result.order[:30]].mean() >= 0.8
    assert {o.name for o in result.opinions} >= {"linear", "curved"}
    assert abs(sum(o.share for o in result.opinions) - 1) < 1e-9
    np.testing.assert_allclose(result.held.sum(1), 1)
    low, high = result.expected[1:]
    assert low <= 30 <= high
    for name in ("loss", "self_influence", "held_margin"):
        other = assess(found, y, classes, None, None, settings(rank=name, model="linear"), quiet)
        np.testing.assert_array_equal(other.order, np.argsort(-other.scores[name], kind="stable"))


def test_the_shares_are_those_of_the_smallest_loss() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, 2000)
    good = np.where(y == 1, 0.8, 0.2)
    good[generator.random(2000) < 0.2] = 0.5
    noise = generator.uniform(0.3, 0.7, 2000)
    opinions = [Opinion("good", np.c_[1 - good, good]), Opinion("noise", np.c_[1 - noise, noise])]
    held = mixed(opinions, y, None)
    assert opinions[0].share >= 0.9
    parts = [opinion.share * opinion.held for opinion in opinions]
    np.testing.assert_allclose(held, sum(parts))
    few = [Opinion("good", opinions[0].held[:4]), Opinion("noise", opinions[1].held[:4])]
    mixed(few, y[:4], None)
    assert 0.25 <= few[0].share <= 0.85  # four rows are no evidence
    one = [Opinion("alone", opinions[0].held)]
    np.testing.assert_array_equal(mixed(one, y, None), opinions[0].held)


def test_rounding_does_not_order_equal_rows() -> None:
    generator = np.random.default_rng(0)
    scores = np.repeat([3.0, 1e-3, 0.5, 0.0, 2.0, -1.0], 40)
    scores = scores[generator.permutation(len(scores))]
    truth = np.lexsort((np.arange(len(scores)), -scores))
    for _ in range(5):
        noisy = scores * (1 + 1e-13 * generator.normal(size=len(scores))) + 1e-16 * generator.normal(
            size=len(scores)
        )
        np.testing.assert_array_equal(order_of(noisy), truth)
    apart = 1 + 1e-7 * generator.permutation(100)
    np.testing.assert_array_equal(order_of(apart), np.argsort(-apart))
    assert order_of(np.zeros(3)).tolist() == [0, 1, 2]
    assert order_of(np.zeros(0)).tolist() == []


@pytest.mark.parametrize("sparse", [False, True])
def test_nearest_rows_leave_the_row_and_its_group_out(sparse: bool) -> None:
    found, y, _ = blobs(n=90)
    X = sp.csr_matrix(found.X) if sparse else found.X
    shares, count = neighbours.probabilities(X, y, 3, None, None)
    Z = np.clip(found.X[:, :-1], -4, 4) if not sparse else found.X[:, :-1]
    distance = ((Z[:, None] - Z[None]) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1)[:, :count]
    prior = np.bincount(y, minlength=3) / 90
    votes = np.stack([(y[near] == k).sum(1) for k in range(3)], axis=1)
    np.testing.assert_allclose(shares, (votes + 2 * prior) / (count + 2))
    if sparse:
        known, _ = neighbours.probabilities(X, y, 3, None, None, kernel=Design(X).kernel)
        np.testing.assert_array_equal(known, shares)
    groups = np.arange(90) % 45  # two rows a group
    grouped, _ = neighbours.probabilities(X, y, 3, None, groups)
    assert not np.allclose(grouped, shares)
    alone, _ = neighbours.probabilities(X, y, 3, None, np.zeros(90, dtype=int))
    np.testing.assert_allclose(alone, np.tile(prior, (90, 1)))  # nobody may be asked
    assert not neighbours.affordable(np.zeros((100_000, 50)))


def test_the_expected_number_of_errors() -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 500)
    held = np.full((500, 3), 0.02)
    held[np.arange(500), y] = 0.96
    held[:40] = 0.02
    held[np.arange(40), (y[:40] + 1) % 3] = 0.96
    found, low, high = expected_errors(held, y, 0)
    assert found == 40
    assert low <= 40 <= high
    assert expected_errors(np.tile([0.96, 0.04], (50, 1)), np.zeros(50, dtype=int), 0) == (0, 0, 0)


def test_lambda_is_that_of_the_smallest_loss_and_many_rows_are_sampled() -> None:
    found, y, _ = blobs(n=200)
    l2, tried = chosen_l2(found.X, y, 3, None, 0)
    losses = {pair[0]: classifier(Design(found.X), y, 3, pair[0]).mean_held_loss for pair in tried}
    np.testing.assert_allclose([pair[1] for pair in tried], list(losses.values()), rtol=1e-4)
    assert l2 == min(losses, key=lambda key: losses[key])
    many, labels, _ = blobs(n=5000)
    l2, tried = chosen_l2(many.X, labels, 3, None, 0)
    assert any(np.isclose(l2, g * 2000 / 5000, rtol=0.01) for g in GRID)  # the penalty l2·n carries over


def test_curved_features_see_what_lines_cannot() -> None:
    generator = np.random.default_rng(0)
    X = np.c_[generator.normal(size=(300, 2)), np.full(300, 10.0)]
    y = ((X[:, :2] ** 2).sum(1) > 1.4).astype(int)
    columns = [Column("a", "number", 0, X[:, 0]), Column("b", "number", 0, X[:, 1])]
    features = Features(X, ["a", "b", "intercept"], np.array([0, 1, -1]), columns)
    linear, wide = models(features, y, 2, None, settings(), quiet)
    assert wide.fitted.mean_held_loss < 0.5 * linear.fitted.mean_held_loss
    np.testing.assert_array_equal(curved(X, 0.5, 80, 0), curved(X, 0.5, 80, 0))
    assert [m.name for m in models(features, y, 2, None, settings(model="linear"), quiet)] == ["linear"]
    assert [m.name for m in models(features, y, 2, None, settings(model="curved"), quiet)] == ["curved"]


def test_weights_and_groups_change_the_verdict() -> None:
    found, y, _ = blobs(n=120)
    plain = assess(found, y, 3, None, None, settings(model="linear"), quiet)
    w = np.where(np.arange(120) < 60, 1.8, 0.2)
    weighted = assess(found, y, 3, w, None, settings(model="linear"), quiet)
    assert not np.allclose(plain.held, weighted.held)
    # Every row twice: a row's copy gives its label away unless both are held out together.
    twice = Features(np.r_[found.X, found.X], found.names, found.owner, found.columns)
    labels, groups = np.r_[y, y], np.r_[np.arange(120), np.arange(120)]
    apart = assess(twice, labels, 3, None, None, settings(model="linear", l2=1e-4), quiet)
    together = assess(twice, labels, 3, None, groups, settings(model="linear", l2=1e-4), quiet)
    assert together.scores["held_loss"].mean() > apart.scores["held_loss"].mean()


@pytest.mark.parametrize(("classes", "core"), [(2, 6000), (3, 6000), (3, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_reasons_are_changes_of_the_loss_when_a_row_weighs_less(
    classes: int, core: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.label_errors.held_out.CORE", core)
    monkeypatch.setattr("experiments.label_errors.held_out.TOLERANCE", 1e-12)
    found, y, _ = blobs(n=100, classes=classes)
    l2, h = 0.02, 1e-4
    w = np.random.default_rng(1).uniform(0.5, 1.5, 100) if weighted else np.ones(100)
    fitted = classifier(Design(found.X), y, classes, l2, w if weighted else None)
    model = Model("linear", Design(found.X), fitted, w if weighted else None, ())
    rows = np.array([3, 50])
    influence = why.of_classes(model, y)(rows)
    for j in (0, 17, 50):
        shifted = []
        for sign in (1, -1):
            v = w.copy()
            v[j] *= 1 + sign * h
            again = classifier(Design(found.X), y, classes, l2, v, fitted.W, held=False)
            P = probabilities(again.form, found.X[rows] @ again.W.T)
            shifted.append(-np.log(P[np.arange(2), y[rows]]))
        slope = (shifted[0] - shifted[1]) / (2 * h)
        np.testing.assert_allclose(influence[j], slope, rtol=2e-3, atol=1e-6)
    reasons = why.reasons(why.of_classes(model, y), rows)
    assert all(i not in reasons.against[k] for k, i in enumerate(rows))  # no row is its own witness
    order = np.argsort(-np.delete(influence[:, 0], 3))
    expected = np.delete(np.arange(100), 3)[order[:5]]
    np.testing.assert_array_equal(reasons.against[0], expected)
    assert (np.diff(reasons.against_size, axis=1) <= 0).all()


def test_reasons_where_features_outnumber_rows() -> None:
    generator = np.random.default_rng(0)
    X = sp.random(60, 200, 0.1, random_state=0, format="csr")
    y = generator.integers(0, 2, 60)
    fitted = classifier(Design(X), y, 2, 1e-2)
    found = why.of_classes(Model("linear", Design(X), fitted, None, ()), y)(np.arange(60))
    p = fitted.seen[:, 1]
    H = (X.toarray() * (p * (1 - p))[:, None]).T @ X.toarray() / 60 + 1e-2 * np.eye(200)
    G = (p - y)[:, None] * X.toarray()
    np.testing.assert_allclose(found, -(G @ np.linalg.solve(H, G.T)) / 60, rtol=1e-2, atol=1e-5)


def test_what_pulls_towards_the_proposed_class() -> None:
    found, _, _ = blobs(n=50)
    W = np.zeros((3, 5))
    W[1, 2] = 1.0  # feature 2 speaks for class 1
    row = int(found.X[:, 2].argmax())
    (parts,) = why.contributions(found, W, np.array([0]), np.array([1]), np.array([row]))
    assert parts == [(2, "", pytest.approx(found.X[row, 2] - found.X[:, 2].mean()))]
    assert why.affordable(10**6, 1000, 500) == 20
    assert why.affordable(100, 10, 500) == 500


@pytest.mark.parametrize("d", [4, 80])
def test_numbers_without_a_row_are_refits_without_it(d: int) -> None:
    generator = np.random.default_rng(0)
    X = np.c_[generator.normal(size=(50, d)), np.full(50, 10.0)]
    z, w = X[:, 0] + 0.3 * generator.normal(size=50), generator.uniform(0.5, 1.5, 50)
    held = regression.held_residuals(Design(X), z, w, 0.05)
    for i in (0, 20, 49):
        v = w.copy()
        v[i] = 0
        H = (X * v[:, None]).T @ X / 50 + 0.05 * np.eye(d + 1)
        truth = X[i] @ np.linalg.solve(H, X.T @ (v * z) / 50) - z[i]
        np.testing.assert_allclose(held[i], truth, rtol=1e-7)


def test_outlying_numbers_come_first() -> None:
    generator = np.random.default_rng(0)
    X = np.c_[generator.normal(size=(200, 3)), np.full(200, 10.0)]
    y = 100 + 5 * X[:, 0] + generator.normal(size=200)
    wrong = generator.choice(200, 10, replace=False)
    y[wrong] += 40
    columns = [Column(f"x{i}", "number", 0, X[:, i]) for i in range(3)]
    features = Features(X, ["x0", "x1", "x2", "intercept"], np.array([0, 1, 2, -1]), columns)
    found = regression.assess(features, y, None, None, settings(), quiet)
    assert set(found.order[:10]) == set(wrong)
    assert found.expected[1] <= 10 <= found.expected[2]
    assert abs(found.predicted[wrong] - (100 + 5 * X[wrong, 0])).max() < 6
    grouped = regression.assess(features, y, None, np.arange(200) // 2, settings(model="linear"), quiet)
    assert set(grouped.order[:10]) == set(wrong)
    change = why.of_numbers(found.design, found.residual, np.ones(200), found.l2)(wrong[:1])[:, 0]
    assert change.shape == (200,)
    assert change[wrong[0]] < 0  # the row itself supports its label


@pytest.mark.parametrize("form", ["softmax", "logistic", "one-vs-rest", "wide"])
def test_reasons_from_kept_factors_are_those_of_new_ones(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, y, _ = blobs(n=60, classes=2 if form == "logistic" else 3)
    classes, X = int(y.max()) + 1, found.X
    if form == "wide":  # more features than rows: the factor is of the rows
        X = sp.csr_matrix(np.c_[np.random.default_rng(1).normal(size=(60, 90)), X])
    if form in ("one-vs-rest", "wide"):
        monkeypatch.setattr("experiments.label_errors.held_out.CORE", 3)
    design, rows = Design(X), np.array([4, 0, 31])
    kept = classifier(design, y, classes, 1e-2, keep=True)
    monkeypatch.setattr("experiments.label_errors.held_out.KEPT", 8)
    anew = classifier(design, y, classes, 1e-2, keep=True)
    assert len(kept.factors) == (classes if form in ("one-vs-rest", "wide") else 1)
    assert anew.factors == ()
    one, two = (why.of_classes(Model("linear", design, f, None, ()), y)(rows) for f in (kept, anew))
    close = 1e-3 if form == "wide" else 1e-8  # the wide way without a factor is by conjugate gradients
    np.testing.assert_allclose(one, two, rtol=close, atol=close * np.abs(two).max())


def test_the_words_named_are_those_of_the_largest_contribution(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    X = np.c_[generator.random((7, 40)) * (generator.random((7, 40)) < 0.5), np.full(7, 10.0)]
    columns = [Column("t", "text"), Column("x", "number")]
    names = [*(f"t:{i}" for i in range(39)), "x", "intercept"]
    found = Features(sp.csr_matrix(X), names, np.array([*[0] * 39, 1, -1]), columns)
    W, rows = generator.normal(size=(2, 41)), np.array([5, 2, 0])
    zero, one = np.zeros(3, dtype=int), np.ones(3, dtype=int)
    listed = why.contributions(found, W, zero, one, rows)
    value = (W[1] - W[0])[:40] * (X[rows, :40] - X[:, :40].mean(0))
    for items, row in zip(listed, value, strict=True):
        first = [(0, names[f], row[f]) for f in np.argsort(-row[:39])[:5]]
        first += [(1, "", row[39])] if row[39] > 0 else []
        first = sorted(first, key=lambda item: -item[2])[:5]
        assert [item[:2] for item in items] == [item[:2] for item in first]
        np.testing.assert_allclose([item[2] for item in items], [item[2] for item in first])
    monkeypatch.setattr(why, "_CELLS", 40)  # a row at a time
    assert why.contributions(found, W, zero, one, rows) == listed
