"""Schemas of conf/backbone."""

from dataclasses import dataclass

from experiments.schema import Backbone, register


@register("backbone", "pretrained")
@dataclass
class PretrainedBackbone(Backbone):
    """A torchvision network, or a small one with random weights for the embedded runs."""

    size: int = 224  # input pixels a side
    batch: int = 32
    mirror: str | None = None  # folder with weight files; INFLUENCE_MIRROR is used where this is null
