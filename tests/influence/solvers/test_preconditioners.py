"""Preconditioners: they change no answer, save iterations where they should, and are named in the record."""

import pytest
import torch

from influence import (
    CG,
    Damped,
    DataError,
    Dense,
    Exact,
    GaussNewton,
    Hessian,
    Objective,
    SolverError,
    Status,
)
from influence.solvers import (
    EKFAC,
    KFAC,
    Approximate,
    GaussNewtonFactor,
    Jacobi,
    Kronecker,
    Nystrom,
    Subsample,
)
from influence.solvers.preconditioners import named, nystrom
from tests.influence.nets import make_net, net_data
from tests.influence.problems import linear_problem, random_theta

DAMPING = 0.05
OF_LINEAR = [Jacobi(), Kronecker(), Subsample(size=20), Nystrom(rank=8)]
OF_NETS = [
    Jacobi(),
    GaussNewtonFactor(0.9),
    KFAC(),
    EKFAC(examples=20),
    EKFAC(),
    Nystrom(rank=10),
    Nystrom(8, 30),
]


def net_problem():
    X, y = net_data(60)
    o = Objective(make_net("smooth_conv"), "cross_entropy", X, y, 0.01, l2_parameters="weights")
    return Damped(GaussNewton(o, o.initial()), DAMPING), o.example_gradients(
        o.initial(), torch.tensor([0, 1])
    ).T


@pytest.mark.parametrize("preconditioner", OF_LINEAR, ids=str)
def test_linear_models_keep_their_answer(preconditioner):
    o = linear_problem("cross_entropy", n=120)
    operator = Damped(Hessian(o, random_theta(o)), DAMPING)
    B = random_theta(o, seed=3, k=2)
    solution = CG(tolerance=1e-11, preconditioner=preconditioner).solve(operator, B)
    torch.testing.assert_close(solution.value, torch.linalg.solve(operator.dense(), B), rtol=1e-8, atol=1e-9)
    assert solution.summary()["preconditioner"] == str(preconditioner)


@pytest.fixture(scope="module")
def net():
    operator, B = net_problem()
    return operator, B, torch.linalg.solve(operator.dense(), B)


@pytest.mark.parametrize("preconditioner", OF_NETS, ids=str)
def test_networks_keep_their_answer(net, preconditioner):
    operator, B, oracle = net
    solution = CG(tolerance=1e-11, preconditioner=preconditioner).solve(operator, B)
    torch.testing.assert_close(solution.value, oracle, rtol=1e-7, atol=1e-9)


def test_a_sketch_saves_iterations_and_the_full_rank_one_is_the_inverse():
    g = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(60, 60, generator=g, dtype=torch.float64)).Q
    matrix = Dense((Q * torch.logspace(3, -9, 60, dtype=torch.float64)) @ Q.T)
    operator, b = Damped(matrix, 1e-3), torch.randn(60, generator=g, dtype=torch.float64)
    counts = [
        CG(tolerance=1e-9, preconditioner=choice).solve(operator, b).iterations
        for choice in ("none", Nystrom(rank=15), Nystrom(rank=60))
    ]
    assert counts[0] > 1.5 * counts[1] > 1.5 * counts[2]
    U, values = nystrom(matrix, 60, 0)
    torch.testing.assert_close((U * values) @ U.T, matrix.matrix, rtol=0, atol=1e-9 * 1e3)


@pytest.mark.parametrize("approximation", ["ekfac", "kfac", Nystrom(rank=5)], ids=str)
def test_an_approximation_by_itself_never_claims_to_be_the_solution(net, approximation, recwarn):
    operator, B, oracle = net
    solution = Approximate(approximation).solve(operator, B)
    assert solution.status is Status.APPROXIMATE
    residual = (B - operator.dense() @ solution.value).norm(dim=0) / B.norm(dim=0)
    torch.testing.assert_close(solution.residual, residual, rtol=1e-9, atol=0)
    cosine = torch.nn.functional.cosine_similarity(solution.value, oracle, dim=0)
    assert float(cosine.min()) > 0.5  # it means something
    assert "CG(preconditioner=" in solution.advice
    assert not [w for w in recwarn if "NotConverged" in str(w.category)]
    with pytest.raises(DataError, match="needs a preconditioner"):
        Approximate("none").prepare(operator)


def test_names_carry_their_settings():
    assert named("none") is None
    assert named("nystrom(rank=7, seed=2)") == Nystrom(rank=7, seed=2)
    assert named("subsample") == Subsample()
    assert str(Nystrom(7)) == "nystrom(rank=7, examples=None, seed=0)"
    for bad in ("ilu", "nystrom(rank=", "nystrom(size=3)", "jacobi(3)", "nystrom(rank=__import__('os'))"):
        with pytest.raises(DataError, match=r"known|settings"):
            CG(preconditioner=bad)
    for make in (
        lambda: Nystrom(rank=0), lambda: Subsample(size=-1), lambda: KFAC(examples=0),
        lambda: KFAC(extra=-1.0), lambda: EKFAC(seed=-1),
        lambda: GaussNewtonFactor(share=0.0), lambda: CG(preconditioner="nystrom(rank=0)"),
        lambda: Exact(form="qr"), lambda: Exact(tolerance=float("nan")), lambda: CG(tolerance=float("nan")),
    ):  # fmt: skip
        with pytest.raises(DataError, match="must"):
            make()


def test_what_an_objective_cannot_offer_is_refused_with_what_it_can():
    linear = Hessian(o := linear_problem("logistic"), random_theta(o))
    operator, _ = net_problem()
    for choice, of, offered in (
        ("kfac", linear, "'kronecker'"), ("gauss_newton", linear, "'kronecker'"),
        ("kronecker", operator, "'ekfac'"), ("subsample", operator, "'nystrom'"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=offered):
            CG(preconditioner=choice).prepare(of)


def test_exact_beyond_memory_names_the_size_and_cg():
    class Huge(Dense):
        def __init__(self):
            self.shape, self.dtype, self.device = (10**6, 10**6), torch.float64, torch.device("cpu")

        def dense(self, block=256):
            raise AssertionError("allocated")

    with pytest.raises(SolverError, match=r"14,901 GiB and this machine has \d+: use CG\(\)"):
        Exact().prepare(Huge())
