"""The neck of CenterNet's DLA models: DLAUp and IDAUp, every convolution deformable.

Yu et al., "Deep Layer Aggregation" (CVPR 2018), in the form of CenterNet (Zhou et al. 2019, appendix A). Maps of two
neighbouring strides are merged by a `Merge`: the coarser one is projected, enlarged and added to the finer one, and the
sum is smoothed. Three rounds of merges bring the coarsest map down to stride 4; the results of the rounds are then
merged once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from centermask.nn.deform_conv import DeformConvPack


class DeformBlock(nn.Module):
    """Deformable 3x3 convolution -> BN -> ReLU. [N,in,h,w] -> [N,out,h,w]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = DeformConvPack(in_channels, out_channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Merge(nn.Module):
    """A coarse map into a finer one. [N,in,h,w] and [N,out,f*h,f*w] -> [N,out,f*h,f*w].

    Args:
        in_channels: Of the coarse map.
        out_channels: Of the fine map and of the result.
        factor: How much finer, f: 1, 2, 4.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int) -> None:
        super().__init__()
        self.proj = DeformBlock(in_channels, out_channels)
        self.up = nn.ConvTranspose2d(
            out_channels, out_channels, 2 * factor, stride=factor, padding=factor // 2, groups=out_channels, bias=False
        )
        self.node = DeformBlock(out_channels, out_channels)
        # Bilinear interpolation; learned on from there.
        ramp = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
        with torch.no_grad():
            self.up.weight.copy_(torch.outer(ramp, ramp).expand_as(self.up.weight))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        return self.node(self.up(self.proj(coarse)) + fine)  # type: ignore[no-any-return]


class DlaUp(nn.Module):
    """Backbone maps at strides 4, 8, 16, 32 -> [N,channels[-1],H/4,W/4].

    Args:
        in_channels: Of the backbone's maps at strides 4, 8, 16, 32.
        channels: Of the merged maps at strides 16, 8, 4. They are added to the backbone's, hence must equal theirs.

    Raises:
        ValueError: They do not.
    """

    def __init__(self, in_channels: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        if list(channels) != list(reversed(in_channels[:3])):
            raise ValueError(
                f"neck dlaup: neck_channels must be those of the backbone at strides 16, 8, 4: "
                f"{list(reversed(in_channels[:3]))}, got {list(channels)}"
            )
        c4, c8, c16, c32 = in_channels
        # In each round every map that is coarser than the round's target is merged into the one before it.
        self.rounds = nn.ModuleList(
            [
                nn.ModuleList([Merge(c32, c16, 2)]),
                nn.ModuleList([Merge(c16, c8, 2), Merge(c16, c8, 2)]),
                nn.ModuleList([Merge(c8, c4, 2), Merge(c8, c4, 2), Merge(c8, c4, 2)]),
            ]
        )
        self.last = nn.ModuleList([Merge(c8, c4, 2), Merge(c16, c4, 4)])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        done: list[Tensor] = []  # the rounds' results, at strides 16, 8, 4
        waiting = [maps[3]]  # to be merged into the next finer map; all of one stride
        for merges, fine in zip(self.rounds, reversed(maps[:3]), strict=True):
            merged = [fine]
            for merge, coarse in zip(merges, waiting, strict=True):  # type: ignore[call-overload]
                merged.append(merge(coarse, merged[-1]))
            waiting = merged
            done.append(merged[-1])
        x = done[2]
        for merge, coarse in zip(self.last, (done[1], done[0]), strict=True):
            x = merge(coarse, x)
        return x
