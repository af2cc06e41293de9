"""Gauss–Newton matrix and its preconditioner, and Adam on many networks side by side."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influence.curvature.networks import gauss_newton_matrix, gauss_newton_preconditioner
from influence.curvature.operators import Damped, GaussNewton, Hessian
from influence.errors import DataError, NotPositiveDefiniteError
from influence.objectives.module import Objective
from influence.objectives.sequential import network_objective
from influence.retraining.networks import adam, batch_at, batch_gradients, piecewise, start
from influence.solvers import CG, Status
from tests.influence.nets import NETS, block, make_net, net_data


def build(name: str, kind=network_objective, l2: float = 0.03, n: int = 60):
    X, y = net_data(n)
    return kind(make_net(name), "cross_entropy", X, y, l2, l2_parameters="weights", batch_size=16)


@pytest.fixture(scope="module")
def trained():
    """A net after some Adam steps."""
    o = build("smooth_conv")
    return o, adam(o, start(o.initial()), 150, lambda t: 0.02, 60, 0).thetas[:, 0].clone()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", [Objective, network_objective])
def test_the_matrix_is_the_operator(name, kind):
    o = build(name, kind)
    theta, idx = block(o, 1, scale=0.3)[:, 0], torch.tensor([3, 3, 22, 0, 9])
    for chosen in (None, idx):
        matrix, oracle = gauss_newton_matrix(o, theta, chosen), GaussNewton(o, theta, chosen).dense()
        torch.testing.assert_close(matrix, oracle, rtol=1e-9, atol=1e-12)
        assert torch.equal(matrix, matrix.T)


def test_a_share_of_the_trace_is_kept():
    o = build("smooth_conv")
    theta = block(o, 1, scale=0.5)[:, 0]
    whole = gauss_newton_matrix(o, theta)
    lambda_ = o.l2 * o.l2_mask
    errors = []
    for share in (0.5, 0.9, 0.999):
        part = gauss_newton_matrix(o, theta, share=share)
        assert float(torch.linalg.eigvalsh(whole - part).min()) > -1e-12  # only outer products are left out
        errors.append(float((whole - part).trace() / (whole.trace() - lambda_.sum())))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02
    for share in (0.0, 1.1):
        with pytest.raises(DataError, match="share"):
            gauss_newton_matrix(o, theta, share=share)


def test_the_preconditioner_saves_iterations_and_changes_no_answer(trained):
    o, theta = trained
    operator, B = Damped(Hessian(o, theta), 0.1), block(o, 3)
    plain = CG(tolerance=1e-10).solve(operator, B)
    quick = CG(tolerance=1e-10, preconditioner=gauss_newton_preconditioner(o, theta, 0.1)).solve(operator, B)
    assert quick.status is plain.status is Status.CONVERGED
    torch.testing.assert_close(quick.value, plain.value, rtol=1e-7, atol=1e-7)
    assert quick.iterations < 0.7 * plain.iterations


def test_a_singular_preconditioner_is_named():
    o = build("dense_net", l2=0.0)
    theta = torch.zeros(o.p, dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError, match="raise damping"):
        gauss_newton_preconditioner(o, theta, 0.0)


class Memory(dict):
    """A journal in memory, whose entries can be looked at."""

    def put(self, key, arrays):
        self[key] = {name: np.copy(value) for name, value in arrays.items()}


def test_batches_depend_on_seed_and_step_alone():
    seen = torch.cat([batch_at(23, 5, 7, step) for step in range(4)])
    assert len(set(seen.tolist())) == 20  # one pass: no example twice
    assert torch.equal(batch_at(23, 5, 7, 9), batch_at(23, 5, 7, 9))
    assert not torch.equal(batch_at(23, 5, 7, 0), batch_at(23, 5, 7, 4))
    assert not torch.equal(batch_at(23, 5, 7, 0), batch_at(23, 5, 8, 0))


def test_adam_is_torchs_adam_and_leaves_points_out():
    """Every run against ``torch.optim.Adam`` fed the same batches less the run's own point."""
    o, left_out = build("smooth_conv"), torch.tensor([4, -1, 17])
    ours = adam(o, start(o.initial()).repeat(3), 25, lambda t: 0.01 / (1 + t), 20, 3, left_out=left_out)
    for column, point in enumerate(left_out.tolist()):
        theta = o.initial().requires_grad_(True)
        optimizer = torch.optim.Adam([theta], lr=0.01)
        for step in range(25):
            batch = batch_at(o.n, 20, 3, step)
            theta.grad = o.subset(batch[batch != point]).gradient(theta.detach())
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            optimizer.step()
        torch.testing.assert_close(ours.thetas[:, column], theta.detach(), rtol=1e-9, atol=1e-11)
    assert float((ours.thetas[:, 0] - ours.thetas[:, 1]).norm()) > 1e-4


def test_adam_goes_on_where_it_was():
    o = build("dense_net")
    whole = adam(o, start(o.initial()), 12, lambda t: 0.01, 20, 3)
    half = adam(o, start(o.initial()), 5, lambda t: 0.01, 20, 3)
    assert torch.equal(adam(o, half, 7, lambda t: 0.01, 20, 3, offset=5).thetas, whole.thetas)
    journal = Memory()
    adam(o, start(o.initial()), 5, lambda t: 0.01, 20, 3, journal=journal)
    resumed = adam(o, start(o.initial()), 12, lambda t: 0.01, 20, 3, journal=journal)
    assert torch.equal(resumed.thetas, whole.thetas)
    assert int(journal["adam"]["done"]) == 12


def test_bad_adam_settings_are_named():
    o = build("dense_net")
    for rates in ([], [(5, 0.1)], [(0, 0.1), (0, 0.2)], [(0, 0.0)], [(0, 0.1), (9, 0.1), (4, 0.1)]):
        with pytest.raises(DataError, match="learning rates"):
            piecewise(rates)
    rate = piecewise([(0, 0.1), (10, 0.01)])
    assert [rate(0), rate(9), rate(10), rate(99)] == [0.1, 0.1, 0.01, 0.01]
    with pytest.raises(DataError, match="batch_size"):
        adam(o, start(o.initial()), 1, rate, 61, 0)
    with pytest.raises(DataError, match="left_out"):
        adam(o, start(o.initial()), 1, rate, 20, 0, left_out=torch.tensor([60]))


def test_the_compiled_kernel_trains_like_torch():
    """Every run of Adam, each with its own point left out, by the kernel and by layers."""
    torch.manual_seed(0)
    X, y = net_data(60)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 3),
        torch.nn.Tanh(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(3, 3),
    ).double()
    o = network_objective(net, "cross_entropy", X, y, 0.03, l2_parameters="weights")
    kernel, path = batch_gradients(o)
    if path == "torch":
        pytest.skip("no C compiler on this machine")
    runs = {}
    for name, gradients in (
        ("compiled", kernel),
        ("torch", batch_gradients(o, "torch")[0]),
        ("default", None),
    ):
        left_out = torch.tensor([4, -1, 17])
        begun = start(o.initial()).repeat(3)
        runs[name] = adam(o, begun, 25, lambda t: 0.01, 20, 3, left_out=left_out, gradients=gradients).thetas
    assert torch.equal(runs["torch"], runs["default"])
    torch.testing.assert_close(runs["compiled"], runs["torch"], rtol=1e-10, atol=1e-12)
    with pytest.raises(DataError, match="kernel must be"):
        batch_gradients(o, "fast")
    with pytest.raises(DataError, match="no compiled kernel"):
        batch_gradients(build("pooled_conv"), "compiled")
