"""Inception v3 cut after Mixed_7a against a second implementation that shares nothing with torchvision's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.data.archive import folder_digest
from experiments.data.errors import ChecksumMismatch
from experiments.data.fetch import obtain
from experiments.data.one_dog import SEQUENCE, evenly, load
from experiments.models import backbones
from experiments.records.errors import ConfigError, UserError
from tests.experiments.test_configs import composed
from tests.helpers import mirror

State = dict[str, Tensor]
PIXELS = np.random.RandomState(3).randint(0, 256, (2, 96, 96, 3)).astype(np.uint8)

# A branch is a chain of convolutions (name, stride, padding); blocks list the branches that they stack.
A = (
    (("branch1x1", 1, 0),),
    (("branch5x5_1", 1, 0), ("branch5x5_2", 1, 2)),
    (("branch3x3dbl_1", 1, 0), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 1, 1)),
)
B = (
    (("branch3x3", 2, 0),),
    (("branch3x3dbl_1", 1, 0), ("branch3x3dbl_2", 1, 1), ("branch3x3dbl_3", 2, 0)),
)
C = (
    (("branch1x1", 1, 0),),
    (("branch7x7_1", 1, 0), ("branch7x7_2", 1, (0, 3)), ("branch7x7_3", 1, (3, 0))),
    (
        ("branch7x7dbl_1", 1, 0),
        ("branch7x7dbl_2", 1, (3, 0)),
        ("branch7x7dbl_3", 1, (0, 3)),
        ("branch7x7dbl_4", 1, (3, 0)),
        ("branch7x7dbl_5", 1, (0, 3)),
    ),
)
D = (
    (("branch3x3_1", 1, 0), ("branch3x3_2", 2, 0)),
    (
        ("branch7x7x3_1", 1, 0),
        ("branch7x7x3_2", 1, (0, 3)),
        ("branch7x7x3_3", 1, (3, 0)),
        ("branch7x7x3_4", 2, 0),
    ),
)
BLOCKS = [
    *((f"Mixed_5{letter}", A, "average") for letter in "bcd"),
    ("Mixed_6a", B, "max"),
    *((f"Mixed_6{letter}", C, "average") for letter in "bcde"),
    ("Mixed_7a", D, "max"),
]


def layer(state: State, name: str, x: Tensor, stride: int, padding: int | tuple[int, int]) -> Tensor:
    """Convolution, normalisation by its stored moments, ReLU."""
    kernel, norm = state[f"{name}.conv.weight"], f"{name}.bn"
    pad = (padding, padding) if isinstance(padding, int) else padding
    y = F.conv2d(F.pad(x, (pad[1], pad[1], pad[0], pad[0])), kernel, stride=stride)
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
    shift = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return (y * scale[:, None, None] + shift[:, None, None]).clamp(min=0)


def average(x: Tensor, count_padding: bool) -> Tensor:
    """3 × 3 means at stride 1 as quotients of two sums, so that what is counted stands there."""
    c = x.shape[1]
    ones = torch.ones(c, 1, 3, 3, dtype=x.dtype)
    total = F.conv2d(F.pad(x, (1, 1, 1, 1)), ones, groups=c)
    counted = F.pad(torch.ones_like(x), (1, 1, 1, 1), value=1.0 if count_padding else 0.0)
    return total / F.conv2d(counted, ones, groups=c)


def reference(state: State, x: Tensor, count_padding: bool) -> Tensor:
    """Features of scaled images (b, 3, size, size), from the published table of the network's layers."""
    for name, stride, padding in (("1a_3x3", 2, 0), ("2a_3x3", 1, 0), ("2b_3x3", 1, 1)):
        x = layer(state, f"Conv2d_{name}", x, stride, padding)
    x = F.max_pool2d(x, 3, 2)
    for name in ("3b_1x1", "4a_3x3"):
        x = layer(state, f"Conv2d_{name}", x, 1, 0)
    x = F.max_pool2d(x, 3, 2)
    for block, branches, pooling in BLOCKS:
        parts = []
        for chain in branches:
            y = x
            for name, stride, padding in chain:
                y = layer(state, f"{block}.{name}", y, stride, padding)
            parts.append(y)
        if pooling == "max":
            parts.append(F.max_pool2d(x, 3, 2))
        else:
            parts.append(layer(state, f"{block}.branch_pool", average(x, count_padding), 1, 0))
        x = torch.cat(parts, dim=1)
    return x.mean((2, 3))


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights of the cut network, with moments that a normalisation feels."""
    torch.manual_seed(0)
    network = backbones.unloaded("inception_v3_7a")[0]
    for key, value in network.state_dict().items():
        if key.endswith("conv.weight"):
            value.normal_(std=(2 / value[0].numel()) ** 0.5)
        if key.endswith("running_mean"):
            value.uniform_(-0.1, 0.1)
        if key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
    return dict(network.state_dict())


@pytest.mark.parametrize("count_padding", [False, True])
def test_the_cut_network_agrees_with_a_second_implementation(
    state: State, tmp_path: Path, count_padding: bool
) -> None:
    torch.save(state, tmp_path / "w.pth")
    options = {"weights": str(tmp_path / "w.pth"), "size": 96, "dtype": torch.float64}
    backbone = backbones.load("inception_v3_7a", count_padding=count_padding, **options)
    images = backbone.images(PIXELS)
    double = {key: value.double() for key, value in state.items()}
    wanted = reference(double, images / 127.5 - 1, count_padding)
    assert wanted.shape == (2, 1280)
    torch.testing.assert_close(backbone(images), wanted, rtol=1e-9, atol=1e-11)
    other = reference(double, images / 127.5 - 1, not count_padding)
    assert (other - wanted).norm() > 1e-3 * wanted.norm()  # the padding does matter


def test_the_mirrors_inception_agrees_with_the_second_implementation_on_photographs() -> None:
    folder = mirror()
    backbone = backbones.load("inception_v3_7a", size=299, mirror=str(folder))
    assert backbone.origin.startswith("mirror, sha256 9d13d91f")
    assert (backbone.n_features, backbone.label) == (1280, "Inception v3, cut after Mixed_7a")
    pixels = np.stack([image for _, image in frames(folder, (0, 41))])
    weights = torch.load(folder / "weights/inception_v3_2015_to_mixed_7a.pth", weights_only=True)
    images = backbone.images(pixels)
    wanted = reference(weights, images / 127.5 - 1, count_padding=False)
    torch.testing.assert_close(backbone(images), wanted, rtol=1e-4, atol=1e-4)
    assert 5 < float(wanted.norm(dim=1).mean()) < 15


def frames(folder: Path, places: tuple[int, ...]) -> list[tuple[str, np.ndarray]]:
    """Photographs of the dog, decoded at 299 pixels."""
    from experiments.data import one_dog
    from experiments.data.dogfish import decode

    contents = sorted(one_dog._photographs(folder / SEQUENCE.path))
    return [(contents[i][0], decode(contents[i][1], contents[i][0], 299)) for i in places]


def test_weights_of_unknown_origin_must_say_how_they_pool(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"backbone\.count_padding=true"):
        backbones.load("inception_v3_7a", weights=str(tmp_path / "w.pth"), size=96)
    with pytest.raises(ConfigError, match="has no such pooling"):
        backbones.load("random_conv", size=32, count_padding=True)


def test_missing_and_unexpected_keys_are_explained(state: State, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    options = {"weights": str(path), "size": 96, "count_padding": False}
    torch.save({key: value for key, value in state.items() if "Mixed_6c" not in key}, path)
    with pytest.raises(UserError, match=r"lack the keys Mixed_6c.*; give the state dict of torchvision's"):
        backbones.load("inception_v3_7a", **options)
    torch.save(state | {"Mixed_9x.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"unknown keys Mixed_9x\.weight"):
        backbones.load("inception_v3_7a", **options)
    torch.save(state, path)
    with pytest.raises(UserError, match="they end after Mixed_7a, so use backbone=inception_v3_7a"):
        backbones.load("inception_v3", **options)
    whole = backbones.unloaded("inception_v3")[0].state_dict()  # layers after the cut are left out
    torch.save(whole | state, path)
    cut = backbones.load("inception_v3_7a", **options)
    torch.save(state, path)
    assert cut.fingerprint == backbones.load("inception_v3_7a", **options).fingerprint


def test_an_altered_file_in_the_mirror_and_none_at_all_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("INFLUENCE_MIRROR", raising=False)
    (tmp_path / "weights").mkdir()
    with pytest.raises(UserError, match=r"cannot be downloaded; pass data\.mirror=FOLDER"):
        backbones.load("inception_v3_7a", size=299)
    with pytest.raises(UserError, match=r"to_mixed_7a\.pth.* is not in the mirror .*backbone\.weights=FILE"):
        backbones.load("inception_v3_7a", size=299, mirror=str(tmp_path))
    (tmp_path / "weights/inception_v3_2015_to_mixed_7a.pth").write_bytes(b"altered")
    with pytest.raises(ChecksumMismatch, match="9d13d91f"):
        backbones.load("inception_v3_7a", size=299, mirror=str(tmp_path))


def test_an_altered_photograph_is_refused_whatever_the_archive(tmp_path: Path) -> None:
    """The frames decide, not the wrapper: a zip of the whole collection and a tar of sixty hash alike."""
    import io
    import tarfile
    import zipfile

    frames_of = {f"{i:05d}.jpg": bytes([i]) * 9 for i in range(3)}
    digests = []
    for name, prefix in (("a.tar", "dog/"), ("b.zip", "DAVIS/JPEGImages/480p/dog/")):
        if name.endswith("tar"):
            with tarfile.open(tmp_path / name, "w") as archive:
                for frame in reversed(frames_of):
                    info = tarfile.TarInfo(prefix + frame)
                    info.size = len(frames_of[frame])
                    archive.addfile(info, io.BytesIO(frames_of[frame]))
        else:
            with zipfile.ZipFile(tmp_path / name, "w") as archive:
                for frame, content in frames_of.items():
                    archive.writestr(prefix + frame, content)
                archive.writestr("DAVIS/Annotations/480p/dog/00000.png", b"a mask")
                archive.writestr("DAVIS/JPEGImages/480p/dog-agility/00000.jpg", b"another dog")
        digests.append(folder_digest(tmp_path / name, "dog", 1 << 20))
    assert digests[0] == digests[1]
    (tmp_path / "dogfish").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / SEQUENCE.path)
    with pytest.raises(ChecksumMismatch, match=r"names and contents of dog/\*\.jpg"):
        obtain(SEQUENCE, mirror=tmp_path)


def test_thirty_of_sixty_are_every_second_one() -> None:
    np.testing.assert_array_equal(evenly(60, 30), np.arange(0, 60, 2))
    np.testing.assert_array_equal(evenly(7, 3), [0, 2, 4])
    assert len(evenly(60, None)) == 60


def test_the_dogs_photographs_are_the_test_split(tmp_path: Path) -> None:
    small = {"train_per_class": 5, "test_per_class": 1, "size": 64}
    data = load(mirror=str(mirror()), cache=tmp_path, **small)
    assert data.train.X.shape == (10, 64, 64, 3)
    assert data.test.X.shape == (30, 64, 64, 3)
    assert data.test.y.tolist() == [0] * 30
    assert data.test.index.tolist() == list(range(0, 60, 2))
    assert data.test.extra["name"][1] == "00002.jpg"
    assert {"train/image", "photos/image"} <= data.manifest["arrays"].keys()
    again = load(mirror=str(mirror()), cache=tmp_path, **small)
    np.testing.assert_array_equal(again.test.X, data.test.X)
    whole = load(mirror=str(mirror()), cache=tmp_path, count=None, label="fish", **small)
    assert whole.test.y.tolist() == [1] * 60


def test_a_folder_of_ones_own_photographs_works_the_same_way(tmp_path: Path) -> None:
    from PIL import Image

    photos = tmp_path / "mine"
    photos.mkdir()
    small = {"train_per_class": 5, "test_per_class": 1, "size": 64, "photos": str(photos)}
    options = {"mirror": str(mirror()), "cache": tmp_path, **small}
    with pytest.raises(UserError, match="holds no image"):
        load(**options)
    for i in range(3):
        Image.fromarray(PIXELS[i % 2]).save(photos / f"{i}.png")
    with pytest.raises(UserError, match=r"data\.count=30, but there are 3"):
        load(**options)
    data = load(count=3, **options)
    assert data.test.extra["name"].tolist() == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(data.test.X[0], data.test.X[2])
    (photos / "1.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"1\.png cannot be read"):
        load(count=3, **options)
    with pytest.raises(UserError, match="is not a folder"):
        load(**options | {"photos": str(tmp_path / "none")})
    with pytest.raises(UserError, match="choose dog or fish"):
        load(**options, label="cat")


@pytest.mark.parametrize("name", ["inception_v3", "inception_v3_7a", "mobilenet_v2"])
def test_the_datas_mirror_is_the_mirror_of_weights(name: str) -> None:
    for experiment in ("rbf_vs_inception", "attack_single", "attack_group"):
        cfg = composed(f"experiment={experiment}", "tier=paper", f"backbone={name}", "data.mirror=/somewhere")
        assert cfg.backbone.mirror == "/somewhere"
        assert cfg.backbone.name == name
