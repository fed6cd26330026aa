"""The upsampling neck: stride 32 -> 4 in three stages.

Each stage is [3x3 convolution, plain or deformable -> BN -> ReLU -> transposed convolution x2 -> BN -> ReLU], as in
CenterNet (Zhou et al. 2019, section 5 and its ResNet-DCN). The plain convolution has padding 1, like the deformable
one: with padding 0 each stage would lose two cells before it doubles (16 -> 14 -> 28 -> 26 -> 52 -> 50 -> 100).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from centermask.config import Neck as NeckName
from centermask.nn.deform_conv import DeformConvPack


def _bilinear_kernel(weight: Tensor) -> None:
    """Fills a transposed convolution's 4x4 kernels with bilinear interpolation from each channel to itself."""
    ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        weight.mul_(0.1)
        for channel in range(min(weight.shape[0], weight.shape[1])):
            weight[channel, channel] += torch.outer(ramp, ramp)


class Stage(nn.Module):
    """One doubling of the resolution. [N,in,h,w] -> [N,out,2h,2w]. `deconv` goes without the 3x3 convolution."""

    def __init__(self, kind: NeckName, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv: nn.Module | None = None
        if kind == "dcn":
            self.conv = DeformConvPack(in_channels, out_channels, 3, padding=1)
        elif kind == "conv":
            self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        if self.conv is not None:
            self.bn1 = nn.BatchNorm2d(out_channels)
            in_channels = out_channels
        self.up = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        _bilinear_kernel(self.up.weight)

    def forward(self, x: Tensor, lateral: Tensor | None = None) -> Tensor:
        if self.conv is not None:
            x = torch.relu(self.bn1(self.conv(x)))  # [N,out,h,w]
        x = self.bn2(self.up(x))  # [N,out,2h,2w]
        return torch.relu(x if lateral is None else x + lateral)


class Neck(nn.Module):
    """Three stages, stride 32 -> 16 -> 8 -> 4.

    Args:
        kind: `dcn`, `conv` or `deconv`.
        in_channels: Of the backbone's maps at strides 4, 8, 16, 32.
        channels: Of the three stages' outputs at strides 16, 8, 4.
        lateral: Add the backbone's map of the same stride (1x1 convolution and BN) after each doubling.
    """

    def __init__(self, kind: NeckName, in_channels: Sequence[int], channels: Sequence[int], *, lateral: bool) -> None:
        super().__init__()
        inputs = [in_channels[3], *channels[:-1]]
        self.stages = nn.ModuleList(Stage(kind, i, o) for i, o in zip(inputs, channels, strict=True))
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o))
            for i, o in zip(reversed(in_channels[:3]), channels, strict=True)
            if lateral
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Backbone maps at strides 4, 8, 16, 32 -> [N,channels[-1],H/4,W/4]."""
        x = maps[3]
        for i, stage in enumerate(self.stages):
            lateral = self.laterals[i](maps[2 - i]) if len(self.laterals) else None
            x = cast(Tensor, stage(x, lateral))
        return x
