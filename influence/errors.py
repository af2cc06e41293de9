"""Every error the numerical core raises, so that a caller can catch one base class.

Each message is one sentence that names the cause and the remedy.
"""

from __future__ import annotations


class InfluenceError(Exception):
    """Base class of everything the core raises on purpose."""


class DataError(InfluenceError, ValueError):
    """Inputs or targets that no objective can be built on (NaN, wrong label, wrong shape, too few rows)."""


class DeviceError(InfluenceError, ValueError):
    """Tensors on different devices, or of different dtypes, met in one computation."""


class ConvergenceError(InfluenceError, RuntimeError):
    """A fit or a retraining ended before its gradient norm reached the tolerance."""


class SolverError(InfluenceError, RuntimeError):
    """A linear solve ended without a solution; the message carries the solver's advice."""


class NotPositiveDefiniteError(SolverError):
    """The operator is singular or indefinite, so that H⁻¹v means nothing without more damping."""


class DistributedError(InfluenceError, RuntimeError):
    """Another rank of a distributed job died, hung, or disagreed, so that no collective can end."""


class NotConvergedWarning(UserWarning):
    """A solve or fit stopped early and its caller chose to go on (``raise_on_failure=False``)."""
