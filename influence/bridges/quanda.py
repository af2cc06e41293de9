"""An explainer for quanda: its metrics and benchmarks then judge this library's influence.

    from influence.bridges.quanda import InfluenceExplainer
    explainer = InfluenceExplainer(model, train_dataset, l2=1e-3)
    explainer.explain(test_images, test_labels)                         # (t, n), positive: helpful
    metric = MislabelingDetectionMetric(..., explainer_cls=InfluenceExplainer, expl_kwargs={"l2": 1e-3})

Importing this module imports quanda, if it is there. Checked against quanda 0.5.0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from influence.api import Influence
from influence.bridges._scores import changes_on, own_changes
from influence.errors import DataError
from influence.objectives.penalties import Penalty

_missing: ImportError | None = None
try:
    from quanda.explainers.base import Explainer
except ImportError as error:  # said when the class is used: its page in the reference needs no quanda
    _missing, Explainer = error, object


class InfluenceExplainer(Explainer):  # type: ignore[misc]  # quanda is not installed where types are checked
    """Influence of every training point on the loss of test points at given labels.

    Args:
        model: the trained network. A copy in evaluation mode is explained.
        train_dataset: a map-style Dataset of pairs ``(input, label)``, those that it was trained on.
        task: ``"image_classification"``, which is the only one accepted.
        checkpoints: file or files with the trained weights; the last one is explained.
        checkpoints_load_func: how quanda is to load them.
        loss, l2, settings: as for :class:`~influence.api.Influence`: what was minimised, and the choice of
            curvature, damping and solver.
        loss: its name.
        l2: λ of ``(λ/2)‖θ‖²`` beside the mean loss.
        correction: ``"first_order"``, or ``"leverage"``: one Newton step without each point.

    Raises:
        ImportError: quanda is not installed.
        DataError: data, labels or settings that no objective can be built on.
    """

    accepted_tasks: ClassVar[list[str]] = ["image_classification"]

    def __init__(
        self,
        model: nn.Module,
        train_dataset: Any,
        task: str = "image_classification",
        checkpoints: str | list[str] | None = None,
        checkpoints_load_func: Callable[..., Any] | None = None,
        *,
        loss: Any = "cross_entropy",
        l2: Penalty = 0.0,
        correction: str = "first_order",
        **settings: Any,
    ) -> None:
        if _missing is not None:
            raise ImportError(f"quanda cannot be imported ({_missing}): pip install quanda") from _missing
        super().__init__(model, train_dataset, task, checkpoints, checkpoints_load_func)
        if self.checkpoints:
            self.load_last_checkpoint()
        network = copy.deepcopy(self.model).eval()
        self.influence = Influence(network, loss, self.train_dataset, l2, **settings)
        self.correction = correction

    def explain(self, test_data: Tensor, targets: list[int] | Tensor) -> Tensor:
        """Predicted change of each test point's loss when each training point is removed.

        Args:
            test_data: ``(t, ...)`` inputs.
            targets: ``(t,)`` labels at which the loss is taken.

        Returns:
            ``(t, n)`` in nats; positive means helpful, as quanda's metrics take it.

        Raises:
            DataError: no test point, or as many labels as there are not test points.
            SolverError: the solve failed.
        """
        labels = torch.as_tensor(targets, device=test_data.device)
        if len(test_data) == 0 or labels.shape != (len(test_data),):
            raise DataError(
                f"test_data has {len(test_data)} points and targets the shape {tuple(labels.shape)}; pass at "
                "least one point, and one label for each"
            )
        found = changes_on(self.influence, test_data, labels, correction=self.correction)
        return found.T.to(self.device)

    def self_influence(self, batch_size: int = 32) -> Tensor:  # noqa: ARG002  # quanda's signature
        """Predicted change of each training point's own loss when it is removed: ``(n,)``, in nats.

        All come from one factor or from blocks of solves, so ``batch_size`` changes nothing here.
        """
        return own_changes(self.influence, self.correction).to(self.device)
