"""Every solver on every kind of operator against a dense float64 oracle, and every way to fail."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from influence import (
    CG,
    Damped,
    DataError,
    Dense,
    DeviceError,
    Exact,
    Hessian,
    LinearObjective,
    LiSSA,
    NotConvergedWarning,
    NotPositiveDefiniteError,
    SolverError,
    Status,
    fit,
)
from influence.solvers import Subsample
from tests.influence.problems import LOSSES, linear_problem, random_theta, spd

SOLVERS = {
    "exact": Exact(),
    "exact-core": Exact(form="core"),
    "exact-gram": Exact(form="gram"),
    "exact-dense": Exact(form="dense"),
    "cg": CG(tolerance=1e-12),
    "cg-jacobi": CG(tolerance=1e-12, preconditioner="jacobi"),
    "cg-kronecker": CG(tolerance=1e-12, preconditioner="kronecker"),
    "cg-subsample": CG(tolerance=1e-12, preconditioner="subsample"),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(40, 7), (6, 30)])
@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_solves_a_linear_models_system(solver, loss, shape, k, damping):
    objective = linear_problem(loss, n=shape[0], d=shape[1])
    theta = random_theta(objective)
    operator = Damped(Hessian(objective, theta), damping) if damping else Hessian(objective, theta)
    B = random_theta(objective, seed=7, k=k)
    B[:, -1] = 0 if k > 1 else B[:, -1]
    solution = SOLVERS[solver].solve(operator, B)
    oracle = torch.linalg.solve(operator.dense(), B)
    torch.testing.assert_close(solution.value, oracle, rtol=1e-8, atol=1e-9)
    assert solution.status is Status.CONVERGED
    assert solution.residual.shape == (k,)
    assert float(solution.residual.max()) <= 1e-9
    vector = SOLVERS[solver].solve(operator, B[:, 0]).value
    torch.testing.assert_close(vector, oracle[:, 0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("solver", ["exact", "cg"])
def test_float32_reaches_float32_accuracy(solver):
    objective = linear_problem("cross_entropy", dtype=torch.float32)
    theta = random_theta(objective)
    B = random_theta(objective, seed=2, k=3)
    chosen = Exact(tolerance=1e-4) if solver == "exact" else CG(tolerance=1e-5)
    solution = chosen.solve(Hessian(objective, theta), B)
    double = linear_problem("cross_entropy")
    oracle = torch.linalg.solve(Hessian(double, theta.double()).dense(), B.double())
    assert float((solution.value.double() - oracle).norm() / oracle.norm()) < 1e-3


@pytest.mark.parametrize("condition", [1e1, 1e4, 1e8])
def test_cg_reports_the_residual_that_it_has(condition):
    matrix = spd(60, condition)
    B = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solution = CG(tolerance=1e-8, max_iterations=5000).solve(Dense(matrix), B)
    residual = (B - matrix @ solution.value).norm(dim=0) / B.norm(dim=0)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-2, atol=1e-13)
    assert float(residual.max()) <= 1e-8


def test_each_column_stops_by_itself():
    matrix = torch.diag(torch.logspace(0, -4, 50, dtype=torch.float64))
    B = torch.zeros(50, 3, dtype=torch.float64)
    B[0, 0] = 1.0  # an eigenvector: one iteration
    B[:, 2] = 1.0
    counts = CG(tolerance=1e-10, max_iterations=500).solve(Dense(matrix), B).stats["iterations_per_column"]
    assert counts[0] == 1
    assert counts[1] == 0
    assert counts[2] > 20


def test_block_and_single_columns_agree():
    matrix = spd(40, 1e3)
    B = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    block = CG(tolerance=1e-12).solve(Dense(matrix), B).value
    for j in range(6):
        single = CG(tolerance=1e-12).solve(Dense(matrix), B[:, j]).value
        torch.testing.assert_close(block[:, j], single, rtol=1e-9, atol=1e-10)


def test_a_good_preconditioner_saves_iterations():
    objective = linear_problem("cross_entropy", n=400, d=30, density=0.2)
    operator = Hessian(objective, 0.1 * random_theta(objective))
    b = random_theta(objective, seed=3)
    plain = CG().solve(operator, b).iterations
    kronecker = CG(preconditioner="kronecker").solve(operator, b).iterations
    assert kronecker < 0.6 * plain
    factor = Exact().prepare(operator)
    assert CG(preconditioner=factor.inverse).solve(operator, b).iterations <= 2


SMALL_PARTS = Subsample(size=150)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("part", [False, True])
def test_a_preconditioner_from_a_part_of_the_examples(loss, dtype, k, part):
    objective = linear_problem(loss, n=900, d=20, dtype=dtype)
    theta, idx = 0.3 * random_theta(objective), torch.arange(899, 100, -1) if part else None
    operator = Damped(Hessian(objective, theta, idx), 0.05)
    B = random_theta(objective, seed=3, k=k)
    tolerance = 1e-11 if dtype is torch.float64 else 1e-5
    rough = CG(tolerance=tolerance, preconditioner=SMALL_PARTS).solve(operator, B)
    oracle = torch.linalg.solve(operator.dense(), B)
    close = {"rtol": 1e-8, "atol": 1e-9} if dtype is torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(rough.value, oracle, **close)
    assert rough.status is Status.CONVERGED


def test_a_part_of_real_data_saves_most_products_with_all_of_it():
    X, y = load_digits(return_X_y=True)
    objective = LinearObjective(X / 16, y, "cross_entropy", 0.001)
    operator = Hessian(objective, fit(objective, tolerance=1e-6).theta)
    b = random_theta(objective, seed=3)
    plain, kronecker, rough = (
        CG(tolerance=1e-6, preconditioner=name).solve(operator, b).iterations
        for name in ("none", "kronecker", "subsample(size=440)")
    )
    assert rough < 0.75 * kronecker < 0.75 * plain


def test_few_examples_are_preconditioned_by_their_kronecker_factors():
    objective = linear_problem("logistic", n=599, d=20)
    operator = Hessian(objective, random_theta(objective))
    b = random_theta(objective, seed=3)
    solutions = [CG(preconditioner=name).solve(operator, b).value for name in ("kronecker", SMALL_PARTS)]
    assert torch.equal(*solutions)


def test_a_part_of_negative_curvature_does_not_spoil_the_answer():
    objective = linear_problem("logistic", n=900, d=20)
    weights = torch.full((900,), 1.3, dtype=torch.float64)
    weights[torch.arange(150) * 900 // 150] = -0.5  # exactly the part
    operator = Hessian(objective.with_weights(weights), random_theta(objective))
    b = random_theta(objective, seed=3)
    found = CG(tolerance=1e-10, preconditioner=SMALL_PARTS).solve(operator, b)
    torch.testing.assert_close(found.value, torch.linalg.solve(operator.dense(), b), rtol=1e-7, atol=1e-9)


def test_exact_state_serves_quadratics():
    for shape in ((40, 7), (6, 30)):
        objective = linear_problem("cross_entropy", n=shape[0], d=shape[1])
        operator = Hessian(objective, random_theta(objective))
        B = random_theta(objective, seed=2, k=5)
        oracle = (B * torch.linalg.solve(operator.dense(), B)).sum(0)
        for form in ("core", "gram", "dense"):
            state = Exact(form=form).prepare(operator)
            assert state.form == form
            torch.testing.assert_close(state.quadratic(B), oracle, rtol=1e-8, atol=1e-9)


def test_exact_picks_the_cheapest_form():
    wide = linear_problem("logistic", n=6, d=30)
    tall = linear_problem("logistic", n=40, d=7)
    assert Exact().prepare(Hessian(wide, random_theta(wide))).form == "gram"
    assert Exact().prepare(Hessian(tall, random_theta(tall))).form == "core"
    assert Exact().prepare(Dense(spd(5))).form == "dense"


def test_a_core_is_factored_without_the_roots_of_the_gram_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost an eigendecomposition an example, more than the whole core where n is large and p small."""
    objective = linear_problem("cross_entropy", n=40, d=7)
    operator = Hessian(objective, random_theta(objective))

    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("roots")

    monkeypatch.setattr(type(objective.loss), "output_hessian_sqrt", refuse)
    assert Exact().prepare(operator).form == "core"
    with pytest.raises(AssertionError, match="roots"):
        Exact(form="gram").prepare(operator)


def test_indefinite_operators_are_named_with_the_damping_that_would_do():
    matrix = torch.diag(torch.tensor([2.0, 1.0, -0.25], dtype=torch.float64))
    b = torch.ones(3, dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError, match=r"1 negative.*above 0\.25"):
        Exact().solve(Dense(matrix), b)
    with pytest.raises(NotPositiveDefiniteError, match="raise damping or l2 above"):
        CG().solve(Dense(matrix), b)
    with pytest.warns(NotConvergedWarning, match="negative curvature"):
        solution = CG(raise_on_failure=False).solve(Dense(matrix), b)
    assert solution.status is Status.NEGATIVE_CURVATURE
    assert bool(torch.isfinite(solution.value).all())
    assert solution.stats["curvature"] < 0
    fixed = Damped(Dense(matrix), 0.3)
    oracle = torch.linalg.solve(fixed.dense(), b)
    torch.testing.assert_close(Exact().solve(fixed, b).value, oracle)
    torch.testing.assert_close(CG().solve(fixed, b).value, oracle)


def test_cg_negative_curvature_leaves_other_columns_alone():
    matrix = torch.diag(torch.tensor([2.0, 1.0, -0.25, 3.0], dtype=torch.float64))
    B = torch.zeros(4, 2, dtype=torch.float64)
    B[[0, 3], 0] = 1.0
    B[:, 1] = 1.0
    with pytest.warns(NotConvergedWarning):
        solution = CG(raise_on_failure=False).solve(Dense(matrix), B)
    torch.testing.assert_close(solution.value[:, 0], torch.tensor([0.5, 0, 0, 1 / 3], dtype=torch.float64))


def test_negative_weights_never_take_the_gram_route():
    objective = linear_problem("logistic", n=6, d=30)
    operator = Damped(
        Hessian(objective.with_weights(torch.tensor([1.0, -0.5, 1, 1, 1, 1])), objective.initial()), 9
    )
    assert operator.gram() is None
    b = random_theta(objective, seed=2)
    torch.testing.assert_close(Exact().solve(operator, b).value, torch.linalg.solve(operator.dense(), b))


def test_singular_operators_are_named():
    objective = linear_problem("cross_entropy", l2=0.0)
    with pytest.raises(NotPositiveDefiniteError, match="set l2 or damping above 0"):
        Exact().prepare(Hessian(objective, random_theta(objective)))
    rank_one = torch.ones(4, 4, dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError, match="raise damping"):
        Exact().prepare(Dense(rank_one))


def test_iteration_limit_is_named():
    with pytest.raises(SolverError, match=r"after 3 iterations.*raise max_iterations"):
        CG(max_iterations=3).solve(Dense(spd(50, 1e6)), torch.ones(50, dtype=torch.float64))


def test_bad_right_hand_sides_are_named():
    operator = Dense(spd(5))
    with pytest.raises(DataError, match="NaN or infinity"):
        CG().solve(operator, torch.full((5,), float("nan"), dtype=torch.float64))
    with pytest.raises(DataError, match="5 columns"):
        CG().solve(operator, torch.ones(6, dtype=torch.float64))
    with pytest.raises(DataError, match="float32"):
        CG().solve(operator, torch.ones(5))
    with pytest.raises(DeviceError, match="meta"):
        _ = operator @ torch.ones(5, dtype=torch.float64, device="meta")


@pytest.mark.parametrize(
    "make",
    [
        lambda: CG(tolerance=0.0),
        lambda: CG(max_iterations=0),
        lambda: Damped(Dense(spd(3)), -0.1),
        lambda: Damped(Dense(spd(3)), float("nan")),
        lambda: LiSSA(scale=0.0),
        lambda: LiSSA(scale="large"),
        lambda: LiSSA(depth=0),
        lambda: LiSSA(repeats=0),
        lambda: CG(preconditioner="ilu").prepare(Dense(spd(3))),
        lambda: CG(preconditioner="kronecker").prepare(Dense(spd(3))),
        lambda: CG(preconditioner="subsample").prepare(Dense(spd(3))),
        lambda: LiSSA(scale=1.0).solve(Dense(spd(3)), torch.ones(3, dtype=torch.float64)),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(DataError):
        make()
