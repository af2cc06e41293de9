"""Influence functions for PyTorch: exact, fast on two cores, checked against retraining."""

from influence import _moved
from influence.answers import Explanation, GroupEffect, Suspects, Top
from influence.api import Influence
from influence.curvature.operators import Damped, Dense, GaussNewton, Hessian, Operator
from influence.curvature.spectrum import EigenReport, auto_damping, damped, eigenvalue_report
from influence.errors import (
    ConvergenceError,
    DataError,
    DeviceError,
    HighLeverageWarning,
    InfluenceError,
    NotConvergedWarning,
    NotPositiveDefiniteError,
    SolverError,
)
from influence.groups import InfluentialSet, group_change, most_influential_set
from influence.last_layer import last_layer
from influence.losses import (
    BinaryCrossEntropy,
    CallableLoss,
    CrossEntropy,
    Huber,
    Logit,
    LogOdds,
    Loss,
    Margin,
    Output,
    Poisson,
    Probability,
    SquaredError,
    TokenCrossEntropy,
    get_loss,
)
from influence.objectives.linear import LinearObjective
from influence.objectives.module import Objective
from influence.objectives.sequential import network_objective
from influence.picks import HighestLoss, Labelled, LowestMargin
from influence.removal import TrainingGradient
from influence.retraining.groups import leave_groups_out
from influence.retraining.leave_one_out import Retrained, leave_one_out
from influence.scores import (
    pert_loss,
    pert_params,
    predicted_change,
    removal_change,
    s_test,
    self_influence,
    test_gradients,
    up_loss,
    up_params,
    verified_self_influence,
)
from influence.solvers import CG, Exact, LiSSA, Solution, Solver, Status
from influence.training import Certificate, Fit, fit

_moved.install()

__version__ = "0.1.0"

__all__ = [
    "CG",
    "BinaryCrossEntropy",
    "CallableLoss",
    "Certificate",
    "ConvergenceError",
    "CrossEntropy",
    "Damped",
    "DataError",
    "Dense",
    "DeviceError",
    "EigenReport",
    "Exact",
    "Explanation",
    "Fit",
    "GaussNewton",
    "GroupEffect",
    "Hessian",
    "HighLeverageWarning",
    "HighestLoss",
    "Huber",
    "Influence",
    "InfluenceError",
    "InfluentialSet",
    "Labelled",
    "LiSSA",
    "LinearObjective",
    "LogOdds",
    "Logit",
    "Loss",
    "LowestMargin",
    "Margin",
    "NotConvergedWarning",
    "NotPositiveDefiniteError",
    "Objective",
    "Operator",
    "Output",
    "Poisson",
    "Probability",
    "Retrained",
    "Solution",
    "Solver",
    "SolverError",
    "SquaredError",
    "Status",
    "Suspects",
    "TokenCrossEntropy",
    "Top",
    "TrainingGradient",
    "auto_damping",
    "damped",
    "eigenvalue_report",
    "fit",
    "get_loss",
    "group_change",
    "last_layer",
    "leave_groups_out",
    "leave_one_out",
    "most_influential_set",
    "network_objective",
    "pert_loss",
    "pert_params",
    "predicted_change",
    "removal_change",
    "s_test",
    "self_influence",
    "test_gradients",
    "up_loss",
    "up_params",
    "verified_self_influence",
]
