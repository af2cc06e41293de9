"""Fitted parameters with their certificate. A :class:`Fit` is taken wherever θ is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Certificate:
    """How a fit ended.

    Attributes:
        method: newton, lbfgs or adam.
        gradient_norm: ‖∇value(θ)‖₂ at the returned θ, recomputed on all data.
        value: the objective there, in nats.
        iterations: outer iterations (Newton, L-BFGS) or steps (Adam).
        converged: gradient_norm ≤ tolerance.
        tolerance: what was asked for.
        seconds: wall time; not part of any record that must repeat byte for byte.

    >>> import torch
    >>> from influence import LinearObjective, fit
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> train = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2=0.1)
    >>> certificate = fit(train).certificate
    >>> certificate.method, certificate.converged, certificate.gradient_norm <= certificate.tolerance
    ('newton', True, True)
    """

    method: str
    gradient_norm: float
    value: float
    iterations: int
    converged: bool
    tolerance: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything but the wall time, so that equal runs give equal records."""
        return {key: value for key, value in asdict(self).items() if key != "seconds"}


@dataclass(frozen=True)
class Fit:
    """Fitted parameters ``theta (p,)`` and their certificate.

    >>> import torch
    >>> from influence import LinearObjective, fit
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> train = LinearObjective(X, torch.tensor([-1, 1, 1, -1]), "logistic", l2=0.1)
    >>> found = fit(train, tolerance=1e-10)
    >>> tuple(found.theta.shape), float(train.gradient(found.theta).norm()) <= 1e-10
    ((2,), True)
    """

    theta: Tensor
    certificate: Certificate
