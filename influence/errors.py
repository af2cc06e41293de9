"""Every error the numerical core raises, so that a caller can catch one base class.

Each message is one sentence that names the cause and the remedy.
"""

from __future__ import annotations


class InfluenceError(Exception):
    """Base class of everything the core raises on purpose.

    >>> import torch
    >>> from influence import LinearObjective
    >>> try:
    ...     LinearObjective(torch.ones(3, 2), torch.tensor([0, 1, 2]), "logistic", 0.1)
    ... except InfluenceError as error:
    ...     print(type(error).__name__)
    DataError
    """


class DataError(InfluenceError, ValueError):
    """Inputs or targets that no objective can be built on (NaN, wrong label, wrong shape, too few rows).

    >>> import torch
    >>> from influence import Dense
    >>> Dense(torch.ones(2, 3))
    Traceback (most recent call last):
    influence.errors.DataError: a dense operator needs a square matrix, got shape (2, 3)
    """


class DeviceError(InfluenceError, ValueError):
    """Tensors on different devices, or of different dtypes, met in one computation.

    >>> import torch
    >>> from influence import Dense
    >>> Dense(torch.eye(2)) @ torch.ones(2, device="meta")
    Traceback (most recent call last):
    influence.errors.DeviceError: operator is on cpu but the block on meta; move one of them
    """


class ConvergenceError(InfluenceError, RuntimeError):
    """A fit or a retraining ended before its gradient norm reached the tolerance.

    >>> import torch
    >>> from influence import LinearObjective, fit
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> train = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2=0.1)
    >>> try:
    ...     fit(train, tolerance=1e-300)
    ... except ConvergenceError as error:
    ...     print("newton" in str(error))
    True
    """


class SolverError(InfluenceError, RuntimeError):
    """A linear solve ended without a solution; the message carries the solver's advice.

    >>> import torch
    >>> from influence import CG, Dense
    >>> operator = Dense(torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64)))
    >>> try:
    ...     CG(max_iterations=1).solve(operator, torch.ones(8, 1, dtype=torch.float64))
    ... except SolverError as error:
    ...     print("max_iterations" in str(error))
    True
    """


class NotPositiveDefiniteError(SolverError):
    """The operator is singular or indefinite, so that H⁻¹v means nothing without more damping.

    >>> import torch
    >>> from influence import Dense, Exact
    >>> try:
    ...     Exact().prepare(Dense(torch.diag(torch.tensor([-1.0, 2.0], dtype=torch.float64))))
    ... except NotPositiveDefiniteError as error:
    ...     print("smallest eigenvalue -1" in str(error))
    True
    """


class DistributedError(InfluenceError, RuntimeError):
    """Another rank of a distributed job died, hung, or disagreed, so that no collective can end."""


class NotConvergedWarning(UserWarning):
    """A solve or fit stopped early and its caller chose to go on (``raise_on_failure=False``).

    >>> import warnings
    >>> import torch
    >>> from influence import CG, Dense
    >>> operator = Dense(torch.diag(torch.arange(1.0, 9.0).double()))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     solution = CG(max_iterations=1, raise_on_failure=False).solve(operator, torch.ones(8, 1).double())
    >>> caught[0].category.__name__, solution.status.name == "CONVERGED"
    ('NotConvergedWarning', False)
    """


class HighLeverageWarning(UserWarning):
    """One Newton step without a point may overshoot: nearly all of its curvature is the point's own.

    >>> import warnings
    >>> import torch
    >>> from influence import Hessian, LinearObjective, fit, self_influence
    >>> X = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> train = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2=1e-6)
    >>> theta = fit(train).theta
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     scores = self_influence(train, theta, Hessian(train, theta), correction="leverage")
    >>> caught[0].category.__name__
    'HighLeverageWarning'
    """
