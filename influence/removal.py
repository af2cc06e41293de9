"""The convention of removal, stated once: what happens to λ when a training point is taken out.

The objective is ``(1/n) Σ w_j ℓ_j + (λ/2)‖m⊙θ‖²``. Two retrainings without point i are possible:

- ``"objective"``: ``(1/(n−1)) Σ_{j≠i} w_j ℓ_j + (λ/2)‖m⊙θ‖²``. λ stays relative to the mean loss.
- ``"loss"``: ``(1/n) Σ_{j≠i} w_j ℓ_j + (λ/2)‖m⊙θ‖²``. λ stays relative to the sum of the losses.

``"objective"`` is the default of every call here and in :mod:`influence.retraining`. To use the other one,
name it in the prediction and in the retraining. :func:`influence.scores.removal_change` predicts in one call.
A removed point takes its weight ``w_i`` with it, in every prediction and in every retraining.
"""

from __future__ import annotations

import enum

from influence.errors import DataError


class TrainingGradient(enum.StrEnum):
    """Which gradient of the removed point enters, that is, which retraining is predicted.

    LOSS: ``w∇L(z)``. Removal leaves ``(1/n) Σ_{j≠i} w_j L_j + (λ/2)‖θ‖²``; the first-order change of θ is
        ``H⁻¹ w∇L(z)/n``. The paper's formula.
    OBJECTIVE: ``w∇L(z) + λθ̂``. Removal leaves ``(1/(n−1)) Σ_{j≠i} w_j L_j + (λ/2)‖θ‖²``, λ relative to the
        mean loss; the first-order change of θ is ``H⁻¹(w∇L(z) + λθ̂)/(n−1)``. The authors' released code,
        the protocol of ``leave_one_out``, and the default of every call.

    >>> TrainingGradient("loss") is TrainingGradient.LOSS
    True
    """

    LOSS = "loss"
    OBJECTIVE = "objective"


def removal_kind(training_gradient: TrainingGradient | str) -> TrainingGradient:
    """The convention of that name.

    Raises:
        DataError: an unknown name.
    """
    try:
        return TrainingGradient(training_gradient)
    except ValueError:
        known = " or ".join(repr(kind.value) for kind in TrainingGradient)
        raise DataError(f"the convention of removal must be {known}, got {training_gradient!r}") from None
