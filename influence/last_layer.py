"""The last layer of a large network in closed form: everything below it is held fixed and run once.

    influence = last_layer(network, x, y, "cross_entropy", l2=1e-4)
    print(influence.influence_on((x_test, y_test)))

The features that reach the last ``nn.Linear`` become the inputs of a linear model whose parameters are
that layer's. Influence is then exact for retraining *that layer alone*: what a training point did to the
layers below is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from influence.api import Influence
from influence.checks import checked_number
from influence.errors import DataError
from influence.losses import LossLike
from influence.objectives._base import TrainingObjective
from influence.objectives.linear import LinearObjective

_AGREE = 1e-3  # relative: outputs of the network and of the layer on its features


def last_layer(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: LossLike,
    l2: float,
    *,
    layer: str | None = None,
    l2_parameters: str = "weights",
    batch_size: int = 256,
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> LastLayerInfluence:
    """Influence through the last linear layer of ``model``, at its own parameters.

    Args:
        model: run in evaluation mode, without gradients; its mode is restored.
        inputs: ``(n, ...)``, or a DataLoader in a fixed order that yields ``(inputs, targets)``; then
            ``targets`` is None.
        targets: ``(n,)`` as the loss takes them.
        loss: as for :func:`~influence.losses.get_loss`.
        l2: λ of the penalty on this layer.
        layer: its name in ``model.named_modules()``; by default the last ``nn.Linear``.
        l2_parameters: ``"weights"`` leaves the bias without penalty, ``"all"`` penalises it too.
        batch_size: examples that the network sees at a time.
        dtype: of the features and of all that follows.
        settings: ``curvature``, ``damping``, ``solver``, ``removal`` of :class:`~influence.api.Influence`.

    Raises:
        DataError: no linear layer, a layer whose outputs the model changes afterwards, or features that are
            no vector per example.

    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> x, y = torch.randn(30, 4), torch.randint(3, (30,))
    >>> last_layer(network, x, y, "cross_entropy", 0.1).objective.p
    27
    """
    checked_number("batch_size", batch_size, least=1, whole=True)
    if l2_parameters not in ("weights", "all"):
        raise DataError(f"l2_parameters must be 'weights' or 'all', got {l2_parameters!r}")
    name, linear = _chosen(model, layer)
    body = Body(
        model, linear, name, int(batch_size), l2_parameters == "all" and linear.bias is not None, dtype
    )
    features, labels = body.features(inputs, targets)
    free = linear.bias is not None and l2_parameters == "weights"
    objective = LinearObjective(
        features, labels, loss, l2, n_outputs=linear.out_features, dtype=dtype, intercept=free
    )
    if objective.n_outputs != linear.out_features:
        raise DataError(
            f"{name} has {linear.out_features} outputs but the loss {objective.loss.name} needs 1"
        )
    weights: Tensor = linear.weight.detach().to(dtype).cpu()
    bias: Tensor | None = None if linear.bias is None else linear.bias.detach().to(dtype).cpu()
    if bias is not None and not free:
        weights, bias = torch.cat([weights, bias[:, None]], dim=1), None
    found = LastLayerInfluence(objective, theta=objective.theta_of(weights, bias), **settings)
    found.body = body
    return found


class LastLayerInfluence(Influence):
    """:class:`~influence.api.Influence` whose test points are inputs of the whole network."""

    body: Body

    def _points(self, inputs: Any, targets: Any) -> TrainingObjective:
        """The test points after the fixed layers."""
        features, labels = self.body.features(inputs, targets)
        return self.objective.on(features, labels)

    def explain(self) -> str:
        """What was chosen and why, in a few lines."""
        return f"{super().explain()}\nonly {self.body.name} is retrained: everything below it is held fixed"


class Body:
    """The network below its last layer."""

    def __init__(
        self, model: nn.Module, linear: nn.Linear, name: str, batch_size: int, ones: bool, dtype: torch.dtype
    ) -> None:
        self.model, self.linear, self.name = model, linear, name
        self.batch_size, self.ones, self.dtype = batch_size, ones, dtype

    def features(self, inputs: Any, targets: Any) -> tuple[Tensor, Any]:
        """What reaches the last layer, ``(n, d)``, and the targets.

        Raises:
            DataError: the layer is not the last one, or its inputs are no vector per example.
        """
        parts: list[Tensor] = []
        labels: list[Any] = []
        seen: list[Tensor] = []
        handle = self.linear.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                for batch, y in self._batches(inputs):
                    seen.clear()
                    outputs = self.model(batch)
                    parts.append(self._checked(seen, outputs, len(batch)))
                    labels.append(y)
        finally:
            handle.remove()
            self.model.train(training)
        if not parts:
            raise DataError("there are no examples; pass at least one")
        features = torch.cat(parts)
        if self.ones:
            features = torch.cat([features, torch.ones_like(features[:, :1])], dim=1)
        known = [torch.as_tensor(y) for y in labels if y is not None]
        return features, torch.cat(known).cpu() if known else targets

    def _batches(self, inputs: Any) -> Iterator[tuple[Tensor, Any]]:
        device = self.linear.weight.device
        if isinstance(inputs, torch.utils.data.DataLoader):
            if isinstance(inputs.sampler, torch.utils.data.RandomSampler) or inputs.drop_last:
                raise DataError(
                    "the DataLoader shuffles or drops examples; pass shuffle=False, drop_last=False"
                )
            for batch, y in inputs:
                yield batch.to(device), y
            return
        whole = torch.as_tensor(inputs)
        for start in range(0, len(whole), self.batch_size):
            yield whole[start : start + self.batch_size].to(device), None

    def _checked(self, seen: list[Tensor], outputs: Any, m: int) -> Tensor:
        if len(seen) != 1:
            raise DataError(f"{self.name} ran {len(seen)} times in one pass; name the layer that runs once")
        features = seen[0]
        if features.ndim != 2 or len(features) != m:
            raise DataError(
                f"{self.name} gets inputs {tuple(features.shape)} for {m} examples; it needs one vector "
                "per example"
            )
        own = self.linear(features)
        same = isinstance(outputs, Tensor) and outputs.numel() == own.numel()
        scale = 1 + float(own.abs().max())
        if not same or float((outputs.reshape(own.shape) - own).abs().max()) > _AGREE * scale:
            raise DataError(
                f"the model changes the outputs of {self.name} afterwards, so it is not the last layer; "
                "name another one by layer="
            )
        return features.to("cpu", self.dtype)


def _chosen(model: nn.Module, layer: str | None) -> tuple[str, nn.Linear]:
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if layer is not None and layer not in linears:
        raise DataError(f"no linear layer is called {layer!r}; there are {', '.join(linears) or 'none'}")
    if not linears:
        raise DataError("the model has no nn.Linear, so it has no last layer in closed form")
    name = layer or list(linears)[-1]
    return name, linears[name]
