"""Schemas of conf/backbone."""

from dataclasses import dataclass

from experiments.schema import Backbone, register


@register("backbone", "pretrained")
@dataclass
class PretrainedBackbone(Backbone):
    """A torchvision network, or a small one with random weights for the embedded runs."""

    size: int = 224  # input pixels a side
    batch: int = 4  # images a forward pass; on a CPU small batches stay near the cache
    mirror: str | None = None  # folder with weight files; INFLUENCE_MIRROR is used where this is null
    seed: int = 0  # of random_conv's weights
