"""This project's own measurements: the public calls of ``influence`` and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.benchmark.harness import Adapter, Problem, Work, serve
from influence.curvature.operators import Damped, GaussNewton, Hessian, Operator
from influence.leverage import corrected_change
from influence.objectives.linear import LinearObjective
from influence.retraining.leave_one_out import leave_one_out
from influence.scores import self_influence, test_gradients, up_loss
from influence.solvers import CG, Exact, GaussNewtonFactor, LiSSA

DENSE = 1000  # parameters of a network up to which its reference is a dense solve: 2,616 take half an hour
LARGE = 1_000_000  # parameters from which on the reference is less exact


def objectives(problem: Problem) -> tuple[Any, Any]:
    """Training and test objective of the problem, linear or network."""
    if problem.facts["network"] is None:
        c = int(problem.facts["classes"])
        train: Any = LinearObjective(
            problem.X, problem.y, "cross_entropy", problem.l2, n_outputs=c, dtype=problem.dtype
        )
    else:
        from influence.objectives.sequential import network_objective

        size = int(problem.options.get("batch_size", 1024))
        train = network_objective(
            problem.model, "cross_entropy", problem.X, problem.y, problem.l2, batch_size=size
        )
        if problem.facts.get("trainable") == "last":
            problem.theta = train.initial()
    return train, train.on(problem.test_X, problem.test_y)


def operator(problem: Problem, train: Any) -> Operator:
    """H + δI, or G + δI, at the problem's parameters; a fresh one, so that nothing prepared is reused."""
    kind = GaussNewton if problem.facts.get("curvature") == "gauss_newton" else Hessian
    hessian = kind(train, problem.theta)
    return Damped(hessian, problem.damping) if problem.damping else hessian


def stored(problem: Problem) -> int:
    """Entries of X that are stored: all of a dense X, the non-zero ones of a sparse one."""
    return int((problem.X != 0).sum())


def product_work(problem: Problem, train: Any, columns: int = 1) -> tuple[float, float]:
    """Necessary flops and bytes of one Hessian product of a linear model on a block of ``columns``."""
    width = train.n_outputs * columns
    size = torch.finfo(problem.dtype).bits // 8
    sparse = hasattr(train.X, "values")
    entries = stored(problem) if sparse else problem.X.numel()
    strips = -(-width // 16) if sparse else 1
    read = 2 * entries * (size + 4 if sparse else size) * strips
    return 4.0 * entries * width, float(read + 4 * train.n * width * size)


def scores(problem: Problem, train: Any, s_tests: Tensor) -> Tensor:
    """s_test·∇L(z_i) of every training point: (n, k)."""
    return -up_loss(train, problem.theta, s_tests, "loss")


def cg(problem: Problem) -> Work:
    """CG on the block of all test points, then all n scores."""
    train, test = objectives(problem)
    options = problem.options
    solver = CG(tolerance=options["tolerance"], preconditioner=options.get("preconditioner", "none"))

    def work() -> tuple[Tensor, dict[str, Any]]:
        gradients = test_gradients(test, problem.theta, list(range(test.n)))
        solution = solver.solve(operator(problem, train), gradients)
        result = scores(problem, train, solution.value)
        facts = {"iterations": solution.iterations, "residual": float(solution.residual.max())}
        if problem.facts["network"] is None:
            flops, traffic = product_work(problem, train, test.n)
            facts |= {
                "flops": flops * (solution.iterations + 1),
                "bytes": traffic * (solution.iterations + 1),
            }
        return result, facts

    return work


def one_by_one(problem: Problem) -> Work:
    """CG for a few test points one after the other, the way without blocks."""
    train, test = objectives(problem)
    solver = CG(tolerance=problem.options["tolerance"])
    few = int(problem.options["measured"])

    def work() -> tuple[Tensor, dict[str, Any]]:
        columns = []
        for point in range(few):
            solution = solver.solve(operator(problem, train), test_gradients(test, problem.theta, [point]))
            columns.append(scores(problem, train, solution.value))
        return torch.cat(columns, dim=1), {"done_of": [few, test.n]}

    return work


def lissa(problem: Problem) -> Work:
    """LiSSA with the settings of the paper's middle panel, then all n scores."""
    train, test = objectives(problem)
    options = problem.options
    solver = LiSSA(
        depth=options["depth"],
        repeats=options["repeats"],
        batch=1,
        scale=options.get("scale", "auto"),
        raise_on_failure=False,
    )

    def work() -> tuple[Tensor, dict[str, Any]]:
        gradients = test_gradients(test, problem.theta, list(range(test.n)))
        solution = solver.solve(operator(problem, train), gradients)
        facts = {"status": solution.status.value, "scale": solution.stats["scale"]}
        return scores(problem, train, solution.value), facts

    return work


def exact(problem: Problem) -> Work:
    """One factor, a verified solve for all test points, then all n scores."""
    train, test = objectives(problem)

    def work() -> tuple[Tensor, dict[str, Any]]:
        gradients = test_gradients(test, problem.theta, list(range(test.n)))
        solver, damped = Exact(), operator(problem, train)
        state = solver.prepare(damped)
        solution = solver.apply(state, gradients)
        return scores(problem, train, solution.value), factor_facts(train, state)

    return work


def factor_facts(train: Any, state: Any) -> dict[str, Any]:
    """Flops of assembling the lower half of the core from dense rows, and of its Cholesky factor."""
    q, c = len(state.factor), max(2, train.n_outputs)
    return {"rows": q, "flops": train.n * (q / (c - 1)) ** 2 * c * (c - 1) / 2 + q**3 / 3}


def self_scores(problem: Problem) -> Work:
    """Self-influence of every training point from one factor."""
    train, _ = objectives(problem)

    def work() -> tuple[Tensor, dict[str, Any]]:
        damped = operator(problem, train)
        state = Exact().prepare(damped)
        result = self_influence(train, problem.theta, damped, state=state)
        facts = factor_facts(train, state)
        return result, facts | {"flops": facts["flops"] + float(train.n) * facts["rows"] ** 2}

    return work


def corrected(problem: Problem) -> Work:
    """Leverage-corrected scores of every training point on the first test point, the factor included."""
    train, test = objectives(problem)

    def work() -> Tensor:
        gradient = test_gradients(test, problem.theta, [0])
        return corrected_change(train, problem.theta, gradient, None, "loss", operator(problem, train))

    return work


def network(problem: Problem) -> Work:
    """CG for a network, with the preconditioner that is asked for, then all n scores."""
    train, test = objectives(problem)
    options = problem.options

    def work() -> tuple[Tensor, dict[str, Any]]:
        gradients = test_gradients(test, problem.theta, list(range(test.n)))
        preconditioner: Any = options.get("preconditioner", "none")
        if options.get("share"):
            preconditioner = GaussNewtonFactor(options["share"])
        solver = CG(tolerance=options["tolerance"], preconditioner=preconditioner)
        solution = solver.solve(operator(problem, train), gradients)
        facts = {"iterations": solution.iterations, "residual": float(solution.residual.max())}
        return scores(problem, train, solution.value), facts

    return work


def network_reference(problem: Problem) -> Work:
    """The network's reference: a dense float64 solve; for many parameters CG instead.

    CG goes to 1e-12, with the Gauss-Newton matrix to 1e-9. From a million parameters on it goes to 1e-6, a
    thousandth of what task J asks for: further digits would take longer than all its measurements.
    Neither is taken on trust: the residual of what they give is computed with plain autograd.
    """
    from influence.objectives.module import Objective

    train, test = objectives(problem)
    plain = Objective(problem.model, "cross_entropy", problem.X, problem.y, problem.l2)
    middle = problem.facts.get("curvature") == "gauss_newton"

    def work() -> tuple[Tensor, dict[str, Any]]:
        damped, theta = operator(problem, train), problem.theta
        gradients = test_gradients(test, theta, list(range(test.n)))
        if train.p <= DENSE:
            method, s_tests = "dense", torch.cholesky_solve(gradients, torch.linalg.cholesky(damped.dense()))
        else:
            helper: Any = "nystrom(rank=20)" if middle else GaussNewtonFactor(0.95)
            goal = (1e-6 if train.p > LARGE else 1e-9) if middle else 1e-12
            solver = CG(tolerance=goal, preconditioner=helper)
            method, s_tests = f"cg to {goal:g}", solver.solve(damped, gradients).value
        product = plain.gauss_newton_product if middle else plain.hessian_product
        back = product(theta, s_tests) + problem.damping * s_tests
        residual = float((back - gradients).norm() / gradients.norm())
        return scores(problem, train, s_tests), {"method": method, "residual_by_autograd": residual}

    return work


def retrain(problem: Problem) -> Work:
    """Leave-one-out retraining of the chosen points, the factor included: change of the test loss (m,)."""
    train, test = objectives(problem)
    removed = torch.from_numpy(np.load(problem.folder / "removed.npy"))[: problem.options["removed"]]

    def work() -> tuple[Tensor, dict[str, Any]]:
        state = Exact().prepare(Hessian(train, problem.theta))
        tolerance, block = problem.options["tolerance"], problem.options["block"]
        done = leave_one_out(
            train,
            problem.theta,
            removed,
            state.inverse,
            tolerance=tolerance,
            block=block,
            raise_on_failure=True,
        )
        one = torch.tensor([0])
        before = test.example_losses(problem.theta, one)[0]
        facts = {"gradient_norm": float(done.gradient_norms.max()), "points": len(removed)}
        return test.example_losses_many(done.thetas, one)[0] - before, facts

    return work


def growth(problem: Problem) -> Work:
    """Task A on the first n rows, or on random features of them: relu(X G) with ``features`` columns."""
    features = problem.options.get("features")
    if features:
        d, c = problem.X.shape[1], int(problem.facts["classes"])
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(d, features, generator=generator, dtype=torch.float32) / d**0.5
        problem.X = torch.relu(problem.X.float() @ weights).to(problem.dtype)
        problem.test_X = torch.relu(problem.test_X.float() @ weights).to(problem.dtype)
        scale = 0.1 / features**0.5
        problem.theta = torch.randn(features * c, generator=generator, dtype=torch.float64) * scale
        problem.theta = problem.theta.to(problem.dtype)
    return cg(problem)


def load() -> dict[str, Adapter]:
    """The methods of this adapter."""
    return {
        "cg": cg, "one_by_one": one_by_one, "lissa": lissa, "exact": exact, "self_influence": self_scores,
        "corrected": corrected,
        "network": network, "network_reference": network_reference, "retrain": retrain, "growth": growth,
    }  # fmt: skip


if __name__ == "__main__":
    serve(load)
