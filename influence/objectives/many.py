"""Many linear models of the same data side by side, each with weights of its own.

Model j minimises ``Σ_i W_ij ℓ_i(θ_j) + (λ_j/2)‖m⊙θ_j‖²``. One pass over X serves a whole block of models, so
leaving out fifty groups costs few more passes than leaving out one.
"""

from __future__ import annotations

from torch import Tensor

from influence.objectives._base import Product
from influence.objectives.linear import LinearObjective


class ManyLinear:
    """k models on the data of ``objective``.

    Args:
        objective: gives X, the targets, the loss and the mask of λ; its own weights and λ are not used.
        weights: W ``(n, k)``, the whole weight of each example in each model, its 1/n included.
        l2: λ_j ``(k,)``.
    """

    def __init__(self, objective: LinearObjective, weights: Tensor, l2: Tensor) -> None:
        self.objective, self.weights, self.l2 = objective, weights, l2

    def of(self, columns: Tensor) -> ManyLinear:
        """The models ``columns`` alone."""
        return ManyLinear(self.objective, self.weights[:, columns], self.l2[columns])

    def _outputs(self, thetas: Tensor) -> Tensor:
        """``(p, k) -> (n·k, c)``."""
        return self.objective.output_tangents(thetas).reshape(-1, self.objective.n_outputs)

    def _targets(self) -> Tensor:
        return self.objective.targets.repeat_interleave(self.weights.shape[1], dim=0)

    def _back(self, rows: Tensor) -> Tensor:
        """``Σ_i W_ij u_ij ⊗ x_i``: ``(n, k, c) -> (p, k)``."""
        weighted = rows * self.weights[:, :, None]
        return self.objective.backward(weighted.reshape(self.objective.n, -1))

    def _penalty(self, block: Tensor) -> Tensor:
        return self.objective.l2_mask[:, None] * self.l2 * block

    def gradients(self, thetas: Tensor) -> Tensor:
        """The gradient of each model at its own θ: ``(p, k) -> (p, k)``."""
        r = self.objective.loss.output_gradient(self._outputs(thetas), self._targets())
        n, k = self.weights.shape
        return self._back(r.reshape(n, k, -1)) + self._penalty(thetas)

    def hessians_at(self, thetas: Tensor) -> Product:
        """V ↦ (H_1 v_1, …, H_k v_k), each Hessian at its own θ: ``(p, k) -> (p, k)``."""
        n, k = self.weights.shape
        curve = self.objective.loss.prepared_hessian_product(self._outputs(thetas), self._targets())

        def product(V: Tensor) -> Tensor:
            along = self.objective.output_tangents(V).reshape(n * k, 1, -1)
            return self._back(curve(along).reshape(n, k, -1)) + self._penalty(V)

        return product
