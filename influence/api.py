"""The front door: from a trained model and its training data to answers, every choice explained.

    influence = Influence(model, "cross_entropy", train, l2=0.01)
    print(influence.influence_on(test))             # the training points that helped, and those that harmed
    print(influence.suspects().top(20))             # training points whose label looks wrong
    print(influence.check(test))                    # leaves the top ones out for real, and compares
    print(influence.explain())                      # what was chosen, and why

Each method calls :mod:`influence.scores`, :mod:`influence.groups` or :mod:`influence.evaluation` on the
attributes ``objective``, ``theta`` and ``plan``, so nothing below is out of reach.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from influence.answers import (
    Explanation,
    GroupEffect,
    Suspects,
    Top,
    asked_words,
    highest,
    merged,
    signed,
)
from influence.checks import checked_number
from influence.choices import Plan, make_plan, prepared
from influence.curvature.operators import Damped, GaussNewton, Operator
from influence.errors import DataError, NotConvergedWarning, NotPositiveDefiniteError
from influence.evaluation.retraining import Check, check_by_retraining
from influence.groups import group_change
from influence.losses import QUANTITIES, Asked, Asking, Quantity, get_quantity
from influence.objectives._base import TrainingObjective
from influence.objectives.built import objective_of
from influence.objectives.inputs import has_targets, raw_length
from influence.objectives.penalties import Penalty
from influence.picks import Labelled, Which, picked
from influence.removal import TrainingGradient, removal_kind
from influence.scores import (
    mean_test_gradient,
    removal_change,
    self_influence,
    test_gradients,
    warn_unless_stationary,
)
from influence.solvers import Exact, Solver
from influence.training import fit

_NUMBERS = 2**22  # scores (training points × test points) computed at a time
_REMOVAL = {
    TrainingGradient.OBJECTIVE: "the model is fitted again with l2 relative to the mean loss of n - 1 points",
    TrainingGradient.LOSS: "the model is fitted again with l2 relative to the sum of the losses",
}
_KEEP = 2 * 10**7  # scores kept whole; beyond that only the most helpful and harmful points are kept


class Influence:
    """Influence of training points on a trained model's predictions.

    Args:
        model: the trained ``torch.nn.Module``, or an objective, which then brings loss, data and λ.
        loss: its name, a :class:`~influence.losses.Loss`, an ``nn`` loss module or a function.
        data: the training data: ``(inputs, targets)``; a Dataset, a DataLoader in a fixed order, a list of
            pairs or mappings; or a mapping in which the targets are called "labels".
        l2: λ of ``(λ/2)‖θ‖²`` beside the *mean* loss, as the model was trained (weight decay); or a mapping
            of parameter names or patterns to λ, such as ``{"body.*": 1e-3, "head.*": 0}``.
        theta: ``(p,)`` parameters at which influence is taken; the model's own by default.
        curvature: ``"hessian"``, ``"gauss_newton"`` or ``"auto"``.
        damping: δ ≥ 0 of ``H + δI``, or ``"auto"``: as much as the operator needs to be positive definite.
        removal: ``"objective"`` or ``"loss"``: what happens to λ when a point goes (:mod:`.removal`).
        solver: ``"exact"``, ``"cg"``, a :class:`~influence.solvers.Solver`, or ``"auto"``.
        stream: read a Dataset or DataLoader batch by batch in every pass instead of holding it: memory is
            then bounded by ``batch_size``, whatever n is.
        **settings: of the objective: ``parameters`` (which of them are θ: names, patterns, ``"last"`` or a
            rule), ``l2_parameters``, ``batch_size``, ``dtype``, ``weights``, ``output``.

    Raises:
        DataError: data, targets or settings that no objective can be built on.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2).double()
    >>> x, y = torch.randn(40, 3, dtype=torch.float64), torch.randint(2, (40,))
    >>> influence = Influence(model, "cross_entropy", (x, y), l2=0.1).fitted()
    >>> found = influence.influence_on((x[:1], y[:1]), k=3)
    >>> len(found.helpful[0]), found.solution.status.value
    (3, 'converged')
    """

    def __init__(
        self,
        model: nn.Module | TrainingObjective,
        loss: Any = None,
        data: Any = None,
        l2: Penalty = 0.0,
        *,
        theta: Any = None,
        curvature: str = "auto",
        damping: float | str = "auto",
        solver: str | Solver = "auto",
        removal: str = "objective",
        stream: bool = False,
        **settings: Any,
    ) -> None:
        self.objective = objective_of(model, loss, data, l2, settings, stream)
        self.theta = self.objective.initial() if theta is None else self.objective.vector(theta)
        self.removal = removal_kind(removal)
        self._asked = (curvature, damping, solver)
        self._set()

    def _set(self) -> None:
        self.gradient_norm = float(self.objective.gradient(self.theta).norm())
        losses = self.objective.example_losses(self.theta)
        bad = (~torch.isfinite(losses)).nonzero()[:1, 0].tolist()
        if bad or not math.isfinite(self.gradient_norm):
            where = f"the loss of training point {bad[0]}" if bad else "the training gradient"
            raise DataError(
                f"{where} is NaN or infinite at theta; look at that point, or at a log, a root or "
                "a division in the model"
            )
        self.plan: Plan = make_plan(self.objective, self.theta, *self._asked)
        self._state: Any = None

    def fitted(self, tolerance: float | None = None, method: str = "newton") -> Influence:
        """Moves θ to a minimum of the objective, from where it is, and returns this object.

        Only for a model that was not trained to convergence: influence is exact at a minimum.

        Raises:
            ConvergenceError: the gradient norm stayed above ``tolerance``.
        """
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
        self,
        test: Any,
        k: int = 5,
        *,
        of: Asking = "loss",
        which: Which = None,
        mean: bool = False,
        correction: str = "auto",
        removal: str | None = None,
    ) -> Explanation:
        """Predicted change of each test loss, or of another quantity, when each training point is removed.

        Args:
            test: ``(inputs, targets)`` or anything that the constructor takes as data; t test points.
            k: how many of the most helpful and harmful training points to name.
            of: what is asked: ``"loss"``; ``"margin"``, ``"log_odds"``, ``"logit"`` or ``"probability"`` of
                the target's class; ``Margin(c)``, ``LogOdds(c)``, ``Logit(c)``, ``Probability(c)`` of the
                class c or ``Output(j)``, for which targets may be None; another loss; or a function
                ``(outputs, targets) -> (m,)`` that autograd differentiates.
            which: which of the test points: ``"misclassified"``, ``"correct"``, ``HighestLoss(k)``,
                ``LowestMargin(k)``, ``Labelled(c)``, indices, a mask, or a function ``(outputs, targets) ->
                mask``; all of them by default.
            mean: ask for the mean over the test points instead of each one.
            correction: ``"first_order"``, ``"leverage"`` (one Newton step without each point) or ``"auto"``:
                leverage if a factor is there anyway.
            removal: another convention than that of this object.

        Raises:
            DataError: test data of another kind, k < 1, a quantity without meaning here, or a rule that
                chooses no point.
            SolverError: the solve failed; the message says what to change.
        """
        checked_number("k", k, least=1, whole=True)
        objective = self.objective
        tests, places = self._chosen(test, of, which)
        correction = self._correction(correction)
        gradients = self._gradients(tests, mean)
        values = tests.example_losses(self.theta)
        solution = self.plan.solver.apply(self.state, gradients)
        t = gradients.shape[1]
        keep = objective.n * t <= _KEEP
        step = objective.n if correction == "leverage" and keep else max(1, _NUMBERS // t)
        parts: list[Tensor] = []
        helpful: list[list[Top]] = [[] for _ in range(t)]  # those of a loss
        harmful: list[list[Top]] = [[] for _ in range(t)]
        for start in range(0, objective.n, step):
            rows = torch.arange(start, min(start + step, objective.n), device=objective.device)
            changes = self._changes(solution.value, rows, correction, removal or self.removal)
            parts += [changes] if keep else []
            for j in range(t):
                helpful[j].append(highest(changes[:, j], k, rows))
                harmful[j].append(highest(-changes[:, j], k, rows))
        raising = [signed(merged(tops, k), 1.0) for tops in helpful]
        lowering = [signed(merged(tops, k), -1.0) for tops in harmful]
        is_loss = not isinstance(tests.loss, Asked)
        return Explanation(
            torch.cat(parts) if keep else None,
            raising if is_loss else lowering,
            lowering if is_loss else raising,
            solution,
            correction,
            asked_words(tests.loss, of, mean),
            values.mean()[None] if mean else values,
            is_loss,
            places.tolist(),
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

    def of_group(
        self, group: Any, test: Any, *, of: Asking = "loss", which: Which = None, mean: bool = False
    ) -> GroupEffect:
        """Predicted change of the test losses when the training points ``group`` are removed together.

        Args:
            group: indices, or a mask ``(n,)``.
            test, of, which, mean: as for :meth:`influence_on`.
            test: test points.
            of: what is asked of them.
            which: which of them.
            mean: ask for the mean over them.

        Raises:
            DataError: an empty group, or one that holds every point.
        """
        tests = self.tests(test, of, which)
        operator = self.plan.operator

        def change(method: str, operator: Operator, steps: int = 1) -> Tensor:
            changes = group_change(
                self.objective, self.theta, group, tests, method=method, removal=self.removal,
                operator=operator, steps=steps,
            )  # fmt: skip
            return changes.mean()[None] if mean else changes

        summed = change("sum", operator)
        try:
            return GroupEffect(change("newton", operator, 2), summed, "two Newton steps")
        except NotPositiveDefiniteError:  # a network without the group: its own Hessian may be indefinite
            convex: Operator = GaussNewton(self.objective, self.theta)
            convex = Damped(convex, self.plan.damping) if self.plan.damping else convex
            return GroupEffect(change("newton", convex), summed, "one Gauss-Newton step")

    def check(
        self,
        test: Any,
        k: int = 20,
        *,
        of: Asking = "loss",
        which: Which = None,
        mean: bool = False,
        index: int = 0,
        seed: int = 0,
        correction: str = "auto",
        tolerance: float | None = None,
    ) -> Check:
        """Leaves the k most influential training points out for real, one at a time, and k random ones.

        Every refit starts at θ and ends with its gradient norm. If θ is not stationary, the changes are
        counted from the minimum that θ leads to, because retraining goes there whatever is removed.

        Args:
            test: as for :meth:`influence_on`; ``index`` names the test point.
            k: how many points.
            of: what is asked, as for :meth:`influence_on`; the retrained models are asked the same.
            which: which of the test points, as for :meth:`influence_on`.
            mean: compare the mean over all test points instead of one.
            index: position of the test point among those that ``which`` chooses.
            seed: draws the random points.
            correction: ``"first_order"`` or ``"leverage"``.
            tolerance: gradient norm of the refits; 1e-8 in float64 and 1e-5 in float32 by default.

        Raises:
            DataError: k below 3, 2k above n, an index that does not exist, or one beside ``mean``.
        """
        tests = self.tests(test, of, which)
        if mean and index:
            raise DataError("index names one test point and mean=True takes all of them; pass one of the two")
        place = None if mean else int(tests.index([index])[0])
        gradient = self._gradients(tests, mean, place)
        s_test = self.plan.solver.apply(self.state, gradient).value
        every = torch.arange(self.objective.n, device=self.objective.device)
        predicted = self._changes(s_test, every, self._correction(correction), self.removal)[:, 0]
        wanted = tolerance or (1e-8 if self.objective.dtype == torch.float64 else 1e-5)
        base = self.theta if self.gradient_norm <= wanted else self._minimum(wanted)
        return check_by_retraining(
            self.objective,
            base,
            tests,
            place,
            predicted,
            k,
            k,
            seed=seed,
            removal=self.removal,
            tolerance=wanted,
        )

    def explain(self) -> str:
        """What was chosen and why, in a few lines."""
        objective, plan = self.objective, self.plan
        lines = [
            f"objective: {objective.n:,} training points, {objective.p:,} parameters, loss "
            f"{objective.loss.name}, {objective.penalty_words()}",
            *(words for words in (objective.reading_words(), objective.fixed_words()) if words),
            f"gradient norm at theta: {self.gradient_norm:.3g}",
            *plan.reasons,
            f"removal: {_REMOVAL[self.removal]}",
        ]
        return "\n".join(lines)

    # -- parts ---------------------------------------------------------------------------------------------

    def tests(self, test: Any, of: Asking = "loss", which: Which = None) -> TrainingObjective:
        """The test points as an objective of the same model, with what is asked in place of the loss.

        Args:
            test: as for :meth:`influence_on`.
            of: what is asked, as for :meth:`influence_on`.
            which: which of them, as for :meth:`influence_on`.

        Raises:
            DataError: test data of another kind, a quantity without meaning here, or a rule that chooses no
                point.
        """
        return self._chosen(test, of, which)[0]

    def _chosen(self, test: Any, of: Asking, which: Which) -> tuple[TrainingObjective, Tensor]:
        """The chosen test points, asked, and their positions."""
        of = self._encoded(QUANTITIES[of]() if isinstance(of, str) and of in QUANTITIES else of)
        tests, labelled = self._given(test, of)
        places = torch.arange(tests.n)
        if which is not None:
            if isinstance(which, Labelled):
                which = replace(which, label=self._code(which.label))
            chosen = picked(tests, self.theta, which, labelled)
            tests, places = tests.subset(chosen), chosen.cpu()
        return tests.asking(of, self.theta), places

    def _given(self, test: Any, of: Asking) -> tuple[TrainingObjective, bool]:
        """The test points with their loss, and whether their targets are their own."""
        if isinstance(test, TrainingObjective):
            if test.p != self.objective.p:
                raise DataError(f"the test objective has {test.p} parameters, the model {self.objective.p}")
            return test, True
        inputs, targets = test if isinstance(test, tuple) and len(test) == 2 else (test, None)
        unlabelled = targets is None and isinstance(of, Quantity) and not has_targets(inputs)
        if unlabelled:
            objective = self.objective
            unlabelled = not get_quantity(of, objective.loss, objective.n_outputs, ()).needs_targets
        if unlabelled:  # any target that the loss can take: it does not enter
            one = self.objective.targets[:1]
            return self._points(inputs, one.repeat(raw_length(inputs), *[1] * (one.ndim - 1))), False
        return self._points(inputs, self._labels(targets)), True

    def _points(self, inputs: Any, targets: Any) -> TrainingObjective:
        """The test points with their loss."""
        return self.objective.on(inputs, targets)

    def _labels(self, targets: Any) -> Any:
        """Targets as the objective knows them."""
        return targets

    def _encoded(self, of: Asking) -> Asking:
        """What is asked, with classes named as the objective names them."""
        return of

    def _code(self, label: Any) -> Any:
        """A class as the targets name it."""
        return label

    def _gradients(self, tests: TrainingObjective, mean: bool, index: int | None = None) -> Tensor:
        """Gradients of what is asked, ``(p, t)``: of each test point, of one, or of their mean.

        No training moves θ along undetermined directions, so they are left out.
        """
        if mean:
            found = mean_test_gradient(tests, self.theta)
        else:
            found = test_gradients(tests, self.theta, torch.arange(tests.n) if index is None else [index])
        still = self.objective.undetermined()
        return found if still is None else found - still @ (still.T @ found)

    def _correction(self, asked: str) -> str:
        return ("leverage" if self.plan.factored else "first_order") if asked == "auto" else asked

    def _changes(self, s_tests: Tensor, rows: Tensor, correction: str, removal: str) -> Tensor:
        with warnings.catch_warnings():  # explain() names the gradient norm
            warnings.simplefilter("ignore", NotConvergedWarning)
            return removal_change(
                self.objective, self.theta, s_tests, rows, removal=removal, correction=correction,
                operator=self.plan.operator, solver=self.plan.solver,
            )  # fmt: skip

    def _minimum(self, tolerance: float) -> Tensor:
        return fit(self.objective, self.theta, tolerance=tolerance).theta

    def warn_unless_stationary(self) -> float:
        """‖∇R(θ)‖; warns if θ is so far from a minimum that retraining moves it for other reasons too."""
        return warn_unless_stationary(self.objective, self.theta)
