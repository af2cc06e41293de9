"""Influence functions for PyTorch: exact, fast on two cores, checked against retraining (Koh & Liang, 2017)."""

from influence.errors import (
    ConvergenceError,
    DataError,
    DeviceError,
    InfluenceError,
    NotConvergedWarning,
    NotPositiveDefiniteError,
    SolverError,
)
from influence.losses import Loss, get_loss

__all__ = [
    "ConvergenceError",
    "DataError",
    "DeviceError",
    "InfluenceError",
    "Loss",
    "NotConvergedWarning",
    "NotPositiveDefiniteError",
    "SolverError",
    "get_loss",
]
