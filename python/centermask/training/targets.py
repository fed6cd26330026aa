"""Training targets, made on the device from a batch's boxes: heatmaps and the cells that learn boxes and masks."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Radius = Literal["cornernet", "iou0.3"]

CHUNK = 256
"""Objects whose Gaussians are drawn at a time: a batch of 16 crowds holds thousands, each a whole map."""


def gaussian_radius(width: Tensor, height: Tensor, rule: Radius = "cornernet") -> Tensor:
    """How far from an object's centre a peak still counts as nearly right, in cells.

    `cornernet` is the formula that CornerNet and CenterNet train with, at IoU 0.7. Its quadratic roots lack the
    division by 2a, so it gives larger radii than the geometry (8.75 for a 32x32 box); the published results come from
    it. `iou0.3` is the corrected formula at IoU 0.3, as in mmdetection (7.24 for that box).

    Args:
        width: [n] in cells.
        height: [n] in cells.
        rule: Which formula.

    Returns:
        [n] radii, unrounded, >= 0.
    """
    overlap = 0.7 if rule == "cornernet" else 0.3
    total = width + height
    area = width * height
    # One corner in and one out, both inside, both outside the true box (CornerNet, section 3.2): a r^2 + b r + c = 0.
    cases = (
        (1.0, total, area * (1 - overlap) / (1 + overlap), -1),
        (4.0, 2 * total, area * (1 - overlap), -1),
        (4.0 * overlap, -2 * overlap * total, (overlap - 1) * area, 1),
    )
    radii = []
    for a, b, c, sign in cases:
        root = torch.sqrt((b * b - 4 * a * c).clamp(min=0))
        radii.append((b + root) / 2 if rule == "cornernet" else (b + sign * root) / (2 * a))
    return torch.stack(radii).amin(dim=0).clamp(min=0)


def heatmap_targets(
    boxes: Tensor,
    labels: Tensor,
    batch_index: Tensor,
    shape: tuple[int, int, int, int],
    rule: Radius = "cornernet",
) -> Tensor:
    """The heatmap to learn: a Gaussian around each centre, the maximum where they overlap, exactly 1 at the centre.

    Args:
        boxes: [T,4] xyxy in cells.
        labels: [T] class.
        batch_index: [T] picture.
        shape: (N, C, H, W).
        rule: Radius formula; the Gaussian has sigma (2 * radius + 1) / 6 and ends at the radius.

    Returns:
        [N,C,H,W] float32 in 0..1.
    """
    batch, classes, height, width = shape
    heatmap = torch.zeros(batch * classes, height, width, device=boxes.device)
    for start in range(0, boxes.shape[0], CHUNK):
        some = slice(start, start + CHUNK)
        bumps = _gaussians(boxes[some], height, width, rule)
        plane = (batch_index[some] * classes + labels[some])[:, None, None].expand_as(bumps)
        heatmap.scatter_reduce_(0, plane, bumps, "amax")
    return heatmap.view(shape)


def semantic_targets(masks: Tensor, labels: Tensor, batch_index: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """How far each cell is covered by each class: the maximum over its instances.

    Args:
        masks: uint8 [T,H,W], covered share in 0..255.
        labels: [T] class.
        batch_index: [T] picture.
        shape: (N, C, H, W).

    Returns:
        [N,C,H,W] float32 in 0..1.
    """
    batch, classes, height, width = shape
    covered = torch.zeros(batch * classes, height, width, device=masks.device)
    for start in range(0, masks.shape[0], CHUNK):
        some = slice(start, start + CHUNK)
        share = masks[some].float() / 255
        plane = (batch_index[some] * classes + labels[some])[:, None, None].expand_as(share)
        covered.scatter_reduce_(0, plane, share, "amax")
    return covered.view(shape)


def _gaussians(boxes: Tensor, height: int, width: int, rule: Radius) -> Tensor:
    """The bump of each box [T,4] on the whole map: [T,H,W]."""
    x, y = center_cells(boxes, height, width)
    extent = (boxes[:, 2:] - boxes[:, :2]).ceil()
    radius = gaussian_radius(extent[:, 0], extent[:, 1], rule).floor()
    sigma = (2 * radius + 1) / 6
    columns = torch.arange(width, device=boxes.device) - x[:, None]  # [T,W]
    rows = torch.arange(height, device=boxes.device) - y[:, None]  # [T,H]

    def profile(distance: Tensor) -> Tensor:
        inside = distance.abs() <= radius[:, None]
        return torch.exp(-(distance**2) / (2 * sigma[:, None] ** 2)) * inside

    return profile(rows)[:, :, None] * profile(columns)[:, None, :]


def center_cells(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The cells that hold the centres of boxes [T,4] (xyxy, in cells): (x [T], y [T]) int64, inside the map."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    x = center[:, 0].floor().long().clamp(0, width - 1)
    y = center[:, 1].floor().long().clamp(0, height - 1)
    return x, y


class Positives(NamedTuple):
    """Cells that learn the box and the mask of an object.

    Attributes:
        instance: [P] int64, row of the batch's boxes.
        batch_index: [P] int64 picture.
        y: [P] int64 row of the cell.
        x: [P] int64 column of the cell.
    """

    instance: Tensor
    batch_index: Tensor
    y: Tensor
    x: Tensor


def sample_positives(
    boxes: Tensor, batch_index: Tensor, height: int, width: int, samples: int, generator: torch.Generator | None = None
) -> Positives:
    """Each object's centre cell and `samples` - 1 cells drawn from a Gaussian around it.

    TTFNet (Liu et al. 2020) trains the box at every cell of an elliptic Gaussian, weighted by it, instead of one cell
    an object, and converges several times faster. Drawing cells from that Gaussian has the same expectation at a fixed
    price for each object, and needs the sparse heads only.

    Args:
        boxes: [T,4] xyxy in cells.
        batch_index: [T].
        height: Rows of the map.
        width: Columns of the map.
        samples: Cells for each object (>= 1); the first is the centre. 1 is CenterNet's own rule.
        generator: Source of randomness.

    Returns:
        P = T * samples cells; the `samples` cells of an object stand together, its centre first.
    """
    count = boxes.shape[0]
    x, y = center_cells(boxes, height, width)
    extent = boxes[:, 2:] - boxes[:, :2]
    # TTFNet: sigma is a sixth of 0.54 times the box's side.
    noise = torch.randn(count, samples, 2, generator=generator, device=boxes.device) * (0.54 / 6 * extent)[:, None, :]
    noise[:, 0] = 0
    cell_x = (x[:, None] + noise[:, :, 0].round().long()).clamp(0, width - 1).flatten()
    cell_y = (y[:, None] + noise[:, :, 1].round().long()).clamp(0, height - 1).flatten()
    instance = torch.arange(count, device=boxes.device).repeat_interleave(samples)
    return Positives(instance, batch_index[instance], cell_y, cell_x)


def jitter_boxes(boxes: Tensor, amount: float, generator: torch.Generator | None = None) -> Tensor:
    """Boxes moved and scaled at random, so that the mask head learns with boxes as imperfect as predicted ones.

    Args:
        boxes: [P,4] xyxy.
        amount: Standard deviation, as a fraction of the side (centre) and of log size.
        generator: Source of randomness.

    Returns:
        [P,4] xyxy.
    """
    if amount == 0:
        return boxes
    noise = torch.randn(boxes.shape, generator=generator, device=boxes.device) * amount
    size = boxes[:, 2:] - boxes[:, :2]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2 + noise[:, :2] * size
    half = size * torch.exp(noise[:, 2:].clamp(-math.log(2), math.log(2))) / 2
    return torch.cat([center - half, center + half], dim=1)
