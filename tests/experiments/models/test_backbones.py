"""Backbones: features, gradients down to the pixels, weights from files, and errors that name the remedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.models import backbones
from experiments.models.features import features
from experiments.records.errors import ConfigError, UserError
from tests.helpers import mirror

PIXELS = np.random.RandomState(0).randint(0, 256, (3, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> backbones.Backbone:
    """Inception v3 with random weights, through a state dict as torchvision saves it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(backbones.unloaded("inception_v3")[0].state_dict(), path)
    return backbones.load("inception_v3", weights=str(path), size=299, count_padding=True)


def test_inception_has_2048_features_and_gradients_reach_the_pixels(inception: backbones.Backbone) -> None:
    x = inception.images(PIXELS[:1])
    assert x.shape == (1, 3, 299, 299)
    assert inception(x * 0 + 255).shape == (1, 2048)
    assert inception.mean == (0.5, 0.5, 0.5) == inception.deviation  # RGB in [-1, 1]
    gradient = inception.vjp(x, torch.ones(1, 2048))
    assert gradient.shape == x.shape
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).double().mean() > 0.5


def test_folding_batch_norm_does_not_change_the_function() -> None:
    torch.manual_seed(0)
    model = backbones.headless("mobilenet_v2", backbones.unloaded("mobilenet_v2")[0]).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = model(x)
    torch.testing.assert_close(backbones.fold_batch_norm(model)(x), before, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())


def test_vjp_agrees_with_finite_differences_and_batches_agree_with_single_images() -> None:
    backbone = backbones.load("random_conv", size=32, dtype=torch.float64)
    x, generator = backbone.images(PIXELS), torch.Generator().manual_seed(1)
    cotangent = torch.randn(3, 512, generator=generator, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    gradient = backbone.vjp(x, cotangent)
    step = 1e-3
    change = (backbone(x + step * direction) - backbone(x - step * direction)) * cotangent / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), change.sum(), rtol=1e-6, atol=1e-12)
    for i in range(3):
        alone = backbone.vjp(x[i : i + 1], cotangent[i : i + 1])
        torch.testing.assert_close(alone[0], gradient[i], rtol=1e-10, atol=1e-14)


def test_features_are_found_by_content_and_damage_is_noticed(tmp_path) -> None:
    first = backbones.load("random_conv", size=32)
    found = features(first, PIXELS, cache=tmp_path)
    assert found.shape == (3, 512)
    (kept,) = (tmp_path / "features").iterdir()
    computed: list[int] = []
    np.testing.assert_array_equal(features(first, PIXELS, cache=tmp_path, progress=computed.append), found)
    assert not computed  # read from disk
    kept.write_bytes(b"torn")
    np.testing.assert_array_equal(features(first, PIXELS, cache=tmp_path), found)
    changed = PIXELS.copy()
    changed[0, 0, 0, 0] ^= 1
    features(first, changed, cache=tmp_path)
    features(backbones.load("random_conv", size=32, seed=1), PIXELS, cache=tmp_path)
    features(backbones.load("random_conv", size=24), PIXELS, cache=tmp_path)
    assert len(list((tmp_path / "features").iterdir())) == 4


def test_missing_weights_name_both_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    with pytest.raises(UserError, match=r"connect to the network once, or pass backbone\.weights=FILE"):
        backbones.load("inception_v3", size=299)


def test_weights_that_do_not_fit_are_explained(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a state dict")
    with pytest.raises(UserError, match="is not a state dict"):
        backbones.load("mobilenet_v2", weights=str(path), size=32)
    state = backbones.unloaded("mobilenet_v2")[0].state_dict()
    torch.save({key: value for key, value in state.items() if key != "classifier.1.bias"}, path)
    with pytest.raises(UserError, match=r"lack the keys classifier\.1\.bias"):
        backbones.load("mobilenet_v2", weights=str(path), size=32)
    torch.save(state | {"classifier.1.bias": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"other shapes at classifier\.1\.bias"):
        backbones.load("mobilenet_v2", weights=str(path), size=32)


@pytest.mark.parametrize(("name", "size"), [("vgg", 32), ("inception_v3", 74), ("mobilenet_v2", 31)])
def test_unknown_names_and_sizes_too_small_are_refused(name: str, size: int) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.(name|size)"):
        backbones.load(name, size=size)


def test_the_mirrors_mobilenet_loads() -> None:
    backbone = backbones.load("mobilenet_v2", size=64, mirror=str(mirror()))
    assert backbone.origin.startswith("mirror")
    assert backbone(backbone.images(PIXELS)).shape == (3, 1280)


def test_a_mirror_without_the_file_is_refused_before_another_network_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """torchvision's own MobileNetV2 holds other weights than the mirror's; it must not stand in for them."""

    def downloaded(*_: object, **__: object) -> None:
        pytest.fail("another network's weights were asked for")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", downloaded)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", downloaded)
    with pytest.raises(UserError) as refused:
        backbones.load("mobilenet_v2", size=64, mirror=str(tmp_path))
    for part in ("weights/mobilenet_v2_imagenet.pth", f"the mirror {tmp_path}", "backbone.weights=FILE"):
        assert part in str(refused.value)
