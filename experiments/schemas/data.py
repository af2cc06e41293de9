"""Schemas of conf/data: the keys beyond name, mirror and data_dir are the loader's own options."""

from dataclasses import dataclass

from omegaconf import MISSING

from experiments.schema import Data, register


@register("data", "plain")
@dataclass
class PlainData(Data):
    """A data set without options of its own."""


@register("data", "classes")
@dataclass
class ClassesData(Data):
    """Digits: all ten, or only those listed, relabelled 0, 1, ... in that order."""

    classes: list[int] | None = None


@register("data", "digit_pairs")
@dataclass
class DigitPairsData(Data):
    """Two of the embedded 8x8 digits as colour images: the stand-in for dog and fish."""

    classes: list[int] | None = None
    scale: int = 4
    train_per_class: int = 120
    test_per_class: int = 50
    seed: int = 0


@register("data", "breast_cancer")
@dataclass
class BreastCancerData(Data):
    """569 tumours, 30 standardised measurements: the stand-in for spam."""

    test_fraction: float = 0.2
    seed: int = 0
    intercept: bool = True


@register("data", "csv")
@dataclass
class CsvData(Data):
    """A table of the user's own."""

    path: str = MISSING
    label: str = MISSING
    test_fraction: float = 0.2
    seed: int = 0
