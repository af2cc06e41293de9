"""The front door: from a trained model and its training data to answers, with every choice made and explained.

    influence = Influence(model, "cross_entropy", train, l2=0.01)
    print(influence.influence_on(test))             # the training points that helped, and those that harmed
    print(influence.suspects().top(20))             # training points whose label looks wrong
    print(influence.check(test))                    # leaves the top ones out for real, and compares
    print(influence.explain())                      # what was chosen, and why

Each method is a call of :mod:`influence.scores`, :mod:`influence.groups` or :mod:`influence.retraining` on the
attributes ``objective``, ``theta`` and ``plan``, so nothing below is out of reach.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from influence.answers import Check, Explanation, GroupEffect, Suspects, Top, highest, merged
from influence.checks import checked_number
from influence.choices import Plan, make_plan, prepared
from influence.curvature.operators import Damped
from influence.errors import DataError, NotConvergedWarning
from influence.evaluation.agreement import agreement
from influence.groups import group_change
from influence.losses import Loss
from influence.objectives._base import TrainingObjective
from influence.objectives.sequential import network_objective
from influence.retraining.leave_one_out import leave_one_out
from influence.scores import removal_change, self_influence, test_gradients, warn_unless_stationary
from influence.solvers import Exact, Solver

_NUMBERS = 2**22  # scores (training points × test points) computed at a time
_KEEP = 2 * 10**7  # scores kept whole; beyond that only the most helpful and harmful points are kept


class Influence:
    """Influence of training points on a trained model's predictions.

    Args:
        model: the trained ``torch.nn.Module``, or a :class:`~influence.objectives._base.TrainingObjective`, which
            then brings loss, data and λ.
        loss: its name, a :class:`~influence.losses.Loss`, an ``nn`` loss module or a function.
        data: the training data: ``(inputs, targets)``, a Dataset or a DataLoader in a fixed order.
        l2: λ of ``(λ/2)‖θ‖²`` beside the *mean* loss, as the model was trained (weight decay).
        theta: ``(p,)`` parameters at which influence is taken; the model's own by default.
        curvature: ``"hessian"``, ``"gauss_newton"`` or ``"auto"``.
        damping: δ ≥ 0 of ``H + δI``, or ``"auto"``: as much as the operator needs to be positive definite.
        solver: ``"exact"``, ``"cg"``, a :class:`~influence.solvers.Solver`, or ``"auto"``.
        **settings: of the objective: ``l2_parameters``, ``batch_size``, ``dtype``, ``weights``.

    Raises:
        DataError: data, targets or settings that no objective can be built on.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2).double()
    >>> x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(2, (40,))
    >>> influence = Influence(model, "cross_entropy", (x, y), l2=0.1).fit()
    >>> found = influence.influence_on((x[:1], y[:1]), k=3)
    >>> len(found.helpful[0]), found.solution.status.value
    (3, 'converged')
    """

    def __init__(
        self,
        model: nn.Module | TrainingObjective,
        loss: Any = None,
        data: Any = None,
        l2: float = 0.0,
        *,
        theta: Any = None,
        curvature: str = "auto",
        damping: float | str = "auto",
        solver: str | Solver = "auto",
        **settings: Any,
    ) -> None:
        self.objective = _objective(model, loss, data, l2, settings)
        self.theta = self.objective.initial() if theta is None else self.objective.vector(theta)
        self._asked = (curvature, damping, solver)
        self._set()

    def _set(self) -> None:
        self.gradient_norm = float(self.objective.gradient(self.theta).norm())
        self.plan: Plan = make_plan(self.objective, self.theta, *self._asked)
        self._state: Any = None

    def fit(self, tolerance: float | None = None, method: str = "newton") -> Influence:
        """Moves θ to a minimum of the objective, from where it is; returns itself.

        Only for a model that was not trained to convergence: influence is exact at a minimum.

        Raises:
            ConvergenceError: the gradient norm stayed above ``tolerance``.
        """
        from influence.training import fit

        self.theta = fit(self.objective, self.theta, method, tolerance).theta
        self._set()
        return self

    @property
    def state(self) -> Any:
        """The solver's state for the operator: a factor or a preconditioner, made once."""
        if self._state is None:
            self._state = prepared(self.plan)
        return self._state

    # -- questions -----------------------------------------------------------------------------------------

    def influence_on(
        self, test: Any, k: int = 5, *, correction: str = "auto", removal: str = "objective"
    ) -> Explanation:
        """Predicted change of each test loss when each training point is removed.

        Args:
            test: ``(inputs, targets)`` or anything that the constructor takes as data; t test points.
            k: how many of the most helpful and harmful training points to name.
            correction: ``"first_order"``, ``"leverage"`` (one Newton step without each point) or ``"auto"``:
                leverage if a factor is there anyway.
            removal: the retraining that is predicted (:mod:`influence.removal`).

        Raises:
            DataError: test data of another kind, or k < 1.
            SolverError: the solve failed; the message says what to change.
        """
        checked_number("k", k, least=1, whole=True)
        objective, tests = self.objective, self.tests(test)
        correction = self._correction(correction)
        gradients = test_gradients(tests, self.theta, torch.arange(tests.n))
        solution = self.plan.solver.apply(self.state, gradients)
        t = gradients.shape[1]
        keep = objective.n * t <= _KEEP
        step = objective.n if correction == "leverage" and keep else max(1, _NUMBERS // t)
        parts: list[Tensor] = []
        helpful: list[list[Top]] = [[] for _ in range(t)]
        harmful: list[list[Top]] = [[] for _ in range(t)]
        for start in range(0, objective.n, step):
            rows = torch.arange(start, min(start + step, objective.n), device=objective.device)
            changes = self._changes(solution.value, rows, correction, removal)
            parts += [changes] if keep else []
            for j in range(t):
                helpful[j].append(highest(changes[:, j], k, rows))
                harmful[j].append(highest(-changes[:, j], k, rows))
        return Explanation(
            torch.cat(parts) if keep else None,
            [_signed(merged(tops, k), 1.0) for tops in helpful],
            [_signed(merged(tops, k), -1.0) for tops in harmful],
            solution,
            correction,
        )

    def suspects(self) -> Suspects:
        """How well every training point's own label is supported by the others.

        Raises:
            SolverError: a solve failed.
        """
        objective, theta = self.objective, self.theta
        operator, solver = self.plan.operator, self.plan.solver
        own = self.state if isinstance(solver, Exact) else None
        scores = self_influence(objective, theta, operator, solver, state=own)
        losses = objective.example_losses(theta)
        corrected = self_influence(objective, theta, operator, solver, correction="leverage")
        return Suspects(scores, losses + corrected / objective.n, losses)

    def of_group(self, group: Any, test: Any, *, removal: str = "objective") -> GroupEffect:
        """Predicted change of the test losses when the training points ``group`` are removed together.

        Args:
            group: indices, or a mask ``(n,)``.

        Raises:
            DataError: an empty group, or one that holds every point.
        """
        tests = self.tests(test)
        settings: dict[str, Any] = {"removal": removal, "operator": self.plan.operator}
        change = group_change(self.objective, self.theta, group, tests, method="newton", steps=2, **settings)
        summed = group_change(self.objective, self.theta, group, tests, method="sum", **settings)
        return GroupEffect(change, summed)

    def check(
        self, test: Any, k: int = 20, *, seed: int = 0, correction: str = "auto", tolerance: float | None = None
    ) -> Check:
        """Leaves the k most influential training points out, one at a time, and k random ones, and compares.

        Every refit starts at θ and ends with its gradient norm. The change is that of the mean test loss. If θ
        is not stationary, the actual change is counted from a refit on all points.

        Raises:
            DataError: k outside 1…n.
        """
        objective = self.objective
        checked_number("k", k, least=1, whole=True)
        tests, k = self.tests(test), min(k, objective.n)
        gradients = test_gradients(tests, self.theta, torch.arange(tests.n)).mean(1, keepdim=True)
        s_test = self.plan.solver.apply(self.state, gradients).value
        every = torch.arange(objective.n, device=objective.device)
        predicted = self._changes(s_test, every, self._correction(correction), "objective")[:, 0]
        top = torch.argsort(-predicted.abs(), stable=True)[:k]
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(objective.n, generator=generator)[:k].to(top.device)
        chosen = torch.cat([top, drawn])
        base = self._baseline(tolerance)
        factor = self.state.inverse if isinstance(self.plan.solver, Exact) else None
        refits = leave_one_out(
            objective, base, chosen, factor, tolerance or self._tolerance(), raise_on_failure=False
        )
        before = tests.example_losses(base).mean()
        actual = tests.example_losses_many(refits.thetas).mean(0) - before
        counted = refits.converged
        return Check(
            agreement(predicted[top][counted[:k]], actual[:k][counted[:k]]),
            agreement(predicted[drawn][counted[k:]], actual[k:][counted[k:]]),
            [int(i) for i in chosen],
            predicted[chosen],
            actual,
            refits.gradient_norms,
            counted,
        )

    def explain(self) -> str:
        """What was chosen and why, in a few lines."""
        objective, plan = self.objective, self.plan
        lines = [
            f"objective: {objective.n:,} training points, {objective.p:,} parameters, loss "
            f"{objective.loss.name}, l2 {objective.l2:g}",
            f"gradient norm at theta: {self.gradient_norm:.3g}",
            *plan.reasons,
        ]
        return "\n".join(lines)

    # -- parts ---------------------------------------------------------------------------------------------

    def tests(self, test: Any) -> TrainingObjective:
        """The test points as an objective of the same model and loss."""
        if isinstance(test, TrainingObjective):
            if test.p != self.objective.p:
                raise DataError(f"the test objective has {test.p} parameters, the model {self.objective.p}")
            return test
        if isinstance(test, tuple) and len(test) == 2:
            return self.objective.on(test[0], test[1])
        return self.objective.on(test, None)

    def _correction(self, asked: str) -> str:
        return ("leverage" if self.plan.factored else "first_order") if asked == "auto" else asked

    def _changes(self, s_tests: Tensor, rows: Tensor, correction: str, removal: str) -> Tensor:
        with warnings.catch_warnings():  # explain() names the gradient norm
            warnings.simplefilter("ignore", NotConvergedWarning)
            return removal_change(
                self.objective, self.theta, s_tests, rows, removal=removal, correction=correction,
                operator=self.plan.operator, solver=self.plan.solver,
            )  # fmt: skip

    def _tolerance(self) -> float:
        return 1e-8 if self.objective.dtype == torch.float64 else 1e-5

    def _baseline(self, tolerance: float | None) -> Tensor:
        """θ if it is stationary to the refits' tolerance, else the fit on all points that θ leads to."""
        wanted = tolerance or self._tolerance()
        if self.gradient_norm <= wanted:
            return self.theta
        from influence.training import fit

        return fit(self.objective, self.theta, tolerance=wanted).theta

    def warn_unless_stationary(self) -> float:
        """‖∇R(θ)‖; warns if θ is so far from a minimum that retraining moves it for other reasons too."""
        return warn_unless_stationary(self.objective, self.theta)


def _signed(top: Top, sign: float) -> Top:
    """Only the points on that side: a point that is not harmful is not listed as harmful."""
    pairs = [(i, sign * v) for i, v in zip(top.indices, top.values, strict=True) if v > 0]
    return Top([i for i, _ in pairs], [v for _, v in pairs])


def _objective(
    model: nn.Module | TrainingObjective, loss: Any, data: Any, l2: float, settings: dict[str, Any]
) -> TrainingObjective:
    if isinstance(model, TrainingObjective):
        if loss is not None or data is not None or l2 or settings:
            raise DataError("the objective brings its own loss, data, l2 and settings; pass it alone")
        return model
    if not isinstance(model, nn.Module):
        raise DataError(f"model must be a torch.nn.Module or an objective, got {type(model).__name__}")
    if loss is None or data is None:
        raise DataError("pass a loss and the training data beside the model")
    inputs, targets = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    return network_objective(model, loss, inputs, targets, l2, **settings)


__all__ = ["Damped", "Influence", "Loss"]
