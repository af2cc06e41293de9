"""Schemas of conf/data: the keys beyond name, mirror and data_dir are the loader's own options."""

from dataclasses import dataclass

from omegaconf import MISSING

from experiments.schema import Data, register


@register("data", "plain")
@dataclass
class PlainData(Data):
    """A data set without options of its own."""


@register("data", "csv")
@dataclass
class CsvData(Data):
    """A table of the user's own."""

    path: str = MISSING
    label: str = MISSING
    test_fraction: float = 0.2
    seed: int = 0


@register("data", "digit_pairs")
@dataclass
class DigitPairsData(Data):
    """Two of the embedded 8x8 digits against each other."""

    negative: int = 1
    positive: int = 7
