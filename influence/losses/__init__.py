"""Losses of one example as functions of a model's outputs, with their derivatives, by name or from torch."""

from influence.losses._base import Loss
from influence.losses.cross_entropy import CrossEntropy
from influence.losses.elementwise import BinaryCrossEntropy, ElementwiseLoss, Huber, Poisson, SquaredError
from influence.losses.function import FunctionLoss
from influence.losses.margin import Hinge, Logistic, MarginLoss, SmoothHinge
from influence.losses.named import get_loss

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "ElementwiseLoss",
    "FunctionLoss",
    "Hinge",
    "Huber",
    "Logistic",
    "Loss",
    "MarginLoss",
    "Poisson",
    "SmoothHinge",
    "SquaredError",
    "get_loss",
]
