"""Schemas of conf/model."""

from dataclasses import dataclass

from experiments.schema import Model, register


@register("model", "linear")
@dataclass
class LinearModel(Model):
    """Outputs X W, no intercept: softmax regression, logistic regression, linear SVM, by the loss.

    ``temperature`` is t of SmoothHinge(s, t) and is read by that loss alone.
    """

    temperature: float | None = None
