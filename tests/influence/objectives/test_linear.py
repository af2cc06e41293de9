"""The closed-form linear objective and its curvature against autograd, on every storage and dtype."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from influence import Damped, DataError, GaussNewton, Hessian, LinearObjective
from influence.objectives import linear
from influence.objectives.data_matrix import DenseMatrix, SparseMatrix, as_matrix
from influence.objectives.structure import kernel_matrix
from tests.influence.problems import (
    LOSSES,
    linear_data,
    linear_problem,
    oracle_losses,
    oracle_value,
    random_theta,
)

GRID = [
    (loss, dtype, sparse) for loss in LOSSES for dtype in (torch.float64, torch.float32) for sparse in (0, 1)
]
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-12}, torch.float32: {"rtol": 2e-4, "atol": 2e-5}}


def close(ours: torch.Tensor, oracle: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(ours.double(), oracle.double(), **TOLERANCE[dtype])


@pytest.mark.parametrize(("loss", "dtype", "sparse"), GRID)
def test_values_and_gradients(loss, dtype, sparse):
    objective = linear_problem(loss, dtype=dtype, sparse=bool(sparse))
    assert type(objective.X) is (SparseMatrix if sparse else DenseMatrix)
    X, _ = linear_data(loss)
    theta = random_theta(objective)
    t = theta.double().requires_grad_(True)
    value = oracle_value(objective, X, t)
    close(objective.value(theta), value.detach(), dtype)
    close(objective.gradient(theta), torch.autograd.grad(value, t)[0], dtype)
    thetas = torch.stack([theta, -theta, 0.3 * theta], dim=1)
    for j in range(3):
        close(objective.gradients(thetas)[:, j], objective.gradient(thetas[:, j]), dtype)
        close(objective.values(thetas)[j], objective.value(thetas[:, j]), dtype)
        close(objective.example_losses_many(thetas)[:, j], objective.example_losses(thetas[:, j]), dtype)


@pytest.mark.parametrize(("loss", "dtype", "sparse"), GRID)
@pytest.mark.parametrize("k", [1, 5, 40])
def test_per_example_calls(loss, dtype, sparse, k):
    objective = linear_problem(loss, dtype=dtype, sparse=bool(sparse))
    X, _ = linear_data(loss)
    theta, V = random_theta(objective), random_theta(objective, seed=2, k=k)

    def losses(t, x):
        return oracle_losses(objective, x @ t.reshape(objective.n_outputs, -1).T)

    J = torch.autograd.functional.jacobian(lambda t: losses(t, X), theta.double())
    idx = torch.tensor([3, 0, 17, 17])
    close(objective.example_losses(theta), losses(theta.double(), X), dtype)
    close(objective.example_gradients(theta, idx), J[idx], dtype)
    close(objective.directional(theta, V), J @ V.double(), dtype)
    close(objective.directional(theta, V, idx), J[idx] @ V.double(), dtype)
    x = X.clone().requires_grad_(True)
    t = theta.double().requires_grad_(True)
    for j in range(min(k, 2)):
        each = losses(t, x)
        total = 0.0
        for i in idx.unique():
            g = torch.autograd.grad(each[i], t, create_graph=True)[0]
            total = total + g @ V[:, j].double()
        mixed = torch.autograd.grad(total, x)[0]
        close(objective.mixed(theta, V, idx)[:, :, j], mixed[idx], dtype)
    delta = random_theta(objective, seed=5)[: objective.d]
    s = V[:, 0]
    close(
        objective.mixed_direction(theta, 3, delta) @ s, objective.mixed(theta, V, idx)[0, :, 0] @ delta, dtype
    )
    pairs = torch.arange(min(k, 4))
    own = objective.paired_gradients(V[:, : len(pairs)], pairs)
    for j in pairs:
        close(own[:, j], objective.example_gradients(V[:, j], j[None])[0], dtype)


@pytest.mark.parametrize(("loss", "dtype", "sparse"), GRID)
@pytest.mark.parametrize("weighted", [False, True])
def test_hessian_in_every_form(loss, dtype, sparse, weighted):
    objective = linear_problem(loss, dtype=dtype, sparse=bool(sparse))
    X, _ = linear_data(loss)
    theta = random_theta(objective)
    w = torch.ones(objective.n, dtype=torch.float64)
    if weighted:
        w = torch.linspace(0.2, 2.0, objective.n, dtype=torch.float64)
        objective = objective.with_weights(w)

    def value(t):
        losses = oracle_losses(objective, X @ t.reshape(objective.n_outputs, -1).T)
        return (w * losses).mean() + objective.l2 / 2 * t @ t

    oracle = torch.autograd.functional.hessian(value, theta.double())
    H = Hessian(objective, theta)
    close(H.dense(block=5), oracle, dtype)
    close(H.diagonal(), oracle.diagonal(), dtype)
    V = random_theta(objective, seed=3, k=7)
    close(H @ V, oracle @ V.double(), dtype)
    close(H @ V[:, 0], oracle @ V[:, 0].double(), dtype)
    close(GaussNewton(objective, theta) @ V, oracle @ V.double(), dtype)
    damped = Damped(Damped(H, 0.1), 0.2)
    close(damped.dense(), oracle + 0.3 * torch.eye(objective.p, dtype=torch.float64), dtype)
    close(damped.diagonal(), oracle.diagonal() + 0.3, dtype)
    split = damped.split()
    eye = torch.eye(objective.p, dtype=dtype)
    E = split.lift(torch.eye(split.q, dtype=dtype))
    close(split.project(eye), E.T, dtype)
    close(E @ split.core() @ E.T + split.shift * eye, damped.dense(), dtype)
    assert split.q == (3 if loss == "cross_entropy" else 1) * (objective.d - 1)
    gram = damped.gram()
    Z = gram.forward(eye)
    close(Z.T @ Z / gram.n + gram.shift * eye, damped.dense(), dtype)
    close(gram.gram(), Z @ Z.T, dtype)
    close(gram.backward(torch.eye(gram.m, dtype=dtype)), Z.T, dtype)


def test_sampled_hessian_is_that_of_the_sample():
    objective = linear_problem("cross_entropy")
    theta = random_theta(objective)
    g = torch.Generator().manual_seed(4)
    sampled = Hessian(objective, theta).sample(g, 6)
    idx = torch.randint(objective.n, (6,), generator=torch.Generator().manual_seed(4))
    close(sampled.dense(), Hessian(objective.subset(idx), theta).dense(), torch.float64)
    distinct = Hessian(objective, theta).sample(g, objective.n, replace=False)
    close(distinct.dense(), Hessian(objective, theta).dense(), torch.float64)


@pytest.mark.parametrize("sparse", [False, True])
def test_matrix_storage_does_not_show(sparse):
    X, _ = linear_data("logistic", n=30, d=9)
    matrix = as_matrix(X)
    if sparse:
        coo = sp.csr_matrix(X.numpy())
        parts = (torch.from_numpy(a) for a in (coo.indptr, coo.indices, coo.data))
        matrix = SparseMatrix(*parts, coo.shape)
    v = torch.randn(9, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = torch.randn(30, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for k in (1, 3, 16, 17, 50):
        close(matrix.matmul(v[:, :k]), X @ v[:, :k], torch.float64)
        close(matrix.rmatmul(u[:, :k]), X.T @ u[:, :k], torch.float64)
    for idx in (torch.tensor([5, -1, 5]), torch.arange(30) % 2 == 0, torch.tensor([], dtype=torch.long)):
        close(matrix.dense(idx), X[idx], torch.float64)
    close(matrix.dense(slice(4, 11)), X[4:11], torch.float64)
    close(matrix.dense(slice(1, 20, 3)), X[1:20:3], torch.float64)
    close(matrix.rows(torch.tensor([7, 2])).dense(), X[[7, 2]], torch.float64)
    close(matrix.column_squares(u[:, :2]), (X**2).T @ u[:, :2], torch.float64)
    close(matrix.row_squares(), (X**2).sum(1), torch.float64)
    close(kernel_matrix(matrix), X @ X.T, torch.float64)
    assert matrix.column_mask().tolist() == (X != 0).any(0).tolist()


def test_storage_is_chosen_by_density():
    thin = sp.random(600, 500, density=0.05, format="csr", random_state=0)
    assert type(as_matrix(thin)) is SparseMatrix
    assert type(as_matrix(thin.toarray())) is SparseMatrix
    csr = torch.from_numpy(thin.toarray()).to_sparse_csr()
    assert type(as_matrix(csr)) is SparseMatrix
    assert type(as_matrix(np.ones((600, 500)))) is DenseMatrix
    assert type(as_matrix(sp.csr_matrix(np.ones((60, 50))))) is DenseMatrix
    torch.testing.assert_close(as_matrix(csr).dense(), torch.from_numpy(thin.toarray()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda X, y: (X * torch.where(torch.arange(7) == 2, float("nan"), 1.0), y), r"NaN or inf.*\[0, 2\]"),
        (lambda X, y: (X[:, :, None], y), "matrix"),
        (lambda X, y: (X, y[:-1]), "one target per row"),
        (lambda X, y: (X[:1], y[:1]), "at least 2"),
        (lambda X, y: (X, y * 0 + 1), "one class is empty"),
        (lambda X, y: (X, y * 3), "-1, \\+1"),
    ],
)
def test_bad_data_is_named(change, says):
    X, y = change(*linear_data("logistic"))
    with pytest.raises(DataError, match=says):
        LinearObjective(X, y, "logistic", 0.1)


@pytest.mark.parametrize("l2", [-1.0, float("nan"), float("inf")])
def test_bad_l2_is_named(l2):
    X, y = linear_data("logistic")
    with pytest.raises(DataError, match="l2"):
        LinearObjective(X, y, "logistic", l2)


def test_index_out_of_range_is_named():
    objective = linear_problem("logistic")
    theta = random_theta(objective)
    with pytest.raises(DataError, match="index 40 is out of range for 40"):
        objective.example_losses(theta, torch.tensor([40]))
    with pytest.raises(DataError, match="7 inputs"):
        objective.on(torch.zeros(3, 6), torch.tensor([1, 1, -1]))
    assert objective.on(torch.zeros(1, 7, dtype=torch.float64), torch.tensor([1])).n == 1


@pytest.mark.parametrize(("loss", "dtype", "sparse"), GRID)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("part", [False, True])
def test_many_columns_are_the_single_ones(loss, dtype, sparse, weighted, part, monkeypatch):
    monkeypatch.setattr(linear, "_NUMBERS", {"cpu": 1})  # the smallest blocks of rows: 256
    objective = linear_problem(loss, n=700, dtype=dtype, sparse=bool(sparse))
    if weighted:
        objective = objective.with_weights(torch.linspace(0.2, 2.0, 700, dtype=dtype))
    theta, idx = random_theta(objective), torch.arange(690, 5, -2) if part else None
    V = random_theta(objective, seed=3, k=80)
    assert objective._wide(80) == 256
    assert objective._wide(3) == 0
    product = objective.hessian_at(theta, idx)
    one_by_one = torch.cat([product(v[:, None]) for v in V.T], dim=1)
    close(product(V), one_by_one, dtype)
    one_by_one = torch.cat([objective.directional(theta, v[:, None], idx) for v in V.T], dim=1)
    close(objective.directional(theta, V, idx), one_by_one, dtype)
