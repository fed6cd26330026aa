"""Heads of the form 3x3 convolution -> ReLU -> 1x1 convolution, evaluated everywhere or at chosen cells only.

That form, with no normalisation inside, is what makes both ways equal: a head's value at a cell depends on the 3x3
patch around the cell and on nothing else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Peaks(NamedTuple):
    """The best centres of a batch of heatmaps.

    Attributes:
        scores: [N,K] in 0..1, descending.
        labels: [N,K] int64, -1 after `count`.
        index: [N,K] int64, cell y * W + x; any cell after `count`.
        count: [N] int64, rows of each picture that are valid.
    """

    scores: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # neither method of tuple is wanted here
    count: Tensor  # type: ignore[assignment]


def decode_centers(heatmap: Tensor, top_k: int, score_threshold: float) -> Peaks:
    """The peaks of a heatmap, as `centermask.ops.decode_centers` but for the order of equal scores.

    Args:
        heatmap: [N,C,H,W] logits.
        top_k: K; where there are fewer cells, as many.
        score_threshold: Peaks below this score are cut off (score 0, label -1).
    """
    classes, height, width = heatmap.shape[1:]
    peak = F.max_pool2d(heatmap, 3, stride=1, padding=1)
    lowest = torch.full_like(heatmap, float("-inf"))
    flat = torch.where(heatmap == peak, heatmap, lowest).flatten(1)  # [N,C*H*W]
    logits, place = torch.topk(flat, min(top_k, classes * height * width), dim=1)  # [N,K]
    labels = torch.div(place, height * width, rounding_mode="floor")
    scores = torch.sigmoid(logits)
    # With a threshold of 0 the cells that are no peaks, of score 0, must still stay out.
    valid = (scores >= score_threshold) & (logits > float("-inf"))  # [N,K], true rows first
    return Peaks(
        scores=torch.where(valid, scores, 0.0),
        labels=torch.where(valid, labels, -1),
        index=place - labels * (height * width),
        count=valid.sum(dim=1),
    )


def gather_patches(features: Tensor, index: Tensor) -> Tensor:
    """3x3 patches around chosen cells, zero outside the map.

    Args:
        features: [N,F,H,W].
        index: [N,K] int64, cell y * W + x.

    Returns:
        [N,K,F*9], channel-major (column f*9 + ky*3 + kx), as `centermask.ops.gather_patches`.
    """
    batch, channels, _, width = features.shape
    padded = F.pad(features, (1, 1, 1, 1)).flatten(2)  # [N,F,(H+2)*(W+2)]
    y = torch.div(index, width, rounding_mode="floor")
    corner = y * (width + 2) + (index - y * width)  # top left tap of each patch in the padded map
    step = torch.arange(3, device=index.device)
    taps = (step[:, None] * (width + 2) + step[None, :]).reshape(-1)
    cells = (corner[:, :, None] + taps).reshape(batch, 1, -1).expand(-1, channels, -1)  # [N,F,K*9]
    patches = torch.gather(padded, 2, cells).reshape(batch, channels, -1, 9)
    return patches.permute(0, 2, 1, 3).flatten(2)


def gather_rows(features: Tensor, batch_index: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The patches of `gather_patches` for a flat list of cells of any pictures of the batch.

    Args:
        features: [N,F,H,W].
        batch_index: [P] int64, picture of each cell.
        y: [P] int64, row of each cell.
        x: [P] int64, column of each cell.

    Returns:
        [P,F*9], channel-major.
    """
    _, channels, height, width = features.shape
    cells = F.pad(features, (1, 1, 1, 1)).permute(0, 2, 3, 1).reshape(-1, channels)  # [N*(H+2)*(W+2),F]
    corner = (batch_index * (height + 2) + y) * (width + 2) + x  # top left tap of each patch
    step = torch.arange(3, device=features.device)
    taps = (step[:, None] * (width + 2) + step[None, :]).reshape(-1)
    # Patches overlap. Indexing sums their gradients with atomic additions, in an order that differs from run to run
    # once there are threads; the gradient of an embedding has a fixed order, and a run can go on exactly.
    patches = F.embedding(corner[:, None] + taps, cells)  # [P,9,F]
    return patches.transpose(1, 2).flatten(1)


class Head(nn.Module):
    """conv3x3 -> ReLU -> conv1x1.

    Args:
        in_channels: Channels of the neck.
        hidden: Channels between the two convolutions.
        out_channels: Values for each cell.
        bias: Initial value of the last bias.
        std: Standard deviation of the last weights.
    """

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, *, bias: float = 0.0, std: float = 0.01
    ) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, out_channels, 1)
        nn.init.kaiming_normal_(self.hidden.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.out.weight, std=std)
        assert self.hidden.bias is not None
        assert self.out.bias is not None
        nn.init.zeros_(self.hidden.bias)
        nn.init.constant_(self.out.bias, bias)

    def forward(self, features: Tensor) -> Tensor:
        """[N,F,H,W] -> [N,out,H,W]."""
        return self.out(torch.relu(self.hidden(features)))  # type: ignore[no-any-return]

    def at(self, patches: Tensor) -> Tensor:
        """The same values at gathered patches: [...,F*9] -> [...,out]."""
        hidden = torch.relu(F.linear(patches, self.hidden.weight.flatten(1), self.hidden.bias))
        return F.linear(hidden, self.out.weight.flatten(1), self.out.bias)


class MaskFeatures(nn.Module):
    """The dense branch that every instance's mask is made from. [N,F,H,W] -> [N,M,H,W]."""

    def __init__(self, in_channels: int, hidden: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, hidden, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.out = nn.Conv2d(hidden, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.out(torch.relu(self.bn(self.conv(features))))  # type: ignore[no-any-return]


HEATMAP_BIAS = -math.log((1 - 0.1) / 0.1)
"""Start every cell at a score of 0.1 (-2.19, CenterNet; RetinaNet's prior)."""
