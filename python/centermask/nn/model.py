"""The whole model: backbone -> neck -> heads -> decode. Shapes stand beside each step (example: 512 x 512, K = 100)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from centermask.config import STRIDE, BoxCoding, ModelConfig
from centermask.nn.backbone import Backbone
from centermask.nn.dlaup import DlaUp
from centermask.nn.heads import HEATMAP_BIAS, Head, MaskFeatures, Peaks, decode_centers, gather_patches
from centermask.nn.neck import Neck

EXP_BASE = 8.0
"""Size in cells that a raw value of 0 stands for under `exp` box coding."""

MAX_LOG_SIZE = 6.0
"""Largest raw value that `exp` box coding reads: 8 cells x e^6 is beyond any picture and far from overflow."""


class DenseOutputs(NamedTuple):
    """What training needs from one pass.

    Attributes:
        heatmap: [N,C,H/4,W/4] logits.
        features: [N,F,H/4,W/4] output of the neck; the sparse heads read patches of it.
        mask_features: [N,M,H/4,W/4], or None without a mask head.
    """

    heatmap: Tensor
    features: Tensor
    mask_features: Tensor | None


class Detections(NamedTuple):
    """The outputs of a deployed model, the same for every profile.

    Attributes:
        boxes: [N,K,4] float32, xyxy in input pixels.
        scores: [N,K] float32 in 0..1, descending.
        labels: [N,K] int64, -1 after `count`.
        count: [N] int64, rows of each picture that are valid.
        mask_params: [N,K,P] float32.
        mask_features: [N,M,H/4,W/4] float32.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count is never wanted here
    mask_params: Tensor | None
    mask_features: Tensor | None


class CenterMask(nn.Module):
    """CenterNet with a mask head.

    Args:
        config: What to build.
        pretrained: Start the backbone from ImageNet weights.

    Raises:
        ValueError: The configuration cannot be built.
    """

    def __init__(self, config: ModelConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        if not config.class_names:
            raise ValueError("a model needs at least one class name")
        self.config = config
        channels, hidden = config.neck_channels[-1], config.head_channels
        self.backbone = Backbone(config.backbone, pretrained=pretrained)
        self.neck: nn.Module
        if config.neck == "dlaup":
            self.neck = DlaUp(self.backbone.channels, config.neck_channels)
        else:
            self.neck = Neck(config.neck, self.backbone.channels, config.neck_channels, lateral=config.lateral)
        self.heatmap = Head(channels, hidden, len(config.class_names), bias=HEATMAP_BIAS)
        # Objects start at 8x8 cells. A linear head that started around 0 would have no gradient where it is below.
        self.size = Head(channels, hidden, 2, bias=EXP_BASE if config.box_coding == "linear" else 0.0)
        self.offset = Head(channels, hidden, 2, bias=0.5) if config.offset_head else None
        if config.mask_head != "none":
            # The parameters are evaluated at K cells only, so twice the hidden channels cost next to nothing.
            self.mask_params: Head | None = Head(channels, 2 * hidden, config.mask_params)
            self.mask_features: MaskFeatures | None = MaskFeatures(channels, hidden, config.mask_channels)
        else:
            self.mask_params = None
            self.mask_features = None

    def forward(self, images: Tensor) -> DenseOutputs:
        """Normalised images [N,3,H,W], H and W multiples of 32 -> dense maps."""
        maps = self.backbone(images)  # strides 4..32: 128, 64, 32, 16 cells
        features = self.neck(maps)  # [N,64,128,128]
        heatmap = self.heatmap(features)  # [N,C,128,128]
        mask_features = None if self.mask_features is None else self.mask_features(features)  # [N,8,128,128]
        return DenseOutputs(heatmap, features, mask_features)

    def boxes_at(self, patches: Tensor, y: Tensor, x: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Boxes of chosen cells.

        Args:
            patches: [...,F*9] around the cells.
            y: [...] row of each cell.
            x: [...] column of each cell.
            mirrored: [...,F*9] around the same places of the mirrored picture, whose sizes are averaged with.

        Returns:
            [...,4] xyxy in cells (times 4: input pixels).
        """
        raw = _widened(self.size.at(patches))
        if mirrored is not None:
            raw = (raw + _widened(self.size.at(mirrored))) / 2
        size = decode_size(raw, self.config.box_coding)
        center = torch.stack([x, y], dim=-1).to(size.dtype) + self.offset_at(patches)
        return torch.cat([center - size / 2, center + size / 2], dim=-1)

    def offset_at(self, patches: Tensor) -> Tensor:
        """Where in its cell each centre lies, x and y in cells: [...,F*9] -> [...,2], or 0.5 for all ([2])."""
        if self.offset is None:
            return torch.full((2,), 0.5, device=patches.device)
        return _widened(self.offset.at(patches))

    def deploy(
        self,
        images: Tensor,
        score_threshold: float = 0.05,
        *,
        flip: bool = False,
        decode: Callable[[Tensor, int, float], Peaks] = decode_centers,
        gather: Callable[[Tensor, Tensor], Tensor] = gather_patches,
    ) -> Detections:
        """Inference: the heatmap everywhere, all other heads at its K best peaks only.

        Args:
            images: [N,3,H,W] normalised.
            score_threshold: Peaks below this score are cut off (rows of zeros, label -1).
            flip: CenterNet's flip test: scores and sizes are the means of the picture's and its mirror image's.
            decode: What finds the centres; an exporter puts one operator here.
            gather: What takes the patches, likewise.

        Returns:
            Detections in input pixels.
        """
        dense = self.forward(images)
        heatmap = _widened(dense.heatmap)  # [N,C,128,128]
        mirror = self.forward(images.flip(3)) if flip else None
        if mirror is not None:
            mean = (torch.sigmoid(heatmap) + torch.sigmoid(_widened(mirror.heatmap).flip(3))) / 2
            heatmap = torch.logit(mean)
        peaks = decode(heatmap, self.config.top_k, score_threshold)
        width = heatmap.shape[3]
        y = torch.div(peaks.index, width, rounding_mode="floor")
        x = peaks.index - y * width
        valid = peaks.labels >= 0  # [N,K], true rows first
        patches = gather(dense.features, peaks.index)  # [N,K,F*9]
        mirrored = None if mirror is None else gather(mirror.features, y * width + (width - 1 - x))
        boxes = self.boxes_at(patches, y, x, mirrored) * STRIDE  # [N,K,4]
        params = None
        if self.mask_params is not None:
            params = torch.where(valid[:, :, None], _widened(self.mask_params.at(patches)), 0.0)  # [N,K,P]
        return Detections(
            boxes=torch.where(valid[:, :, None], boxes, 0.0),
            scores=peaks.scores,
            labels=peaks.labels,
            count=peaks.count,
            mask_params=params,
            mask_features=None if dense.mask_features is None else _widened(dense.mask_features),
        )


def _widened(values: Tensor) -> Tensor:
    """At least float32: in half precision a place beyond cell 128 would be off by an eighth of a cell."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def decode_size(raw: Tensor, coding: BoxCoding) -> Tensor:
    """Width and height in cells from the size head's values [...,2]."""
    if coding == "exp":
        return EXP_BASE * torch.exp(raw.clamp(max=MAX_LOG_SIZE))
    return raw.clamp(min=0)


def dynamic_mask_logits(mask_features: Tensor, params: Tensor, boxes: Tensor, batch_index: Tensor) -> Tensor:
    """The `dynamic` mask head (CondInst, Tian et al. 2020) on every cell, for training.

    Args:
        mask_features: [N,8,h,w].
        params: [P,169]: weights 8x10, 8x8, 1x8, then biases 8, 8, 1.
        boxes: [P,4] xyxy in cells: origin and scale of the relative coordinates.
        batch_index: [P] picture of each row.

    Returns:
        [P,h,w] logits; `centermask.ops.assemble_masks` computes the same inside the boxes.
    """
    count = params.shape[0]
    _, channels, height, width = mask_features.shape
    x = torch.arange(width, device=params.device, dtype=params.dtype) + 0.5
    y = torch.arange(height, device=params.device, dtype=params.dtype) + 0.5
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    # One cell is the least scale, so that a collapsed box does not blow the coordinates up.
    scale = 2.0 / (boxes[:, 2:] - boxes[:, :2]).amax(dim=1).clamp(min=1.0)
    relative_x = ((x - center[:, :1]) * scale[:, None])[:, None, :].expand(-1, height, -1)
    relative_y = ((y - center[:, 1:]) * scale[:, None])[:, :, None].expand(-1, -1, width)
    w0, w1, w2, b0, b1, b2 = torch.split(params, [80, 64, 8, 8, 8, 1], dim=1)
    w0 = w0.reshape(count, 8, 2 + channels)
    # index_select, since its gradient is summed in a fixed order; that of plain indexing is not.
    features = mask_features.index_select(0, batch_index).flatten(2)
    inputs = torch.cat([torch.stack([relative_x, relative_y], 1).flatten(2), features], 1)
    v = torch.relu(torch.baddbmm(b0[:, :, None], w0, inputs))  # [P,8,h*w]
    v = torch.relu(torch.baddbmm(b1[:, :, None], w1.reshape(count, 8, 8), v))
    v = torch.baddbmm(b2[:, :, None], w2.reshape(count, 1, 8), v)
    return v.reshape(count, height, width)


def shape_mask_probability(
    mask_features: Tensor, params: Tensor, boxes: Tensor, batch_index: Tensor, labels: Tensor
) -> Tensor:
    """The `shape` mask head (CenterMask, arXiv 2004.04446) on every cell, for training.

    Args:
        mask_features: [N,M,h,w] saliency logits, M = 1 or the number of classes.
        params: [P,1024] logits of the 32x32 shape, row-major.
        boxes: [P,4] xyxy in cells.
        batch_index: [P] picture of each row.
        labels: [P] class of each row, used when M > 1.

    Returns:
        [P,h,w] sigmoid(shape resized to the box) * sigmoid(saliency); beyond the box the shape's edge goes on.
    """
    _, channels, height, width = mask_features.shape
    side = 32
    x = torch.arange(width, device=params.device, dtype=params.dtype) + 0.5
    y = torch.arange(height, device=params.device, dtype=params.dtype) + 0.5
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
    # grid_sample without align_corners: -1 and 1 are the outer edges of the shape map, so the box's edges.
    u = (x - boxes[:, :1]) / size[:, :1] * 2 - 1
    v = (y - boxes[:, 1:2]) / size[:, 1:] * 2 - 1
    grid = torch.stack([u[:, None, :].expand(-1, height, -1), v[:, :, None].expand(-1, -1, width)], dim=-1)
    shape = params.reshape(-1, 1, side, side)
    resized = F.grid_sample(shape, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    plane = batch_index * channels + labels if channels > 1 else batch_index
    # index_select, since its gradient is summed in a fixed order; that of plain indexing is not.
    return torch.sigmoid(resized) * torch.sigmoid(mask_features.flatten(0, 1).index_select(0, plane))
