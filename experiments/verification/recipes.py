"""Files behind some runs that are not published in the form used here: how to get them, and what differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECIPES = {
    "inception_v3_7a": (
        "weights/inception_v3_2015_to_mixed_7a.pth",
        "The network of 2015-12-05 is published as inception-2015-12-05.tgz (classify_image_graph_def.pb) at "
        "download.tensorflow.org/models/image/imagenet/. Copy the weights of its convolutions up to mixed_8 "
        "(torchvision's Mixed_7a) into a state dict with torchvision's names, and pass "
        "backbone.weights=FILE. No converter is part of this repository, and this way was not tried.",
    ),
    "mobilenet_v2": (
        "weights/mobilenet_v2_imagenet.pth",
        "Leave the file out of the mirror: without a mirror the run takes torchvision's IMAGENET1K_V1 "
        "weights of MobileNetV2, which are published. They are another training of the same network, so the "
        "numbers differ.",
    ),
    "imagenette2-224.tar": (
        "dogfish/imagenette2-224.tar",
        "Leave the file out of the mirror: the run then takes the published imagenette2-320.tgz "
        "(s3.amazonaws.com/fast-ai-imageclas). It holds the same photographs at another size. The numbers on "
        "it were not compared with these.",
    ),
}


def needed(config: Path, data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(file, recipe) of each file without a public source behind a record.

    config: the record's config.yaml. data: the data of its provenance.
    """
    names = [name for name in data if name in RECIPES]
    if config.is_file():
        import yaml

        backbone = (yaml.safe_load(config.read_text()) or {}).get("backbone") or {}
        if not backbone.get("weights") and backbone.get("name") in RECIPES:
            names.append(backbone["name"])
    return [RECIPES[name] for name in names]
