"""scikit-learn: leave-one-out by refitting, the yardstick of the retrainings (no influence library has them).

Best-known settings: X as CSR in float64, each refit warm-started at the full fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from experiments.benchmark.harness import Adapter, Problem, Work, serve


def refits(problem: Problem) -> Work:
    """A few refits by scikit-learn without one point each, warm-started: change of the test loss (m,)."""
    from sklearn.linear_model import LogisticRegression

    X = sp.csr_matrix(problem.X.numpy())
    removed = np.load(problem.folder / "removed.npy")[: problem.options["removed"]]
    few, W = (
        int(problem.options["measured"]),
        problem.theta.reshape(int(problem.facts["classes"]), -1).numpy(),
    )
    y, xt, yt = problem.y.numpy(), problem.test_X[:1].numpy(), int(problem.test_y[0])

    def test_loss(weights: np.ndarray) -> float:
        return float(-torch.log_softmax(torch.from_numpy(xt @ weights.T), 1)[0, yt])

    def work() -> tuple[np.ndarray, dict[str, Any]]:
        changes = []
        for index in removed[:few]:
            keep = np.arange(len(y)) != index
            model = LogisticRegression(
                C=1 / ((len(y) - 1) * problem.l2), fit_intercept=False, solver=problem.options["solver"],
                tol=problem.options["tolerance"], max_iter=1000, warm_start=True,
            )  # fmt: skip
            model.coef_, model.intercept_, model.classes_ = W.copy(), np.zeros(len(W)), np.unique(y)
            changes.append(test_loss(model.fit(X[keep], y[keep]).coef_) - test_loss(W))
        return np.array(changes), {"done_of": [few, len(removed)]}

    return work


def load() -> dict[str, Adapter]:
    """The methods of this adapter."""
    return {"refits": refits}


if __name__ == "__main__":
    serve(load)
